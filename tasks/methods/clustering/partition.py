"""Clusters of rows from how rows express each other: spectral clustering of their graph.

The graph is that of `clustering.ssc_omp`, `elastic_net`, `tsc`, `lsr` or `lrr`.

Coefficients become a symmetric graph of non-negative weights; the smallest eigenvectors of its normalised Laplacian, each connected part
by itself, are split by k-means from many starts. The number of clusters is given, or that of the graph's parts where these are of like
size, or where the eigenvalues jump most, with the jumps as evidence; rows without an edge have no part in it. No label is read but to
compare.

Arrays: `cluster` and `row` (sampled) are the cluster, -1 without an edge, and the row (over all captures laid end to end) of each row;
`size` (cluster_number) the clusters' rows, largest first; `eigenvalue` (order) the smallest eigenvalues, ascending, of the rows with an
edge; `between` (cluster_number, other_cluster) the weight of edges from a cluster into another, over all of its own; `ordered` (bin,
other_bin) the mean weight of pairs of rows, rows in the order of their clusters and cut into at most 200 bins of like size.
"""

import numpy as np
import torch

from tasks.methods import graph_clusters
from tasks.methods.contract import Array, Arrays, Block, Inputs
from tasks.methods.graph_clusters import GraphResult, NumberOptions
from tasks.numerics.affinity import Embedding

VERSION = 3
KIND = "whole"
READS = graph_clusters.READS
ARRAYS = graph_clusters.ARRAYS | {"eigenvalue": ("order",)}
REFERENCE = (
    "Ng, Jordan, Weiss, NIPS 14 (2001); von Luxburg, Statistics and Computing 17 (2007) 395: the eigengap; Lim, Vidal, Haeffele, "
    "arXiv:2011.14859: A-DSSC, the doubly stochastic graph; You, Li, Robinson, Vidal, CVPR (2016): nearest expressions"
)
SEEDS = ()


class Config(NumberOptions):
    """How coefficients become clusters."""


class Result(GraphResult):
    """The clusters in numbers."""

    chosen_by: str
    """`option`; `parts` where the graph falls into parts of like size, whatever comes after; or `eigengap`."""
    eigengap: float
    """The jump of the eigenvalues after this many clusters; near 0 the number means little."""
    candidates: tuple[int, ...]
    """Three numbers of clusters: that of the parts where it was chosen, and those with the largest jumps, best first."""
    inertia: float
    """Mean squared distance of embedded rows from their clusters' means."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label, or there are no more rows than clusters.
    """
    graph_clusters.check_label(inputs, config)
    graph_clusters.refuse_few(inputs.n_rows, config)


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Cluster the rows.

    Raises:
        MethodError: for no more rows with an edge than clusters, or no edges.
    """
    n = len(block)
    graph_clusters.refuse_few(n, config)
    graph = graph_clusters.graph_of(block, config)
    found, alone = graph_clusters.embedded(graph.weights, config)
    k, chosen_by = graph_clusters.number(found, n - alone, config)
    made = graph_clusters.split_rows(found, graph.weights, k, config.starts, config.seed)
    gaps = np.diff(found.values)
    result = Result(
        **graph_clusters.told(graph, made.cluster, found.parts, block, inputs, config),
        chosen_by=chosen_by,
        eigengap=float(gaps[k - 1]),
        candidates=graph_clusters.candidates(gaps, k, chosen_by, config),
        inertia=made.inertia / (n - alone),
        caveats=(*graph_clusters.graph_caveats(graph), *_caveats(found, alone, k)),
    )
    values = torch.from_numpy(np.ascontiguousarray(found.values))
    arrays = graph_clusters.arrays_of(graph, made.cluster)
    return result, arrays | {"eigenvalue": Array(values, ARRAYS["eigenvalue"])}


def _caveats(found: Embedding, alone: int, k: int) -> list[str]:
    notes, gaps = graph_clusters.parts_caveats(alone, found.parts, k, "clusters"), np.diff(found.values)
    if not graph_clusters.is_clear(gaps, k):
        notes.append(
            "no clear jump of the eigenvalues after this number of clusters: the graph does not tell the number by itself; where rows are "
            "noisy and many for their dimension, take fewer `entries`, or another method, and compare"
        )
    return notes
