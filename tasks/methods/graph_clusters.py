"""What methods share that split the graph of how rows express each other: the graph, and what is told of its clusters."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import self_expression
from tasks.methods.classes import class_label
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowsPort
from tasks.numerics import graphs
from tasks.numerics.affinity import Embedding, eigengap, embed
from tasks.numerics.agreement import Agreement, agreement, counted
from tasks.numerics.doubly_stochastic import doubly_stochastic, unproven
from tasks.numerics.graphs import Matrix
from tasks.numerics.partition import Partition, partition

READS = {
    "x": RowsPort(values=False, labels=True),
    "graph": ArtifactPort(self_expression.GRAPHS[0], others=self_expression.GRAPHS[1:], aligned=True),
}
ARRAYS = {
    "cluster": ("sampled",),
    "row": ("sampled",),
    "size": ("cluster_number",),
    "between": ("cluster_number", "other_cluster"),
    "ordered": ("bin", "other_bin"),
}
BINS = 200
"""Of rows in the picture of a graph."""

INSIDE = 10
"""Times that eigenvalues may jump more at some number of clusters than after that of the graph's parts, which are then clusters still:
sparse expressions have weak places inside clusters too."""
EVIDENCE = 5
"""Eigenvalues, at least, beyond the number of clusters."""


class GraphOptions(Frozen):
    """How coefficients become a graph."""

    affinity: Literal["symmetric", "nearest", "doubly_stochastic"] = "symmetric"
    """The graph: sizes averaged over both directions; rows with the most similar coefficients joined; or the sizes projected so that
    every row's weights sum to 1 (A-DSSC, with coefficients of `clustering.lsr` or `elastic_net`)."""
    scale: Literal["length", "largest", "none"] = "length"
    """By what each row's coefficients are divided first; not for `doubly_stochastic`."""
    mass: float = Field(default=1.0, gt=0, le=1)
    """Of each row the largest coefficients are kept, up to this share of the sum of their sizes."""
    neighbours: int = Field(default=3, ge=1)
    """Rows that each is joined with by `nearest`."""
    edges: int = Field(default=5, ge=2)
    """About how many edges a row keeps in `doubly_stochastic`: the weight of squares follows from it and the coefficients."""
    label: str | None = None
    """A label with classes, to compare the clusters with; nothing else reads it."""
    most_rows: int = Field(default=1_000_000, ge=3)
    """Refuse more rows than this: coefficients of all lie in memory."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of what is drawn."""


class NumberOptions(GraphOptions):
    """How many clusters, and from how many starts."""

    clusters: int | None = Field(default=None, ge=2)
    """How many; None: as many as the graph has parts of like size, or where the eigenvalues jump most."""
    max_clusters: int = Field(default=30, ge=2)
    """Most that are looked for when `clusters` is None."""
    starts: int = Field(default=100, ge=1)
    """Of k-means."""

    @property
    def most(self) -> int:
        """Clusters that may be asked for."""
        return self.clusters or self.max_clusters


class GraphResult(Frozen):
    """What is told of clusters of a graph."""

    n_rows: int
    clusters: int
    alone: int
    """Rows without an edge: they have no cluster, -1, and no part in what is said of clusters."""
    parts: int
    """Connected parts of the graph, rows without an edge left out."""
    edges: int
    inside: float
    """Share of the weight of edges that lies inside clusters."""
    modularity: float
    """That share, less what random edges of the same degrees would have."""
    row_sum_error: float | None
    """Largest distance of a row's sum of weights from 1; None but for `doubly_stochastic`."""
    unproven: int | None
    """Rows for which coefficients that were not kept could matter: 0 proves the doubly stochastic graph to be that of all coefficients;
    None for other graphs."""
    label: str | None
    accuracy: float | None
    """Share of labelled rows that the best one-to-one map of clusters to classes has right; None without a label."""
    purity: float | None
    adjusted_rand: float | None
    normalised_mutual_information: float | None
    wrong_share: float | None
    """Mean share of a row's coefficients that lies on rows of other classes: 0 where expressions keep to subspaces."""
    caveats: tuple[str, ...]


class Graph(NamedTuple):
    """Rows and their edges."""

    coefficients: Matrix
    weights: Matrix
    names: np.ndarray
    """int64 [row]: over all captures laid end to end."""
    error: float | None = None
    """How far rows' weights are from summing to 1, where they should."""
    unproven: int | None = None
    """Rows whose weights more coefficients could change."""


