"""Manifold linearizing and clustering: codes of rows in which clusters are subspaces, learned with the shares that rows have in each other.

A feature head and a cluster head map rows to codes of length 1. R is the coding rate of a batch's feature codes, R_c the mean rate of
its rows' clusters, where a row's cluster are all rows in the shares of a doubly stochastic matrix made of the cluster codes. First R
alone is raised; then the feature head is copied into the cluster head, and both raise R - R_c. Then rows that are sampled by their
numbers fall into clusters (spectral clustering of their shares), each cluster of feature codes gets its leading directions through the
origin, and all rows go to the nearest. Rows are moved to mean 0 and to one common scale first: features keep their proportions.

What the paper has and this has not: views of a sample by augmentation, and with them the term that keeps views together, and a backbone
that is trained too. Rows are as they are stored, so that nothing but the heads' form says which changes of a row do not matter.
Distortion and smoothing are not the paper's: they are chosen on digits and planted subspaces (docs/mlc.md). Rates have the factor 1/2.

Arrays, clusters with most rows first: `mean` (cluster_number, code) zeros, `basis` (cluster_number, component, code) the directions of each
cluster, zeros beyond, `eigenvalue` (cluster_number, order) of the second moments of its sampled codes, `size` (cluster_number) its rows;
`share` (candidate) the largest eigenvalues of the sample's shares; `rate` and `rate_clusters` (epoch) the mean over batches, NaN while
R alone is raised; and of both heads, for rows as they are stored, `feature_weight` (code, feature), `feature_bias` (code), `feature_in`
(hidden, feature), `feature_in_bias` (hidden) and `feature_out` (code, hidden), and `cluster_...` the same: codes are h / |h|,
h = weight x + bias + out relu(in x + in_bias).
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import code_training
from tasks.methods.classes import carried, class_label, counted_classes
from tasks.methods.code_training import Training, head_of
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import code_heads, k_subspaces, linear_probe, membership, moments, row_sample
from tasks.numerics.affinity import eigengap
from tasks.numerics.agreement import Agreement, agreement
from tasks.numerics.coding_rate import rate_of_codes, rate_of_memberships
from tasks.numerics.k_subspaces import Subspaces
from tasks.numerics.partition import partition

VERSION = 1
KIND = "sequential"
READS = {"x": RowsPort(labels=True)}
_HEAD = {
    "weight": ("code", "feature"),
    "bias": ("code",),
    "in": ("hidden", "feature"),
    "in.bias": ("hidden",),
    "out": ("code", "hidden"),
}
ARRAYS = {
    "mean": ("cluster_number", "code"),
    "basis": ("cluster_number", "component", "code"),
    "eigenvalue": ("cluster_number", "order"),
    "size": ("cluster_number",),
    "share": ("candidate",),
    **dict.fromkeys(("rate", "rate_clusters"), ("epoch",)),
    **{f"{h}_{p.replace('.', '_')}": dims for h in ("feature", "cluster") for p, dims in _HEAD.items()},
}
REFERENCE = (
    "Ding, Tong, Chan, Dai, Ma, Haeffele, Unsupervised manifold linearizing and clustering, ICCV (2023), arXiv 2301.01805. "
    "Kingma, Ba, ICLR (2015): Adam"
)
SEEDS = (17,)
HELD = 0.9
"""Of the squares of a cluster's codes, in its directions, where `dimension` is None."""
TINY = 0.05
"""Clusters of less than this share of an even part of the rows are named."""


class Config(Training):
    """What is learned, and for how long."""

    clusters: int | None = Field(default=None, ge=2)
    """How many; None: where the eigenvalues of the sample's shares fall most."""
    max_clusters: int = Field(default=20, ge=2)
    """Most that are looked for when `clusters` is None."""
    dimension: int | None = Field(default=None, ge=1)
    """Directions of each cluster's codes; None: as many as hold 0.9 of their squares."""
    graph_rows: int = Field(default=1000, ge=3)
    """Rows of the sample that is clustered; all where there are no more. Time grows with the cube."""
    label: str | None = None
    """A label with classes, to compare the clusters with; nothing else reads it."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the heads, the order of rows, and k-means."""


