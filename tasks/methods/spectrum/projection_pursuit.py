"""The plane in which a site's rows look least Gaussian: projection pursuit by the negentropy of a Gaussian mixture.

Rows are brought to uncorrelated coordinates of unit variance in a few principal components, so that variance has no part in it. What a
plane shows is tested on halves of the samples that it was not sought on, and beside what as many Gaussian rows would show. Arrays:
`direction` (component, feature), rows of length 1; `projection` (sampled, component), coordinates of unit variance; `part` (sampled), the
mixture's most probable part; `row` (sampled), over all captures laid end to end; `parts_share` (part).
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import half_samples
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import negentropy, stein
from tasks.numerics.negentropy import Mixture, Plane
from tasks.numerics.spectrum import signed

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {
    "direction": ("component", "feature"),
    "projection": ("sampled", "component"),
    "part": ("sampled",),
    "row": ("sampled",),
    "parts_share": ("part",),
}
REFERENCE = (
    "Scrucca, Serafini, Projection pursuit based on Gaussian mixtures and evolutionary algorithms, JCGS 28 (2019) 847; entropy as a mean "
    "over rows and gradient ascent from seeded starts, in the place of its approximation and its genetic algorithm, are choices of "
    "this project"
)
SEEDS = (185,)
ROWS_PER_AXIS = 10


class Config(Frozen):
    """How large the plane is, and how it is sought and tested."""

    components: int = Field(default=2, ge=1, le=3)
    """Dimensions of the plane."""
    axes: int = Field(default=5, ge=1, le=20)
    """Principal components within which it is sought; fewer where rows are less than ten times as many."""
    parts: int = Field(default=6, ge=1, le=20)
    """Of the mixture, at most; the number is that of least BIC."""
    starts: int = Field(default=8, ge=1)
    """Climbs; the best is taken."""
    halves: int = Field(default=6, ge=2)
    """Draws of half of the samples on which planes are sought; they are tested on the other half."""
    draws: int = Field(default=5, ge=1)
    """Of Gaussian rows, for the null."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the interval."""
    sample_rows: int | None = Field(default=1000, ge=10)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=20_000, ge=10)
    """Refuse more rows than this."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


class Result(Frozen):
    """Negentropy in nats: 0 for Gaussian rows."""

    n_rows: int
    n_duplicates: int
    """Rows that equal an earlier one: many of them are a heap that is no shape of the site."""
    width: int
    axes: int
    """In which the plane was sought."""
    axes_share: float
    """Of the variance that they hold."""
    parts: int
    """Of the mixture; 1: the rows are Gaussian as far as BIC tells."""
    negentropy: float
    """On the rows that it was sought on: too high."""
    negentropy_null: float
    """Largest of as many independent Gaussian rows, with a mixture of as many parts."""
    held_out: Interval | None
    """Mean over halves of the negentropy of their planes on the samples of the other half. None for less than two samples."""
    exceeds_null: bool
    """Whether rows have more than the null, and the interval lies above 0."""
    first_components: float
    """Negentropy of the plane of the first principal components, by the same mixture."""
    overlap: float | None
    """Of the planes of halves with that of all rows, mean of squared cosines: 1 for the same plane."""
    overlap_null: float
    """Of random planes."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for a plane of more dimensions than there are features.
    """
    if config.components > min(inputs.widths["x"], config.axes):
        raise MethodError(
            f"asked for {config.components} components among {min(inputs.widths['x'], config.axes)} axes; lower `components`"
        )


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The plane of all rows, those of halves, and those of Gaussian rows.

    Raises:
        MethodError: for too few rows, or rows that vary in less directions than asked for.

    Cost: (1 + halves + draws) times parts^2 row axis^2, and starts times 150 steps of row part. On the CPU.
    """
    order = torch.argsort(block.index)
    x, sample = block["x"][order].double().cpu(), block.sample[order].cpu()
    mean, root, share = _whitened(x, config)
    z, d = (x - mean) @ root, root.shape[1]
    mixture = negentropy.chosen(z, config.parts, config.seed)
    plane = _sought(z, mixture, config)
    halves = half_samples.draw(sample, config.halves, config.seed)
    tested = [_tested(z, half, config) for half in halves]
    null = max(_of_gaussian(len(z), d, len(mixture.weight), draw, config) for draw in range(config.draws))
    held_out = _held_out([value for _, value in tested], config)
    overlaps = [float((plane.basis.T @ b).square().sum()) / config.components for b, _ in tested]
    first = negentropy.negentropy(z, mixture, torch.eye(d, dtype=z.dtype)[None, :, : config.components])
    above = held_out is not None and held_out.low is not None and held_out.low > 0
    result = Result(
        n_rows=len(x),
        n_duplicates=len(x) - len(torch.unique(x, dim=0)),
        width=x.shape[1],
        axes=d,
        axes_share=share,
        parts=len(mixture.weight),
        negentropy=plane.negentropy,
        negentropy_null=null,
        held_out=held_out,
        exceeds_null=above and plane.negentropy > null,
        first_components=float(first[0]),
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
        overlap_null=config.components / d,
        caveats=_caveats(len(mixture.weight), d, sample, config),
    )
    return result, _arrays(z, block.index[order], mixture, plane, root)


