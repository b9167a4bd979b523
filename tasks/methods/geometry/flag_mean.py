"""The mean and the median of the principal subspaces of a series, or of its flags of nested ones, by chordal distances.

The mean of subspaces has the leading eigenvectors of sum w P, P their projectors; its `share` says how much of each direction the
members hold on average. The median minimises the sum of distances, not of squares: a member far from the others gets a small weight.
Weights enter as w; the code that the authors published scales bases by w, which weighs by w^2: square yours to compare.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import subspace_series
from tasks.methods.contract import Array, Arrays, ArtifactPort, Inputs
from tasks.methods.subspace_series import Subspace, of_one_width, subspaces
from tasks.numerics.chordal_means import Family, Median

VERSION = 1
KIND = "combine"
READS = {"pca": ArtifactPort("spectrum.pca", several=True, least=2, one_width=True)}
ARRAYS = {
    "mean": ("component", "feature"), "median": ("component", "feature"), "share": ("component",), "share_median": ("component",),
    "distance": ("member",), "distance_median": ("member",), "weight": ("member",),
}  # fmt: skip
REFERENCE = (
    "Draper, Kirby, Marks, Marrinan, Peterson, A flag representation for finite collections of subspaces, Linear Algebra and its "
    "Applications 451 (2014) 15. Mankovich, Birdal, Chordal averaging on flag manifolds and its applications, ICCV (2023): flag mean "
    "and median; the Stiefel problem is solved by polar factors here, where the authors use a trust region"
)
SEEDS = (85,)


class Config(Frozen):
    """Which subspaces are averaged."""

    components: int | None = Field(default=None, ge=1)
    """Dimension of the mean; None: the smallest of the members' dimensions."""
    flag: tuple[int, ...] = ()
    """Dimensions of nested subspaces, such as 1, 3, 10: the mean of these flags instead; empty: of one subspace."""
    weights: tuple[float, ...] = ()
    """Of members, in the order of the series, positive; empty: all 1."""
    iterations: int = Field(default=200, ge=1)
    """At most, of reweighting and of polar factors."""
    tolerance: float = Field(default=1e-10, gt=0)
    """Relative change of the sum of distances at which the median is found."""
    least_distance: float = Field(default=1e-8, gt=0)
    """Below it a member's weight in the median grows no further."""
    suspicious: float = Field(default=0.5, gt=0, lt=1)
    """Members whose weight in the median, over their given one, is below this share of the middle one are called outliers."""


class Result(Frozen):
    """Distances are chordal: between 0 and the square root of the dimension."""

    n_members: int
    labels: tuple[str, ...]
    width: int
    dimensions: tuple[int, ...]
    """Of the nested subspaces of mean and median."""
    share: float
    """Mean share of a direction of the mean that members hold: 1 where all are equal."""
    share_null: float
    """Of a fixed direction and random subspaces: dimension of the members / width."""
    gap: float | None
    """Between the share of the mean's last direction and of the next one: without one the mean is not unique. None for flags."""
    distance: float
    """Mean distance of members to the mean."""
    distance_median: float
    """The same to the median."""
    distance_noise: float | None
    """Root of the mean squared distance that sampling noise of members alone would put them from the truth."""
    apart: float
    """Distance of mean and median."""
    outliers: tuple[str, ...]
    residual: float
    """Gradient of the mean's objective along the manifold, relative: 0 at a solution."""
    iterations: int
    """Of the median."""
    converged: bool
    """Whether the median was found."""
    change: float | None
    """Of the sum of distances in its last iteration."""
    caveats: tuple[str, ...]


def solve(inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Mean and median.

    Raises:
        MethodError: for other widths than one, wrong weights or dimensions, or members without components.

    Cost: one QR of [feature, all components], or members of feature^2 where these outnumber features; then each iteration costs the
    smaller of both numbers cubed.
    """
    found = subspaces(inputs, "pca", None)
    width, ends = of_one_width(found), _dimensions(found, config)
    weight = _weights(found, config)
    kept = ends[-1] if config.flag or config.components else None
    members = [one.basis[:kept] for one in found]
    family = Family(members, ends)
    mean = family.mean(weight, config.tolerance, config.iterations)
    median = family.median(weight, config.least_distance, config.tolerance, config.iterations)
    arrays: dict[str, Tensor] = {
        "mean": mean.basis,
        "median": median.mean.basis,
        "share": mean.share,
        "share_median": median.mean.share,
        "distance": family.distances(mean.basis),
        "distance_median": family.distances(median.mean.basis),
        "weight": median.weight,
    }
    noise = [one.noise for one in found if one.noise == one.noise]
    both = Family([mean.basis, median.mean.basis], ends)
    result = Result(
        n_members=len(found),
        labels=tuple(one.label for one in found),
        width=width,
        dimensions=ends,
        share=float(mean.share.mean()),
        share_null=sum(map(len, members)) / len(members) / width,
        gap=None if mean.gap != mean.gap else mean.gap,
        distance=float(weight @ arrays["distance"] / weight.sum()),
        distance_median=float(weight @ arrays["distance_median"] / weight.sum()),
        distance_noise=(sum(noise) / len(noise)) ** 0.5 if len(noise) == len(found) else None,
        apart=float(both.distances(mean.basis)[1]),
        outliers=_outliers(found, median, weight, config),
        residual=mean.residual,
        iterations=median.iterations,
        converged=median.converged,
        change=median.change if median.change < float("inf") else None,
        caveats=_caveats(found, ends, mean.gap, median),
    )
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _dimensions(found: list[Subspace], config: Config) -> tuple[int, ...]:
    smallest = min(found, key=lambda one: len(one.basis))
    size = len(smallest.basis)
    ends = config.flag or (config.components or size,)
    if list(ends) != sorted(set(ends)) or ends[0] < 1:
        raise MethodError(f"dimensions of nested subspaces must rise from 1 on, found {ends}")
    if ends[-1] > size or size == 0:
        raise MethodError(
            f"asked for {ends[-1]} dimensions, but {smallest.label} has {size} components; ask for fewer, or keep more in its stage"
        )
    return tuple(ends)


def _weights(found: list[Subspace], config: Config) -> Tensor:
    given = config.weights or (1.0,) * len(found)
    if len(given) != len(found) or min(given) <= 0:
        raise MethodError(
            f"expected {len(found)} positive weights, one for each of {found[0].label} ... {found[-1].label}; found {given}"
        )
    return torch.tensor(given, dtype=torch.float64, device=found[0].basis.device)


def _outliers(found: list[Subspace], median: Median, weight: Tensor, config: Config) -> tuple[str, ...]:
    relative = median.weight / weight
    low = relative < config.suspicious * relative.median()
    return tuple(one.label for one, is_low in zip(found, low.tolist(), strict=True) if is_low)


def _caveats(found: list[Subspace], ends: tuple[int, ...], gap: float, median: Median) -> tuple[str, ...]:
    notes = list(subspace_series.caveats(found, None))
    if gap <= 1e-9:
        notes.append(
            "the mean is not unique: its last direction and the next are as common; ask for another dimension"
        )
    if len(ends) > 1:
        notes.append(
            "a mean of flags is a stationary point that never lies below where it began; others may exist"
        )
    if not median.converged:
        notes.append(f"the median still moved after {median.iterations} iterations")
    return tuple(notes)
