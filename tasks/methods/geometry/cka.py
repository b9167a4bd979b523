"""How alike two sites represent the same rows: linear centred kernel alignment, exact from one pass.

The ports x and y may belong to different captures; rows are joined by sample key and position. No arrays.
"""

import math

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import joint_moments
from tasks.numerics.similarity import linear_cka

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(), "y": RowsPort()}
ARRAYS: dict[str, tuple[str, ...]] = {}
REFERENCE = (
    "Kornblith, Norouzi, Lee, Hinton, ICML (2019): linear CKA. Song, Smola, Gretton, Bedo, Borgwardt, JMLR 13 (2012) 1393, theorem "
    "2: the unbiased estimate"
)
SEEDS = ()
FEW = 10
"""The biased value is far too high below so many rows per feature."""


class Config(Frozen):
    """Nothing to choose."""


class Result(Frozen):
    """Alignment in 0..1: 1 for features that differ by a rotation and a scale."""

    n_rows: int
    """Joined rows."""
    width_x: int
    width_y: int
    cka: float | None
    """The usual value, biased up when rows are few; None where a side does not vary."""
    cka_debiased: float | None
    """From unbiased estimates: about 0 for unrelated rows, however few. None for less than four rows."""
    caveats: tuple[str, ...]


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried."""
    return {}


def partial(block: Block, carry: State, config: Config) -> State:
    """The joint moments of a block, and the width of x."""
    return joint_moments.partial(block["x"], block["y"])


def merge(a: State, b: State) -> State:
    """The moments of both."""
    return joint_moments.merge(a, b)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Both ratios.

    Raises:
        MethodError: if no row has a partner.
    """
    n, widths = int(state["n"]), (inputs.widths["x"], inputs.widths["y"])
    if n == 0:
        raise MethodError(
            "no row of x has a partner in y: sample keys or positions differ; connect captures of the same data"
        )
    found = linear_cka(state)
    notes = ["intervals are not given: tokens of one text are not independent"]
    if n < FEW * max(widths):
        notes.append(f"{n} rows for {max(widths)} features: read the debiased value")
    return (
        Result(
            n_rows=n,
            width_x=widths[0],
            width_y=widths[1],
            cka=_finite(found.biased),
            cka_debiased=_finite(found.debiased),
            caveats=tuple(notes),
        ),
        {},
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
