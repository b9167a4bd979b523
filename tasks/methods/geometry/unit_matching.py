"""Whether two sites have the same units: matched one to one, predicted sparsely by several, and grouped many to many.

The ports x and y may belong to different captures; rows are joined by sample key and position. Units are compared by their correlation over
rows. Few rows correlate by chance, so each number comes with what as many independent rows give, and matches are tried on samples that they
were not found on. Arrays: for each unit of x the y unit that the assignment gives it and the one it correlates with most (-1: none), the
correlations; R^2 of sparse prediction for the predicted units of y; block numbers of both sides.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import SpectralCoclustering
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import joint_state
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.methods.joint_state import merge, partial, start, state_config
from tasks.numerics import alignment
from tasks.numerics.alignment import Paired
from tasks.numerics.lasso import lasso

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort(), "y": RowsPort()}
ARRAYS = {
    "match": ("unit_x",), "correlation": ("unit_x",), "best": ("unit_x",), "best_correlation": ("unit_x",), "block_x": ("unit_x",),
    "block_y": ("unit_y",), "predicted": ("target",), "sparse_r2": ("target",), "single_r2": ("target",), "n_predictors": ("target",),
}  # fmt: skip
REFERENCE = (
    "Li, Yosinski, Clune, Lipson, Hopcroft, Convergent learning, ICLR (2016): bipartite matching and semi-matching, sparse prediction, "
    "spectral clustering. Blocks: Dhillon, KDD (2001), as in scikit-learn"
)
SEEDS = (134,)
MOST_UNITS = 4096
"""Units of a side that are assigned: the assignment costs their cube."""


class Config(Frozen):
    """How units are compared."""

    signed: bool = True
    """Correlation itself; off: its magnitude, so that a unit may match another turned round."""
    penalty: float = Field(default=0.1, gt=0, lt=1)
    """Of sparse prediction, in units of correlation: units that correlate less with the rest are left out."""
    targets: int = Field(default=128, ge=1)
    """Units of y that are predicted sparsely: all, or a seeded draw of as many."""
    blocks: int = Field(default=8, ge=2)
    """Groups of units of both sides, many to many."""
    seed: int = 0
    """Of draws, and of k-means."""
    groups: int = Field(default=10, ge=2, le=200)
    """Groups that samples are dealt into; fewer for wide sites, whose joint moments would take over 1 GiB."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""


