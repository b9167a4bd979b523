"""Rows as small integers with no value farther off than a promised error.

Every value is coded as the nearest multiple of a step of just under twice the error: no transform, so that the promise holds for each
number by itself, whatever the rows. Values that 16 bits cannot hold at that error, or whose own rounding is larger than it, are refused
with the error that would fit; nothing is clamped. `open_artifact(...).reconstruct()` gives the rows back. For the mean squared error of
rows `compression.klt` takes fewer bits.

Arrays: `code` and `high` (row, feature), value / step = code + 256 high; `largest_error` (row), of its values, measured on what a reader
decodes; rows of failed samples are -1 and NaN. `step`; `bits` (feature), the order-0 entropies of both bytes.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import rate_distortion, uniform_codes
from tasks.numerics.k_subspaces import require_finite

VERSION = 1
KIND = "map"
READS = {"x": RowsPort()}
ARRAYS = {
    "code": ("row", "feature"),
    "high": ("row", "feature"),
    "largest_error": ("row",),
    "step": (),
    "bits": ("feature",),
}
REFERENCE = (
    "Gish, Pierce, IEEE Transactions on Information Theory 14 (1968) 676: uniform steps with entropy coding"
)
SEEDS = ()
WITHIN = 0.999
"""Step over twice the error: what is left is for the rounding of decoded values to float32."""


class Config(Frozen):
    """How exactly values are kept."""

    error: float = Field(default=0.01, gt=0)
    """Largest absolute error of any value."""


class Result(Frozen):
    """What the codes cost and what they keep."""

    n_rows: int
    width: int
    """Features."""
    promised_error: float
    largest_error: float | None
    """Of all values; None without rows."""
    nmse: float | None
    """Squared error over the squared values; None where all are zero."""
    bits_per_dimension: float | None
    """Order-0 entropy of both bytes of a value, feature by feature, over features; None without rows."""
    wide_share: float | None
    """Share of values that need more than 8 bits; None without rows."""
    bytes_before: int
    """Of the rows as they were stored, not compressed."""
    bytes_coded: int
    """By entropy; what they take on disk, `open_artifact(...).bytes` tells."""
    caveats: tuple[str, ...]


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    width = inputs.widths["x"]
    return {
        "code": RowOutput("int8", width=width, dim="feature", codec="codes"),
        "high": RowOutput("int8", width=width, dim="feature", codec="codes"),
        "largest_error": RowOutput("float32"),
    }


def start(inputs: Inputs, config: Config) -> State:
    """The step."""
    return {"step": torch.tensor(2 * WITHIN * config.error, dtype=torch.float64)}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Codes and the largest error of each row.

    Raises:
        MethodError: for values that are not finite, or that cannot be kept to the error.

    Cost: O(row feature).
    """
    require_finite(block["x"])
    x, step = block["x"].double(), float(carry["step"])
    code = torch.round(x / step)
    most = float(code.abs().max()) if code.numel() else 0.0
    if most > uniform_codes.LARGEST:
        raise MethodError(
            f"values up to {float(x.abs().max()):.4g} take more than 16 bits at an error of {config.error:g}; allow an error of at least "
            f"{config.error * most / uniform_codes.LARGEST:.2g}, or keep the rows as they are"
        )
    off = (decoded(code, step).double() - x).abs().amax(1)
    if bool((off > config.error).any()):
        raise MethodError(
            f"values of {float(x.abs().max()):.4g} are rounded by more than an error of {config.error:g} leaves; allow at least "
            f"{2 * config.error:.2g}, or keep the rows as they are"
        )
    low, high = uniform_codes.split(code.long())
    return {"code": low, "high": high, "largest_error": off.float()}


def decoded(code: Tensor, step: float) -> Tensor:
    """float32: what a reader makes of codes."""
    return (code.double() * step).float()


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Counts of both bytes of each feature, and sums."""
    code = uniform_codes.join(outputs["code"], outputs["high"])
    x = block["x"].double()
    worst = outputs["largest_error"].double()
    return {
        "n": torch.tensor(len(block), device=x.device),
        "bytes": torch.tensor(block["x"].nbytes, device=x.device),
        "counts": torch.stack([_counted(outputs[name]) for name in ("code", "high")]),
        "squares": x.square().sum(),
        "error": (decoded(code, float(carry["step"])).double() - x).square().sum(),
        "wide": (outputs["high"] != 0).sum(),
        "worst": worst.max() if len(worst) else worst.new_zeros(()),
    }


def merge(a: State, b: State) -> State:
    """Of both."""
    return {name: torch.maximum(a[name], b[name]) if name == "worst" else a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Rate and error."""
    n, width = int(state["n"]), inputs.widths["x"]
    bits = sum(rate_distortion.entropy(counts) for counts in state["counts"])
    assert isinstance(bits, Tensor)
    rate = float(bits.sum()) / width if n else None
    squares = float(state["squares"])
    wide = int(state["wide"]) / (n * width) if n else None
    result = Result(
        n_rows=n,
        width=width,
        promised_error=config.error,
        largest_error=float(state["worst"]) if n else None,
        nmse=float(state["error"]) / squares if squares > 0 else None,
        bits_per_dimension=rate,
        wide_share=wide,
        bytes_before=int(state["bytes"]),
        bytes_coded=math.ceil(n * width * (rate or 0.0) / 8),
        caveats=_caveats(wide),
    )
    arrays = {"step": carry["step"], "bits": bits}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _counted(part: Tensor) -> Tensor:
    """int64 [feature, byte]: how often each value of a byte occurred."""
    flat = part.long() + 128 + 256 * torch.arange(part.shape[1], device=part.device)
    return torch.bincount(flat.reshape(-1), minlength=256 * part.shape[1]).reshape(part.shape[1], 256)


def _caveats(wide: float | None) -> tuple[str, ...]:
    if wide is not None and wide > 0.5:
        return (f"{wide:.0%} of the values need more than 8 bits: little is saved at this error",)
    return ()