def check_label(inputs: Inputs, config: GraphOptions) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label.
    """
    if config.label is not None:
        class_label(inputs, config.label)


def graph_of(block: Block, config: GraphOptions) -> Graph:
    """The graph of the rows.

    Raises:
        MethodError: if there is no edge.
    """
    return graph_from(block.aligned["graph"], block.index.cpu().numpy(), config)


def graph_from(given: Mapping[str, Tensor], names: np.ndarray, config: GraphOptions) -> Graph:
    """The graph of the rows of these names, ascending, with their arrays `index` and `coefficient`.

    Raises:
        MethodError: if there is no edge.
    """
    c = graphs.coefficient_matrix(given["index"].cpu().numpy(), given["coefficient"].cpu().numpy(), names)
    if not c.nnz:
        raise MethodError("no row expresses another: found no edges; look at `zero_rows` of the preparation")
    whole, c = c, graphs.largest_entries(c, config.mass)
    if config.affinity == "doubly_stochastic":
        kept, entries = np.diff(whole.indptr), given["index"].shape[1]
        return _stochastic(c, (kept >= entries) | (np.diff(c.indptr) < kept), names, config)
    scaled = graphs.row_scaled(c, config.scale)
    if config.affinity == "nearest":
        return Graph(c, _nearest(scaled, config), names)
    return Graph(c, graphs.symmetric(scaled), names)


def _nearest(scaled: Matrix, config: GraphOptions) -> Matrix:
    """Rows with like coefficients joined; rows whose coefficients are on no common row are not alike."""
    found = graphs.nearest_expressions(scaled, config.neighbours)
    if not found.nnz:
        raise MethodError(
            "no two rows are expressed by a common row: `nearest` joins none; raise `entries` of the coefficients, or set affinity: "
            "symmetric"
        )
    return found


def refuse_few(n: int, config: NumberOptions) -> None:
    """Refuse no more rows than clusters.

    Raises:
        MethodError: with both numbers.
    """
    need = (config.clusters or 2) + 1
    if n < need:
        raise MethodError(f"found {n} rows, {need - 1} clusters need at least {need}; lower `clusters`")


def components(n: int, config: NumberOptions) -> int:
    """Eigenvalues that are computed: some beyond the clusters, to tell a jump from what is usual."""
    return min(n, config.most + 1 + max(EVIDENCE, config.most // 2))


def embedded(weights: Matrix, config: NumberOptions) -> tuple[Embedding, int]:
    """The embedding of the rows with an edge, and how many have none: these know nothing of clusters or their number, and are zero.

    Raises:
        MethodError: for no more rows with an edge than clusters.
    """
    linked = np.flatnonzero(np.diff(weights.indptr))
    need = (config.clusters or 2) + 1
    if len(linked) < need:
        raise MethodError(
            f"found {len(linked)} rows with an edge, {need - 1} clusters need at least {need}; lower `clusters`"
        )
    found = embedded_rows(weights, linked, components(len(linked), config), config.seed)
    return found, weights.shape[0] - len(linked)


def embedded_rows(weights: Matrix, rows: np.ndarray, count: int, seed: int) -> Embedding:
    """The embedding of some rows of a graph by themselves; the others are zero."""
    found = embed(Matrix(weights[rows][:, rows]), count, seed)
    vectors = np.zeros((weights.shape[0], found.vectors.shape[1]))
    vectors[rows] = found.vectors
    return found._replace(vectors=vectors)


def split_rows(found: Embedding, weights: Matrix, k: int, starts: int, seed: int) -> Partition:
    """The clusters of rows with an edge; the others have none, -1."""
    linked = np.flatnonzero(np.diff(weights.indptr))
    made = partition(found.vectors[linked, :k], k, starts, seed)
    cluster = np.full(weights.shape[0], -1, dtype=np.int64)
    cluster[linked] = made.cluster
    return made._replace(cluster=cluster)


def number(found: Embedding, n: int, config: NumberOptions) -> tuple[int, str]:
    """How many clusters, and why: `option`; `parts` of like size, where none of them shows clusters of its own; or `eigengap`."""
    if config.clusters:
        return config.clusters, "option"
    best, jump = eigengap(found.values[: config.max_clusters + 1])
    alike = 2 <= found.parts <= config.max_clusters and found.smallest_part >= n / (3 * found.parts)
    if alike and INSIDE * found.values[found.parts] > jump:
        return found.parts, "parts"
    return best, "eigengap"


def is_clear(gaps: np.ndarray, k: int) -> bool:
    """Whether eigenvalues jump after k clusters by more than twice what is usual before it and a little beyond, whoever chose k."""
    usual = gaps[1 : k + max(EVIDENCE, k // 2)]
    return len(gaps) >= k and bool(gaps[k - 1] > 2 * np.median(usual))


def candidates(gaps: np.ndarray, k: int, chosen_by: str, config: NumberOptions) -> tuple[int, ...]:
    """Three numbers of clusters: that of the parts where it was chosen, and those with the largest jumps, best first."""
    gaps = gaps[: config.most if chosen_by == "option" else config.max_clusters]
    jumps = [int(c) + 2 for c in np.argsort(-gaps[1:], kind="stable")]
    first = [k] if chosen_by == "parts" else []
    return tuple(dict.fromkeys([*first, *jumps]))[:3]


def told(
    graph: Graph, cluster: np.ndarray, parts: int, block: Block, inputs: Inputs, config: GraphOptions
) -> dict[str, Any]:
    """The fields of `GraphResult` but caveats."""
    (own, weights), truth, found = _clustered(graph, cluster), None, None
    k = int(own.max()) + 1
    if config.label is not None:
        truth = block.labels[config.label].cpu().numpy()
        found = agreement(counted(cluster, truth, k, len(inputs.categories[config.label])))
    return {
        "n_rows": len(cluster),
        "clusters": k,
        "alone": len(cluster) - len(own),
        "parts": parts,
        "edges": graph.weights.nnz // 2,
        "inside": graphs.inside(weights, own),
        "modularity": graphs.modularity(weights, own, k),
        "row_sum_error": graph.error,
        "unproven": graph.unproven,
        "label": config.label,
        "wrong_share": None if truth is None else graphs.wrong_share(graph.coefficients, truth),
        **(dict.fromkeys(Agreement._fields) if found is None else found._asdict()),
    }


def arrays_of(graph: Graph, cluster: np.ndarray) -> Arrays:
    """The arrays that all have."""
    own, weights = _clustered(graph, cluster)
    k = int(own.max()) + 1
    found = {
        "cluster": cluster,
        "row": graph.names,
        "size": np.bincount(own, minlength=k).astype(np.int64),
        "between": graphs.between(weights, own, k),
        "ordered": graphs.ordered(weights, own, BINS),
    }
    return {name: Array(torch.from_numpy(values), ARRAYS[name]) for name, values in found.items()}


def _clustered(graph: Graph, cluster: np.ndarray) -> tuple[np.ndarray, Matrix]:
    """The clusters of the rows that have one, and the edges between these."""
    some = np.flatnonzero(cluster >= 0)
    return cluster[some], Matrix(graph.weights[some][:, some])


def graph_caveats(graph: Graph) -> list[str]:
    """What of the graph makes clusters doubtful."""
    notes = []
    if graph.error is not None and graph.error > 1e-3:
        notes.append(
            f"rows of the doubly stochastic graph sum to 1 within {graph.error:.1e} alone; raise `edges`"
        )
    if graph.unproven:
        notes.append(
            f"coefficients that were not kept could change weights of {graph.unproven} rows; raise `entries` of the coefficients, or `mass`"
        )
    return notes


def parts_caveats(alone: int, parts: int, k: int, option: str) -> list[str]:
    """Of rows without an edge, and where clusters are fewer than the connected parts of the others; an option gives more of them."""
    notes = []
    if alone:
        notes.append(f"{alone} rows have no edge, and so no cluster")
    if parts > k:
        notes.append(
            f"the graph has {parts} parts for {k} clusters: parts are joined that no edge joins; raise `entries` or `{option}`"
        )
    return notes


def _stochastic(c: Matrix, cut: np.ndarray, names: np.ndarray, config: GraphOptions) -> Graph:
    size = graphs.symmetric(c)
    found = doubly_stochastic(size, graphs.slack_of(size, config.edges))
    return Graph(c, found.graph, names, found.error, unproven(c, cut, found.potential))
