"""One clustering of rows from how they express each other in several layers at once, with nothing to tune and a stop of its own.

Connect coordinates of the same rows at several sites, and at `x` one site, which names the rows and their labels:
`inputs: {x: {captures: [base], sites: readout}, layers: {stage: coordinates, sites: "{hidden,readout}"}}`. Coordinates are those of
`spectrum.project` in the components of `spectrum.pca`, which keeps 64 unless its `components` says more: with as many as features they
have the inner products of centred rows, with `center: false` of `spectrum.pca` those of the rows as they are. Sites of several row spaces,
as of convolutions and what follows them, have the same rows in a capture with `rows: {pooling: mean}`.

Layers may differ in width; each is divided so that its rows have the mean squared length 1. One matrix of coefficients, rows by rows,
expresses the rows of all layers; its largest entries make a graph, whose spectral clustering gives the rows of Q; the coefficients are
fine-tuned with the subspace-structured norm of Q, and Q is made anew, until no label changes or the coefficients change little
(`tasks.numerics.joint_expression`). Stages follow each other, and the norm starts as large as the loss: no weights. The tolerance is a
constant. Beside the clusters stand those before fine-tuning, each layer's own by the same procedure, and those of the layers side by side
by least squares with a ridge. No label is read but to compare. `clustering.bases` of the clusters, then `assign`, label new rows.

Of the source it runs the loss over layers with one matrix, the structured norm, the sequence of stages, the stop by relative error and
the fixed number of leading coefficients. It does not train an encoder: the network is given and stays as it is, so neither the source's
pre-training by distances between layers, nor its decoder, nor anything that would move the rows themselves is run, and its figures are
not to be expected. Its optimiser is not stated in what is known of it; here steps are those of an accelerated proximal gradient, from
zero. The loss alone is that of the layers side by side: what fine-tuning adds is often little, and can be less than nothing; see
`expressed_accuracy`. Where rows are noisy, fine-tuning fits the noise further. A layer that shows nothing of the clusters does harm:
compare `layer_rand`. On digits in three layers of small trained networks, and on faces with their halves, it is mostly as good as its best
layer, which nobody knows beforehand; on centred rows better than `clustering.multilayer` of `lsr` or `tsc` graphs, on rows as they are
worse than that of `lsr`.

Arrays: `cluster` and `row` (sampled) are the cluster and the row (over all captures laid end to end) of each row; `size` (cluster_number)
the clusters' rows, largest first; `index` and `coefficient` (sampled, entry) the leading coefficients that made them, largest first, with
the rows' names as `row` has them; `eigenvalue` (order) the smallest eigenvalues of the graph before fine-tuning, ascending, which give the
number of clusters; `loss` (sweep) the share of squared lengths that is not expressed, at the start and after each sweep of steps; `tuned`
(tuning_sweep) loss and weighted norm in fine-tuning, on the same scale, and `round` (tuning_sweep) which Q it was with;
`layer_cluster` (layer, sampled) each layer's own clusters; `between_layers` (layer, other_layer) the adjusted Rand index of each two
layers' clusters. Layers are in the order of the run file.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import graph_clusters, layer_series
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowsPort
from tasks.methods.graph_clusters import NumberOptions
from tasks.methods.layer_series import rand
from tasks.numerics import graphs, joint_expression
from tasks.numerics.affinity import Embedding, row_normalised
from tasks.numerics.agreement import Agreement, agreement, counted
from tasks.numerics.joint_expression import Stage
from tasks.numerics.partition import Partition, partition

VERSION = 1
KIND = "whole"
READS = {
    "x": RowsPort(values=False, labels=True),
    "layers": ArtifactPort("spectrum.project", several=True, least=2),
}
ARRAYS = {
    "cluster": ("sampled",),
    "row": ("sampled",),
    "size": ("cluster_number",),
    "index": ("sampled", "entry"),
    "coefficient": ("sampled", "entry"),
    "eigenvalue": ("order",),
    "loss": ("sweep",),
    "tuned": ("tuning_sweep",),
    "round": ("tuning_sweep",),
    "layer_cluster": ("layer", "sampled"),
    "between_layers": ("layer", "other_layer"),
}
REFERENCE = (
    "Sindicic, Kopriva, Label-independent hyperparameter-free self-supervised single-view deep subspace clustering (2025): loss over "
    "layers, structured norm, stages, self-stop; Li, You, Vidal, IEEE TIP 26 (2017) 2988: the structured norm of a segmentation"
)
SEEDS = (33,)
RIDGE = 0.1
"""Of the layers side by side, whose rows have the mean squared length 1."""
HELD = 0.95
"""Share of a layer's squared lengths below which its coordinates leave much out."""
MOST_ROUNDS = 10
"""Times that Q is made."""


