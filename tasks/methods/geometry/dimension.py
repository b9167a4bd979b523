"""Intrinsic dimension of a site by every common estimator, from one exact search for neighbours.

Reads distances of `geometry.neighbours`, not rows. As estimates are too low in high dimensions, the dimension of a Gaussian of as
many rows with the same estimate stands beside. Intervals leave rows of samples out of sums, not out of others' neighbours, which
rows share: for independent rows, those of 95 % cover 90 %. Targets of regression: capture them as rows (of a network that gives
them back) and run both stages there too; a label of one number has dimension 1 at most.

Arrays, over scales k = 2 .. : `neighbours` k, `distance` (geometric mean of the k-th distances), `dimension` with `low` and `high`;
over m = 1, 2, 4, ..: `doubling` m and `two_scale` with `two_scale_low` and `two_scale_high`, between the m-th neighbour and the 2m-th.
"""

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import intrinsic_dimension as numerics
from tasks.numerics import row_sample
from tasks.numerics.intrinsic_dimension import Sums
from tasks.numerics.split import spread

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(values=False), "neighbours": ArtifactPort("geometry.neighbours", aligned=True)}
ARRAYS = {
    "neighbours": ("scale",),
    "distance": ("scale",),
    "dimension": ("scale",),
    "low": ("scale",),
    "high": ("scale",),
    "doubling": ("doubling",),
    "two_scale": ("doubling",),
    "two_scale_low": ("doubling",),
    "two_scale_high": ("doubling",),
}
REFERENCE = (
    "Levina, Bickel, NIPS (2004); MacKay, Ghahramani, comments on it (2005): averages of inverses. Facco, d'Errico, Rodriguez, Laio, "
    "Scientific Reports 7 (2017) 12140: TwoNN. Amsaleg et al., KDD (2015): local dimension by likelihood and moments. Huang et al., "
    "LDReg, ICLR (2024), as its code has it. Denti, Doimo, Laio, Mira, Scientific Reports 12 (2022) 20005: scales, here by moments "
    "(reconstructed)"
)
SEEDS = (0, 27, 206, 230)
LARGEST = 100_000.0
"""Dimension of the largest Gaussian that is tried."""


class Config(Frozen):
    """How many groups, and what the line of TwoNN leaves out."""

    groups: int = Field(default=20, ge=5, le=200)
    """Groups that samples are spread into for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    discard: float = Field(default=0.1, ge=0, lt=1)
    """Share of rows with the largest ratios that TwoNN by a line, and by censored likelihood, leaves out."""
    fit_rows: int = Field(default=32768, ge=10, le=1_000_000)
    """Rows that these two are made of: all, or so many drawn without replacement; each costs 24 bytes."""


class Result(Frozen):
    """What was found. None where the rows do not determine a number."""

    n_rows: int
    """Good rows."""
    n_used: int
    n_duplicate: int
    """Rows at distance 0 from another, which have no ratios of distances and are left out."""
    n_few: int
    """Rows with less than k others, left out."""
    n_tied: int
    """Used rows whose k neighbours are all as far: their own dimension is endless, and local means leave them out."""
    n_groups: int
    """That hold rows."""
    k: int
    """Neighbours per row."""
    width: int
    """Features."""
    dimension: Interval | None
    """From all k neighbours: the inverse of the mean inverse of local maximum likelihood estimates."""
    dimension_gaussian: Interval | None
    """Dimension of a Gaussian of as many rows with this estimate: what the estimate is without saturation, if rows are like it."""
    saturated: float | None
    """What the estimator gives for a Gaussian whose dimension is the estimate: lower by as much as it saturates there."""
    levina_bickel: Interval | None
    """The mean of local estimates (k-2) / S."""
    geometric: Interval | None
    """The geometric mean of local estimates (k-1) / S."""
    moments: Interval | None
    """The geometric mean of local estimates by moments."""
    ldreg: Interval | None
    """The geometric mean of local estimates as LDReg's code has them: too high by k / (k-1) at least, and by a shift of 1e-4 of ratios."""
    twonn: Interval | None
    """From two neighbours, by maximum likelihood."""
    twonn_gaussian: Interval | None
    """Dimension of a Gaussian of as many rows with this estimate."""
    twonn_line: Interval | None
    """From two neighbours, by the slope of a line."""
    twonn_censored: Interval | None
    """From two neighbours, by the likelihood of all but the largest ratios."""
    n_fitted: int
    """Rows of the last two."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the artifact has less than 3 neighbours per row.
    """
    k = int(inputs.results["neighbours"]["k"])
    if k < 3:
        raise MethodError(
            f"the artifact has {k} neighbours per row, estimators of dimension need at least 3: raise its k"
        )


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried."""
    return {}


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on."""
    return {"groups": config.groups, "fit_rows": config.fit_rows}