class Result(Frozen):
    """Correlations of the better sample; held-out numbers are of samples that had no part in the choice. None without a second group."""

    n_rows: int
    """Joined rows."""
    n_groups: int
    width_x: int
    width_y: int
    n_constant_x: int
    """Units that do not vary, matched with none."""
    n_constant_y: int
    matched: Interval | None
    """Mean correlation of units with their match in the one-to-one assignment that makes it largest."""
    matched_null: float
    """The same of as many independent rows."""
    matched_held_out: float | None
    best: Interval | None
    """Mean correlation of an x unit with the y unit that fits it best, which may fit several."""
    best_null: float
    best_held_out: float | None
    mutual: float
    """Share of matched pairs whose units are each other's best."""
    sparse_r2: float | None
    """Mean R^2 of a y unit from the few x units that lasso keeps."""
    sparse_r2_held_out: float | None
    single_r2: float | None
    """Mean R^2 from the one best x unit, of the same units of y."""
    n_predictors: float | None
    """Mean number of x units that lasso keeps for one of y."""
    sparse_violation: float | None
    """Largest violation of lasso's conditions, in units of the penalty."""
    n_blocks: int
    """Many-to-many groups; 0 where units are fewer than blocks."""
    block_share: float | None
    """Share of all squared correlation that lies inside blocks."""
    block_share_null: float | None
    """The same of independent rows, whose squared correlations are even: share of pairs inside these blocks."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for sites too wide to match.
    """
    joint_state.check_widths(inputs, MOST_UNITS)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All three comparisons.

    Raises:
        MethodError: if no row has a partner.

    Cost: the assignment, units^3, for all rows, for chance and without each group; lasso 200 sweeps of x^2 targets at most, twice.
    """
    groups = joint_state.groups_of(state)
    whole = alignment.paired(joint_state.total(groups))
    rests = [alignment.paired(rest) for rest in joint_state.leaving_out(groups)]
    r = _correlation(whole)
    match, best = _assign(r, config), _best(r, config)
    chosen = [(_assign(rho, config), _best(rho, config)) for rho in map(_correlation, rests)]
    held = [
        _correlation(alignment.about(group, rest.point)) for rest, group in zip(rests, groups, strict=False)
    ]
    sparse, sparse_arrays = _sparse(whole, rests[:1], groups[:1], config)
    blocks, block_arrays = _blocks(r, config)
    chance = _by_chance(whole, r, config)
    values = _of(r, match, config), _of(r, best, config)
    without = [
        tuple(_of(_correlation(rest), c, config) for c in pair)
        for rest, pair in zip(rests, chosen, strict=True)
    ]
    intervals = [
        joint_state.interval(value, [w[k] for w in without], config.confidence)
        for k, value in enumerate(values)
    ]
    tried = [tuple(_of(rho, c, config) for c in pair) for rho, pair in zip(held, chosen, strict=True)]
    n = [int(group["n"]) for group in groups]
    back = _best(r.T, config)
    pairs = torch.nonzero(match >= 0)[:, 0]
    mutual = (best[pairs] == match[pairs]) & (back[match[pairs]] == pairs)
    arrays = {
        "match": match,
        "correlation": _chosen(r, match),
        "best": best,
        "best_correlation": _chosen(r, best),
        **block_arrays,
        **sparse_arrays,
    }
    result = Result(
        n_rows=whole.n,
        n_groups=len(groups),
        width_x=r.shape[0],
        width_y=r.shape[1],
        n_constant_x=int((whole.xx.diagonal() <= 0).sum()),
        n_constant_y=int((whole.yy.diagonal() <= 0).sum()),
        matched=intervals[0],
        matched_null=chance[0],
        matched_held_out=_weighted([t[0] for t in tried], n),
        best=intervals[1],
        best_null=chance[1],
        best_held_out=_weighted([t[1] for t in tried], n),
        mutual=float(mutual.double().mean()) if len(pairs) else 0.0,
        caveats=_caveats(whole, r, len(groups), config),
        **sparse,
        **blocks,
    )
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _correlation(p: Paired) -> Tensor:
    """[unit_x, unit_y]; 0 for units that do not vary."""
    sizes = [side.diagonal().clamp(min=0).sqrt() for side in (p.xx, p.yy)]
    x, y = (torch.where(size > 0, 1 / size.where(size > 0, 1.0), 0.0) for size in sizes)
    return (x[:, None] * p.xy * y).clamp(-1, 1)


def _fit(r: Tensor, config: Config) -> Tensor:
    return r if config.signed else r.abs()


def _assign(r: Tensor, config: Config) -> Tensor:
    """int64 [unit_x]: the match of each in the best one-to-one assignment, -1 for none."""
    gain = _fit(r, config).cpu().numpy()
    rows, columns = linear_sum_assignment(gain, maximize=True)
    match = torch.full((len(r),), -1, dtype=torch.int64)
    match[torch.from_numpy(rows)] = torch.from_numpy(columns)
    match = match.to(r.device)
    return torch.where((match >= 0) & (_chosen(r, match) != 0), match, -1)


def _best(r: Tensor, config: Config) -> Tensor:
    """int64 [unit_x]: the unit that fits best, -1 for a unit that does not vary."""
    return torch.where((r != 0).any(1), _fit(r, config).argmax(1), -1)


def _chosen(r: Tensor, which: Tensor) -> Tensor:
    """Correlations with chosen units; 0 where there is none."""
    return torch.where(which >= 0, r.gather(1, which.clamp(min=0)[:, None])[:, 0], 0.0)


def _of(r: Tensor, which: Tensor, config: Config) -> float:
    """The mean over units that have a partner."""
    there = which >= 0
    return float(_fit(_chosen(r, which)[there], config).mean()) if bool(there.any()) else math.nan


def _weighted(values: list[float], n: list[int]) -> float | None:
    pairs = [(value, size) for value, size in zip(values, n, strict=False) if math.isfinite(value)]
    return sum(v * s for v, s in pairs) / sum(s for _, s in pairs) if pairs else None


def _by_chance(p: Paired, r: Tensor, config: Config) -> tuple[float, float]:
    """Means of matched and of best correlation of as many independent rows, from one seeded draw of correlations."""
    shape = int((p.xx.diagonal() > 0).sum()), int((p.yy.diagonal() > 0).sum())
    if not min(shape) or p.n < 2:
        return 0.0, 0.0
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed), dtype=torch.float64)
    rho = (drawn / math.sqrt(p.n - 1)).clamp(-1, 1)
    return _of(rho, _assign(rho, config), config), _of(rho, _best(rho, config), config)


def _sparse(
    whole: Paired, rests: list[Paired], groups: list[State], config: Config
) -> tuple[dict[str, float | None], dict[str, Tensor]]:
    """Lasso for some units of y from all of x, standardised; tried on the first group."""
    usable = torch.nonzero(whole.yy.diagonal() > 0)[:, 0].cpu()
    if len(usable) > config.targets:
        order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(config.seed))
        usable = usable[order[: config.targets]].sort().values
    targets = usable.to(whole.xy.device)
    gram, cross = _standard(whole, whole, targets)
    found = lasso(gram, cross, config.penalty)
    r2 = _r2(gram, cross, torch.ones_like(cross[0]) if len(cross) else cross.sum(0), found.weights)
    single = cross.abs().amax(0).square() if len(cross) else cross.sum(0)
    used = (found.weights != 0).sum(0)
    out: Tensor | None = None
    if rests:
        fitted = lasso(*_standard(rests[0], rests[0], targets), config.penalty).weights
        tried = alignment.about(groups[0], rests[0].point)
        gram, cross = _standard(tried, rests[0], targets)
        scale = rests[0].yy.diagonal()[targets]
        size = tried.yy.diagonal()[targets] / scale.where(scale > 0, 1.0)
        out = _r2(gram, cross, size, fitted)
    some = len(targets) > 0
    numbers = {
        "sparse_r2": float(r2.mean()) if some else None,
        "sparse_r2_held_out": float(out[out.isfinite()].mean())
        if some and out is not None and bool(out.isfinite().any())
        else None,
        "single_r2": float(single.mean()) if some else None,
        "n_predictors": float(used.double().mean()) if some else None,
        "sparse_violation": found.violation if some else None,
    }
    return numbers, {"predicted": targets, "sparse_r2": r2, "single_r2": single, "n_predictors": used}


def _standard(p: Paired, scale: Paired, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Products of x and of x with targets, in units of the standard deviations of `scale`."""
    x, y = (side.diagonal().clamp(min=0).sqrt() for side in (scale.xx, scale.yy))
    x = torch.where(x > 0, 1 / x.where(x > 0, 1.0), 0.0)
    y = torch.where(y > 0, 1 / y.where(y > 0, 1.0), 0.0)[targets]
    return x[:, None] * p.xx * x, x[:, None] * p.xy[:, targets] * y


