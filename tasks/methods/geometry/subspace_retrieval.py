"""Matching rows of two sites after alignment in a chosen subspace: which row of y belongs to which of x, for samples never seen.

Maps are fitted on a part of the samples and tried on the others: in the leading canonical directions of both sides, as they are (each
scaled by its correlation) and with an affine map on top, and, without choosing a subspace, with an affine map and with a rotation of all
features.
A row of x finds its partner if no other row of y has a larger cosine. One row of a sample takes part in the trial, so that near copies of
one text do not count as wrong. Reconstructed from the abstract: subspaces by canonical correlations first, then the affine map.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import joint_state
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import alignment, joint_moments
from tasks.numerics.alignment import Paired
from tasks.numerics.split import held_out

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort(), "y": RowsPort()}
ARRAYS = {
    "correlation": ("dimension",), "correlation_held_out": ("dimension",), "top_1": ("way",), "top_1_back": ("way",),
    "median_rank": ("way",),
}  # fmt: skip
WAYS = ("subspace", "subspace_affine", "affine", "rotation")
REFERENCE = (
    "Escaping Plato's cave: towards the alignment of 3D and text latent spaces (2025), reconstructed from the abstract. Canonical "
    "correlations: Hotelling, Biometrika 28 (1936) 321"
)
SEEDS = (123,)
MAX_ROWS = 1 << 15


class Config(Frozen):
    """The subspace and the trial."""

    sample_rows: int | None = Field(default=8192, ge=8)
    """Rows that take part, a seeded draw; None: all, up to 32768."""
    seed: int = 0
    """Of draws and of the split."""
    dimensions: int = Field(default=50, ge=1)
    """Of the subspace: leading canonical directions."""
    variance: float = Field(default=0.99, gt=0, le=1)
    """Share of each side's variance that its components hold, in which canonical directions and affine maps are sought."""
    ridge: float = Field(default=0.01, ge=0)
    """Added to the variance of each of these, times the mean variance of a feature."""
    test_share: float = Field(default=0.3, gt=0, lt=1)
    """Of samples, that maps are tried on."""
    gallery: int = Field(default=1000, ge=2)
    """Rows to choose from, at most: with more, retrieval is harder."""


class Result(Frozen):
    """Shares of held-out rows of x whose partner is the nearest row of y; `back` from y to x."""

    n_rows: int
    """Joined rows that took part."""
    n_fitted: int
    """Rows that maps were fitted to."""
    n_gallery: int
    """Held-out samples, one row each."""
    dimensions: int
    """Of the subspace."""
    top_1_null: float
    """By chance: 1 / gallery."""
    subspace_top_1: float
    subspace_top_1_error: float
    """Standard error over held-out samples, of every share at most."""
    subspace_affine_top_1: float
    """With an affine map of the subspace of x onto that of y."""
    affine_top_1: float
    """With an affine map of all components, without a subspace."""
    rotation_top_1: float
    subspace_top_1_back: float
    subspace_affine_top_1_back: float
    affine_top_1_back: float
    rotation_top_1_back: float
    subspace_median_rank: float
    """Of the partner among the gallery; 1 is the nearest."""
    subspace_affine_median_rank: float
    affine_median_rank: float
    rotation_median_rank: float
    correlation_held_out: float
    """Mean over the subspace's directions, of held-out rows."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for sites too wide to decompose.
    """
    joint_state.check_widths(inputs)


def max_rows(config: Config) -> int:
    """Rows in memory."""
    return MAX_ROWS


