"""Rows from codes, in NumPy. A method whose artifacts can be decoded has an entry in `DECODERS`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.errors import MethodError

Rows = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


class Decoder(NamedTuple):
    """How rows are made of the arrays of an artifact."""

    fixed: tuple[str, ...]
    """Arrays that all rows share."""
    of_rows: tuple[str, ...]
    """Arrays that hold something of each row."""
    decode: Callable[[Arrays, Arrays], Rows]
    """[row, feature] of these two: float32, NaN for rows of failed samples."""


def decoder_of(method: str) -> Decoder:
    """What makes rows of a method's arrays.

    Raises:
        MethodError: if artifacts of this method hold no codes.
    """
    if method not in DECODERS:
        raise MethodError(
            f"artifacts of {method} hold no codes of rows; those of {', '.join(sorted(DECODERS))} do"
        )
    return DECODERS[method]


def from_principal(fixed: Arrays, rows: Arrays) -> Rows:
    """(code + 256 high) step, along the components, with the mean, times the length.

    Cost: a product of [row, component] and [component, feature].
    """
    shapes = _steps(fixed, rows) @ fixed["components"] + fixed["mean"]
    return _scaled(shapes, rows)


def from_parts(fixed: Arrays, rows: Arrays) -> Rows:
    """As `from_principal`, each row along the components of its part.

    Cost: a product of [row, component] and [component, feature].
    """
    steps, part = _steps(fixed, rows), rows["part"]
    shapes = np.empty((len(part), fixed["mean"].shape[1]), np.float32)
    for number in np.unique(part):
        here = part == number
        shapes[here] = steps[here] @ fixed["components"][number] + fixed["mean"][number]
    return _scaled(shapes, rows)


def from_steps(fixed: Arrays, rows: Arrays) -> Rows:
    """(code + 256 high) step."""
    codes = rows["code"].astype(np.float64) + 256.0 * rows["high"]
    made: Rows = (codes * fixed["step"].item()).astype(np.float32)
    made[np.isnan(rows["largest_error"])] = np.nan
    return made


def from_codebooks(fixed: Arrays, rows: Arrays) -> Rows:
    """The named vectors side by side, turned back, with the mean and the scale.

    Cost: a look-up for each code, and a product of [row, component] and [component, feature] where there is a rotation.
    """
    code, centre, rotation, mean = rows["code"], fixed["centre"], fixed["rotation"], fixed["mean"]
    parts, _, place = centre.shape
    beside = centre[np.arange(parts), code].reshape(len(code), parts * place)[:, : len(mean)]
    shape = (beside @ rotation if len(rotation) else beside) + mean
    made: Rows = rows["bias"][:, None] + rows["gain"][:, None] * shape
    return made


def _steps(fixed: Arrays, rows: Arrays) -> Rows:
    """[row, component]: principal coordinates."""
    codes = rows["code"].astype(np.float32) + np.float32(256) * rows["high"]
    found: Rows = (codes * np.float32(fixed["step"].item())).astype(np.float32, copy=False)
    return found


def _scaled(shapes: Rows, rows: Arrays) -> Rows:
    made: Rows = shapes * rows["length"][:, None]
    made[np.isnan(rows["error"])] = np.nan
    return made


_PRINCIPAL = ("components", "mean", "step")
DECODERS: dict[str, Decoder] = {
    "compression.bounded": Decoder(("step",), ("code", "high", "largest_error"), from_steps),
    "compression.klt": Decoder(_PRINCIPAL, ("code", "high", "length", "error"), from_principal),
    "compression.piecewise": Decoder(_PRINCIPAL, ("code", "high", "part", "length", "error"), from_parts),
    "compression.product_codes": Decoder(
        ("centre", "rotation", "mean"), ("code", "gain", "bias"), from_codebooks
    ),
}