def _r2(gram: Tensor, cross: Tensor, size: Tensor, weights: Tensor) -> Tensor:
    """[target]: 1 - |y - x b|^2 / |y|^2; NaN where y does not vary."""
    rest = size - 2 * (weights * cross).sum(0) + (weights * (gram @ weights)).sum(0)
    return torch.where(size > 0, 1 - rest / size.where(size > 0, 1.0), math.nan)


def _blocks(r: Tensor, config: Config) -> tuple[dict[str, float | int | None], dict[str, Tensor]]:
    """Co-clusters of the magnitudes of correlations; -1 for units that do not vary."""
    magnitude = r.abs().cpu().numpy()
    x, y = np.flatnonzero(magnitude.any(1)), np.flatnonzero(magnitude.any(0))
    block_x, block_y = (np.full(size, -1, dtype=np.int64) for size in magnitude.shape)
    nothing: dict[str, float | int | None] = {"n_blocks": 0, "block_share": None, "block_share_null": None}
    if min(len(x), len(y)) >= config.blocks:
        here: npt.NDArray[np.float64] = magnitude[np.ix_(x, y)]
        fit = SpectralCoclustering(n_clusters=config.blocks, random_state=config.seed).fit(here)
        block_x[x], block_y[y] = fit.row_labels_, fit.column_labels_
        inside = block_x[x][:, None] == block_y[y]
        square = here**2
        nothing = {
            "n_blocks": config.blocks,
            "block_share": float(square[inside].sum() / square.sum()),
            "block_share_null": float(inside.mean()),
        }
    found = {"block_x": torch.from_numpy(block_x), "block_y": torch.from_numpy(block_y)}
    return nothing, {name: labels.to(r.device) for name, labels in found.items()}


def _caveats(p: Paired, r: Tensor, groups: int, config: Config) -> tuple[str, ...]:
    notes = list(joint_state.caveats(groups, config.groups))
    if p.n < 10 * max(r.shape):
        notes.append(
            f"{p.n} rows for {max(r.shape)} units: much of the correlation of a match is chance; read held-out values"
        )
    notes.append(
        "chance takes rows as independent; tokens of one text are not: held-out samples are the test"
    )
    notes.append("sparse prediction is tried on the first group of samples alone")
    return tuple(notes)