class Config(NumberOptions):
    """How coefficients become clusters. Nothing in the coefficients themselves is to be tuned."""

    entries: int = Field(default=9, ge=1)
    """Leading coefficients that are kept of each row for the graph: prior knowledge of the dimension of a cluster. The source's number."""
    most_rows: int = Field(default=5_000, ge=3)
    """Refuse more rows than this: some matrices of rows by rows in float64 lie in memory."""


class Result(Frozen):
    """The clusters in numbers. What is one number per layer has the order of `layers`."""

    n_rows: int
    clusters: int
    chosen_by: str
    """`option`; `parts` where the graph before fine-tuning falls into parts of like size; or `eigengap`."""
    eigengap: float
    """The jump of its eigenvalues after this many clusters; fine-tuning would make one anywhere."""
    candidates: tuple[int, ...]
    """Three numbers of clusters: that of the parts where it was chosen, and those with the largest jumps, best first."""
    inertia: float
    """Mean squared distance of embedded rows from their clusters' means."""
    parts: int
    """Connected parts of the final graph's rows with an edge."""
    alone: int
    """Rows without an edge: their cluster means nothing."""
    edges: int
    inside: float
    """Share of the weight of edges that lies inside clusters."""
    kept: float
    """Share of the coefficients' sizes that the leading ones hold."""
    nonzero: float
    """Share of coefficients that fine-tuning has not made 0."""
    steps: int
    """Before fine-tuning."""
    stopped: str
    """`settled`: a sweep of steps changed the coefficients by no more than the tolerance; `sweeps`: after the most sweeps."""
    weight: float
    """Of the norm: that with which it began as large as the loss."""
    tuning_steps: int
    rounds: int
    """Times that Q was made."""
    rounds_stopped: str
    """`labels`: none changed; `coefficients`: they changed by no more than the tolerance; `rounds`: after the most of them."""
    expressed_rand: float
    """Adjusted Rand index of the clusters with those before fine-tuning: 1 where it changes nothing."""
    concatenated_rand: float
    """With those of the layers side by side, by least squares."""
    layers: tuple[str, ...]
    layer_left: tuple[float, ...]
    """Share of each layer's squared lengths that is not expressed before fine-tuning; 1 at the start."""
    layer_tuned: tuple[float, ...]
    """After it."""
    layer_rand: tuple[float, ...]
    """Adjusted Rand index of each layer's own clusters with those of all layers."""
    label: str | None
    accuracy: float | None
    """Share of labelled rows that the best one-to-one map of clusters to classes has right; None without a label."""
    purity: float | None
    adjusted_rand: float | None
    normalised_mutual_information: float | None
    expressed_accuracy: float | None
    expressed_information: float | None
    """Normalised mutual information with the classes."""
    concatenated_accuracy: float | None
    concatenated_information: float | None
    layer_accuracy: tuple[float, ...] | None
    layer_information: tuple[float, ...] | None
    caveats: tuple[str, ...]


class _Graph(NamedTuple):
    places: Tensor
    """int64 [sampled, entry]: of the rows that express a row."""
    coefficient: Tensor
    weights: graphs.Matrix
    embedding: Embedding
    """Of rows with an edge; others are zero."""
    alone: int


class _Split(NamedTuple):
    """Where the procedure ended for some layers."""

    first: Stage
    before: _Graph
    number: tuple[int, str]
    expressed: Partition
    """Before fine-tuning."""
    c: Tensor
    """After it."""
    tuned: list[tuple[float, ...]]
    """Sums of each round."""
    weight: float
    stopped: str
    after: _Graph
    made: Partition


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label, there are no more rows than clusters, more than fit, or layers are of other rows.
    """
    graph_clusters.check_label(inputs, config)
    graph_clusters.refuse_few(inputs.n_rows, config)
    if inputs.n_rows > config.most_rows:
        size = joint_expression.MATRICES * 8 * inputs.n_rows**2 / 1e9
        raise MethodError(
            f"found {inputs.n_rows} rows, takes up to {config.most_rows}: matrices of rows by rows need about {size:.1f} GB; raise "
            "`most_rows`, or use `clustering.multilayer`, which needs none"
        )
    layer_series.check_members(inputs, "layers", "coordinates")


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Cluster the rows.

    Raises:
        MethodError: for no more rows than clusters, a layer of zeros or with values that are not finite, or too few rows with an edge.

    Cost: some 70 steps of 4 row^2 feature flops, and as much for each layer by itself; O(row^3) once for the layers side by side.
    """
    n = len(block)
    graph_clusters.refuse_few(n, config)
    layers = _layers(block, inputs)
    found = _split(joint_expression.joined(layers), None, config)
    k = found.number[0]
    own = _own(layers, k, inputs, config)
    beside = _beside(layers, k, config)
    others = [found.expressed.cluster, beside, *own]
    rands = tuple(rand(other, found.made.cluster, k) for other in others)
    result = Result(
        n_rows=n,
        clusters=k,
        chosen_by=found.number[1],
        **_told(found, config),
        expressed_rand=rands[0],
        concatenated_rand=rands[1],
        layers=tuple(member.label for member in inputs.series["layers"]),
        layer_left=tuple(_left(layer, found.first.c) for layer in layers),
        layer_tuned=tuple(_left(layer, found.c) for layer in layers),
        layer_rand=rands[2:],
        label=config.label,
        **_compared([found.made.cluster, *others], k, block, inputs, config),
        caveats=tuple(_caveats(found, rands, inputs)),
    )
    return result, _arrays(found, own, block)


