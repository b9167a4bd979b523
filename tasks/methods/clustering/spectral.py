"""Clusters of rows that point the same way: spectral clustering of a cosine neighbour graph, on a stated sample.

Arrays: `cluster` and `row` (sampled) give the cluster and the row (over all captures laid end to end) of each row that
was used, `size` (cluster) the clusters' rows, largest first, `eigenvalue` (order) the smallest eigenvalues of the
graph's normalised Laplacian, ascending.
"""

import numpy as np
import torch
from pydantic import Field

from schemas.base import Frozen
from schemas.errors import MethodError, UnknownNameError, nearest
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics.affinity import Embedding, cosine_graph, eigengap, embed
from tasks.numerics.agreement import agreement, counted
from tasks.numerics.partition import partition

VERSION = 2
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {"cluster": ("sampled",), "row": ("sampled",), "size": ("cluster_number",), "eigenvalue": ("order",)}
REFERENCE = (
    "Ng, Jordan, Weiss, NIPS 14 (2001): normalised spectral clustering. von Luxburg, Statistics and Computing 17 (2007) 395: the "
    "eigengap"
)
SEEDS = ()


class Config(Frozen):
    """Which rows are clustered, and how."""

    clusters: int | None = Field(default=None, ge=2)
    """How many; None: where the eigenvalues jump most."""
    max_clusters: int = Field(default=20, ge=2)
    """Most that are looked for when `clusters` is None."""
    neighbours: int = Field(default=15, ge=1)
    """Rows that each row is joined with."""
    center: bool = True
    """Subtract the mean of the sampled rows first: a common offset makes all rows point the same way."""
    label: str | None = None
    """A label with classes, to compare the clusters with."""
    sample_rows: int | None = Field(default=None, ge=3)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=20_000, ge=3)
    """Refuse more rows than this; time and memory grow with rows times neighbours, and the search with rows squared."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the draw, the eigensolver and k-means."""


class Result(Frozen):
    """The clusters in numbers."""

    n_rows: int
    """Rows clustered."""
    clusters: int
    chosen_by: str
    """`option` or `eigengap`."""
    eigengap: float
    """The jump of the eigenvalues after this many clusters; near 0 the number means little."""
    candidates: tuple[int, ...]
    """The three numbers of clusters with the largest jumps, best first."""
    parts: int
    """Connected parts of the graph; more parts than clusters join parts that no edge joins."""
    adjusted_rand: float | None
    """Agreement with the label, corrected for chance; None without a labelled row."""
    normalised_mutual_information: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        UnknownNameError: if there is no such label with classes.
        MethodError: if there are too few rows.
    """
    if config.label is not None and config.label not in inputs.categories:
        raise UnknownNameError(
            f"there is no label {config.label!r} with classes; nearest: {nearest(config.label, inputs.categories)}"
        )
    need = 1 + max(config.neighbours, config.clusters or 2)
    if inputs.n_rows < need:
        raise MethodError(f"found {inputs.n_rows} rows, these options need at least {need}")


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Cluster the rows.

    Raises:
        MethodError: for less rows than neighbours or clusters.
    """
    n, wanted = len(block), config.clusters or config.max_clusters
    need = 1 + max(config.neighbours, config.clusters or 2)
    if n < need:
        raise MethodError(f"found {n} good rows, these options need at least {need}")
    x = block["x"].double()
    x = x - x.mean(0) if config.center else x
    found = embed(cosine_graph(x, config.neighbours), min(n, wanted + 1), config.seed)
    k = config.clusters or eigengap(found.values)[0]
    cluster = partition(found.vectors[:, :k], k, 10, config.seed).cluster
    truth = None if config.label is None else block.labels[config.label].cpu().numpy()
    return _result(found, k, cluster, truth, config), _arrays(found, k, cluster, block)


def _result(
    found: Embedding, k: int, cluster: np.ndarray, truth: np.ndarray | None, config: Config
) -> Result:
    gaps = np.diff(found.values)
    agreed = None if truth is None else agreement(counted(cluster, truth, k, int(truth.max(initial=0)) + 1))
    notes = []
    if found.parts > k:
        notes.append(f"the graph has {found.parts} parts for {k} clusters; raise `neighbours` or `clusters`")
    if gaps[k - 1] < 0.1 * max(gaps.max(), 1e-12):
        notes.append("no clear jump of the eigenvalues after this number of clusters")
    return Result(
        n_rows=len(cluster),
        clusters=k,
        chosen_by="option" if config.clusters else "eigengap",
        eigengap=float(gaps[k - 1]),
        candidates=tuple(int(c) + 2 for c in np.argsort(-gaps[1:], kind="stable")[:3]),
        parts=found.parts,
        adjusted_rand=agreed and agreed.adjusted_rand,
        normalised_mutual_information=agreed and agreed.normalised_mutual_information,
        caveats=tuple(notes),
    )


def _arrays(found: Embedding, k: int, cluster: np.ndarray, block: Block) -> Arrays:
    arrays = {
        "cluster": torch.from_numpy(cluster),
        "row": block.index,
        "size": torch.from_numpy(np.bincount(cluster, minlength=k).astype(np.int64)),
        "eigenvalue": torch.from_numpy(np.ascontiguousarray(found.values)),
    }
    return {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}
