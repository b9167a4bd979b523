"""One clustering of rows from the graphs of several layers, in which some clusters may show in one layer and others in another.

Connect graphs of the same rows at several sites (`clustering.tsc`, `ssc_omp`, `elastic_net`, `lsr` or `lrr`, of one kind or of several),
and at `x` one site, which names the rows and their labels; the answer does not depend on which:
`inputs: {x: {captures: [base], sites: readout}, graphs: {stage: sparse, sites: "{hidden,readout}"}}`. Sites of several row spaces, as of
convolutions and what follows them, have the same rows in a capture with `rows: {pooling: mean}`.

The embedding is that of the mean of the layers' normalised Laplacians, drawn by
`gamma` towards the span of each layer's own; k-means of its rows gives the clusters. Beside them stand each layer's own clusters and those
of the mean graph. No label is read but to compare. Rows are matched by their place: layers of several captures must be of the same samples
in the same order. `clustering.bases` of the clusters, then `assign`, label new rows. A fusion can be worse than its best layer: where
layers share fewer directions than there are clusters, the cleaner layer wins, be it right or wrong.

The form is that of Dong et al.: min tr U'(sum L_l - gamma sum U_l U_l')U with U_l the eigenvectors of the k smallest eigenvalues of the
Laplacian L_l; in shifted Laplacians 2I - L_l = I + D^(-1/2) A_l D^(-1/2) it is the k largest of sum (2I - L_l) + gamma sum U_l U_l'. With
the k smallest singular vectors of the shifted Laplacian subtracted instead, directions would be lowered that are the lowest already, and
the answer is that of the mean graph.

Arrays: `cluster` and `row` (sampled) are the cluster and the row (over all captures laid end to end) of each row; `size` (cluster_number)
the clusters' rows, largest first; `eigenvalue` (order) the smallest eigenvalues of the fused Laplacian over layers, from 0 (all layers
part there) to 2 + gamma; `layer_cluster` (layer, sampled) each layer's own clusters; `between_layers` (layer, other_layer) the adjusted
Rand index of each two layers' clusters. Layers are in the order of the run file.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import graph_clusters, layer_series, self_expression
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowsPort
from tasks.methods.graph_clusters import NumberOptions
from tasks.methods.layer_series import rand
from tasks.numerics import graphs
from tasks.numerics.affinity import Embedding
from tasks.numerics.agreement import Agreement, agreement, counted
from tasks.numerics.layered_graphs import Layer, fuse, layer, mean_graph
from tasks.numerics.partition import partition

VERSION = 1
KIND = "whole"
READS = {
    "x": RowsPort(values=False, labels=True),
    "graphs": ArtifactPort(
        self_expression.GRAPHS[0], others=self_expression.GRAPHS[1:], several=True, least=2
    ),
}
ARRAYS = {
    "cluster": ("sampled",),
    "row": ("sampled",),
    "size": ("cluster_number",),
    "eigenvalue": ("order",),
    "layer_cluster": ("layer", "sampled"),
    "between_layers": ("layer", "other_layer"),
}
REFERENCE = (
    "Sindicic, Kopriva, Multilayer graph approach to deep subspace clustering (2024), after Dong, Frossard, Vandergheynst, Nefedov, "
    "IEEE TSP 62 (2014) 905, eq. 8"
)
SEEDS = (218,)


class Config(NumberOptions):
    """How graphs become clusters."""

    gamma: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Weight of the layers' own subspaces against the mean of their graphs; 0: the mean graph. The middle of what the source tries."""


