"""New rows appended to finished principal components, whose own rows need not be there any more.

Where the old capture still exists, a stage of `spectrum.pca` over both captures costs no more, as states are kept, and is exact. Here the
old rows count as what their artifact says of them: its components, and a bound on the rest. Arrays: as those of `spectrum.pca`.
"""

import math

import torch
from pydantic import Field

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowsPort, State
from tasks.numerics import leading, moments, streaming
from tasks.numerics.leading import Leading

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(), "old": ArtifactPort("spectrum.pca", one_width=True)}
ARRAYS = {
    "eigenvalue": ("order",),
    "eigenvalue_upper": ("order",),
    "components": ("component", "feature"),
    "explained": ("component",),
    "mean": ("feature",),
}
REFERENCE = (
    "Levy, Lindenbaum, IEEE Transactions on Image Processing 9 (2000) 1371; Ross, Lim, Lin, Yang, IJCV 77 (2008) 125: the mean moves too. "
    "Bound: as for a truncated stream"
)
SEEDS = ()


class Config(Frozen):
    """How many components."""

    components: int | None = Field(default=None, ge=1)
    """Basis vectors to keep; None keeps as many as the old ones."""
    rank: int | None = Field(default=None, ge=1)
    """Directions of the new rows that are kept while they go along; None keeps four times `components`."""


class Result(Frozen):
    """What was found, and how far it can be off."""

    n_rows: int
    """Old and new."""
    n_new: int
    width: int
    trace: float
    """Total variance of all rows, exact."""
    components: int
    explained: float | None
    """Share of the trace that they hold, at least."""
    moved: float | None
    """Distance between the means of old and new rows, over the root of the old trace; None where that is 0."""
    missed: float
    """No direction that was left out has more variance than this."""
    angle_bound: float | None
    """The sine of the largest angle between the kept subspace and that of all rows is no larger; None where no bound can be proven."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the old components are of another width, or were taken about the origin.
    """
    width, old = inputs.widths["x"], inputs.artifacts["old"]["mean"]
    if len(old) != width:
        raise MethodError(
            f"the site has {width} features, the finished components {len(old)}; connect those of the same site"
        )
    if not inputs.results["old"]["centred"]:
        raise MethodError(
            "the finished components were taken about the origin (center: false); append needs centred ones"
        )


def start(inputs: Inputs, config: Config) -> State:
    """How much of the new rows is kept."""
    k = config.components or len(inputs.artifacts["old"]["components"])
    rank = min(inputs.widths["x"], config.rank or max(16, 4 * k))
    return {"rank": torch.tensor(rank)}


def state_config(config: Config) -> dict[str, object]:
    """The state depends on the carry alone."""
    return {}


def partial(block: Block, carry: State, config: Config) -> State:
    """A truncated decomposition of the new rows."""
    return streaming.partial(block["x"], block.weight, int(carry["rank"]), False)


def merge(a: State, b: State) -> State:
    """Of both."""
    return streaming.merge(a, b)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Old and new together.

    Raises:
        MethodError: without new rows.
    """
    check(inputs, config)
    moments.require(state, 1)
    old = _as_state(inputs, state)
    both = streaming.merge(old, state)
    found = leading.from_stream(both, "count", True)
    kept = min(config.components or len(inputs.artifacts["old"]["components"]), found.rank)
    spread = float(old["energy"] / old["w"])
    apart = float(torch.linalg.vector_norm(state["mean"] - old["mean"]))
    result = Result(
        n_rows=int(both["n"]),
        n_new=int(state["n"]),
        width=inputs.widths["x"],
        trace=found.trace,
        components=kept,
        explained=min(1.0, float(found.values[:kept].sum()) / found.trace) if found.trace > 0 else None,
        moved=apart / math.sqrt(spread) if spread > 0 else None,
        missed=found.gap,
        angle_bound=bound if (bound := found.angle_bound(kept)) < 1 else None,
        caveats=_caveats(inputs),
    )
    return result, _arrays(found, both, kept)


def _as_state(inputs: Inputs, like: State) -> State:
    """The old rows as a truncated decomposition of them."""
    result, arrays = inputs.results["old"], inputs.artifacts["old"]
    n, k = float(result["n_eff"]), len(arrays["components"])
    squares = arrays["eigenvalue"][:k].double() * (n - 1)
    device = like["rows"].device
    rest = max(0.0, float(result["trace"]) * (n - 1) - float(squares.sum()))
    following = float(arrays["eigenvalue"][k : k + 1].nan_to_num(0.0).sum()) + float(
        result["missed"]
    )  # of what was not kept
    numbers = {
        "w": n,
        "w2": n,
        "energy": float(result["trace"]) * (n - 1),
        "lost": min(rest, following * (n - 1)),
    }
    return (
        like
        | {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in numbers.items()}
        | {
            "n": torch.tensor(int(result["n_rows"]), device=device),
            "mean": arrays["mean"].double(),
            "rows": arrays["components"].double() * squares.sqrt()[:, None],
        }
    )


def _caveats(inputs: Inputs) -> tuple[str, ...]:
    result = inputs.results["old"]
    if result["n_eff"] < result["n_rows"]:
        return (f"the old rows were weighted and count as {result['n_eff']:.0f} rows of weight 1",)
    return ()


def _arrays(found: Leading, state: State, kept: int) -> Arrays:
    arrays = {
        "eigenvalue": found.values,
        "eigenvalue_upper": found.upper,
        "components": found.vectors[:kept].contiguous(),
        "explained": found.values[:kept] / found.trace,
        "mean": state["mean"],
    }
    return {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}
