"""A linear projection that is learned to keep neighbours (TLDR), beside principal components of the same rank.

Each row is paired with its nearest rows; the projection is the one whose outputs agree between partners and do not repeat each other
(Barlow Twins' loss). It is learned on some samples and judged on others: how many of a row's nearest rows are still nearest afterwards, in
an orthonormal basis of the space found and with outputs of variance 1, each against principal components in the same form. The
authors' auxiliary head, which is thrown away after training, is left out, so that the loss needs second moments alone and all pairs count
in each step.

Arrays: `components` (component, feature), orthonormal rows that span the space, and `mean` (feature), as principal components have them;
`weight` (component, feature), outputs of variance 1 on x - mean, and their `agreement` (component), descending.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from scipy.stats import t as student
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import redundancy
from tasks.numerics.neighbours import nearest, none_yet
from tasks.numerics.proportions import grouped
from tasks.numerics.spectrum import signed
from tasks.numerics.split import held_out

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {
    "components": ("component", "feature"),
    "mean": ("feature",),
    "weight": ("component", "feature"),
    "agreement": ("component",),
}
REFERENCE = (
    "Kalantidis, Lassance, Almazan, Larlus, TLDR: twin learning for dimensionality reduction, TMLR (2022), with a linear encoder and no "
    "head. Zbontar, Jing, Misra, LeCun, Deny, Barlow Twins, ICML (2021): the loss"
)
SEEDS = (205,)


class Config(Frozen):
    """How many outputs, from which pairs."""

    components: int = Field(default=16, ge=1)
    """Outputs."""
    neighbours: int = Field(default=5, ge=1, le=1024)
    """Nearest rows that each row is paired with."""
    across_samples: bool = False
    """Pair, and judge, rows of different samples only; tokens of one text are often near each other whatever the text."""
    penalty: float = Field(default=1.0, gt=0)
    """Of squared correlations between different outputs. Without a head, small ones let outputs repeat each other: see `output_rank`."""
    ridge: float = Field(default=1e-3, ge=0)
    """Added to variances, in their mean over features: directions of next to no variance must not decide."""
    steps: int = Field(default=200, ge=1)
    """Of the descent at most."""
    recall_at: int = Field(default=10, ge=1, le=1024)
    """Nearest rows that are looked for again."""
    test_share: float = Field(default=0.25, gt=0, lt=1)
    """Expected share of the samples that is held out."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    sample_rows: int | None = Field(default=8000, ge=4)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=50_000, ge=4)
    """Refuse more rows than this; time grows with their square."""
    seed: int = Field(default=0, ge=0)
    """Of the draw, of the split and of the start."""


class Result(Frozen):
    """What was learned; None where held-out rows are too few to judge it. Recalls are shares of nearest rows found again."""

    n_train_rows: int
    n_test_rows: int
    n_test_samples: int
    width: int
    """Features."""
    components: int
    recall: Interval | None
    """Of the space found, distances taken in it as they are."""
    recall_pca: Interval | None
    """Of as many principal components of the same training rows."""
    gain: Interval | None
    """Recall less that of principal components, row by row."""
    recall_whitened: Interval | None
    """With outputs of variance 1."""
    recall_pca_whitened: Interval | None
    gain_whitened: Interval | None
    recall_random: float | None
    """Of rows drawn at random."""
    agreement: float
    """Mean correlation of outputs between partners, in training."""
    agreement_test: float | None
    """Of held-out rows and their nearest held-out rows."""
    agreement_pca_test: float | None
    """Of principal components on the same."""
    loss: float
    """Of training pairs."""
    loss_pca: float
    """Of principal components on the same pairs."""
    loss_start: float
    """At the canonical directions, whose outputs are not correlated and agree most: beside them descent starts."""
    gradient: float
    """Largest slope that is left."""
    steps: int
    output_rank: float
    """Participation ratio of the correlations between outputs: `components` if none repeats another."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for more components than features, or too few rows.
    """
    if config.components > inputs.widths["x"]:
        raise MethodError(
            f"asked for {config.components} components, the site has {inputs.widths['x']} features"
        )
    if inputs.n_rows < config.neighbours + 2:
        raise MethodError(
            f"found {inputs.n_rows} rows, {config.neighbours} neighbours need more; capture more samples"
        )


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The map from training rows, and its recall of held-out rows.

    Raises:
        MethodError: if training rows have too few neighbours.

    Cost: row^2 feature flops for neighbours, and O(feature^3).
    """
    test = held_out(block.sample, config.test_share, config.seed)
    x, y = block["x"][~test].double(), block["x"][test].double()
    pairs = redundancy.of_pairs(x, _partners(x, block.sample[~test], config, config.neighbours))
    if not float(pairs.variance.diagonal().sum()) > 0:
        raise MethodError(f"all {len(x)} training rows are equal: nothing can be projected")
    found = redundancy.learn(
        pairs, config.components, config.penalty, config.ridge, config.steps, config.seed
    )
    basis = signed(torch.linalg.svd(found.weight, full_matrices=False).Vh.contiguous())
    pca, spread = _principal(x, config.components)
    judged = _judged(
        y,
        block.sample[test],
        {"": basis, "_pca": pca, "_whitened": found.weight, "_pca_whitened": pca / spread},
        config,
    )
    agreed = _agreement(y, block.sample[test], (found.weight, pca), config)
    outputs = found.weight @ pairs.variance @ found.weight.T
    scale = outputs.diagonal().clamp(min=1e-300).sqrt()
    correlation = outputs / torch.outer(scale, scale)
    result = Result(
        n_train_rows=len(x),
        n_test_rows=len(y),
        n_test_samples=len(torch.unique(block.sample[test])),
        width=x.shape[1],
        components=config.components,
        agreement=float(found.agreement.mean()),
        agreement_test=agreed[0],
        agreement_pca_test=agreed[1],
        loss=redundancy.loss_of(found.weight, pairs, config.penalty),
        loss_pca=redundancy.loss_of(pca, pairs, config.penalty),
        loss_start=found.loss_start,
        gradient=found.gradient,
        steps=found.steps,
        output_rank=config.components**2 / float(correlation.square().sum()),
        caveats=_caveats(len(x), x.shape[1], judged, config),
        **judged,
    )
    arrays = {"components": basis, "mean": pairs.mean, "weight": found.weight, "agreement": found.agreement}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _partners(x: Tensor, sample: Tensor, config: Config, k: int) -> Tensor:
    """[row, k]: the nearest rows of each.

    Raises:
        MethodError: where a row has fewer.
    """
    index = torch.arange(len(x), device=x.device)
    classes = (sample, sample) if config.across_samples else None
    found = nearest(none_yet(len(x), k, x.device), x, index, x, index, classes)
    if bool((found.index < 0).any()) or len(x) == 0:
        raise MethodError(
            f"{len(x)} training rows are too few for {k} neighbours of each; capture more samples, or ask for fewer"
        )
    return found.index


def _principal(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Leading components [k, feature] and their standard deviations [k, 1], floored where rows do not vary."""
    z = x - x.mean(0)
    values, vectors = torch.linalg.eigh(z.T @ z / max(1, len(x) - 1))
    spread = values.flip(0)[:k].clamp(min=float(values[-1]) * 1e-14).sqrt()
    return vectors.flip(1)[:, :k].T.contiguous(), spread[:, None]