class Result(Frozen):
    """The clusters in numbers. What is one number per layer has the order of `layers`."""

    n_rows: int
    clusters: int
    chosen_by: str
    """`option`; `parts` where the mean graph falls into parts of like size; or `eigengap`."""
    eigengap: float
    """The jump of the mean graph's eigenvalues after this many clusters; `gamma` would make one anywhere."""
    candidates: tuple[int, ...]
    """Three numbers of clusters: that of the parts where it was chosen, and those with the largest jumps, best first."""
    inertia: float
    """Mean squared distance of embedded rows from their clusters' means."""
    parts: int
    """That no layer joins."""
    alone: int
    """Rows without an edge in any layer: their cluster means nothing."""
    edges: int
    """In one layer or more."""
    inside: float
    """Share of the weight of the mean graph's edges that lies inside clusters."""
    mean_graph_rand: float
    """Adjusted Rand index of the clusters with those of the mean graph: 1 where `gamma` changes nothing."""
    shared: int
    """Directions of the embedding, of as many as clusters, that lie for more than half in each layer's own subspace."""
    layers: tuple[str, ...]
    layer_rand: tuple[float, ...]
    """Adjusted Rand index of each layer's own clusters with the fused ones."""
    layer_eigengap: tuple[float, ...]
    """The jump of each layer's eigenvalues after this many clusters."""
    layer_edges: tuple[int, ...]
    layer_alone: tuple[int, ...]
    """Rows without an edge."""
    label: str | None
    accuracy: float | None
    """Share of labelled rows that the best one-to-one map of clusters to classes has right; None without a label."""
    purity: float | None
    adjusted_rand: float | None
    normalised_mutual_information: float | None
    mean_graph_accuracy: float | None
    mean_graph_information: float | None
    """Normalised mutual information of the mean graph's clusters with the classes."""
    layer_accuracy: tuple[float, ...] | None
    layer_information: tuple[float, ...] | None
    caveats: tuple[str, ...]


