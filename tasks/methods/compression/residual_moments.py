"""Directions of the residual stream at a norm, by how much of what the norm gives lies along them; `compression.slicing` takes them.

Connect the input of every norm that reads the stream, such as `transformer.h.0.ln_1:in:0`, the last one before the head too. Rows count
as the norm makes them, with a mean square of one (but for its scale, bias and epsilon): each row counts alike, and sites share one unit.
LayerNorm also takes out the mean over features: set `centred`.

Arrays: `energy` (order), mean square along each direction, descending; `directions` (order, feature), orthonormal rows, as many as
features; `loss` (kept), share of the energy that the first 0, 1, ... directions lose on the rows that were read.
"""

from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import moments, slicing, spectrum
from tasks.numerics.moments import Precision
from tasks.numerics.symmetric import full

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"energy": ("order",), "directions": ("order", "feature"), "loss": ("kept",)}
REFERENCE = (
    "Ashkboos, Croci, Gennari do Nascimento, Hoefler, Hensman, SliceGPT: compress large language models by deleting rows and columns, "
    "ICLR (2024), section 3.3: principal components of the outputs of norms"
)
SEEDS = (204,)


class Config(Frozen):
    """What the norm does, and how exactly products are made."""

    centred: bool = False
    """The norm takes out the mean over features, as LayerNorm does; RMSNorm does not."""
    shares: tuple[float, ...] = Field(default=(0.9, 0.99, 0.999), min_length=1)
    """Of the energy, for which the result tells how many directions hold them."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """How narrow the stream is here."""

    n_rows: int
    width: int
    """Features."""
    centred: bool
    energy: float
    """Mean over rows of the sum of squares: the width, but for rows of zeros."""
    participation: float
    """Directions by the participation ratio; 0 without energy."""
    holding: tuple[int, ...]
    """Directions that hold each of the asked shares."""
    caveats: tuple[str, ...]


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on."""
    return {
        "centred": config.centred,
        "precision": config.precision,
        "weight_label": config.weight_label,
    }


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried."""
    return {}


def partial(block: Block, carry: State, config: Config) -> State:
    """Moments of a block's rows as the norm makes them.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    return moments.partial(slicing.normalised(block["x"], config.centred), block.weight, config.precision)


def merge(a: State, b: State) -> State:
    """The moments of both."""
    return moments.merge(a, b)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Directions of the second moment about zero.

    Raises:
        MethodError: without rows, or if the eigensolver fails.

    Cost: O(feature^3).
    """
    moments.require(state, 1)
    about_zero = moments.move(state, state["c"].new_zeros(state["c"].shape))
    found = slicing.directions(full(about_zero["g"]) / state["w"])
    loss, energy = slicing.tails(found.energy), float(found.energy.sum())
    n_rows, width = int(state["n"]), len(found.energy)
    result = Result(
        n_rows=n_rows,
        width=width,
        centred=config.centred,
        energy=energy,
        participation=spectrum.participation_ratio(found.energy) if energy else 0.0,
        holding=tuple(int((loss > 1 - share).sum()) for share in config.shares),
        caveats=_caveats(n_rows, width),
    )
    arrays: dict[str, Tensor] = {"energy": found.energy, "directions": found.vectors, "loss": loss}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _caveats(n_rows: int, width: int) -> tuple[str, ...]:
    if n_rows >= 10 * width:
        return ()
    return (
        f"{n_rows} rows for {width} features: directions hold more of these rows than of others; capture more samples",
    )
