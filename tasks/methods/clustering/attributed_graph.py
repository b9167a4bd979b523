"""Clusters of samples that have both features and a graph: spectral subspace clustering of rows that are spread along edges.

Connect a file of edges at `graph`: `inputs: {graph: {edges: edges.csv}}`. Rows, scaled to length 1 and then to one degree in the graph of
their products, are summed over walks along edges of up to `hops` steps, and split along left singular vectors of the sums (S2CAG) or
leading eigenvectors of their modularity matrix (M-S2CAG). Rounding is the paper's (SNEM), from several random rotations of rows that are
scaled to length 1, the best by its own objective; from a single start, as published, it ends in poor clusters for some starts. Beside the
clusters stand those of the rows alone, found in the same way with no hops, so that what the graph adds is seen. No label is read but to
compare.

Rows with negative entries have negative products: they get one more feature, a constant of the same length, so that products are
(1 + cosine) / 2; `modularity` weighs rows by the sums of their features and refuses them. Edges of samples without rows are left out.

Sums along edges need clusters whose rows point about one way: of a subspace through the origin, rows point both ways along each
direction and cancel, and what the edges know is lost with them. The result compares with the rows alone, not with the edges alone.

Arrays: `cluster` and `row` (sampled) are the cluster and the row (over all captures laid end to end) of each row; `size` (cluster_number)
the clusters' rows, largest first; `eigenvalue` (order) squares of the singular values, the first that of all rows together, or the
eigenvalues of the modularity matrix, descending; `between` (cluster_number, other_cluster) the weight of edges from a cluster into
another, over all of its own; `ordered` (bin, other_bin) the mean weight of pairs of rows, in the order of clusters; `alone` (sampled) the
clusters of the rows alone, numbered by themselves.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.sparse.csgraph import connected_components

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.classes import class_label
from tasks.methods.contract import Array, Arrays, Block, Edges, GraphPort, Inputs, RowsPort
from tasks.methods.graph_clusters import BINS, is_clear
from tasks.numerics import attributed_graphs, graphs
from tasks.numerics.agreement import agreement, counted
from tasks.numerics.attributed_graphs import Directions, Rounded, Spread
from tasks.numerics.graphs import Matrix

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort(labels=True), "graph": GraphPort()}
ARRAYS = {
    "cluster": ("sampled",),
    "row": ("sampled",),
    "size": ("cluster_number",),
    "eigenvalue": ("order",),
    "between": ("cluster_number", "other_cluster"),
    "ordered": ("bin", "other_bin"),
    "alone": ("sampled",),
}
REFERENCE = (
    "Lin, Yang, Zheng, Ke, Spectral subspace clustering for attributed graphs, KDD (2025), arXiv:2411.11074"
)
SEEDS = (120,)
MOST_BYTES = 16 << 30
"""Of rows, rows that were spread, and edges."""
EVIDENCE = 5
"""Eigenvalues beyond the number of clusters."""


class Config(Frozen):
    """What is split, and how far rows reach."""

    objective: Literal["conductance", "modularity"] = "conductance"
    """What clusters minimise or maximise in the graph of the spread rows' products: S2CAG or M-S2CAG."""
    clusters: int | None = Field(default=None, ge=2)
    """How many; None: where the eigenvalues fall most, from 2 to `max_clusters`."""
    max_clusters: int = Field(default=30, ge=2)
    """Most that are looked for when `clusters` is None."""
    hops: int = Field(default=10, ge=0, le=1000)
    """Steps along edges, at most (the paper's T); 0: the rows alone."""
    power: float = Field(default=0.9, gt=0, le=3)
    """Walks of t steps count as its power t (the paper's alpha); above 1, long ones count more."""
    resolution: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of what random edges of the same degrees would have, for `modularity` (the paper's gamma)."""
    tf_idf: bool = False
    """Whether features are counts of words, to be weighted by how few rows have them."""
    starts: int = Field(default=20, ge=1)
    """Of the rounding."""
    label: str | None = None
    """A label with classes, to compare the clusters with; nothing else reads it."""
    most_rows: int = Field(default=1_000_000, ge=3)
    """Refuse more rows than this: all lie in memory."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of starts."""

    @property
    def most(self) -> int:
        """Clusters that may be asked for."""
        return self.clusters or self.max_clusters


class Quality(Frozen):
    """Clusters against the edges as they were given, and against a label."""

    conductance: float | None
    """Mean over clusters with edges of the weight of edges that leave them, over that of the ends of edges inside or outside, whichever is
    less: 0 where none does."""
    modularity: float
    """Share of the weight of edges inside clusters, less what random edges of the same degrees would have."""
    inside: float
    """Share of the weight of edges that lies inside clusters."""
    accuracy: float | None
    """Share of labelled rows that the best one-to-one map of clusters to classes has right; None without a label."""
    purity: float | None
    adjusted_rand: float | None
    normalised_mutual_information: float | None


class Result(Quality):
    """The clusters in numbers."""

    n_rows: int
    clusters: int
    chosen_by: Literal["option", "eigengap"]
    eigengap: float
    """The fall of the eigenvalues after this many clusters; near 0 the number means little."""
    candidates: tuple[int, ...]
    """Three numbers of clusters after which the eigenvalues fall most, best first."""
    spanned: float
    """The rounding's objective: 1 where all rows of a cluster point the same way."""
    agreeing: int
    """Starts of the rounding that reached it; where only one did, more `starts` may find better ones."""
    ids: Literal["key", "row"]
    """What the file of edges names samples by: their keys, or rows of the data."""
    edges: int
    """Between rows."""
    parts: int
    """Connected parts of the graph."""
    isolated: int
    """Rows without an edge."""
    lifted: bool
    """Whether rows had negative entries, and so got a further feature."""
    explicit: bool
    """Whether the spread rows were made whole, which was reckoned to cost less than steps at each product."""
    label: str | None
    alone: Quality
    """Of clusters of the rows alone: as many, with no hops."""
    moved: float
    """Adjusted Rand index of the clusters with those of the rows alone; 1 where the graph changes nothing."""
    caveats: tuple[str, ...]


class _Graph(NamedTuple):
    """Edges between rows."""

    weights: Matrix
    parts: int
    isolated: int
    lost: int
    """Edges of samples without rows."""


class _Rows(NamedTuple):
    """Rows of one degree."""

    f: np.ndarray
    lifted: bool
    zero: int
    """Rows of zeros."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label, there are no more rows than clusters, or rows take too much memory.
    """
    if config.label is not None:
        class_label(inputs, config.label)
    _refuse_few(inputs.n_rows, config)
    edges = len(inputs.graphs["graph"].weights) if "graph" in inputs.graphs else 0
    held = 8 * (inputs.n_rows * (4 * (inputs.widths["x"] + 1) + 3 * (config.most + EVIDENCE)) + 8 * edges)
    if held > MOST_BYTES:
        raise MethodError(
            f"{inputs.n_rows:,} rows of {inputs.widths['x']:,} features and {edges:,} edges take about {held:,} bytes, at most "
            f"{MOST_BYTES:,} are used; project the site to fewer features in the capture, or capture fewer samples"
        )


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Cluster the rows, with and without the graph.

    Cost: O(edge feature hops + row feature clusters) for each of some tens of products, and the rounding.

    Raises:
        MethodError: for no more rows than clusters, rows that are no samples, or entries that the options do not take.
    """
    _refuse_few(len(block), config)
    graph, rows = _graph(block, inputs.graphs["graph"], inputs.n_samples), _rows(block, config)
    z = _spread(graph, rows, config, config.hops)
    count = min(len(block), config.most + 1 + EVIDENCE)
    found = _directions(z, rows, count, config)
    falls = _falls(found.values, config)
    k = config.clusters or int(np.argmax(falls)) + 2
    made = _rounded(found, k, config)
    flat = _directions(_spread(graph, rows, config, 0), rows, min(len(block), k + 1), config)
    alone = _rounded(flat, k, config)
    both, rows_only = (
        _quality(graph.weights, each.cluster, k, block, inputs, config) for each in (made, alone)
    )
    notes = _caveats(graph, rows, inputs.graphs["graph"], made, falls, k)
    result = Result(
        **both.model_dump(),
        n_rows=len(block),
        clusters=int(made.cluster.max()) + 1,
        chosen_by="option" if config.clusters else "eigengap",
        eigengap=float(falls[k - 2]),
        candidates=tuple(int(c) + 2 for c in np.argsort(-falls, kind="stable")[:3]),
        spanned=made.objective,
        agreeing=made.agreeing,
        ids=inputs.graphs["graph"].ids,
        edges=graph.weights.nnz // 2,
        parts=graph.parts,
        isolated=graph.isolated,
        lifted=rows.lifted,
        explicit=z.explicit,
        label=config.label,
        alone=rows_only,
        moved=_rand(made.cluster, alone.cluster, k),
        caveats=(*notes, *_better_alone(both, rows_only)),
    )
    return result, _arrays(block, graph, made, alone, found)


def _refuse_few(n: int, config: Config) -> None:
    need = (config.clusters or 2) + 1
    if n < need:
        raise MethodError(f"found {n} rows, {need - 1} clusters need at least {need}; lower `clusters`")


def _graph(block: Block, edges: Edges, n_samples: int) -> _Graph:
    sample, n = block.sample.cpu().numpy(), len(block)
    place = np.full(n_samples, -1, dtype=np.int64)
    place[sample] = np.arange(n)
    if (place[sample] != np.arange(n)).any():
        raise MethodError(
            "found several rows of a sample, a graph of samples needs one of each; pool them in the capture"
        )
    ends = place[edges.ends.numpy()]
    there = (ends >= 0).all(axis=1)
    if not there.any():
        raise MethodError("no edge joins two samples that have rows: found edges of failed samples alone")
    weights = attributed_graphs.adjacency(ends[there], edges.weights.numpy()[there], n)
    parts = int(connected_components(weights, directed=False)[0])
    return _Graph(weights, parts, int((np.diff(weights.indptr) == 0).sum()), int((~there).sum()))


def _rows(block: Block, config: Config) -> _Rows:
    x = block["x"].double().cpu().numpy()
    negative = bool((x < 0).any())
    if negative and (config.tf_idf or config.objective == "modularity"):
        what = (
            "tf_idf takes counts" if config.tf_idf else "modularity weighs rows by the sums of their features"
        )
        cure = "leave it out" if config.tf_idf else "set objective: conductance"
        raise MethodError(
            f"{what}, found negative entries; {cure}, or choose a site without them, such as after a ReLU"
        )
    if not x.any():
        raise MethodError("all rows are zeros: found nothing to split; look at the site")
    f, lifted = attributed_graphs.one_degree(attributed_graphs.tf_idf(x) if config.tf_idf else x)
    return _Rows(f, lifted, int((~x.any(axis=1)).sum()))


def _spread(graph: _Graph, rows: _Rows, config: Config, hops: int) -> Spread:
    p = attributed_graphs.propagation(graph.weights)
    whole = hops == 0 or attributed_graphs.explicit_is_cheaper(rows.f.shape[1], config.most)
    return attributed_graphs.spread(p, rows.f, config.power, hops, whole)


def _directions(z: Spread, rows: _Rows, count: int, config: Config) -> Directions:
    if config.objective == "conductance":
        return attributed_graphs.by_conductance(z, count, config.seed)
    return attributed_graphs.by_modularity(z, rows.f.shape[1], count, config.resolution, config.seed)


def _falls(values: np.ndarray, config: Config) -> np.ndarray:
    """Of the eigenvalues after 2, 3, ... clusters: k clusters take k directions, of which that of all rows is one; a modularity matrix
    has none of all rows."""
    first = 1 if config.objective == "conductance" else 0
    falls: np.ndarray = values[first:-1] - values[first + 1 :]
    return falls[: max(1, config.most - 1)]


def _rounded(found: Directions, k: int, config: Config) -> Rounded:
    """The paper's directions: the k after that of all rows, or the first k."""
    first = 1 if config.objective == "conductance" else 0
    return attributed_graphs.rounded(found.vectors[:, first : first + k], config.starts, config.seed)


def _quality(
    graph: Matrix, cluster: np.ndarray, k: int, block: Block, inputs: Inputs, config: Config
) -> Quality:
    of_clusters = graphs.conductance(graph, cluster, k)
    found = None
    if config.label is not None:
        truth = block.labels[config.label].cpu().numpy()
        found = agreement(counted(cluster, truth, k, len(inputs.categories[config.label])))
    names = ("accuracy", "purity", "adjusted_rand", "normalised_mutual_information")
    return Quality(
        conductance=float(np.nanmean(of_clusters)) if np.isfinite(of_clusters).any() else None,
        modularity=graphs.modularity(graph, cluster, k),
        inside=graphs.inside(graph, cluster),
        **(dict.fromkeys(names) if found is None else found._asdict()),
    )


def _rand(one: np.ndarray, other: np.ndarray, k: int) -> float:
    found = agreement(counted(one, other, k, k))
    return 0.0 if found is None else found.adjusted_rand


def _arrays(block: Block, graph: _Graph, made: Rounded, alone: Rounded, found: Directions) -> Arrays:
    k = int(made.cluster.max()) + 1
    values = {
        "cluster": made.cluster,
        "row": block.index.cpu().numpy(),
        "size": np.bincount(made.cluster, minlength=k).astype(np.int64),
        "eigenvalue": found.values,
        "between": graphs.between(graph.weights, made.cluster, k),
        "ordered": graphs.ordered(graph.weights, made.cluster, BINS),
        "alone": alone.cluster,
    }
    return {name: Array(torch.from_numpy(array), ARRAYS[name]) for name, array in values.items()}


def _better_alone(both: Quality, alone: Quality) -> list[str]:
    """Whether the graph itself is cut better by clusters that do not know it."""
    if both.conductance is None or alone.conductance is None or alone.conductance >= both.conductance:
        return []
    return [
        f"the rows alone give clusters that cut the graph less (conductance {alone.conductance:.2f}, here {both.conductance:.2f}): look at "
        "`alone`, and try other `hops` or `power`"
    ]


def _caveats(graph: _Graph, rows: _Rows, edges: Edges, made: Rounded, falls: np.ndarray, k: int) -> list[str]:
    lines = [
        (graph.isolated, "{} rows have no edge: their features alone place them"),
        (rows.zero, "{} rows are zeros: their neighbours alone place them"),
        (graph.lost, "{} edges lead to samples without rows and were left out"),
        (edges.loops, "{} lines of the file join a sample with itself and were left out"),
        (edges.repeated, "{} lines of the file came once more: their weights were added"),
        (edges.weightless, "{} pairs of the file have weight 0 and were left out"),
    ]
    notes = [text.format(count) for count, text in lines if count]
    if graph.parts - graph.isolated > k:
        notes.append(
            f"the graph falls into {graph.parts} parts, of which {graph.isolated} are single rows, for {k} clusters: features "
            "alone tell which parts go together"
        )
    if len(np.unique(made.cluster)) < k:
        notes.append(f"{k - len(np.unique(made.cluster))} of {k} clusters stay empty; lower `clusters`")
    if not is_clear(np.r_[0.0, falls], k):
        notes.append(
            "no clear fall of the eigenvalues after this number of clusters: the data do not tell the number by themselves"
        )
    return notes