class _Found(NamedTuple):
    layers: list[Layer]
    mean: Embedding
    fused: Embedding
    clusters: list[np.ndarray]
    """The fused ones, those of the mean graph, and each layer's own."""
    k: int
    inertia: float
    chosen_by: str

    @property
    def rand(self) -> tuple[float, ...]:
        """Of the mean graph's and the layers' clusters with the fused ones."""
        return tuple(rand(own, self.clusters[0], self.k) for own in self.clusters[1:])

    @property
    def shared(self) -> int:
        """Directions that no layer lacks by more than half."""
        ours = self.fused.vectors[:, : self.k]
        inside = [(np.square(each.vectors[:, : self.k].T @ ours)).sum(0) for each in self.layers]
        return int((np.min(inside, axis=0) > 0.5).sum())


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label, there are no more rows than clusters, or layers are of other rows.
    """
    graph_clusters.check_label(inputs, config)
    graph_clusters.refuse_few(inputs.n_rows, config)
    layer_series.check_members(inputs, "graphs", "index")


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Cluster the rows.

    Raises:
        MethodError: for no more rows than clusters, or a layer without edges.
    """
    n = len(block)
    graph_clusters.refuse_few(n, config)
    found = _found(_layers(block, inputs, config), n, config)
    gaps, total, k = np.diff(found.mean.values), mean_graph(found.layers), found.k
    result = Result(
        n_rows=n,
        clusters=k,
        chosen_by=found.chosen_by,
        eigengap=float(gaps[k - 1]),
        candidates=graph_clusters.candidates(gaps, k, found.chosen_by, config),
        inertia=found.inertia / n,
        parts=found.fused.parts,
        alone=_alone(total),
        edges=total.nnz // 2,
        inside=graphs.inside(total, found.clusters[0]),
        mean_graph_rand=found.rand[0],
        shared=found.shared,
        layers=tuple(member.label for member in inputs.series["graphs"]),
        layer_rand=found.rand[1:],
        layer_eigengap=tuple(_gap(each.values, k) for each in found.layers),
        layer_edges=tuple(each.scaled.nnz // 2 for each in found.layers),
        layer_alone=tuple(each.alone for each in found.layers),
        label=config.label,
        **_compared(found, block, inputs, config),
        caveats=tuple(_caveats(found, inputs)),
    )
    return result, _arrays(found, block)


def _layers(block: Block, inputs: Inputs, config: Config) -> list[Layer]:
    names, made = block.index.cpu().numpy(), []
    count = graph_clusters.components(len(block), config)
    for member in inputs.series["graphs"]:
        given = {name: member.along_rows(name)[block.index] for name in self_expression.ARRAYS}
        try:
            made.append(layer(graph_clusters.graph_from(given, names, config).weights, count, config.seed))
        except MethodError as error:
            raise MethodError(f"{member.label}: {error}") from error
    return made


def _found(layers: list[Layer], n: int, config: Config) -> _Found:
    linked, need = n - _alone(mean_graph(layers)), (config.clusters or 2) + 1
    if linked < need:
        raise MethodError(
            f"found {linked} rows with an edge in some layer, {need - 1} clusters need at least {need}; raise `entries` of the graphs"
        )
    mean = fuse(layers, 0, 0.0, graph_clusters.components(n, config), config.seed)
    k, chosen_by = graph_clusters.number(mean, n, config)
    fused = fuse(layers, k, config.gamma, min(n, k + 1 + graph_clusters.EVIDENCE), config.seed)
    spectra = [fused.vectors, mean.vectors, *(each.vectors for each in layers)]
    made = [partition(vectors[:, :k], k, config.starts, config.seed) for vectors in spectra]
    return _Found(layers, mean, fused, [each.cluster for each in made], k, made[0].inertia, chosen_by)


def _compared(found: _Found, block: Block, inputs: Inputs, config: Config) -> dict[str, Any]:
    """The fields of `Result` that labels give."""
    every: list[Agreement | None] = [None] * len(found.clusters)
    if config.label is not None:
        of, classes = block.labels[config.label].cpu().numpy(), len(inputs.categories[config.label])
        every = [agreement(counted(own, of, found.k, classes)) for own in found.clusters]
    fused, mean, *layers = every
    some = [each for each in layers if each is not None]
    return {
        **(dict.fromkeys(Agreement._fields) if fused is None else fused._asdict()),
        "mean_graph_accuracy": mean and mean.accuracy,
        "mean_graph_information": mean and mean.normalised_mutual_information,
        "layer_accuracy": tuple(each.accuracy for each in some) or None,
        "layer_information": tuple(each.normalised_mutual_information for each in some) or None,
    }


def _arrays(found: _Found, block: Block) -> Arrays:
    own, k = found.clusters[2:], found.k
    values = {
        "cluster": found.clusters[0],
        "row": block.index.cpu().numpy(),
        "size": np.bincount(found.clusters[0], minlength=k).astype(np.int64),
        "eigenvalue": found.fused.values,
        "layer_cluster": np.stack(own),
        "between_layers": np.array([[rand(a, b, k) for b in own] for a in own]),
    }
    return {name: Array(torch.from_numpy(values[name]), dims) for name, dims in ARRAYS.items()}


def _gap(values: np.ndarray, k: int) -> float:
    """0 where a layer has no more eigenvalues."""
    return float(values[k] - values[k - 1]) if len(values) > k else 0.0


def _alone(graph: graphs.Matrix) -> int:
    return int((np.diff(graph.indptr) == 0).sum())


def _caveats(found: _Found, inputs: Inputs) -> list[str]:
    notes = layer_series.member_caveats(inputs, "graphs", found.rand[1:])
    gaps, k = np.diff(found.mean.values), found.k
    if found.shared < k:
        notes.append(
            f"all layers share {found.shared} of the {k} directions: clusters beyond these are those of some layers, be they right or wrong"
        )
    alone = _alone(mean_graph(found.layers))
    if alone:
        notes.append(f"{alone} rows have no edge in any layer: their cluster means nothing")
    if found.fused.parts > k:
        notes.append(
            f"no layer joins {found.fused.parts} parts, for {k} clusters: some are joined that no edge joins; raise `entries` or `clusters`"
        )
    if not graph_clusters.is_clear(gaps, k):
        notes.append(
            "no clear jump of the mean graph's eigenvalues after this number of clusters; try others, or fewer layers"
        )
    return notes