class Result(Frozen):
    """The clusters in numbers."""

    n_rows: int
    clusters: int
    chosen_by: str
    """`option` or `eigengap`."""
    candidates: tuple[int, ...]
    """The three numbers of clusters after which the eigenvalues of the shares fall most, best first."""
    rate: float
    """R of the sample's codes, in nats."""
    rate_clusters: float
    """R_c of the sample, `rate` where shares are all alike."""
    rate_reduction: float
    """R - R_c: what was raised."""
    effective_clusters: float
    """Sum of squares of the sample's shares: the number of clusters where rows share alike in theirs, up to the number of rows."""
    share_error: float
    """Largest amount by which a row's shares in the sample do not add up to 1."""
    agreement_sample: float
    """Share of the sampled rows whose nearest subspace is that of the cluster that they fell into."""
    residual_share: float
    """Mean square of what subspaces leave of the codes, which have length 1."""
    largest_share: float
    """Of the rows, in the largest cluster."""
    label: str | None
    accuracy: float | None
    """Share of labelled rows that the best one-to-one map of clusters to classes has right; None without a label."""
    purity: float | None
    adjusted_rand: float | None
    normalised_mutual_information: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label, or too few rows, or codes have no room for the subspaces.
    """
    if config.label is not None:
        class_label(inputs, config.label)
    need = 1 + (config.clusters or 2)
    if min(inputs.n_rows, config.graph_rows) < need:
        raise MethodError(
            f"found {inputs.n_rows} rows and `graph_rows` {config.graph_rows}, {need - 1} clusters need at least {need} of both"
        )
    if config.dimension is not None and config.dimension >= config.code:
        raise MethodError(
            f"subspaces of {config.dimension} dimensions hold all codes of length {config.code}; lower `dimension` or raise `code`"
        )


def passes(config: Config) -> int:
    """Scale, warm-up, epochs, sample, score."""
    return config.warmup + config.epochs + 3


def batch_rows(config: Config) -> int:
    """Rows per step."""
    return config.batch_rows


def start(inputs: Inputs, config: Config) -> State:
    """Heads as they are drawn, an optimiser that has seen nothing, and empty counts."""
    most = config.clusters or config.max_clusters
    state = code_training.start(inputs.widths["x"], config, config.seed)
    state |= row_sample.of_rows(
        torch.empty(0, dtype=torch.int64),
        torch.empty(0, 2 * config.code, dtype=torch.float64),
        config.graph_rows,
    )
    counted = {"size": (most,), "clusters": ()}
    state |= {name: torch.zeros(shape, dtype=torch.int64) for name, shape in counted.items()}
    summed = {
        "basis": (most, config.code, config.code),
        "eigenvalue": (most, config.code),
        "left": (),
        "agreed": (),
    }
    summed |= {"values": (most + 1,), "numbers": (4,)}
    state |= {name: torch.zeros(shape, dtype=torch.float64) for name, shape in summed.items()}
    if config.label is None:
        return state | {"classes": torch.tensor(0), "table": torch.zeros(most, 0, dtype=torch.int64)}
    classes = len(inputs.categories[config.label])
    table = torch.zeros(most, classes, dtype=torch.int64)
    return state | {"classes": torch.tensor(classes), "label": carried(config.label), "table": table}


def begin_pass(state: State, number: int, config: Config) -> State:
    """Note the pass; copy the feature head before both are trained, and cluster the sample before rows are scored.

    Raises:
        MethodError: if rows are all equal, or fewer good ones than clusters.
    """
    state = state | {"pass": torch.full_like(state["pass"], number)}
    if number == 1:
        code_training.refuse_equal(state)
    if number == config.warmup + 1:
        head = head_of(state, "feature")
        state = state | code_training.fresh(head, head) | {"updates": torch.zeros_like(state["updates"])}
    if number == config.warmup + config.epochs + 2:
        return state | _clustered(state, config)
    return state


def step(block: Block, state: State, config: Config) -> State:
    """Measure, train on, sample or score a batch, as the pass says.

    Raises:
        MethodError: for rows that are not finite.

    Cost: of training 6 row^2 code^2 + row code^3 + row^3 flops, beside those of the heads.
    """
    x, number, last = block["x"], int(state["pass"]), config.warmup + config.epochs
    if not len(x):
        return state
    if number == 0:
        if not bool(x.isfinite().all()):
            moments.refuse_not_finite(x)
        return linear_probe.observe(state, x)
    z = code_training.scaled(state, x)
    if number <= last:
        return code_training.trained(state, z, number, config)
    feature, cluster = (code_heads.codes(head_of(state, name), z) for name in ("feature", "cluster"))
    if number == last + 1:
        return state | row_sample.merge(
            {name: state[name] for name in ("key", "value")},
            row_sample.of_rows(block.index, torch.cat([feature, cluster], 1), config.graph_rows),
        )
    return _scored(block, feature, state)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The counts of the last pass, clusters with most rows first."""
    k, n = int(state["clusters"]), int(state["size"].sum())
    order = torch.argsort(-state["size"][:k], stable=True)
    found = agreement(state["table"][order].cpu().numpy())
    numbers = dict(
        zip(
            ("rate", "rate_clusters", "effective_clusters", "share_error"),
            state["numbers"].tolist(),
            strict=True,
        )
    )
    gaps = -np.diff(state["values"].cpu().numpy())[1:]
    result = Result(
        n_rows=n,
        clusters=k,
        chosen_by="option" if config.clusters else "eigengap",
        candidates=tuple(int(c) + 2 for c in np.argsort(-gaps, kind="stable")[:3]),
        rate_reduction=numbers["rate"] - numbers["rate_clusters"],
        agreement_sample=float(state["agreed"]),
        residual_share=float(state["left"]) / n,
        largest_share=int(state["size"].max()) / n,
        label=config.label,
        **numbers,
        **(dict.fromkeys(Agreement._fields) if found is None else found._asdict()),
        caveats=_caveats(state, k, numbers, config),
    )
    return result, _arrays(state, order)


