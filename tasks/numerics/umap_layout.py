"""UMAP's graph and its layout by umap-learn, from neighbours that are exact, on one thread, without a warning.

umap-learn's class searches neighbours by its own means, most of them approximately, and warns where it is given them; so the two functions
that it calls in turn are called here. They give its coordinates to the bit. Compiled code of one process runs one layout at a time: numba's
plainest threading layer ends a process that enters it twice.
"""

import threading
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy.sparse.csgraph import connected_components

_alone = threading.Lock()


class Layout(NamedTuple):
    """A map of points."""

    coordinates: Float32[np.ndarray, "point axis"]
    parts: int
    """Connected parts of the graph: nothing but the start tells where they lie to each other."""


def layout(
    index: Int64[np.ndarray, "point neighbour"],
    distance: Float[np.ndarray, "point neighbour"],
    start: Float[np.ndarray, "point axis"],
    min_dist: float,
    seed: int,
) -> Layout:
    """Coordinates that keep the points' neighbours near.

    Args:
        index: each point first, then its nearest others.
        distance: to them, zero first.
        start: where points stand before the first step, no two at one place; each axis is stretched to 0..10.
        min_dist: how near the map may put points, where the whole map is about 10 wide.
        seed: of the order of steps and of the points that are pushed away.

    Cost: 500 passes (200 beyond 10,000 points) over point x neighbour edges; the first call of a process compiles for 13 s.
    """
    with _alone:
        products = torch.get_num_threads()
        umap, numba = _umap()
        threads = numba.get_num_threads()
        numba.set_num_threads(1)  # a mean over all distances is summed by thread
        try:
            return _layout(umap, index, distance, start, min_dist, np.random.RandomState(seed))
        finally:
            numba.set_num_threads(threads)
            torch.set_num_threads(
                products
            )  # numba's threads, once started, are PyTorch's too: one for each core


def _layout(
    umap: ModuleType,
    index: np.ndarray,
    distance: np.ndarray,
    start: np.ndarray,
    min_dist: float,
    random: np.random.RandomState,
) -> Layout:
    graph, *_ = umap.fuzzy_simplicial_set(
        start, index.shape[1], random, "euclidean", knn_indices=index, knn_dists=distance.astype(np.float32)
    )
    a, b = umap.find_ab_params(1.0, min_dist)
    options: dict[str, Any] = {
        "n_components": start.shape[1], "initial_alpha": 1.0, "a": a, "b": b, "gamma": 1.0, "negative_sample_rate": 5,
        "n_epochs": None, "metric": "euclidean", "metric_kwds": {}, "densmap": False, "densmap_kwds": {}, "output_dens": False,
    }  # fmt: skip
    found, _ = umap.simplicial_set_embedding(
        start, graph, init=start.astype(np.float32), random_state=random, **options
    )
    return Layout(found, int(connected_components(graph, directed=False)[0]))


def _umap() -> tuple[ModuleType, ModuleType]:
    """umap-learn's functions and numba, imported when they are used: it takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ImportWarning
        )  # of tensorflow, which another class of the package wants
        import numba
        from umap import umap_
    return umap_, numba