def _layers(block: Block, inputs: Inputs) -> list[Tensor]:
    """Each layer's rows, float64, divided to the mean squared length 1."""
    made = []
    for member in inputs.series["layers"]:
        rows = member.along_rows("coordinates")[block.index].to(block.index.device)
        if not bool(torch.isfinite(rows).all()):
            raise MethodError(f"{member.label}: found coordinates that are not finite; look at the capture")
        if not bool(rows.any()):
            raise MethodError(
                f"{member.label}: all coordinates are 0, which tells of no cluster; leave it out"
            )
        made.append(joint_expression.unit_scaled(rows))
    return made


def _own(layers: list[Tensor], k: int, inputs: Inputs, config: Config) -> list[np.ndarray]:
    """Each layer's clusters by itself."""
    made = []
    for member, layer in zip(inputs.series["layers"], layers, strict=True):
        try:
            made.append(_split(joint_expression.joined([layer]), k, config).made.cluster)
        except MethodError as error:
            raise MethodError(f"{member.label}: {error}") from error
    return made


def _split(z: Tensor, clusters: int | None, config: Config) -> _Split:
    """The whole procedure; the number of clusters is chosen before fine-tuning unless it is given."""
    first = joint_expression.express(z)
    before = _graph(first.c, config)
    k = clusters or config.clusters
    number = (k, "option") if k else graph_clusters.number(before.embedding, len(z) - before.alone, config)
    expressed = _partition(before, number[0], config)
    c, after, made, weight, stopped = first.c, before, expressed, None, "rounds"
    tuned: list[tuple[float, ...]] = []
    while len(tuned) < MOST_ROUNDS and stopped == "rounds":
        q = torch.from_numpy(row_normalised(after.embedding.vectors[:, : number[0]])).to(z.device)
        apart = joint_expression.distances(q)
        weight = joint_expression.balance(z, c, apart) if weight is None else weight
        stage = joint_expression.fine_tune(z, c, apart, weight)
        after = _graph(stage.c, config)
        following = _partition(after, number[0], config)
        if rand(following.cluster, made.cluster, number[0]) == 1:
            stopped = "labels"
        elif joint_expression.change(c, stage.c) <= joint_expression.TOLERANCE:
            stopped = "coefficients"
        c, made = stage.c, following
        tuned.append(stage.sums)
    return _Split(first, before, number, expressed, c, tuned, weight or 0.0, stopped, after, made)


def _graph(c: Tensor, config: Config) -> _Graph:
    """The graph of the leading coefficients, and its spectrum."""
    places, coefficient = joint_expression.leading(c, config.entries)
    given = {"index": places, "coefficient": coefficient}
    weights = graph_clusters.graph_from(given, np.arange(len(c)), config).weights
    return _Graph(places, coefficient, weights, *graph_clusters.embedded(weights, config))


def _partition(graph: _Graph, k: int, config: Config) -> Partition:
    return partition(graph.embedding.vectors[:, :k], k, config.starts, config.seed)


def _beside(layers: list[Tensor], k: int, config: Config) -> np.ndarray:
    """Clusters of the layers side by side, by least squares."""
    c = joint_expression.least_squares(joint_expression.joined(layers), RIDGE)
    return _partition(_graph(c, config), k, config).cluster


def _left(layer: Tensor, c: Tensor) -> float:
    return joint_expression.loss(layer, c) / len(layer)