def _scored(block: Block, feature: Tensor, state: State) -> State:
    """Rows counted in their nearest subspace."""
    k = int(state["clusters"])
    basis = state["basis"][:k]
    left, label = k_subspaces.residuals(feature, Subspaces(torch.zeros_like(basis[:, 0]), basis)).min(1)
    most = len(state["size"])
    return state | {
        "size": state["size"] + torch.bincount(label, minlength=most),
        "table": state["table"] + counted_classes(block, label, state, most),
        "left": state["left"] + left.sum(),
    }


def _clustered(state: State, config: Config) -> State:
    """Clusters of the sample by its shares, the directions of their feature codes, and the sample's rates."""
    feature, cluster = torch.split(row_sample.values(state), config.code, dim=1)
    n, most = len(feature), len(state["size"])
    if n <= (config.clusters or 2):
        raise MethodError(
            f"found {n} good rows for {config.clusters or 2} clusters; capture more or lower `clusters`"
        )
    share = membership.doubly_stochastic(cluster, config.smoothing)
    values, vectors = (found.flip(-1)[..., : most + 1] for found in torch.linalg.eigh((share + share.T) / 2))
    values = torch.nn.functional.pad(values, (0, most + 1 - values.shape[-1]))
    k = config.clusters or min(eigengap((1 - values).cpu().numpy())[0], n - 1)
    found = partition(vectors[:, :k].cpu().numpy(), k, 10, config.seed)
    label = torch.from_numpy(found.cluster).to(feature.device)
    basis, eigenvalue = _bases(feature, label, k, state, config)
    near = k_subspaces.residuals(feature, Subspaces(torch.zeros_like(basis[:k, 0]), basis[:k])).argmin(1)
    numbers = (
        float(rate_of_codes(feature, config.distortion)),
        float(rate_of_memberships(feature, share, config.distortion)),
        membership.alone(share),
        float((share.sum(1) - 1).abs().max()),
    )
    return {
        "clusters": torch.full_like(state["clusters"], k),
        "basis": basis,
        "eigenvalue": eigenvalue,
        "values": values,
        "numbers": torch.tensor(numbers, dtype=torch.float64, device=feature.device),
        "agreed": (near == label).double().mean(),
    }


def _bases(feature: Tensor, label: Tensor, k: int, state: State, config: Config) -> tuple[Tensor, Tensor]:
    """Leading directions of each cluster's codes, zeros beyond, and all eigenvalues of its second moment."""
    basis, eigenvalue = torch.zeros_like(state["basis"]), torch.zeros_like(state["eigenvalue"])
    for number in range(k):
        part = feature[label == number]
        values, columns = (found.flip(-1) for found in torch.linalg.eigh(part.T @ part / max(1, len(part))))
        held = values.clamp(min=0).cumsum(0)
        some = config.dimension or int((held < HELD * held[-1]).sum()) + 1
        basis[number, :some], eigenvalue[number] = columns[:, :some].T, values.clamp(min=0)
    return basis, eigenvalue


def _caveats(state: State, k: int, numbers: dict[str, float], config: Config) -> tuple[str, ...]:
    notes = [
        "clusters are those that heads of this form, this distortion and smoothing find: compare with k-means and k_subspaces"
    ]
    sampled = len(row_sample.values(state))
    if numbers["effective_clusters"] > 0.2 * sampled:
        notes.append(
            f"shares amount to {numbers['effective_clusters']:.0f} clusters of {sampled} rows: rows keep to themselves; raise `smoothing`"
        )
    few = int((state["size"][:k] < TINY * float(state["size"].sum()) / k).sum())
    if few:
        notes.append(f"{few} clusters have hardly any rows; lower `clusters`")
    if float(state["agreed"]) < 0.9:
        notes.append(
            f"{1 - float(state['agreed']):.0%} of the sampled rows lie nearer to another cluster's subspace than to their own"
        )
    return tuple(notes)


def _arrays(state: State, order: Tensor) -> Arrays:
    basis = state["basis"][order]
    some = int((basis.square().sum((0, 2)) > 0).sum())
    rows = state["epoch.rows"]
    arrays = {
        "mean": torch.zeros_like(basis[:, 0]),
        "basis": basis[:, :some],
        "eigenvalue": state["eigenvalue"][order],
        "size": state["size"][order],
        "share": state["values"],
        "rate": state["epoch.rate"] / rows,
        "rate_clusters": state["epoch.clusters"] / rows,
    }
    scale = float(code_training.scale(state))
    for name in ("feature", "cluster"):
        head = code_heads.of_stored_rows(head_of(state, name), state["scale.mean"], scale)
        arrays |= {f"{name}_{part.replace('.', '_')}": values for part, values in head.items()}
    return {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}
