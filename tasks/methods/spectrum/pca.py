"""Principal components of a site: eigenvalues with intervals, a basis, and what of both can be trusted.

One question, five engines. `auto` takes the covariance where features are up to some thousands, all rows as they are where rows are
few, and else a truncated decomposition that goes along with the rows, made better by further passes; the result says which and why.
Whatever an engine leaves out is bounded, in the result and for each eigenvalue.

Arrays: `eigenvalue`, `eigenvalue_low` and `eigenvalue_high` hold one number per feature, or per direction that a truncating engine
kept, descending, NaN below the rounding floor; `eigenvalue_upper` is what the rows' own eigenvalue is at most; `components` has
orthonormal rows; `explained` is their share of the exact trace; components with one number in `block` have overlapping intervals: only
the space they span is determined.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import component_states, moments_state
from tasks.methods.component_states import Choice, Engine, choose, merge, reduces
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import leading, moments, spectrum, subspace
from tasks.numerics.leading import Leading
from tasks.numerics.moments import Precision, Weights

__all__ = ["merge", "reduces"]

VERSION = 3
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "eigenvalue": ("order",),
    "eigenvalue_low": ("order",),
    "eigenvalue_high": ("order",),
    "eigenvalue_upper": ("order",),
    "components": ("component", "feature"),
    "explained": ("component",),
    "block": ("component",),
    "mean": ("feature",),
}
REFERENCE = (
    "Merge of moments: Chan, Golub, LeVeque, The American Statistician 37 (1983) 242. Intervals and angles: Anderson, Annals of "
    "Mathematical Statistics 34 (1963) 122, theorem 1. Accumulated unexplained variance: Pennec, Annals of Statistics 46 (2018) 2711. "
    "qr: Demmel, Grigori, Hoemmen, Langou, SIAM Journal on Scientific Computing 34 (2012) A206. streaming with shrink: Ghashami, "
    "Liberty, Phillips, Woodruff, SIAM Journal on Computing 45 (2016) 1762. Passes and sketch: Tropp, Yurtsever, Udell, Cevher, NIPS "
    "(2017), algorithm 3. Angle bound: Davis, Kahan, SIAM Journal on Numerical Analysis 7 (1970) 1"
)
SEEDS = (21, 68, 154)
DEFAULT_COMPONENTS = 64
SHOWN = 10
RANK_FACTOR, LEAST_RANK = 4, 16


class Config(Frozen):
    """How many components, by which engine, and how exactly."""

    components: int | None = Field(default=None, ge=1)
    """Basis vectors to keep; None keeps 64, or as many as there are features. Directions lost in rounding are
    never kept, so there may be fewer."""
    engine: Literal["auto"] | Engine = "auto"
    """`moments`: products of features. `qr`: triangular factors, which give singular values down to 1e-14 of the largest where products
    end at 1e-7. `rows`: products of rows. `streaming`: a truncated decomposition. `sketch`: products with random vectors, which add up
    whatever the order. `auto` chooses by the shape."""
    rank: int | None = Field(default=None, ge=1)
    """Directions that `streaming` and `sketch` keep while they go along; None keeps four times `components`. Twice is coarse, no more than
    `components` is wrong."""
    shrink: bool = False
    """Of `streaming`: Frequent Directions, whose bound is nearly reached; off is more exact, its bound less so."""
    refine: int = Field(default=1, ge=0, le=32)
    """Further passes over the rows after `streaming` and `sketch`: each lessens the error by (lambda_(rank + 1) / lambda_components)^2."""
    center: bool = True
    """Subtract the mean; off gives the second moment about the origin, divided by rows and not rows - 1."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Probability that an eigenvalue's interval holds it."""
    weights: Weights = "reliability"
    """What row weights mean: relative importance, or how often a row occurred."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""
    memory_gib: float = Field(default=4.0, gt=0)
    """What a worker may take for its state: decides the engine, and refuses what does not fit."""
    seed: int = 0
    """Of random vectors."""


class Result(Frozen):
    """What was found; the numbers themselves are in the arrays."""

    n_rows: int
    n_eff: float
    """Rows after weighting: (sum w)^2 / sum w^2."""
    width: int
    """Features."""
    engine: Engine
    engine_reason: str
    """Why this engine."""
    passes: int
    """Over the rows."""
    centred: bool
    """Whether the mean was subtracted."""
    trace: float
    """Total variance, exact."""
    components: int
    """Basis vectors kept."""
    explained: float | None
    """Share of the trace that they hold, at least; None when there is no variance."""
    unexplained_area: float
    """Variance left out by the first 1, 2, ... components, summed over the kept ones."""
    eigenvalues: tuple[float, ...]
    """The ten largest."""
    resolved: int
    """Eigenvalues above the rounding floor; those below are NaN in the arrays."""
    floor: float
    """Nothing below this can be told from rounding: products of features or rows square the condition number."""
    missed: float
    """No direction that was left out has more variance than this: eigenvalues are too small by no more, beside rounding."""
    angle_bound: float | None
    """The sine of the largest angle between the kept subspace and that of the rows is no larger; None where no bound can be proven."""
    angle_estimate: float | None
    """The same if no direction was missed altogether, for the subspace of the pass before the last: the kept one is nearer. None without a
    further pass."""
    relative_error: float | None
    """Estimated Frobenius norm of what the kept directions miss of the covariance, over that of the covariance, from ten random vectors;
    None without a further pass."""
    residual: float
    """Largest |C v - lambda v| over lambda_1."""
    interval_method: str
    subspace_error: float | None
    """Expected sum of squared sines of the angles between the kept subspace and that of endless rows, for
    independent Gaussian rows; None without a gap, or where the components hold all rows."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if more components are asked for than there are features or directions, or the state takes too much memory.
    """
    width = inputs.widths["x"]
    if config.components is not None and config.components > width:
        raise MethodError(f"asked for {config.components} components, but the site has {width} features")
    if config.rank is not None and config.components is not None and config.components > config.rank:
        raise MethodError(
            f"asked for {config.components} components of rank {config.rank}; raise rank, at best fourfold"
        )
    _choice(inputs, config)


def start(inputs: Inputs, config: Config) -> State:
    """What the engine of this shape begins with."""
    return component_states.start(_choice(inputs, config), inputs, _rank(inputs, config), config)


def one_pass(config: Config) -> bool:
    """Whether the covariance may do: then the method can be fused."""
    return config.engine in ("auto", "moments", "qr", "rows") or config.refine == 0


def partial(block: Block, carry: State, config: Config) -> State:
    """The state of a block's rows.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    return reduces(carry, config).partial(block, carry, config)


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """A further pass for what was truncated."""
    passes = int(carry["passes"]) if "passes" in carry else 0
    if _choice(inputs, config).engine not in ("streaming", "sketch") or passes >= config.refine:
        return None
    found = _leading(state, carry, config)
    if "q" in carry:
        q, shift = subspace.orthonormal(state["p"][:, : carry["q"].shape[1]]), carry["shift"] + state["mean"]
        known = {
            "gap": torch.tensor(math.inf, dtype=torch.float64)
        }  # what was proven for another basis holds for eigenvalues alone
    else:
        q, shift = found.vectors.T.contiguous(), state["mean"]
        known = {"gap": torch.tensor(found.gap, dtype=torch.float64)}
    following = component_states.pass_over(q, shift, config.seed)
    return following | known | {"upper": found.upper, "passes": torch.tensor(passes + 1)}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Eigenvalues, intervals and basis.

    Raises:
        MethodError: for less than two rows, or values that overflow.

    Cost: O(feature^3) once with moments and qr, O(feature rank^2) else.
    """
    check(inputs, config)
    found = _leading(state, carry, config)
    kept = min(config.components or DEFAULT_COMPONENTS, found.rank)
    return _result(state, carry, found, kept, inputs, config), _arrays(state, carry, found, kept, config)


def _rank(inputs: Inputs, config: Config) -> int:
    wanted = config.components or DEFAULT_COMPONENTS
    return min(inputs.widths["x"], config.rank or max(RANK_FACTOR * wanted, LEAST_RANK))


def _choice(inputs: Inputs, config: Config) -> Choice:
    return choose(inputs.widths["x"], inputs.n_rows, _rank(inputs, config), config)


def _leading(state: State, carry: State, config: Config) -> Leading:
    weights, center = config.weights, config.center
    if "g" in state:
        return leading.from_moments(state, config.precision, weights, center)
    if "lost" in state:
        return leading.from_stream(state, weights, center)
    if "p" not in state:
        return leading.from_triangle(state, weights, center)
    k = min(config.components or DEFAULT_COMPONENTS, carry["q"].shape[1])
    found = leading.from_product(state, carry["q"], carry["test"], carry["shift"], k, weights, center)
    return leading.narrowed(found, carry["upper"], float(carry["gap"])) if "upper" in carry else found


def _result(state: State, carry: State, found: Leading, kept: int, inputs: Inputs, config: Config) -> Result:
    values, trace, choice = found.values, found.trace, _choice(inputs, config)
    n = moments.n_eff(state, config.weights)
    rows, width = int(state["n"]) - config.center, inputs.widths["x"]
    error = spectrum.sampling_error(values.clamp(min=0), kept, n, rows, width, trace)
    return Result(
        n_rows=int(state["n"]),
        n_eff=n,
        width=width,
        engine=choice.engine,
        engine_reason=choice.why,
        passes=1 + (int(carry["passes"]) if "passes" in carry else 0),
        centred=config.center,
        trace=trace,
        components=kept,
        explained=spectrum.top_share(values, kept, trace) if found.rank else None,
        unexplained_area=spectrum.unexplained_area(values, kept, trace),
        eigenvalues=tuple(values[: min(SHOWN, found.rank)].tolist()),
        resolved=found.rank,
        floor=found.floor,
        missed=found.gap,
        angle_bound=_sine(found.angle_bound(kept)),
        angle_estimate=_sine(found.angle_estimate),
        relative_error=found.relative_error if math.isfinite(found.relative_error) else None,
        residual=found.residual,
        interval_method=f"Anderson 1963, Gaussian rows, confidence {config.confidence:g}",
        subspace_error=error if math.isfinite(error) else None,
        caveats=_caveats(state, found, n, inputs.widths["x"], choice),
    )


def _sine(value: float) -> float | None:
    """None where it says nothing."""
    return value if value < 1 else None


def _caveats(state: State, found: Leading, n: float, width: int, choice: Choice) -> tuple[str, ...]:
    notes = moments_state.notes_on_rows(n, width)
    hidden = min(width, int(state["n"]) - 1) - found.rank
    if choice.engine in ("streaming", "sketch"):
        notes.append(
            f"{found.rank} of {width} eigenvalues were kept; those may be too small by {found.gap:.3g} at most"
        )
    elif hidden > 0:
        cure = "" if choice.engine == "qr" else ": engine qr resolves smaller ones"
        notes.append(f"{hidden} eigenvalues lie below the rounding floor{cure}")
    return tuple(notes)


def _arrays(state: State, carry: State, found: Leading, kept: int, config: Config) -> Arrays:
    clear = found.values > found.floor
    values, upper = (torch.where(clear, v, math.nan) for v in (found.values, found.upper))
    n = moments.n_eff(state, config.weights)
    low, high = spectrum.interval(values, n, config.confidence)
    mean = moments.mean(state) if "g" in state else state["mean"] + carry.get("shift", 0.0)
    arrays: dict[str, Tensor] = {
        "eigenvalue": values,
        "eigenvalue_low": low,
        "eigenvalue_high": high + (upper - values),
        "eigenvalue_upper": upper,
        "components": found.vectors[:kept].contiguous(),
        "explained": values[:kept] / found.trace,
        "block": spectrum.blocks(low[:kept], high[:kept]),
        "mean": mean if config.center else torch.zeros_like(mean),
    }
    return {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}
