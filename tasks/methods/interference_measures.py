"""Measures of interference, from moments of codes and sums over rows; what `geometry.interference` computes of all rows and of parts."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import interference, moments
from tasks.numerics.collapse import Pairs

SUMS = ("helped", "met", "quiet", "passed", "active", "spill", "negative")
"""Beside moments. The first four are [kind, feature], of the directions and of those permuted (`numerics.interference`); `active` is the
rows' weight where a feature is active, `spill` sum_j c_j^2 |d_j|^2 over the other rows, `negative` the weight of codes below 0."""
VARIES = 1e-12
"""Variance over second moment of a feature below which it is constant."""


class Geometry(NamedTuple):
    """Of directions."""

    cosine: Tensor
    """[feature, feature]"""
    length: Tensor
    """[feature]"""
    dimension: int
    floor: float
    """Interference over readout below which it is rounding."""


class Codes(NamedTuple):
    """Of some rows."""

    state: State
    second: Tensor
    """[feature, feature], mean of c_i c_j."""
    covariance: Tensor
    readout: Tensor
    """[feature], mean of c_i^2 |d_i|^2."""
    resting: Tensor
    """[feature], weight of the rows in which a feature that has a direction is not active."""


class Measured(NamedTuple):
    """Of some rows; NaN where they do not determine it."""

    rank_correlation: float
    linear_correlation: float
    net: float
    constructive: float
    inactive_square: float
    inactive_positive: float


def geometry(directions: Tensor, floor: float) -> Geometry:
    """Lengths and angles."""
    unit, length = interference.unit_and_length(directions)
    return Geometry(unit @ unit.T, length, directions.shape[1], floor)


def codes(state: State, of: Geometry) -> Codes:
    """Second moments.

    Raises:
        MethodError: for less than two rows.
    """
    own = moments_of(state)
    second = moments.covariance(own, center=False)
    resting = (state["w"] - state["active"]).clamp(min=0).where(of.length > 0, 0.0)
    return Codes(state, second, moments.covariance(own), second.diagonal() * of.length.square(), resting)


def varying(found: Codes, of: Geometry) -> Tensor:
    """Features that vary and have a direction.

    Raises:
        MethodError: if there are less than two.
    """
    some = (_varies(found) & (of.length > 0)).nonzero().flatten()
    if len(some) < 2:
        raise MethodError(
            f"{len(some)} of {len(of.length)} features vary and have a direction, expected at least 2; capture more samples, or check "
            "that the site holds codes of features"
        )
    return some


def measured(found: Codes, of: Geometry, pairs: Pairs) -> Measured:
    """All numbers that have intervals."""
    readout = float(found.readout.sum())
    return Measured(
        *interference.correlations(of.cosine[pairs.first, pairs.second], _correlation(found, pairs)),
        float(_net(found, of).sum()) / readout if readout > 0 else math.nan,
        *_of_kind(found, of, 0),
    )


def arranged(
    found: Codes, of: Geometry, pairs: Pairs, some: Tensor, draws: int, seed: int
) -> dict[str, float | None]:
    """Correlations over drawn permutations of the features that vary, net effect over all of those that are active.

    Cost: O(feature^2 + draws pair log pair).
    """
    correlation = _correlation(found, pairs)
    both = [
        interference.correlations(of.cosine[order[pairs.first], order[pairs.second]], correlation)
        for order in interference.orders(some, len(of.length), draws, seed)
    ]
    numbers = _net_permuted(found, of)
    ranks, linear = torch.tensor(both, dtype=torch.float64).T
    for name, values in (("rank_correlation", ranks), ("linear_correlation", linear)):
        numbers[f"{name}_permuted"] = known(float(values.mean()))
        numbers[f"{name}_permuted_deviation"] = known(float(values.std()))
    return numbers


def at_random(found: Codes, of: Geometry) -> dict[str, float | None]:
    """Of independent random directions of these lengths."""
    deviation, readout = (
        interference.net_deviation(of.length, found.second, of.dimension),
        float(found.readout.sum()),
    )
    spill, cells = _spill(found, of) / of.dimension, float(found.resting.sum())
    return {
        "net_random_deviation": deviation / readout if readout > 0 else None,
        "inactive_square_random": spill / cells if spill > 0 else None,
    }


