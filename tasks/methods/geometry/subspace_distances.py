"""Distances between the principal subspaces of every two of a series of sites or checkpoints, beside chance and sampling noise.

Principal angles come from sines where small and from cosines where large, so that 1e-9 and a right angle are both right. Subspaces
of different dimension have the distance of Ye and Lim, and one of weighted flags, which counts how variance lies in them: the
Bures distance of their covariances, each scaled to trace 1 (reconstructed from the abstract of Flagfolds, which embeds flags as
covariances and does not print its metric). Arrays are symmetric, NaN between artifacts of different widths.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import subspace_series
from tasks.methods.contract import Array, Arrays, ArtifactPort, Inputs
from tasks.methods.subspace_series import Subspace, subspaces
from tasks.numerics import angles

VERSION = 1
KIND = "combine"
READS = {"pca": ArtifactPort("spectrum.pca", several=True, least=2)}
PAIR = ("member", "other_member")
ARRAYS = {
    "geodesic": PAIR, "chordal": PAIR, "projection": PAIR, "binet_cauchy": PAIR, "ye_lim": PAIR, "flag": PAIR,
    "overlap": PAIR, "overlap_null": PAIR, "overlap_null_high": PAIR, "smallest_angle": PAIR, "largest_angle": PAIR,
    "explained_of_other": PAIR, "noise": PAIR, "resolved": PAIR, "dimension": ("member",), "subspace_noise": ("member",),
}  # fmt: skip
REFERENCE = (
    "Angles: Bjorck, Golub, Mathematics of Computation 27 (1973) 579; Knyazev, Argentati, SIAM J. Sci. Comput. 23 (2002) 2008. "
    "Different dimensions: Ye, Lim, SIAM J. Matrix Anal. 37 (2016) 1176. Weighted flags: Flagfolds (reconstructed: Bures distance of "
    "covariances of trace 1). Chance: Beta law of the overlap"
)
SEEDS = (39,)


class Config(Frozen):
    """How large the subspaces are."""

    components: int | None = Field(default=None, ge=1)
    """Leading components of each artifact that are compared; None: all that it keeps."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Share of random subspaces with less overlap than `overlap_null_high`."""


class Result(Frozen):
    """Means are over pairs of one width; the distances themselves are in the arrays."""

    n_members: int
    labels: tuple[str, ...]
    """Captures and site of each, in the order of the arrays."""
    n_pairs: int
    """Of one width."""
    n_pairs_without: int
    """Which have no distance: of different widths, or with a site that does not vary."""
    n_unresolved: int
    """Pairs no further apart than sampling noise alone would put them, or whose noise is not known."""
    geodesic: float
    """Mean, in radians."""
    chordal: float
    chordal_noise: float | None
    """Mean of what sampling noise would give between equal subspaces; None where no pair has a known one."""
    overlap: float
    """Mean of cos^2 of the angles: 1 where one subspace holds the other."""
    overlap_null: float
    """Of random subspaces of these dimensions."""
    overlap_null_high: float
    """Mean of the overlaps that random pairs stay below with the confidence."""
    neighbour_overlap: float | None
    """Mean over members that follow each other; None where no two of them have one width."""
    flag: float
    """Mean distance of the weighted flags; below 1e-7 it is rounding."""
    nearest: tuple[str, str]
    """The two that are nearest by the mean of sin^2."""
    farthest: tuple[str, str]
    caveats: tuple[str, ...]


