"""How subspaces move along a series of layers or checkpoints: first- and second-order difference subspaces, its velocity and acceleration.

The first order compares neighbours, the second each member with the mean of its two neighbours: 0 for steps along a geodesic. The
magnitude 2 sum (1 - cos t) over principal angles t comes beside what random subspaces, and what sampling noise alone, would give.
"""

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import subspace_series
from tasks.methods.contract import Array, Arrays, ArtifactPort, Inputs
from tasks.methods.subspace_series import Subspace, of_one_width, series_of, subspaces
from tasks.numerics.difference_subspaces import Between, between, magnitude, random_magnitude

VERSION = 1
KIND = "combine"
READS = {"pca": ArtifactPort("spectrum.pca", several=True, least=2, one_width=True)}
ARRAYS = {
    "magnitude": ("step",), "magnitude_null": ("step",), "magnitude_noise": ("step",), "dimension": ("step",), "first": ("step",),
    "second": ("bend",), "second_noise": ("bend",), "dimension_second": ("bend",), "middle": ("bend",),
    "largest_step": ("direction", "feature"), "largest_bend": ("second_direction", "feature"),
}  # fmt: skip
REFERENCE = (
    "Fukui et al., Second-order difference subspace (2024): difference of subspaces of other dimensions, mean subspace of two, magnitude. "
    "Fukui, Maki, Difference subspace and its generalization for subspace-based methods, IEEE PAMI 37 (2015) 2164. Formulas by way of "
    "code that quotes the paper"
)
SEEDS = (181,)


class Config(Frozen):
    """Which subspaces follow each other."""

    components: int | None = Field(default=None, ge=1)
    """Leading components of each artifact; None: all that it keeps."""
    along: Literal["sites", "captures"] | None = None
    """What the series runs along: sites of one capture, or captures at one site, in the order of the run file. None: captures where a
    site has several, else sites."""
    draws: int = Field(default=50, ge=2)
    """Pairs of random subspaces behind each `magnitude_null`."""
    seed: int = 0
    """Of these."""


class Result(Frozen):
    """Magnitudes are sums over angles: 0 for equal subspaces, 2 k for orthogonal ones of dimension k."""

    n_members: int
    n_series: int
    labels: tuple[str, ...]
    """In the order of the series."""
    width: int
    magnitude: float
    """Mean over neighbours: how far the subspace moves in a step."""
    magnitude_null: float
    """The same of random subspaces."""
    magnitude_noise: float | None
    """The same of samples of one subspace; None where no gap bounds it."""
    second: float | None
    """Mean over members with two neighbours: how far they are from between them. None for series of two."""
    second_noise: float | None
    n_unresolved: int
    """Steps no larger than their noise, or whose noise is not known."""
    n_unresolved_second: int
    largest_step: tuple[str, str]
    """The neighbours that are furthest apart."""
    largest_bend: str | None
    """The member that is furthest from between its neighbours."""
    n_right_angles: int
    """Directions of steps two apart that are orthogonal and so have no part in a mean."""
    caveats: tuple[str, ...]


class _Step(NamedTuple):
    first: Subspace
    then: Subspace
    found: Between
    null: float
    noise: float


class _Bend(NamedTuple):
    middle: Subspace
    found: Between
    noise: float
    right: int


def solve(inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All steps and bends.

    Raises:
        MethodError: for other widths than one, members without components, or no neighbours.

    Cost: component^2 feature for each step, twice that for each bend.
    """
    found = subspaces(inputs, "pca", config.components)
    width = of_one_width(found)
    empty = [one.label for one in found if not len(one.basis)]
    if empty:
        raise MethodError(f"{empty[0]} does not vary and has no subspace; leave it out of the series")
    series = series_of(found, config.along)
    steps = [_step(a, b, config) for line in series for a, b in pairwise(line)]
    bends = [
        _bend(*triple) for line in series for triple in zip(line[:-2], line[1:-1], line[2:], strict=True)
    ]
    if not steps:
        raise MethodError(
            f"no two of the {len(found)} artifacts follow each other along {config.along}; choose another `along`, or more of them"
        )
    place = {id(one): number for number, one in enumerate(one for line in series for one in line)}
    return _result(series, steps, bends, width), _arrays(steps, bends, place, width)


def _step(a: Subspace, b: Subspace, config: Config) -> _Step:
    null = random_magnitude(len(a.basis), len(b.basis), a.width, config.draws, config.seed)
    return _Step(a, b, between(a.basis, b.basis), null, a.noise + b.noise)


def _bend(a: Subspace, b: Subspace, c: Subspace) -> _Bend:
    """For small angles a magnitude is the sum of their squares, and noise of a mean of two has a quarter of each."""
    middle = between(a.basis, c.basis)
    right = len(middle.angles) - len(middle.mean)
    return _Bend(b, between(middle.mean, b.basis), b.noise + (a.noise + c.noise) / 4, right)


def _result(series: list[list[Subspace]], steps: list[_Step], bends: list[_Bend], width: int) -> Result:
    members = [one for line in series for one in line]
    sizes, turns = [s.found.magnitude for s in steps], [b.found.magnitude for b in bends]
    largest = steps[sizes.index(max(sizes))]
    notes = subspace_series.caveats(members, None)
    right = sum(bend.right for bend in bends)
    if right:
        notes += (f"{right} directions are orthogonal between members two apart: a mean leaves them out",)
    return Result(
        n_members=len(members),
        n_series=len(series),
        labels=tuple(one.label for one in members),
        width=width,
        magnitude=sum(sizes) / len(sizes),
        magnitude_null=sum(step.null for step in steps) / len(steps),
        magnitude_noise=_known(sum(step.noise for step in steps) / len(steps)),
        second=sum(turns) / len(turns) if turns else None,
        second_noise=_known(sum(bend.noise for bend in bends) / len(bends)) if bends else None,
        n_unresolved=sum(not size > step.noise for size, step in zip(sizes, steps, strict=True)),
        n_unresolved_second=sum(not size > bend.noise for size, bend in zip(turns, bends, strict=True)),
        largest_step=(largest.first.label, largest.then.label),
        largest_bend=bends[turns.index(max(turns))].middle.label if bends else None,
        n_right_angles=right,
        caveats=notes,
    )


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _arrays(steps: list[_Step], bends: list[_Bend], place: dict[int, int], width: int) -> Arrays:
    device = steps[0].first.basis.device
    largest = max(steps, key=lambda step: step.found.magnitude).found.difference
    bent = max(bends, key=lambda bend: bend.found.magnitude).found.difference if bends else largest[:0]
    arrays: dict[str, Tensor] = {
        "magnitude": torch.tensor([magnitude(step.found.angles) for step in steps], dtype=torch.float64),
        "magnitude_null": torch.tensor([step.null for step in steps], dtype=torch.float64),
        "magnitude_noise": torch.tensor([step.noise for step in steps], dtype=torch.float64),
        "dimension": torch.tensor([len(step.found.difference) for step in steps]),
        "first": torch.tensor([place[id(step.first)] for step in steps]),
        "second": torch.tensor([magnitude(bend.found.angles) for bend in bends], dtype=torch.float64),
        "second_noise": torch.tensor([bend.noise for bend in bends], dtype=torch.float64),
        "dimension_second": torch.tensor([len(bend.found.difference) for bend in bends], dtype=torch.int64),
        "middle": torch.tensor([place[id(bend.middle)] for bend in bends], dtype=torch.int64),
        "largest_step": largest,
        "largest_bend": bent,
    }
    return {name: Array(values.to(device), ARRAYS[name]) for name, values in arrays.items()}