def permuted(found: Codes, of: Geometry) -> dict[str, float | None]:
    """Means over the permutations whose interference was summed row by row."""
    kinds = [_of_kind(found, of, k) for k in range(1, len(found.state["met"]))]
    values = torch.tensor(kinds, dtype=torch.float64)
    names = ("constructive_permuted", "inactive_square_permuted", "inactive_positive_permuted")
    means: dict[str, float | None] = dict(zip(names, map(known, values.mean(0).tolist()), strict=True))
    deviation = known(float(values[:, 0].std())) if len(kinds) > 1 else None
    return means | {"constructive_permuted_deviation": deviation}


def per_feature(found: Codes, of: Geometry) -> State:
    """NaN where rows or the direction do not determine a number."""
    state, readout = found.state, found.readout
    met = state["met"][0]
    enough = met > of.floor * state["w"] * readout
    resting = found.resting > 1e-9 * state["w"]
    return {
        "activity": state["active"] / state["w"],
        "net": (_net(found, of) / readout).where(readout > 0, math.nan),
        "constructive": (state["helped"][0] / met).where(enough, math.nan),
        "inactive_square": (state["quiet"][0] / found.resting).where(resting, math.nan),
    }


def interval(name: str, value: float, without: list[float], confidence: float) -> Interval | None:
    """Of one of the measures."""
    if name.endswith("correlation"):
        return grouped_moments.cosine_interval(value, without, confidence)
    if name != "net":
        most = math.inf if name == "inactive_square" else 1.0
        return grouped_moments.interval(value, without, confidence, most)
    found = grouped_moments.interval(
        1 + value, [1 + w for w in without], confidence
    )  # |sum_i c_i d_i|^2 over its part without r
    if found is None:
        return None
    bounds = {key: None if end is None else end - 1 for key, end in found.model_dump().items()}
    return Interval.model_validate(bounds | {"value": value})


def merged(a: State, b: State) -> State:
    """Moments and sums of two groups."""
    return moments.merge(moments_of(a), moments_of(b)) | {name: a[name] + b[name] for name in SUMS}


def moments_of(state: State) -> State:
    """Without the sums."""
    return {name: values for name, values in state.items() if name not in SUMS}


def known(number: float) -> float | None:
    """None for NaN and infinity."""
    return number if math.isfinite(number) else None


def _of_kind(found: Codes, of: Geometry, kind: int) -> tuple[float, float, float]:
    """Share that is constructive, mean square where not active, and its share above 0."""
    helped, met, quiet, passed = (float(found.state[name][kind].sum()) for name in SUMS[:4])
    spill = _spill(found, of)
    return (
        helped / met if met > of.floor * float(found.state["w"] * found.readout.sum()) else math.nan,
        quiet / float(found.resting.sum()) if spill > 0 else math.nan,
        passed / quiet if quiet > of.floor**2 * spill else math.nan,
    )


def _net_permuted(found: Codes, of: Geometry) -> dict[str, float | None]:
    active = (found.readout > 0).nonzero().flatten()
    readout, length = float(found.readout.sum()), of.length[active]
    scaled = found.second[active][:, active] * torch.outer(length, length)
    mean, deviation = interference.permuted_sum(of.cosine[active][:, active], scaled)
    return {"net_permuted": mean / readout, "net_permuted_deviation": deviation / readout}


def _spill(found: Codes, of: Geometry) -> float:
    """Sum of r_i^2 that random directions would have in one dimension."""
    return float(found.state["spill"] @ of.length.square())


def _net(found: Codes, of: Geometry) -> Tensor:
    return interference.net(of.cosine * torch.outer(of.length, of.length), found.second)


def _varies(found: Codes) -> Tensor:
    return found.covariance.diagonal() > VARIES * found.second.diagonal()


def _correlation(found: Codes, pairs: Pairs) -> Tensor:
    """Pearson's, of the codes of pairs; NaN for those that do not vary in these rows."""
    scale = found.covariance.diagonal().where(_varies(found), math.nan).sqrt()
    return found.covariance[pairs.first, pairs.second] / (scale[pairs.first] * scale[pairs.second])
