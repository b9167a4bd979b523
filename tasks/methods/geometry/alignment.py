"""Maps between two sites: canonical correlations, rotation, regression, and a map that is orthogonal but for a stated deviation.

The ports x and y may belong to different captures; rows are joined by sample key and position. Few rows correlate by chance, so that every
number comes with what independent rows would give, and with its value on samples that it was not fitted to: maps of all samples but a
group's are tried on that group. Sides are centred. Arrays: canonical weights [canonical, feature] in the leading components, the rotation
(directions lost in rounding are not in it), and `near_orthogonal`, between sides scaled to total variance 1 within their leading
components.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import joint_state
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.methods.joint_state import merge, partial, start, state_config
from tasks.numerics import alignment, near_orthogonal
from tasks.numerics.alignment import Canonical, Paired

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort(), "y": RowsPort()}
ARRAYS = {
    "correlation": ("canonical",), "correlation_held_out": ("canonical",), "weights_x": ("canonical", "feature_x"),
    "weights_y": ("canonical", "feature_y"), "rotation": ("feature_x", "feature_y"), "near_orthogonal": ("feature_x", "feature_y"),
}  # fmt: skip
REFERENCE = (
    "Hotelling, Biometrika 28 (1936) 321. Raghu et al., SVCCA, NeurIPS (2017). Morcos, Raghu, Bengio, projection-weighted CCA, NeurIPS "
    "(2018). Chance: Wachter, Annals of Statistics 8 (1980) 937. Rotation: Schonemann, Psychometrika 31 (1966) 1; Williams et al., shape "
    "metrics, NeurIPS (2021). Near orthogonal: lambda-Orthogonality regularization for compatible representation learning (2025), "
    "reconstructed: min |X W - Y|^2 with |W'W - I|_F <= lambda"
)
SEEDS = (138,)
SHOWN = 10
MOST = 1024
"""Leading components of a side up to which the nearly orthogonal map is sought."""


class Config(Frozen):
    """How much of each side takes part."""

    variance: float = Field(default=0.99, gt=0, le=1)
    """Share of each side's variance that its leading components hold, which correlate and regress; 1: all that rounding leaves."""
    ridge: float = Field(default=0.0, ge=0)
    """Added to the variance of each of these, times the mean variance of a feature."""
    deviation: float = Field(default=1.0, ge=0)
    """lambda: the largest |W'W - I|_F of the nearly orthogonal map; 0 gives the rotation."""
    iterations: int = Field(default=200, ge=1)
    """Steps towards it, at most."""
    groups: int = Field(default=10, ge=2, le=200)
    """Groups that samples are dealt into; fewer for wide sites, whose joint moments would take over 1 GiB."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""


class Result(Frozen):
    """Correlations and R^2 are at most 1. Held-out numbers may be negative; None without a second group of samples."""

    n_rows: int
    """Joined rows."""
    n_groups: int
    width_x: int
    width_y: int
    rank_x: int
    """Leading components of x that take part."""
    rank_y: int
    correlations: tuple[float, ...]
    """The ten largest canonical ones."""
    correlation_null: float
    """The largest that as many independent rows give (Wachter): 1 where components outnumber rows."""
    n_correlated: int
    """Canonical correlations above it."""
    svcca: Interval | None
    """Mean canonical correlation."""
    svcca_null: float
    """Root of the mean square that independent rows give, sqrt(max(rank) / (rows - 1)); the mean is at most that."""
    svcca_held_out: float | None
    pwcca: Interval | None
    """Mean weighted by how much the variates of x account for x."""
    pwcca_held_out: float | None
    r2_y_from_x: Interval | None
    """Share of y's variance that a linear map of x's leading components gives, on the rows that it was fitted to."""
    r2_y_from_x_held_out: float | None
    r2_x_from_y: Interval | None
    r2_x_from_y_held_out: float | None
    r2_null_y_from_x: float
    """Of independent rows: rank / (rows - 1)."""
    r2_null_x_from_y: float
    rotation: Interval | None
    """Cosine of the rotated x and y, all features: 1 for a rotated, scaled copy."""
    rotation_held_out: float | None
    rotation_distance: float | None
    """sqrt(2 - 2 rotation): between both, scaled to one size."""
    rotation_residual: float | None
    """1 - rotation^2: share of y that the best rotated and scaled x leaves."""
    near_orthogonal_residual: float | None
    """Share of the leading components of y that the nearly orthogonal map leaves, both scaled to total variance 1; None for more than
    1024 components, or a side that does not vary."""
    near_orthogonal_residual_null: float | None
    """The same of the rotation."""
    near_orthogonal_deviation: float | None
    """|W'W - I|_F of it."""
    near_orthogonal_change: float | None
    """Relative decrease in its last step: 0 when it was found."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for sites too wide to decompose.
    """
    joint_state.check_widths(inputs)