def partial(block: Block, carry: State, config: Config) -> State:
    """Sums over the rows of each group, and the sample of ratios."""
    distance, group = block.aligned["neighbours"]["distance"], spread(block.sample, config.groups)
    used = numerics.usable(distance)
    zero = distance[:, 0] == 0
    state = numerics.sums(distance[used], group[used], config.groups)
    counts = {"duplicate": zero, "few": ~used & ~zero}
    none = torch.zeros(config.groups, dtype=torch.int64, device=distance.device)
    state |= {name: none.index_add(0, group, rows.long()) for name, rows in counts.items()}
    log_mu = torch.log(distance[used, 1] / distance[used, 0])
    drawn = row_sample.of_rows(
        block.index[used], torch.stack([log_mu, group[used].double()], 1), config.fit_rows
    )
    return state | {f"fit_{name}": values for name, values in drawn.items()}


def merge(a: State, b: State) -> State:
    """The sums of both, and the sample of both."""
    drawn = row_sample.merge(_sample(a), _sample(b))
    return {name: a[name] + b[name] for name in a if not name.startswith("fit_")} | {
        f"fit_{name}": values for name, values in drawn.items()
    }


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All estimates from all rows, and from all rows but each group's."""
    used, k = int(state["n"].sum()), int(inputs.results["neighbours"]["k"])
    n_rows = used + int(state["duplicate"].sum() + state["few"].sum())
    total, without = _jackknife(state)
    drawn = row_sample.values(_sample(state))

    def found(estimate: Callable[[Sums], float]) -> Interval | None:
        return _interval(estimate, total, without, config) if used else None

    def fitted(estimate: Callable[[Tensor, float], float]) -> Interval | None:
        parts = [drawn[drawn[:, 1] != g, 0] for g in torch.unique(drawn[:, 1]).tolist()]
        return _interval(lambda x: estimate(x, config.discard), drawn[:, 0], parts, config)

    dimension, twonn = found(lambda sums: float(numerics.mle(sums)[-1])), found(numerics.twonn)
    result = Result(
        n_rows=n_rows,
        n_used=used,
        n_duplicate=int(state["duplicate"].sum()),
        n_few=int(state["few"].sum()),
        n_tied=int(total["n"] - total["told"][-1]),
        n_groups=len(without),
        k=k,
        width=inputs.widths["x"],
        dimension=dimension,
        dimension_gaussian=_gaussian(dimension, n_rows, k),
        saturated=_saturated(dimension, n_rows, k),
        levina_bickel=found(numerics.levina_bickel),
        geometric=found(numerics.geometric),
        moments=found(lambda sums: numerics.geometric_of(sums, "moments")),
        ldreg=found(lambda sums: numerics.geometric_of(sums, "ldreg")),
        twonn=twonn,
        twonn_gaussian=_gaussian(twonn, n_rows, 2),
        twonn_line=fitted(numerics.line),
        twonn_censored=fitted(numerics.censored),
        n_fitted=len(drawn),
        caveats=_caveats(inputs, config, used, n_rows, len(drawn), len(without)),
    )
    return result, _arrays(total, without, k, config)


