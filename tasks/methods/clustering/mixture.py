"""Rows as a mixture of low-rank Gaussians, each row with its chances to belong to each: any number of rows in bounded memory.

Each component is a Gaussian with variances of its own along a few directions and one noise variance in all others (mixture of
probabilistic PCA); without noise and means it is the mixture of low-rank Gaussians whose subspaces diffusion models learn. The likelihood
is raised by expectation and maximisation: on a sample from starts of K subspaces, then from the best with all rows, one read a round, until
a round raises the mean log likelihood of a row by no more than `tolerance`. It never falls while dimensions stay; where none is asked for,
each component gets its own on the sample, and once more when all rows have been read for the first time. To find the number of components,
compare `bic` over stages of the same rows: the smaller, the better. `clustering.assign` gives these or other rows their component, its
posterior and their log likelihood.

Arrays, components with most weight first: `mean` (cluster_number, feature), `basis` (cluster_number, component, feature) its orthonormal
directions, zeros beyond its `dimension` (cluster_number), `variance` (cluster_number, component) along them, that of its noise beyond,
`noise` (cluster_number) the noise variance of a feature, `weight` (cluster_number) its share, `size` (cluster_number) rows for which no
other has a larger chance, `eigenvalue` (cluster_number, order) the variances of rows, weighted by chance, along their own principal
directions, `affinity` (cluster_number, other_cluster) as of `clustering.k_subspaces`, `log_likelihood` (round) the mean of a row.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.classes import carried_classes, class_label, counted_classes
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import (
    cluster_moments,
    k_subspaces,
    low_rank_mixture,
    row_sample,
    subspace_dimensions,
    subspace_starts,
)
from tasks.numerics.agreement import Agreement, agreement
from tasks.numerics.k_subspaces import Subspaces
from tasks.numerics.low_rank_mixture import FLOOR, Mixture, Rules

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "mean": ("cluster_number", "feature"),
    "basis": ("cluster_number", "component", "feature"),
    "variance": ("cluster_number", "component"),
    **dict.fromkeys(("noise", "weight", "dimension", "size"), ("cluster_number",)),
    "eigenvalue": ("cluster_number", "order"),
    "affinity": ("cluster_number", "other_cluster"),
    "log_likelihood": ("round",),
}
REFERENCE = (
    "Tipping, Bishop, Neural Computation 11 (1999) 443, sections 3 and 4; without noise and means: Wang, Zhang, Zhang, Chen, Ma, Qu, arXiv "
    "2409.02426 (2024). Criterion: Schwarz, Annals of Statistics 6 (1978) 461"
)
SEEDS = (129,)
MOST_BYTES = 4 << 30
"""Of the moments of all components."""
ADDED = ("seen", "log_likelihood", "entropy", "residual", "size", "table")


class Config(Frozen):
    """How many components of which kind are looked for, and how."""

    clusters: int = Field(default=8, ge=1)
    """How many components."""
    dimension: int | None = Field(default=None, ge=1)
    """Directions of each with a variance of their own. None: each its own, as many as stand out of white noise."""
    max_dimension: int = Field(default=16, ge=1)
    """Of any where each has its own."""
    kind: Literal["affine", "linear"] = "affine"
    """`linear` ones have mean 0."""
    noise: Literal["own", "shared"] = "own"
    """Whether each component has its own noise variance, or all have one."""
    unit_length: bool = False
    """Scale rows to length 1 first."""
    start_rows: int = Field(default=2000, ge=10)
    """Rows of the sample on which starts are tried; all where there are no more."""
    starts: int = Field(default=10, ge=1)
    """Draws of K subspaces that are improved until no row of the sample moves, as of `clustering.k_subspaces`."""
    rounds: int = Field(default=50, ge=1)
    """Reads of all rows after the sample, at most."""
    tolerance: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    """Stop when a round raises the mean log likelihood of a row by no more, in nats."""
    label: str | None = None
    """A label with classes, to compare the components with; nothing else reads it."""
    precision: Literal["float64", "float32"] = "float64"
    """Of products of features; densities are always float64."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the starts."""


