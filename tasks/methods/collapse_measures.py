"""The measures of neural collapse of some class moments, so that they can be taken again without each group of samples."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.methods.contract import State
from tasks.numerics import class_moments, collapse

NONE = collapse.Duality(math.nan, math.nan, math.nan)


class Numbers(NamedTuple):
    """Of some rows; those that `Result` names get intervals."""

    nc1: float
    nc1_rows: float
    nc1_quotient: float
    nc1_quotient_rows: float
    vci: float
    cdnv: float
    cdnv_rows: float
    equinorm: float
    equinorm_rows: float
    cosine_spread: float
    cosine_error: float
    etf_distance: float
    orthogonality: float
    log_distance: float
    log_distance_spread: float
    duality: float
    alignment: float
    alignment_spread: float
    vci_random: float
    n_pairs: float
    n_equal: float
    rank_of_means: float
    rank_of_means_rows: float


def measured(
    state: State, chosen: collapse.Pairs, weight: Tensor | None, degrees: str, eps: float
) -> tuple[Numbers, Tensor]:
    """All measures, and the distance variance of each pair.

    Args:
        state: class moments.
        chosen: pairs of classes.
        weight: [class, feature], of the classifier, in the order of the classes.
        degrees: what scatter is divided by.
        eps: to which the rows are rounded.
    """
    mean, w, classes = state["mean"], state["w"], len(state["code"])
    if classes < 2:
        return Numbers(*[math.nan] * len(Numbers._fields)), mean.new_zeros(0)
    alike = collapse.between(mean, torch.full_like(w, 1 / classes))
    by_rows = collapse.between(mean, w / w.sum())
    scatter, variance = class_moments.scatter(state), variance_of(state, degrees)
    divisor = pooled(state, degrees)
    ranks = alike.known(eps), by_rows.known(eps)
    within = scatter / divisor if divisor > 0 else torch.full_like(scatter, math.nan)
    explained = collapse.explained(scatter / w.sum(), by_rows)
    square = collapse.square_distances(mean, chosen)
    distances = collapse.distance_variance(variance, square, chosen)
    there = distances.isfinite()
    by_pair = (w[chosen.first] * w[chosen.second])[there]
    lie = collapse.directions(mean - alike.centre, chosen, alike.noise)
    dual = NONE if weight is None else collapse.duality(weight, mean)
    rounding = alike.noise
    found = Numbers(
        nc1=collapse.within_over_between(within, alike, ranks[0]) / classes,
        nc1_rows=collapse.within_over_between(within, by_rows, ranks[1]) / classes,
        nc1_quotient=_ratio(float(variance.nanmean()), alike.trace),
        nc1_quotient_rows=_ratio(float(within.trace()), by_rows.trace),
        vci=collapse.variability_index(explained, by_rows.rank),
        cdnv=float(distances[there].mean()),
        cdnv_rows=float((by_pair * distances[there]).sum() / by_pair.sum()),
        equinorm=_clean(
            collapse.variation((mean - alike.centre).norm(dim=1), torch.full_like(w, 1 / classes)), rounding
        ),
        equinorm_rows=_clean(
            collapse.variation((mean - by_rows.centre).norm(dim=1), w / w.sum()), by_rows.noise
        ),
        cosine_spread=_clean(lie.spread, rounding),
        cosine_error=_clean(lie.error, rounding),
        etf_distance=_clean(collapse.etf_distance(alike), rounding),
        orthogonality=_clean(collapse.directions(mean, chosen).overlap, rounding),
        log_distance=lie.log_distance,
        log_distance_spread=_clean(lie.log_spread, rounding),
        duality=_clean(dual.distance, rounding),
        alignment=dual.alignment,
        alignment_spread=_clean(dual.spread, rounding),
        vci_random=collapse.variability_index_at_random(
            explained.rank, classes, by_rows.rank, float(w.sum().square() / state["w2"].sum())
        ),
        n_pairs=len(square),
        n_equal=float((square == 0).sum()),
        rank_of_means=ranks[0],
        rank_of_means_rows=ranks[1],
    )
    return found, distances


def moved(without: Numbers, base: Numbers, whole: Numbers) -> Numbers:
    """Measures without a group, from few pairs of classes, as they would be from all: by the ratio that all rows have to all rows."""
    found = [w * v / b if b > 0 and v > 0 else w for w, b, v in zip(without, base, whole, strict=True)]
    return Numbers(*found)._replace(
        log_distance=without.log_distance + whole.log_distance - base.log_distance
    )


def pooled(state: State, degrees: str) -> float:
    """What the scatter of all rows about the means of their classes is divided by; 0 without two rows of a class."""
    return float(state["w"].sum() if degrees == "rows" else class_moments.degrees(state).sum())


def variance_of(state: State, degrees: str) -> Tensor:
    """[class]: NaN for a class of one row."""
    left = class_moments.degrees(state)
    divisor = state["w"] if degrees == "rows" else left
    return torch.where(left > 0, state["q"] / divisor, math.nan)


def same_pairs(chosen: collapse.Pairs, code: Tensor, rest: Tensor) -> collapse.Pairs:
    """The same pairs among the classes that are left."""
    place = torch.searchsorted(rest, code).clamp(max=len(rest) - 1)
    there = rest[place] == code
    both = there[chosen.first] & there[chosen.second]
    return collapse.Pairs(place[chosen.first][both], place[chosen.second][both], chosen.every)


def same_classes(weight: Tensor | None, code: Tensor, rest: Tensor) -> Tensor | None:
    return None if weight is None else weight[torch.searchsorted(code, rest)]


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan


def _clean(value: float, noise: float) -> float:
    """0 for what rounding alone makes."""
    return 0.0 if value < noise else value