class _Fit(NamedTuple):
    """Everything of some rows."""

    p: Paired
    found: Canonical
    turn: Tensor
    numbers: dict[str, float]


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All maps from all rows, and from all rows but each group's.

    Raises:
        MethodError: if no row has a partner.

    Cost: O((groups + 1) (x^3 + y^3)) for widths x and y, and `iterations` times ranks cubed.
    """
    groups = joint_state.groups_of(state)
    whole = _fit(alignment.paired(joint_state.total(groups)), config)
    rests = [_fit(alignment.paired(rest), config) for rest in joint_state.leaving_out(groups)]
    held = [_tried(rest, group) for rest, group in zip(rests, groups, strict=True)] if rests else []
    near, near_numbers = _near(whole, config)
    intervals = {
        name: joint_state.interval(value, [rest.numbers[name] for rest in rests], config.confidence)
        for name, value in whole.numbers.items()
    }
    canonical_held = _mean_correlations(held, len(whole.found.correlations))
    arrays = {
        "correlation": whole.found.correlations,
        "correlation_held_out": canonical_held,
        "weights_x": whole.found.x,
        "weights_y": whole.found.y,
        "rotation": whole.turn,
        "near_orthogonal": near,
    }
    ranks = len(whole.found.white_x.rows), len(whole.found.white_y.rows)
    turned = whole.numbers["rotation"]
    edge = alignment.largest_by_chance(*ranks, whole.p.n)
    result = Result(
        n_rows=whole.p.n,
        n_groups=len(groups),
        width_x=inputs.widths["x"],
        width_y=inputs.widths["y"],
        rank_x=ranks[0],
        rank_y=ranks[1],
        correlations=tuple(whole.found.correlations[:SHOWN].tolist()),
        correlation_null=edge,
        n_correlated=int((whole.found.correlations > edge).sum()),
        svcca_null=math.sqrt(alignment.mean_square_by_chance(*ranks, whole.p.n)),
        r2_null_y_from_x=min(1.0, ranks[0] / max(1, whole.p.n - 1)),
        r2_null_x_from_y=min(1.0, ranks[1] / max(1, whole.p.n - 1)),
        rotation_distance=math.sqrt(max(0.0, 2 - 2 * turned)) if math.isfinite(turned) else None,
        rotation_residual=max(0.0, 1 - turned**2) if math.isfinite(turned) else None,
        caveats=_caveats(whole, ranks, len(groups), config),
        **intervals,
        **{f"{name}_held_out": _over(held, name) for name in whole.numbers},
        **near_numbers,
    )
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _fit(p: Paired, config: Config) -> _Fit:
    found = alignment.canonical(p, config.variance, config.ridge)
    turn = alignment.rotation(p.xy)
    rho, some = found.correlations, len(found.correlations) > 0
    back = alignment.backwards(p)
    numbers = {
        "svcca": float(rho.mean()) if some else math.nan,
        "pwcca": float(rho @ found.weight) if some else math.nan,
        "r2_y_from_x": _explained(p, alignment.regression(p, found.white_x)),
        "r2_x_from_y": _explained(back, alignment.regression(back, found.white_y)),
        "rotation": alignment.similarity(p, turn),
    }
    return _Fit(p, found, turn, numbers)


def _explained(p: Paired, weights: Tensor) -> float:
    total = float(p.yy.trace())
    return 1 - alignment.residual(p, weights) / total if total > 0 else math.nan


class _Tried(NamedTuple):
    """A fit on rows that it was not made from: shares of R^2 come as what is left and what there was."""

    n: int
    correlations: Tensor
    numbers: dict[str, tuple[float, float]]
    """Numerator and denominator, summed over groups."""


def _tried(fit: _Fit, group: State) -> _Tried:
    p = alignment.about(group, fit.p.point)
    back = alignment.backwards(p)
    rho = alignment.correlations(p, fit.found)
    forward = alignment.residual(p, alignment.regression(fit.p, fit.found.white_x))
    backward = alignment.residual(back, alignment.regression(alignment.backwards(fit.p), fit.found.white_y))
    x, y = p.variances
    some = len(rho) > 0
    return _Tried(
        p.n,
        rho,
        {
            "svcca": (float(rho.mean()) if some else math.nan, 1.0),
            "pwcca": (float(rho @ fit.found.weight) if some else math.nan, 1.0),
            "r2_y_from_x": (y - forward, y),
            "r2_x_from_y": (x - backward, x),
            "rotation": (float((fit.turn * p.xy).sum()), math.sqrt(x * y)),
        },
    )


def _over(held: list[_Tried], name: str) -> float | None:
    """The number over all groups, each with its rows."""
    pairs = [(one.n * one.numbers[name][0], one.n * one.numbers[name][1]) for one in held]
    above, below = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    return above / below if below > 0 and math.isfinite(above) else None


def _mean_correlations(held: list[_Tried], n: int) -> Tensor:
    """[canonical]: over groups, where each fit has as many; NaN elsewhere."""
    found = torch.full((n,), math.nan, dtype=torch.float64)
    shortest = min([n, *(len(one.correlations) for one in held)]) if held else 0
    if shortest:
        rows = sum(one.n for one in held)
        total = sum(
            (one.n * one.correlations[:shortest] for one in held),
            torch.zeros_like(held[0].correlations[:shortest]),
        )
        found = found.to(total.device)
        found[:shortest] = total / rows
    return found


def _near(fit: _Fit, config: Config) -> tuple[Tensor, dict[str, float | None]]:
    """The nearly orthogonal map in features, and its numbers."""
    names = ("residual", "residual_null", "deviation", "change")
    nothing: dict[str, float | None] = {f"near_orthogonal_{name}": None for name in names}
    x, y = fit.found.white_x.basis, fit.found.white_y.basis
    none = torch.zeros_like(fit.p.xy)
    if not 0 < len(x) <= MOST or not 0 < len(y) <= MOST:
        return none, nothing
    xx, xy, yy = x @ fit.p.xx @ x.T, x @ fit.p.xy @ y.T, y @ fit.p.yy @ y.T
    a, b = float(xx.trace()), float(yy.trace())
    scaled = xx / a, xy / math.sqrt(a * b), yy / b
    found = near_orthogonal.solve(*scaled, config.deviation, config.iterations)
    turned = near_orthogonal.solve(*scaled, 0.0, 1)
    values = (
        near_orthogonal.value(*scaled, found.weights),
        near_orthogonal.value(*scaled, turned.weights),
        found.deviation,
        found.change,
    )
    return x.T @ found.weights @ y, dict(zip(nothing, values, strict=True))


def _caveats(fit: _Fit, ranks: tuple[int, int], groups: int, config: Config) -> tuple[str, ...]:
    notes = list(joint_state.caveats(groups, config.groups))
    if sum(ranks) >= fit.p.n - 1:
        notes.append(
            f"{fit.p.n} rows for {sum(ranks)} components: correlations are 1 by chance; read held-out values"
        )
    if max(ranks) > MOST:
        notes.append(f"the nearly orthogonal map is not sought for more than {MOST} components of a side")
    notes.append(
        "chance takes rows as independent; tokens of one text are not: held-out samples are the test"
    )
    return tuple(notes)
