"""How many clusters rows show by themselves: the number for which clusterings of parts of the rows agree.

The graph of `clustering.ssc_omp`, `elastic_net`, `tsc`, `lsr` or `lrr` is cut down to random parts of the rows, each part is clustered for
itself as by `clustering.partition` for every number of clusters, and parts are compared on the rows that they share. Rows are not
expressed anew without those that are left out. The most stable number is the largest of those that agree as well as the best within the
best's standard error: of nested clusters the finest. No label is read but to compare.

Arrays, one for each number of clusters from 2 on: `agreement` (number) the mean adjusted Rand index of two parts, `error` (number) its
standard error over parts, `eigenvalue` (order) the smallest eigenvalues of the whole graph's Laplacian; `cluster` and `row` (sampled),
`size` (cluster_number), `between` (cluster_number, other_cluster) and `ordered` (bin, other_bin) are those of `clustering.partition` with
the number that is most stable.
"""

import numpy as np
import torch
from pydantic import Field

from schemas.errors import MethodError
from tasks.methods import graph_clusters
from tasks.methods.contract import Array, Arrays, Block, Inputs
from tasks.methods.graph_clusters import Graph, GraphOptions, GraphResult
from tasks.numerics.affinity import eigengap, embed
from tasks.numerics.partition import partition
from tasks.numerics.stability import Stability, clustered_parts, most_stable, parts_of_rows, stability

VERSION = 2
KIND = "whole"
READS = graph_clusters.READS
ARRAYS = graph_clusters.ARRAYS | {"agreement": ("number",), "error": ("number",), "eigenvalue": ("order",)}
REFERENCE = (
    "Ben-Hur, Elisseeff, Guyon, Pacific Symposium on Biocomputing 7 (2002) 6; von Luxburg, Foundations and Trends in Machine Learning 2 "
    "(2010) 235"
)
SEEDS = ()
CLEAR = 0.7
"""Agreement below which no number of clusters is stable."""


class Config(GraphOptions):
    """Which numbers are tried, and on how many parts."""

    max_clusters: int = Field(default=15, ge=2)
    """Most clusters that are tried."""
    parts: int = Field(default=10, ge=3)
    """Random parts of the rows."""
    share: float = Field(default=0.8, gt=0.5, lt=1)
    """Of the rows in each part."""
    starts: int = Field(default=10, ge=1)
    """Of k-means, for each part and number."""


class Result(GraphResult):
    """The most stable number of clusters, and these clusters in numbers."""

    agreement: float
    """Of two parts at this number: 1 where they are the same, 0 by chance."""
    error: float
    """Its standard error."""
    candidates: tuple[int, ...]
    """Three numbers of clusters: the most stable, as above, then those that agree best."""
    by_eigengap: int
    """The number after which the eigenvalues of the whole graph jump most; two evidences that agree are more than one."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label, or parts have no more rows than clusters.
    """
    graph_clusters.check_label(inputs, config)
    _refuse_few(inputs.n_rows, config)


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Cluster parts and compare them, then all rows. Cost: about `parts` times that of `clustering.partition` for each number.

    Raises:
        MethodError: for parts with no more rows than clusters, or no edges.
    """
    n = len(block)
    _refuse_few(n, config)
    graph = graph_clusters.graph_of(block, config)
    linked = np.flatnonzero(np.diff(graph.weights.indptr))
    _refuse_few(len(linked), config)
    numbers = range(2, config.max_clusters + 1)
    found = stability(
        clustered_parts(
            [linked[rows] for rows in parts_of_rows(len(linked), config.parts, config.share, config.seed)],
            n,
            lambda rows: _of_part(graph, rows, config),
        )
    )
    k = most_stable(numbers, found)
    count = min(len(linked), config.max_clusters + 2)
    whole = graph_clusters.embedded_rows(graph.weights, linked, count, config.seed)
    made = graph_clusters.split_rows(
        whole, graph.weights, k, graph_clusters.NumberOptions().starts, config.seed
    )
    result = Result(
        **graph_clusters.told(graph, made.cluster, whole.parts, block, inputs, config),
        agreement=float(found.agreement[k - 2]),
        error=float(found.error[k - 2]),
        candidates=_candidates(k, found),
        by_eigengap=eigengap(whole.values)[0],
        caveats=(
            *graph_clusters.graph_caveats(graph),
            *graph_clusters.parts_caveats(n - len(linked), whole.parts, k, "max_clusters"),
            *_caveats(k, found, config),
        ),
    )
    arrays = {
        "agreement": found.agreement,
        "error": found.error,
        "eigenvalue": np.ascontiguousarray(whole.values),
    }
    named = {name: Array(torch.from_numpy(values), ARRAYS[name]) for name, values in arrays.items()}
    return result, graph_clusters.arrays_of(graph, made.cluster) | named


def _of_part(graph: Graph, rows: np.ndarray, config: Config) -> np.ndarray:
    """Labels of a part's rows for each number of clusters."""
    found = embed(graph.weights[rows][:, rows], config.max_clusters, config.seed)
    made = [
        partition(found.vectors[:, :k], k, config.starts, config.seed)
        for k in range(2, config.max_clusters + 1)
    ]
    return np.stack([each.cluster for each in made])


def _refuse_few(n: int, config: Config) -> None:
    if round(config.share * n) <= config.max_clusters:
        raise MethodError(
            f"found {n} rows, parts of {config.share:.0%} of them hold no more than {config.max_clusters} clusters; lower `max_clusters`"
        )


def _candidates(k: int, found: Stability) -> tuple[int, ...]:
    order = np.argsort(-found.agreement, kind="stable") + 2
    return tuple(dict.fromkeys([k, *order.tolist()]))[:3]


def _caveats(k: int, found: Stability, config: Config) -> list[str]:
    notes = []
    best = int(np.argmax(found.agreement))
    if found.agreement[best] < CLEAR:
        notes.append(
            f"two parts agree by {found.agreement[best]:.2f} at most, for {best + 2} clusters: no number is stable; take another graph"
        )
    if k == config.max_clusters:
        notes.append("the most stable number is the largest that was tried; raise `max_clusters`")
    return notes
