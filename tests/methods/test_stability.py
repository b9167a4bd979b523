"""The number of clusters by agreement of parts: planted numbers, nested ones, and rows without any."""

from typing import Any

import numpy as np
import pytest

from schemas.errors import MethodError
from tests.methods.cases import Answer
from tests.methods.expressed import expressed, parted
from tests.methods.test_k_subspaces import union


def stable(graph: Answer, of: np.ndarray | None = None, **options: Any) -> Answer:
    return parted(graph, of, "stability", **options)


@pytest.mark.parametrize("clusters", [2, 4, 6])
def test_planted_numbers(clusters: int) -> None:
    x, of = union(clusters, clusters, 3, 30, 50, noise=0.05)
    answer = stable(expressed("tsc", x, entries=8), of, max_clusters=8, parts=5)
    assert answer.result.clusters == answer.result.candidates[0] == clusters
    assert answer.result.accuracy == 1
    assert answer.result.agreement == pytest.approx(1)
    assert answer.result.caveats == ()


def test_rows_without_an_edge_are_no_cluster() -> None:
    x, _ = union(4, 4, 3, 30, 50, noise=0.05)
    result = stable(
        expressed("tsc", np.vstack([x, np.zeros((10, 30))]), entries=8), max_clusters=8, parts=5
    ).result
    assert (result.clusters, result.by_eigengap, result.parts) == (4, 4, 4)
    assert any("10 rows have no edge" in note for note in result.caveats)


def test_labels_change_nothing_but_the_comparison() -> None:
    x, of = union(0, 3, 3, 30, 40, noise=0.05)
    graph = expressed("tsc", x, entries=8)
    with_label, without = stable(graph, of, parts=3, max_clusters=5), stable(graph, parts=3, max_clusters=5)
    for name, values in without.arrays.items():
        np.testing.assert_array_equal(with_label.arrays[name], values)
    assert without.result.accuracy is None


def test_rows_without_clusters_are_said_to_have_none() -> None:
    x = np.random.default_rng(0).standard_normal((300, 40))
    answer = stable(expressed("tsc", x, entries=8), parts=5, max_clusters=6)
    assert answer.result.agreement < 0.7
    assert "no number is stable" in answer.result.caveats[0]


def test_fewer_clusters_than_parts_are_told() -> None:
    """Each row joined with one other: pairs and chains, of which any two are as far apart."""
    graph = expressed("tsc", union(0, 3, 3, 30, 40, noise=0.05)[0], entries=1)
    result = stable(graph, parts=3, max_clusters=4).result
    assert result.parts > result.clusters
    assert any(f"{result.parts} parts for {result.clusters} clusters" in note for note in result.caveats)
    assert any("raise `entries` or `max_clusters`" in note for note in result.caveats)


def test_clusters_are_those_of_the_partition() -> None:
    x, _ = union(1, 3, 3, 30, 40, noise=0.05)
    graph = expressed("tsc", x, entries=8)
    answer, whole = stable(graph, parts=3, max_clusters=5), parted(graph, clusters=3)
    for name in ("cluster", "row", "size", "between", "ordered"):
        np.testing.assert_array_equal(answer.arrays[name], whole.arrays[name])


def test_few_rows_are_refused() -> None:
    with pytest.raises(MethodError, match="no more than 15 clusters; lower `max_clusters`"):
        stable(expressed("tsc", union(0, 2, 2, 10, 8)[0], entries=3))