class Result(Frozen):
    """The mixture in numbers."""

    n_rows: int
    clusters: int
    """Components that have rows."""
    dimension: int
    """Of each component; the largest where each has its own."""
    unit_length: bool
    """Whether rows were scaled to length 1."""
    rounds: int
    """Reads of all rows after the sample."""
    converged: bool
    """Whether the last round raised the log likelihood by no more than the tolerance."""
    log_likelihood: float
    """Of a row, mean, in nats."""
    one_component: float
    """The same for one component of that dimension for all rows: what clusters gain is above it."""
    parameters: int
    """Free numbers: weights, means, directions, variances and noise."""
    bic: float
    """Bayesian information criterion, - 2 log likelihood + parameters log rows; of mixtures of the same rows the smallest is best."""
    aic: float
    """Akaike's, - 2 log likelihood + 2 parameters."""
    one_component_bic: float
    entropy: float
    """Of a row's chances, mean, in nats: 0 where each row surely belongs to one, the log of `clusters` where all are as likely."""
    residual_share: float
    """Sum of squared residuals, weighted by chance, over the rows' sum of squares about their mean (about the origin where means are 0)."""
    largest_share: float
    """Of the rows, in the largest cluster."""
    label: str | None
    accuracy: float | None
    """Share of labelled rows that the best one-to-one map of clusters to classes has right, each row in its likeliest component; None
    without a label."""
    purity: float | None
    adjusted_rand: float | None
    normalised_mutual_information: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label, or components take more rows, features or bytes than there are.
    """
    if config.label is not None:
        class_label(inputs, config.label)
    least, width, need = config.dimension or 1, inputs.widths["x"], _need(config)
    if least >= width:
        raise MethodError(
            f"components of {least} dimensions leave no noise in {width} features; lower `dimension`"
        )
    if inputs.n_rows < need:
        raise MethodError(
            f"found {inputs.n_rows} rows, {config.clusters} components of {least} dimensions need at least {need}; lower "
            "`clusters` or `dimension`, or capture more samples"
        )
    if config.start_rows < need:
        raise MethodError(
            f"{config.clusters} components start on at least {need} rows, found `start_rows` {config.start_rows}; raise it"
        )
    if (held := 8 * config.clusters * width**2) > MOST_BYTES:
        raise MethodError(
            f"moments of {config.clusters} components of {width} features take {held:,} bytes, at most {MOST_BYTES:,} are used; project "
            "the site first"
        )


def start(inputs: Inputs, config: Config) -> State:
    """The label to compare with."""
    return carried_classes(inputs, config.label)


def state_config(config: Config) -> dict[str, object]:
    """All options have a part in what is carried."""
    return config.model_dump(mode="json")


def partial(block: Block, carry: State, config: Config) -> State:
    """A sample of the rows first; then the moments of each component's rows, weighted by chance, and the likelihood.

    Raises:
        MethodError: for rows that are not finite, or so large that their squares are not.

    Cost: 2 row clusters (dimension + 1) feature flops, and feature (feature + 1) for each chance that is not 0: one a row where components
    lie apart, and at most one for each component.
    """
    x = k_subspaces.scaled(block["x"], config.unit_length)
    if "noise" not in carry:
        k_subspaces.require_finite(block["x"])
        return row_sample.of_rows(block.index, x.double(), config.start_rows)
    at = low_rank_mixture.seen(x, _carried(carry))
    chance, label = low_rank_mixture.kept(at.chance), at.chance.argmax(1)
    point = cluster_moments.shifts(carry["mean"])
    return cluster_moments.weighted(x, chance, point, config.precision) | {
        "seen": torch.tensor(len(x), device=x.device),
        "log_likelihood": at.log_density.sum(),
        "entropy": low_rank_mixture.entropy(at.chance).sum(),
        "residual": (chance * at.residual).sum(),
        "size": torch.bincount(label, minlength=config.clusters),
        "table": counted_classes(block, label, carry, config.clusters),
    }


def merge(a: State, b: State) -> State:
    """The sample, or the sums, of both."""
    if "key" in a:
        return row_sample.merge(a, b)
    return cluster_moments.merge(a, b) | {name: a[name] + b[name] for name in ADDED}


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """The mixture that the next round measures rows against; None when it has settled.

    Raises:
        MethodError: if there are fewer good rows than components need, or these are all equal.
    """
    if "key" in state:
        return carry | _first(state, config)
    if _settled(state, carry, config) or len(carry["log_likelihood"]) + 1 >= config.rounds:
        return None
    held, n = carry["held"], state["n"]
    anew = config.dimension is None and len(carry["log_likelihood"]) == 0
    most = min(config.max_dimension, inputs.widths["x"] - 1) if anew else int(held.max())
    point, rules = cluster_moments.shifts(carry["mean"]), _rules(config, carry["floor"], inputs.widths["x"])
    spectra = low_rank_mixture.spectra(state, point, most, rules.affine)
    if anew:
        held = subspace_dimensions.held_by(spectra.value, n.long() - int(rules.affine), most)
    found = low_rank_mixture.fitted(spectra, n, held, rules)
    likelihoods = torch.cat([carry["log_likelihood"], state["log_likelihood"][None]])
    return carry | _to_carry(found, held) | {"log_likelihood": likelihoods}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The mixture that rows were last measured against, and the criteria.

    Cost: O(clusters feature^3).
    """
    width, n = inputs.widths["x"], int(state["seen"])
    rules, point = _rules(config, carry["floor"], width), cluster_moments.shifts(carry["mean"])
    order = torch.argsort(-carry["weight"], stable=True)
    spectra = low_rank_mixture.spectra(state, point, 1, rules.affine)
    held, size, there = carry["held"][order], state["size"][order], carry["weight"][order] > 0
    total = float(state["log_likelihood"])
    free = low_rank_mixture.parameters(held[there], width, rules.affine, rules.shared)
    one, one_free, squares = _one(state, point, int(held.max()), rules)
    settled = _settled(state, carry, config)
    found = agreement(state["table"][order].cpu().numpy())
    result = Result(
        n_rows=n,
        clusters=int(there.sum()),
        dimension=int(held.max()),
        unit_length=config.unit_length,
        rounds=len(carry["log_likelihood"]) + 1,
        converged=settled,
        log_likelihood=total / n,
        one_component=one,
        parameters=free,
        bic=free * math.log(n) - 2 * total,
        aic=2 * free - 2 * total,
        one_component_bic=one_free * math.log(n) - 2 * n * one,
        entropy=float(state["entropy"]) / n,
        residual_share=float(state["residual"]) / squares,
        largest_share=int(size.max()) / n,
        label=config.label,
        **(dict.fromkeys(Agreement._fields) if found is None else found._asdict()),
        caveats=_caveats(carry, state["n"], settled, config),
    )
    arrays = {name: carry[name][order] for name in ("mean", "basis", "variance", "noise", "weight")} | {
        "dimension": held,
        "size": size,
        "eigenvalue": spectra.value[order],
        "affinity": k_subspaces.affinity(carry["basis"][order]),
        "log_likelihood": torch.cat([carry["log_likelihood"], state["log_likelihood"][None]]) / n,
    }
    return result, {name: Array(arrays[name], dims) for name, dims in ARRAYS.items()}


