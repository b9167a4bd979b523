"""Communities of the graph of how rows express each other, by the Leiden algorithm: a reference beside spectral clustering.

No number of clusters is given; `resolution` sets how fine they are.

Arrays: as those of `clustering.partition`, without eigenvalues.
"""

import random
from typing import Literal

import numpy as np
from pydantic import Field
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from schemas.errors import MethodError
from tasks.methods import graph_clusters
from tasks.methods.contract import Arrays, Block, Inputs
from tasks.methods.graph_clusters import GraphOptions, GraphResult
from tasks.numerics.partition import by_size

VERSION = 3
KIND = "whole"
READS = graph_clusters.READS
ARRAYS = graph_clusters.ARRAYS
REFERENCE = (
    "Traag, Waltman, van Eck, Scientific Reports 9 (2019) 5233; as in Turishcheva et al., arXiv:2410.16124: the most robust of clusterings "
    "across dimensions"
)
SEEDS = (221,)
NEEDS = {"igraph": "igraph"}
MOST_COMMUNITIES = 4096
"""Between each two of which a number is kept."""


class Config(GraphOptions):
    """How coefficients become communities."""

    objective: Literal["modularity", "cpm"] = "modularity"
    """What is maximised: modularity, or the constant Potts model, whose communities have no least size."""
    resolution: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Larger ones give more and smaller communities."""
    iterations: int = Field(default=10, ge=1, le=1000)
    """Passes of the algorithm, each starting where the one before ended."""


class Result(GraphResult):
    """The communities in numbers."""

    quality: float
    """The objective that was reached."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label, or there are fewer than three rows.
    """
    graph_clusters.check_label(inputs, config)
    if inputs.n_rows < 3:
        raise MethodError(f"found {inputs.n_rows} rows, communities need at least 3")


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Find communities.

    Raises:
        MethodError: if there is no edge, or there are more communities than numbers between each two fit in memory.
    """
    import igraph

    graph = graph_clusters.graph_of(block, config)
    linked = np.flatnonzero(np.diff(graph.weights.indptr))
    edges = sparse.triu(sparse.coo_array(graph.weights[linked][:, linked]), 1)
    network = igraph.Graph(n=len(linked), edges=np.stack([edges.row, edges.col], 1))
    igraph.set_random_number_generator(random.Random(config.seed))
    try:
        found = network.community_leiden(
            objective_function={"modularity": "modularity", "cpm": "CPM"}[config.objective],
            weights=edges.data.tolist(),
            resolution=config.resolution,
            n_iterations=config.iterations,
        )
    finally:
        igraph.set_random_number_generator(random)
    if (count := max(found.membership) + 1) > MOST_COMMUNITIES:
        raise MethodError(
            f"found {count} communities of {len(linked)} rows, takes up to {MOST_COMMUNITIES}: lower `resolution`, which for `cpm` is the "
            "least weight of a mean edge inside"
        )
    cluster = np.full(len(block), -1, dtype=np.int64)
    cluster[linked] = by_size(np.array(found.membership, dtype=np.int64), count)
    parts = int(connected_components(graph.weights[linked][:, linked], directed=False)[0])
    result = Result(
        **graph_clusters.told(graph, cluster, parts, block, inputs, config),
        quality=float(found.quality or 0.0),
        caveats=(
            *graph_clusters.graph_caveats(graph),
            *graph_clusters.parts_caveats(len(block) - len(linked), 0, count, "resolution"),
        ),
    )
    return result, graph_clusters.arrays_of(graph, cluster)