def _told(found: _Split, config: Config) -> dict[str, Any]:
    """The fields of `Result` that tell of the procedure and its graph."""
    gaps, (k, chosen_by), n = np.diff(found.before.embedding.values), found.number, len(found.c)
    total = float(found.c.abs().sum())
    sweeps = sum(len(sums) - 1 for sums in found.tuned)
    return {
        "eigengap": float(gaps[k - 1]) if len(gaps) >= k else 0.0,
        "candidates": graph_clusters.candidates(gaps, k, chosen_by, config),
        "inertia": found.made.inertia / n,
        "parts": found.after.embedding.parts,
        "alone": found.after.alone,
        "edges": found.after.weights.nnz // 2,
        "inside": graphs.inside(found.after.weights, found.made.cluster),
        "kept": float(found.after.coefficient.abs().sum()) / total if total else 0.0,
        "nonzero": int((found.c != 0).sum()) / (n * (n - 1)),
        "steps": joint_expression.SWEEP * (len(found.first.sums) - 1),
        "stopped": "settled" if found.first.settled else "sweeps",
        "weight": found.weight,
        "tuning_steps": joint_expression.SWEEP * sweeps,
        "rounds": len(found.tuned),
        "rounds_stopped": found.stopped,
    }


def _compared(
    clusters: list[np.ndarray], k: int, block: Block, inputs: Inputs, config: Config
) -> dict[str, Any]:
    """The fields of `Result` that labels give."""
    every: list[Agreement | None] = [None] * len(clusters)
    if config.label is not None:
        of, classes = block.labels[config.label].cpu().numpy(), len(inputs.categories[config.label])
        every = [agreement(counted(own, of, k, classes)) for own in clusters]
    made, expressed, beside, *layers = every
    some = [each for each in layers if each is not None]
    return {
        **(dict.fromkeys(Agreement._fields) if made is None else made._asdict()),
        "expressed_accuracy": expressed and expressed.accuracy,
        "expressed_information": expressed and expressed.normalised_mutual_information,
        "concatenated_accuracy": beside and beside.accuracy,
        "concatenated_information": beside and beside.normalised_mutual_information,
        "layer_accuracy": tuple(each.accuracy for each in some) or None,
        "layer_information": tuple(each.normalised_mutual_information for each in some) or None,
    }


def _arrays(found: _Split, own: list[np.ndarray], block: Block) -> Arrays:
    k, n = found.number[0], len(block)
    rounds = [np.full(len(sums), number) for number, sums in enumerate(found.tuned)]
    values = {
        "cluster": torch.from_numpy(found.made.cluster),
        "row": block.index.cpu(),
        "size": torch.from_numpy(np.bincount(found.made.cluster, minlength=k).astype(np.int64)),
        "index": torch.where(found.after.places < 0, -1, block.index[found.after.places]).cpu(),
        "coefficient": found.after.coefficient.cpu(),
        "eigenvalue": torch.from_numpy(np.ascontiguousarray(found.before.embedding.values)),
        "loss": torch.tensor(found.first.sums, dtype=torch.float64) / n,
        "tuned": torch.tensor([each for sums in found.tuned for each in sums], dtype=torch.float64) / n,
        "round": torch.from_numpy(np.concatenate(rounds).astype(np.int64)),
        "layer_cluster": torch.from_numpy(np.stack(own)),
        "between_layers": torch.tensor([[rand(a, b, k) for b in own] for a in own], dtype=torch.float64),
    }
    return {name: Array(values[name], dims) for name, dims in ARRAYS.items()}


def _caveats(found: _Split, rands: tuple[float, ...], inputs: Inputs) -> list[str]:
    notes = layer_series.member_caveats(inputs, "layers", rands[2:])
    gaps, k = np.diff(found.before.embedding.values), found.number[0]
    for member in inputs.series["layers"]:
        if (member.result.get("explained") or 1.0) < HELD:
            notes.append(
                f"{member.label}: coordinates hold {member.result['explained']:.2f} of the squared distances from the mean; raise "
                "`components` of `spectrum.pca`"
            )
    if not found.first.settled:
        notes.append(
            "the coefficients had not settled after the most sweeps of steps: they are those of that moment"
        )
    if found.stopped == "rounds":
        notes.append("clusters still changed with the last round of fine-tuning: look at `expressed_rand`")
    if found.after.alone:
        notes.append(f"{found.after.alone} rows have no edge: their cluster means nothing")
    if found.after.embedding.parts > k:
        notes.append(
            f"the graph has {found.after.embedding.parts} parts for {k} clusters: some are joined that no edge joins; raise `entries` or "
            "`clusters`"
        )
    if not graph_clusters.is_clear(gaps, k):
        notes.append(
            "no clear jump of the eigenvalues after this number of clusters; try others, or fewer layers"
        )
    return notes
