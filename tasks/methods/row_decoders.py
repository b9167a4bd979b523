"""Rows from codes, block by block: shared by methods that read an artifact of codes aligned with its rows.

What decodes tells which method coded: `step` that of `compression.klt`, with a `part` of each row that of `compression.piecewise`; `centre`
that of `compression.product_codes`.
"""

from collections.abc import Mapping

from torch import Tensor

from tasks.methods.contract import ArtifactPort
from tasks.numerics import uniform_codes, vector_codes
from tasks.numerics.vector_codes import Codebooks

FIXED = ("components", "mean", "step", "centre", "rotation")
CODES = ArtifactPort(
    "compression.klt",
    others=("compression.product_codes", "compression.piecewise"),
    one_width=True,
    aligned=True,
)
"""A port that takes codes of the rows."""


def carried(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What decodes, in float64."""
    return {f"decoder.{name}": arrays[name].double() for name in FIXED if name in arrays}


def decoded(codes: Mapping[str, Tensor], carry: Mapping[str, Tensor]) -> Tensor:
    """float64 [row, feature]: the rows that codes stand for.

    Args:
        codes: row-aligned arrays of the artifact.
        carry: with what `carried` gave.
    """
    mean = carry["decoder.mean"]
    if "decoder.centre" in carry:
        books = Codebooks(carry["decoder.centre"], mean, carry["decoder.rotation"], "none")
        return vector_codes.decoded(codes["code"], codes["gain"].double(), codes["bias"].double(), books)
    steps = (codes["code"].double() + 256 * codes["high"].double()) * carry["decoder.step"]
    length = codes["length"].double()[:, None]
    if "part" in codes:
        return uniform_codes.in_parts(steps, codes["part"].long(), carry["decoder.components"], mean) * length
    return (steps @ carry["decoder.components"] + mean) * length