def _need(config: Config) -> int:
    """Rows that span all components."""
    means = config.kind == "affine" or config.dimension is None
    return config.clusters * ((config.dimension or 1) + int(means))


def _first(state: State, config: Config) -> State:
    """The best mixture of the sample."""
    x, affine = row_sample.values(state), config.kind == "affine"
    if len(x) < (need := _need(config)):
        raise MethodError(f"found {len(x)} good rows, these options need at least {need}")
    squares = (x - x.mean(0) if affine else x).square().mean()
    if not float(squares) > 0:
        raise MethodError(
            f"all {len(x)} rows of the sample are {'equal' if affine else '0'}: no mixture fits them"
        )
    rng, device = torch.Generator().manual_seed(config.seed), x.device
    how, x = (affine, config.starts, True, rng), x.cpu()
    if config.dimension is None:
        most = min(config.max_dimension, x.shape[1] - 1)
        chosen = subspace_dimensions.begun(x, config.clusters, most, *how)
        begun, held = [chosen.subspaces], chosen.held
    else:
        begun = [run.subspaces for run in subspace_starts.begun(x, config.clusters, config.dimension, *how)]
        held = torch.full((config.clusters,), config.dimension)
    floor = FLOOR * squares.cpu()
    found = low_rank_mixture.settled(x, begun, held, _rules(config, floor, x.shape[1]), config.tolerance)
    carry = _to_carry(found, held) | {"floor": floor, "log_likelihood": x.new_zeros(0)}
    return {name: values.to(device) for name, values in carry.items()}