def _sample(state: State) -> State:
    return {name.removeprefix("fit_"): state[name] for name in ("fit_key", "fit_value")}


def _jackknife(state: State) -> tuple[Sums, list[Sums]]:
    """Sums over all groups, and over all but each that holds rows."""
    names = [name for name in state if not name.startswith("fit_")]
    there = torch.nonzero(state["n"] > 0).flatten().tolist()
    total = {name: state[name].sum(0) for name in names}
    others = [[g for g in there if g != one] for one in there]
    return total, [{name: state[name][rest].sum(0) for name in names} for rest in others]


def _interval(estimate: Callable, whole: object, parts: list, config: Config) -> Interval | None:  # type: ignore[type-arg]
    value = float(estimate(whole))
    return grouped_moments.interval(value, [float(estimate(part)) for part in parts], config.confidence)


def _gaussian(estimate: Interval | None, n: int, k: int) -> Interval | None:
    """The Gaussians' dimensions for a value and its bounds, which keep their order."""
    if estimate is None:
        return None
    numbers = {name: value for name, value in estimate.model_dump().items() if value is not None}
    found = {name: numerics.gaussian_of_mle(value, n, k, LARGEST) for name, value in numbers.items()}
    if not math.isfinite(found["value"]):
        return None
    known = {name: value if math.isfinite(value) else None for name, value in found.items()}
    return Interval.model_validate({"corrected": None, "low": None, "high": None} | known)


def _saturated(estimate: Interval | None, n: int, k: int) -> float | None:
    return None if estimate is None else numerics.mle_of_gaussian(estimate.value, n, k)


def _arrays(total: Sums, without: list[Sums], k: int, config: Config) -> Arrays:
    """The profiles over scales, with their intervals."""
    count = total["n"].clamp(min=1)
    order = torch.arange(2, k + 1)
    profile = _bounds(numerics.mle, total, without, config)
    double = _bounds(numerics.two_scale, total, without, config)
    values = {
        "neighbours": order,
        "distance": torch.exp(total["log_distance"][1:] / count),
        "dimension": profile[0],
        "low": profile[1],
        "high": profile[2],
        "doubling": torch.tensor(numerics.doublings(k)),
        "two_scale": double[0],
        "two_scale_low": double[1],
        "two_scale_high": double[2],
    }
    return {name: Array(value, ARRAYS[name]) for name, value in values.items()}


def _bounds(
    estimate: Callable[[Sums], Tensor], total: Sums, without: list[Sums], config: Config
) -> tuple[Tensor, Tensor, Tensor]:
    """Values with their lower and upper bounds; NaN where unknown."""
    whole, parts = estimate(total).cpu(), [estimate(part).tolist() for part in without]
    rows = []
    for place, value in enumerate(whole.tolist()):
        found = grouped_moments.interval(value, [part[place] for part in parts], config.confidence)
        bounds = (None, None) if found is None else (found.low, found.high)
        rows.append([math.nan if bound is None else bound for bound in bounds])
    low, high = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return whole, low, high


def _caveats(
    inputs: Inputs, config: Config, used: int, n_rows: int, fitted: int, groups: int
) -> tuple[str, ...]:
    notes = list(grouped_moments.caveats(groups, config.groups))
    if groups < 2:
        notes.append("samples fall into less than two groups: there are no intervals")
    if used < n_rows:
        notes.append(
            f"{n_rows - used} of {n_rows} rows have duplicates or too few neighbours and are left out"
        )
    if fitted < used:
        notes.append(f"TwoNN by a line and by censored likelihood rest on {fitted} rows drawn from {used}")
    if inputs.n_rows > inputs.n_samples and not inputs.results["neighbours"].get("other_samples"):
        notes.append(
            "neighbours of a row may be rows of the same sample, as tokens of one text, and the dimension that of a text's path: "
            "set other_samples of geometry.neighbours"
        )
    notes.append(
        "estimates are lower bounds in high dimensions: compare with the Gaussian's, which supposes that rows fill space as one does"
    )
    return tuple(notes)