class _Hits(NamedTuple):
    hits: Tensor
    """[row]: nearest rows found again."""
    sample: Tensor


def _judged(
    y: Tensor, sample: Tensor, maps: dict[str, Tensor], config: Config
) -> dict[str, Interval | float | None]:
    """Recalls by the map's name, and gains over principal components."""
    none: dict[str, Interval | float | None] = {f"recall{name}": None for name in maps}
    none |= {"gain": None, "gain_whitened": None, "recall_random": None}
    k = config.recall_at
    if len(y) <= k + 1:
        return none
    try:
        truth = _partners(y, sample, config, k)
    except MethodError:
        return none
    hits = {}
    for name, weight in maps.items():
        again = _partners(y @ weight.T, sample, config, k)
        hits[name] = (truth[:, :, None] == again[:, None, :]).any(2).sum(1)
    place = torch.unique(sample, return_inverse=True)[1]
    found: dict[str, Interval | float | None] = {
        f"recall{name}": _share(h, place, config) for name, h in hits.items()
    }
    found |= {"gain": _mean(hits[""] - hits["_pca"], place, config)}
    found |= {"gain_whitened": _mean(hits["_whitened"] - hits["_pca_whitened"], place, config)}
    return found | {"recall_random": k / (len(y) - 1)}


def _share(hits: Tensor, place: Tensor, config: Config) -> Interval:
    rows = torch.bincount(place) * config.recall_at
    found = grouped(torch.zeros_like(rows).index_add_(0, place, hits), rows, config.confidence)
    return Interval(value=found.value, corrected=None, low=found.low, high=found.high)


def _mean(difference: Tensor, place: Tensor, config: Config) -> Interval:
    """Of rows, with Student's interval over samples: the variance of a ratio of sums."""
    values = difference.double() / config.recall_at
    value, rows = float(values.mean()), torch.bincount(place)
    samples = len(rows)
    if samples < 2:
        return Interval(value=value, corrected=None, low=None, high=None)
    apart = torch.zeros(samples, dtype=values.dtype, device=values.device).index_add_(
        0, place, values - value
    )
    error = math.sqrt(float(apart.square().sum()) * samples / (samples - 1)) / len(values)
    reach = float(student.ppf(0.5 + config.confidence / 2, samples - 1)) * error
    return Interval(value=value, corrected=None, low=value - reach, high=value + reach)


def _agreement(
    y: Tensor, sample: Tensor, maps: tuple[Tensor, Tensor], config: Config
) -> tuple[float | None, float | None]:
    """Mean correlation of outputs of held-out rows with those of their nearest ones."""
    try:
        pairs = redundancy.of_pairs(y, _partners(y, sample, config, config.neighbours))
    except MethodError:
        return None, None
    means = []
    for weight in maps:
        spread = ((weight @ pairs.variance) * weight).sum(1)
        agreed = ((weight @ pairs.cross) * weight).sum(1) / spread.where(spread > 0, torch.inf)
        means.append(float(agreed.mean()))
    return means[0], means[1]


def _caveats(
    n: int, width: int, judged: dict[str, Interval | float | None], config: Config
) -> tuple[str, ...]:
    notes = ["neighbours are taken within the drawn rows: with more rows they are nearer"]
    if judged["recall"] is None:
        notes.append(
            f"held-out rows are too few to judge {config.recall_at} nearest rows: capture more samples"
        )
    if n < 10 * width:
        notes.append(f"{n} training rows for {width} features: agreement in training is too high")
    return tuple(notes)