def _rules(config: Config, floor: Tensor, width: int) -> Rules:
    return Rules(config.kind == "affine", config.noise == "shared", float(floor), width)


def _to_carry(found: Mixture, held: Tensor) -> State:
    rest = {"variance": found.variance, "noise": found.noise, "weight": found.weight, "held": held}
    return {"mean": found.subspaces.mean, "basis": found.subspaces.basis} | rest


def _carried(carry: State) -> Mixture:
    return Mixture(
        Subspaces(carry["mean"], carry["basis"]), carry["variance"], carry["noise"], carry["weight"]
    )


def _settled(state: State, carry: State, config: Config) -> bool:
    """Whether a round has raised the log likelihood by no more than the tolerance, with the dimensions of the one before."""
    before = carry["log_likelihood"]
    if len(before) < (1 if config.dimension else 2):
        return False
    return float(state["log_likelihood"] - before[-1]) <= config.tolerance * int(state["seen"])


def _one(state: State, point: Tensor, dimension: int, rules: Rules) -> tuple[float, int, float]:
    """Mean log likelihood of one component, its free numbers, and the sum of squares."""
    n = state["n"].sum()
    values, _ = k_subspaces.principal(cluster_moments.pooled(state, point, rules.affine))
    values, squares = values / n, float(values.sum())
    noise = max(float(values[dimension:].mean()), rules.floor)
    variance = torch.where(torch.arange(len(values), device=values.device) < dimension, values, noise).clamp(
        min=noise
    )
    logs = float((variance.log() + values / variance).sum()) + rules.width * math.log(2 * math.pi)
    held = torch.tensor([dimension])
    return -logs / 2, low_rank_mixture.parameters(held, rules.width, rules.affine, rules.shared), squares


def _caveats(carry: State, n: Tensor, settled: bool, config: Config) -> tuple[str, ...]:
    notes, held, there = [], carry["held"], carry["weight"] > 0
    if not settled:
        notes.append(f"the likelihood still rose after {config.rounds} rounds; raise `rounds`")
    full = int((held == config.max_dimension).sum()) if config.dimension is None else 0
    if full:
        notes.append(f"{full} components have the most dimensions that they may; raise `max_dimension`")
    low = int((there & (carry["noise"] <= carry["floor"])).sum())
    if low:
        notes.append(
            f"{low} components have the least noise variance, {FLOOR:g} of the rows' own: likelihood and criteria depend on that floor"
        )
    few = int((there & (n <= held + 1)).sum())
    if few:
        notes.append(
            f"{few} components have no more rows than span them: their densities say little; lower `clusters`"
        )
    if not bool(there.all()):
        notes.append(f"{int((~there).sum())} components have no rows; lower `clusters`")
    return tuple(notes)