def solve(inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All pairs.

    Raises:
        MethodError: for less than two artifacts, or none of one width.

    Cost: pairs component^2 feature; see `angles.pairwise_angles`.
    """
    found = subspaces(inputs, "pca", config.components)
    groups: dict[int, list[int]] = {}
    for number, one in enumerate(found):
        if len(one.basis):
            groups.setdefault(one.width, []).append(number)
    table = _empty(found)
    pairs: list[tuple[int, int]] = []
    for numbers in groups.values():
        for i, j, theta in angles.pairwise_angles([found[n].basis for n in numbers]):
            a, b = numbers[i], numbers[j]
            pairs.append((a, b))
            for name, (forth, back) in _compared(found[a], found[b], theta, config)._asdict().items():
                table[name][a, b], table[name][b, a] = forth, back
    if not pairs:
        widths = ", ".join(f"{one.width} at {one.label}" for one in found)
        raise MethodError(
            f"no two artifacts have components and the same width ({widths}); choose sites of one width"
        )
    arrays = {name: Array(values, ARRAYS[name]) for name, values in table.items()}
    arrays["dimension"] = Array(torch.tensor([len(one.basis) for one in found]), ("member",))
    arrays["subspace_noise"] = Array(
        torch.tensor([one.noise for one in found], dtype=torch.float64), ("member",)
    )
    return _result(found, table, pairs, config), arrays


Both = tuple[float, float]
"""A number of (a, b) and of (b, a)."""


class _Compared(NamedTuple):
    geodesic: Both
    chordal: Both
    projection: Both
    binet_cauchy: Both
    ye_lim: Both
    flag: Both
    overlap: Both
    overlap_null: Both
    overlap_null_high: Both
    smallest_angle: Both
    largest_angle: Both
    explained_of_other: Both
    noise: Both
    resolved: Both


def _empty(found: Sequence[Subspace]) -> dict[str, Tensor]:
    """What a member has with itself."""
    n = len(found)
    table = {name: torch.full((n, n), math.nan, dtype=torch.float64) for name in _Compared._fields}
    for name in _Compared._fields:
        table[name].fill_diagonal_(1.0 if name in ("overlap", "explained_of_other") else 0.0)
    for number, one in enumerate(found):
        table["overlap_null"][number, number] = len(one.basis) / one.width
        table["overlap_null_high"][number, number] = math.nan
    return table


def _compared(a: Subspace, b: Subspace, theta: Tensor, config: Config) -> _Compared:
    k, m, width = len(a.basis), len(b.basis), a.width
    found = angles.distances_of(theta, k, m, width)
    noise = math.sqrt(a.noise + b.noise)
    high = angles.overlap_quantile(k, m, width, config.confidence)
    products = a.basis @ b.basis.T

    def both(value: float) -> Both:
        return value, value

    return _Compared(
        geodesic=both(found.geodesic),
        chordal=both(found.chordal),
        projection=both(found.projection),
        binet_cauchy=both(found.binet_cauchy),
        ye_lim=both(found.schubert),
        flag=both(_bures(a.values, b.values, products)),
        overlap=both(found.overlap),
        overlap_null=both(found.overlap_null),
        overlap_null_high=both(high),
        smallest_angle=both(float(theta[0])),
        largest_angle=both(float(theta[-1])),
        explained_of_other=(_inside(b.values, products), _inside(a.values, products.T)),
        noise=both(noise),
        resolved=both(float(found.chordal > noise)),
    )


def _bures(a: Tensor, b: Tensor, products: Tensor) -> float:
    """Distance of covariances of trace 1 with these eigenvalues, from the products [k1, k2] of their eigenvectors.

    d^2 = tr A + tr B - 2 |A^(1/2) B^(1/2)|_* is finite and continuous over all ranks.
    """
    roots = (a / a.sum()).sqrt(), (b / b.sum()).sqrt()
    fidelity = torch.linalg.svdvals(roots[0][:, None] * products * roots[1]).sum()
    return math.sqrt(max(0.0, 2 - 2 * float(fidelity)))


def _inside(values: Tensor, products: Tensor) -> float:
    """The share of the variance of components [k2] that lies in a subspace, from products [k1, k2]."""
    return float(products.square().sum(0) @ values / values.sum())


def _result(
    found: Sequence[Subspace], table: dict[str, Tensor], pairs: list[tuple[int, int]], config: Config
) -> Result:
    first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
    of = {name: values[first, second] for name, values in table.items()}
    n = len(found)
    apart = 1 - of["overlap"]
    beside = [float(table["overlap"][k, k + 1]) for k in range(n - 1)]
    beside = [value for value in beside if math.isfinite(value)]
    noise = of["noise"][of["noise"].isfinite()]
    nearest, farthest = pairs[int(apart.argmin())], pairs[int(apart.argmax())]
    return Result(
        n_members=n,
        labels=tuple(one.label for one in found),
        n_pairs=len(pairs),
        n_pairs_without=n * (n - 1) // 2 - len(pairs),
        n_unresolved=int((of["resolved"] == 0).sum()),
        geodesic=float(of["geodesic"].mean()),
        chordal=float(of["chordal"].mean()),
        chordal_noise=float(noise.mean()) if len(noise) else None,
        overlap=float(of["overlap"].mean()),
        overlap_null=float(of["overlap_null"].mean()),
        overlap_null_high=float(of["overlap_null_high"].mean()),
        neighbour_overlap=sum(beside) / len(beside) if beside else None,
        flag=float(of["flag"].mean()),
        nearest=(found[nearest[0]].label, found[nearest[1]].label),
        farthest=(found[farthest[0]].label, found[farthest[1]].label),
        caveats=subspace_series.caveats(found, config.components),
    )
