"""Leiden communities of the same graph: planted ones, and the quality that igraph tells against our modularity."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schemas.errors import MethodError
from tasks.methods.contract import Inputs, load_method
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.expressed import block_of, expressed
from tests.methods.test_k_subspaces import union


def communities(graph: Answer, of: np.ndarray, **options: Any) -> Answer:
    module, n = load_method("clustering.leiden"), len(of)
    config = module.Config(label="kind", **options)
    names = {"kind": tuple(map(str, range(int(of.max()) + 1)))}
    inputs = Inputs(widths={"x": 0}, n_rows=n, n_samples=n, categories=names)
    module.check(inputs, config)
    block = replace(block_of(np.zeros((n, 0)), of), aligned={"graph": dict(graph.arrays)})
    return cases.run(Case(module, config, inputs, block))


def test_planted_subspaces_are_communities() -> None:
    x, of = union(0, 5, 3, 30, 60, noise=0.1)
    graph = expressed("tsc", x, entries=8)
    result = communities(graph, of).result
    assert result.purity == 1  # at this resolution a subspace may be several communities
    assert result.quality == pytest.approx(result.modularity, abs=1e-9)
    coarse = communities(graph, of, resolution=0.2).result
    assert (coarse.clusters, coarse.accuracy) == (5, 1)


def test_communities_that_are_hardly_more_than_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a number for each two of them is made."""
    x, of = union(0, 3, 3, 30, 60, noise=0.1)
    monkeypatch.setattr(load_method("clustering.leiden"), "MOST_COMMUNITIES", 100)
    with pytest.raises(MethodError, match="communities of 180 rows, takes up to 100"):
        communities(expressed("tsc", x, entries=8), of, objective="cpm")


def test_resolution_and_seed() -> None:
    x, of = union(1, 4, 3, 30, 60, noise=0.3)
    graph = expressed("tsc", x, entries=8)
    few, many = (communities(graph, of, resolution=r).result.clusters for r in (0.2, 20.0))
    assert few < many
    same = [communities(graph, of, seed=3).arrays["cluster"].numpy() for _ in range(2)]
    np.testing.assert_array_equal(*same)
    cpm = communities(graph, of, objective="cpm", resolution=1e-3)
    assert 1 < cpm.result.clusters < 240