def _whitened(x: Tensor, config: Config) -> tuple[Tensor, Tensor, float]:
    """Mean, what gives coordinates, and the share of variance that they hold."""
    most = min(config.axes, len(x) // ROWS_PER_AXIS)
    mean = x.mean(0)
    if most >= config.components:
        centred = x - mean
        covariance = centred.T @ centred / len(x)
        root = stein.whitening(covariance, most)
        if root.shape[1] >= config.components:
            held = (covariance @ root * root).sum(0) / root.square().sum(0)
            return mean, root, min(1.0, float(held.sum() / covariance.trace()))
        raise MethodError(
            f"rows vary in {root.shape[1]} directions, a plane of {config.components} needs as many; choose another site"
        )
    raise MethodError(
        f"found {len(x)} good rows, expected {ROWS_PER_AXIS * config.components} or more; capture more samples"
    )


def _sought(z: Tensor, mixture: Mixture, config: Config) -> Plane:
    return negentropy.pursued(z, mixture, config.components, config.starts, config.seed)


def _tested(z: Tensor, half: Tensor, config: Config) -> tuple[Tensor, float]:
    """The plane of some rows, and the negentropy there of all others by the mixture of the first."""
    other = torch.ones(len(z), dtype=torch.bool)
    other[half] = False
    mixture = negentropy.chosen(z[half], config.parts, config.seed)
    basis = _sought(z[half], mixture, config).basis
    return basis, float(negentropy.negentropy(z[other], mixture, basis[None])[0])


def _held_out(values: list[float], config: Config) -> Interval | None:
    """Their mean, with the spread of one of them: halves are as far from each other as all rows from endless ones."""
    if len(values) < 2:
        return None
    return half_samples.interval(sum(values) / len(values), values, config.confidence)


def _of_gaussian(n: int, d: int, parts: int, draw: int, config: Config) -> float:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, 4, draw])))
    z = torch.from_numpy(generator.standard_normal((n, d)))
    return _sought(z, negentropy.fitted(z, parts, config.seed)[0], config).negentropy


def _arrays(z: Tensor, index: Tensor, mixture: Mixture, plane: Plane, root: Tensor) -> Arrays:
    columns = torch.nn.functional.normalize((root @ plane.basis).T, dim=1)
    turned = signed(columns)
    sign = torch.where((turned * columns).sum(1) < 0, -1.0, 1.0).double()
    deviation = z[:, None] - mixture.mean
    factor = torch.linalg.cholesky(mixture.covariance)
    scaled = torch.linalg.solve_triangular(factor, deviation.permute(1, 2, 0), upper=False)
    logs = -0.5 * scaled.square().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
    arrays = {
        "direction": turned,
        "projection": z @ plane.basis * sign,
        "part": (logs + mixture.weight.clamp(min=1e-300).log()[:, None]).argmax(0),
        "row": index.cpu(),
        "parts_share": mixture.weight,
    }
    return {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _caveats(parts: int, axes: int, sample: Tensor, config: Config) -> tuple[str, ...]:
    notes = list(half_samples.caveats(sample))
    if parts == 1:
        notes.append(
            "the best mixture is one Gaussian: every plane is as good, and the one given is arbitrary"
        )
    if parts == config.parts and config.parts > 1:
        notes.append(f"the mixture has the most parts that were allowed, {parts}: raise `parts`")
    if axes < config.axes:
        notes.append(f"the plane was sought in {axes} axes only, as rows are few or vary in no more")
    if len(torch.unique(sample)) < len(sample):
        notes.append(
            "rows of one sample depend on each other: the null of independent rows is too low; read the held-out number"
        )
    return tuple(notes)