class _Trial(NamedTuple):
    top_1: float
    top_1_back: float
    median_rank: float


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Fit on one part of the samples, retrieve in the other.

    Raises:
        MethodError: if a part holds too few samples, or a side does not vary.

    Cost: rows (x + y)^2 and x^3 + y^3 for widths x and y; gallery^2 (x + y).
    """
    x, y = block["x"].double(), block["y"].double()
    out = held_out(block.sample, config.test_share, config.seed)
    trial = _one_of_each(block, out, config)
    if int((~out).sum()) < 3 or len(trial) < 2:
        raise MethodError(
            f"{len(block)} joined rows give {int((~out).sum())} to fit and {len(trial)} samples to try, expected at least 3 and 2; "
            "capture more samples, or take another test_share"
        )
    p = alignment.paired(joint_moments.partial(x[~out], y[~out]))
    found = alignment.canonical(p, config.variance, config.ridge)
    k = min(config.dimensions, len(found.correlations))
    if k == 0:
        raise MethodError("a side does not vary over the fitted rows; choose other sites")
    left = x.shape[1]
    a, b = x[trial] - p.point[:left], y[trial] - p.point[left:]
    tries = {way: _retrieve(*pair) for way, pair in _mapped(a, b, p, found, k, config).items()}
    other = alignment.about(joint_moments.partial(x[out], y[out]), p.point)
    rho = alignment.correlations(other, found)[:k]
    share = tries["subspace"].top_1
    numbers = {f"{way}_{name}": value for way, t in tries.items() for name, value in t._asdict().items()}
    result = Result(
        n_rows=len(block),
        n_fitted=p.n,
        n_gallery=len(trial),
        dimensions=k,
        top_1_null=1 / len(trial),
        subspace_top_1_error=math.sqrt(max(share * (1 - share), 1 / len(trial)) / len(trial)),
        correlation_held_out=float(rho.mean()),
        caveats=_caveats(p, found, k, config),
        **numbers,
    )
    arrays = {
        "correlation": found.correlations[:k],
        "correlation_held_out": rho,
        **{
            name: torch.tensor([getattr(tries[w], name) for w in WAYS], dtype=torch.float64)
            for name in _Trial._fields
        },
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _one_of_each(block: Block, out: Tensor, config: Config) -> Tensor:
    """int64 [n]: places of one row of each held-out sample, at most as many as the gallery holds; seeded, whatever their order."""
    places = torch.nonzero(out)[:, 0]
    places = places[torch.argsort(block.index[places])]
    generator = torch.Generator().manual_seed(config.seed)
    order = places[torch.randperm(len(places), generator=generator).to(places.device)]
    first: dict[int, int] = {}
    for place, sample in zip(order.tolist(), block.sample[order].tolist(), strict=True):
        first.setdefault(sample, place)
    return torch.tensor(
        sorted(list(first.values())[: config.gallery]), dtype=torch.int64, device=places.device
    )


def _mapped(
    a: Tensor, b: Tensor, p: Paired, found: alignment.Canonical, k: int, config: Config
) -> dict[str, tuple[Tensor, Tensor]]:
    """Both sides in a common space, for each way."""
    u, v, rho = found.x[:k], found.y[:k], found.correlations[:k]
    inside = Paired(p.n, p.point.new_zeros(2 * k), u @ p.xx @ u.T, u @ p.xy @ v.T, v @ p.yy @ v.T)
    affine = alignment.regression(inside, alignment.whitening(inside.xx, 1.0, 0.0, k))
    whole = alignment.regression(p, found.white_x)
    return {
        "subspace": (a @ u.T * rho, b @ v.T * rho),
        "subspace_affine": (a @ u.T @ affine, b @ v.T),
        "affine": (a @ whole, b),
        "rotation": (a @ alignment.rotation(p.xy), b),
    }


def _retrieve(a: Tensor, b: Tensor) -> _Trial:
    """Cosines of all pairs; ties count against the partner."""
    unit = [side / torch.linalg.vector_norm(side, dim=1, keepdim=True).clamp(min=1e-300) for side in (a, b)]
    cosine = unit[0] @ unit[1].T
    own = cosine.diagonal()
    ranks = (cosine >= own[:, None]).sum(1), (cosine >= own[None, :]).sum(0)
    return _Trial(
        float((ranks[0] == 1).double().mean()),
        float((ranks[1] == 1).double().mean()),
        float(torch.quantile(ranks[0].double(), 0.5)),
    )


def _caveats(p: Paired, found: alignment.Canonical, k: int, config: Config) -> tuple[str, ...]:
    notes = []
    if k < config.dimensions:
        notes.append(
            f"{k} canonical directions are all there are, fewer than the {config.dimensions} asked for"
        )
    if p.n < 5 * (len(found.white_x.rows) + len(found.white_y.rows)):
        notes.append(
            f"{p.n} fitted rows for {len(found.white_x.rows)} + {len(found.white_y.rows)} components: maps fit chance, take more rows or a "
            "larger ridge"
        )
    return tuple(notes)
