"""Clusters of graphs: parts, numbers of clusters, orders of rows, labels that are only compared with, and doubtful graphs."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from schemas.errors import MethodError
from tasks.methods import graph_clusters
from tasks.methods.contract import list_methods, load_method
from tasks.methods.graph_clusters import NumberOptions
from tasks.numerics import graphs
from tasks.numerics.affinity import embed
from tasks.numerics.graphs import Matrix
from tests.methods.expressed import dense, expressed, parted
from tests.methods.test_k_subspaces import union


def test_eigenvalues_of_a_graph_in_parts_are_those_of_the_whole() -> None:
    """Six parts of different size, two of them single rows; a solver for the whole would find some of the zeros."""
    rng = np.random.default_rng(0)
    blocks = [rng.random((n, n)) * (rng.random((n, n)) < 0.3) for n in (500, 60, 30, 9)]
    blocks = [
        np.triu(b, 1) + np.triu(b, 1).T + np.diag(np.ones(len(b) - 1), 1) + np.diag(np.ones(len(b) - 1), -1)
        for b in blocks
    ]
    graph = Matrix(sparse.block_diag([*blocks, np.zeros((2, 2))]))
    found = embed(graph, 10, 0)
    assert found.parts == 6
    degree = np.asarray(graph.sum(axis=1)).ravel()
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
    whole = np.diag((degree > 0) * 1.0) - scale[:, None] * graph.toarray() * scale
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(whole)[:10], atol=1e-9)
    np.testing.assert_allclose(whole @ found.vectors, found.vectors * found.values, atol=1e-8)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(10), atol=1e-8)


def test_the_order_of_rows_does_not_matter() -> None:
    x, of = union(0, 4, 3, 20, 60, noise=0.15)
    order = np.random.default_rng(0).permutation(len(x))
    straight, mixed = (parted(expressed("tsc", rows), clusters=4) for rows in (x, x[order]))
    clusters = [answer.arrays["cluster"].numpy() for answer in (straight, mixed)]
    assert adjusted_rand_score(clusters[0][order], clusters[1]) == 1
    assert adjusted_rand_score(of, clusters[0]) > 0.95


def test_labels_are_read_for_the_comparison_alone() -> None:
    x, of = union(1, 3, 2, 15, 60, noise=0.2)
    graph = expressed("tsc", x)
    answers = [
        parted(graph, truth, clusters=3) for truth in (of, None, np.random.default_rng(0).permutation(of))
    ]
    for answer in answers[1:]:
        for name, values in answers[0].arrays.items():
            assert torch.equal(values, answer.arrays[name])
    assert answers[1].result.accuracy is None
    assert answers[2].result.adjusted_rand < 0.1


@pytest.mark.parametrize("affinity", ["symmetric", "nearest", "doubly_stochastic"])
def test_every_graph_finds_subspaces(affinity: str) -> None:
    x, of = union(2, 3, 4, 30, 60, noise=0.05)
    result = parted(expressed("lsr", x), of, clusters=3, affinity=affinity, starts=20).result
    assert result.accuracy > 0.98
    assert result.inside > 0.9
    assert (result.row_sum_error is None) == (affinity != "doubly_stochastic")
    if affinity == "doubly_stochastic":
        assert result.row_sum_error < 1e-6
        assert result.edges / result.n_rows == pytest.approx(2.5, abs=1)


def test_too_few_coefficients_for_a_doubly_stochastic_graph_are_told() -> None:
    x, of = union(2, 3, 4, 30, 60, noise=0.05)
    few, many = (
        parted(
            expressed("lsr", x, entries=n), of, clusters=3, affinity="doubly_stochastic", edges=10, starts=5
        )
        for n in (5, 100)
    )
    assert few.result.unproven > 0
    assert any("raise `entries`" in note for note in few.result.caveats)
    assert many.result.unproven == 0


def test_random_rows_have_no_clear_number_of_clusters() -> None:
    x = np.random.default_rng(0).standard_normal((400, 20))
    result = parted(expressed("tsc", x, entries=10), clusters=7, starts=5).result
    assert any("no clear jump" in note for note in result.caveats)


def test_more_parts_than_clusters_are_told() -> None:
    x, of = union(0, 6, 2, 20, 30)
    result = parted(expressed("lsr", x), of, clusters=3, starts=5).result
    assert result.parts == 6
    assert any("6 parts for 3 clusters" in note for note in result.caveats)


@pytest.mark.parametrize("zeros", [1, 20])
def test_rows_without_an_edge_are_no_clusters_of_their_own(zeros: int) -> None:
    x, of = union(0, 3, 4, 20, 60)
    graph = expressed("lsr", np.vstack([x, np.zeros((zeros, 20))]))
    answer = parted(graph, np.r_[of, np.full(zeros, -1)], starts=5)
    result = answer.result
    assert (result.clusters, result.chosen_by, result.accuracy) == (3, "parts", 1)
    assert (result.parts, result.alone) == (3, zeros)
    assert answer.arrays["cluster"][180:].tolist() == [-1] * zeros
    assert answer.arrays["size"].tolist() == [60, 60, 60]
    assert any(f"{zeros} rows have no edge" in note for note in result.caveats)


def test_a_part_that_holds_two_clusters_is_not_one() -> None:
    """Two cliques that few edges join, and one apart: two parts of like size, three clusters."""
    graph = np.kron(np.eye(3), np.ones((40, 40)))
    graph[0, 40] = graph[40, 0] = 1
    np.fill_diagonal(graph, 0)
    found = embed(Matrix(graph), 36, 0)
    assert found.parts == 2
    assert graph_clusters.number(found, 120, NumberOptions()) == (3, "eigengap")


def test_mass_keeps_the_largest() -> None:
    c = Matrix(np.array([[0, 3.0, -1, 0.5], [0, 0, 0, 0], [1, 1, 0, 1], [0, 0, 2, 0]]))
    kept = graphs.largest_entries(c, 0.8).toarray()
    np.testing.assert_array_equal(kept[0], [0, 3, -1, 0])
    np.testing.assert_array_equal(kept[2], [1, 1, 0, 1])
    assert kept[3, 2] == 2
    assert graphs.largest_entries(c, 1.0) is c


def test_nearest_expressions_point_the_same_way() -> None:
    """Against all cosines; rows with opposite coefficients are not near, though no other has any in common."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((20, 20)) * (rng.random((20, 20)) < 0.2)
    unit = dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-300)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, 0)
    expected = np.zeros((20, 20))
    for row in range(20):
        best = np.argsort(-cosine[row], kind="stable")[:3]
        expected[row, best[cosine[row, best] > 1e-12]] = 1
    found = graphs.nearest_expressions(Matrix(dense), 3).toarray()
    np.testing.assert_array_equal(found, (expected + expected.T) / 2)
    opposite = graphs.nearest_expressions(Matrix(np.array([[0, 0, 1.0], [0, 0, -1.0], [0, 1.0, 0]])), 2)
    assert not opposite.toarray().any()


def test_wrong_share_is_the_mean_over_rows() -> None:
    c, of = Matrix(np.array([[0, 1.0, -3], [2, 0, 0], [0, 0, 0]])), np.array([0, 0, 1])
    assert graphs.wrong_share(c, of) == pytest.approx((0.75 + 0) / 2)
    assert graphs.wrong_share(c, np.array([0, -1, -1])) is None


def test_modularity_and_weights_between_clusters() -> None:
    networkx = pytest.importorskip("networkx")
    rng = np.random.default_rng(0)
    weights = np.triu(rng.random((12, 12)), 1)
    graph, cluster = Matrix(weights + weights.T), np.arange(12) % 3
    parts = [set(np.flatnonzero(cluster == k).tolist()) for k in range(3)]
    expected = networkx.community.modularity(networkx.from_numpy_array(graph.toarray()), parts)
    assert graphs.modularity(graph, cluster, 3) == pytest.approx(expected)
    shares = graphs.between(graph, cluster, 3)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert shares[0, 1] == pytest.approx(
        graph.toarray()[cluster == 0][:, cluster == 1].sum() / graph.toarray()[cluster == 0].sum()
    )


def test_refusals() -> None:
    graph = expressed("tsc", np.eye(8)[:, :3] + 0.1, entries=2)
    with pytest.raises(MethodError, match="found 8 rows, 8 clusters need at least 9"):
        parted(graph, clusters=8)
    with pytest.raises(MethodError, match="found no edges"):
        parted(expressed("tsc", np.eye(8), entries=2), clusters=2)
    assert not dense(expressed("tsc", np.eye(8), entries=2)).any()


def test_the_picture_of_a_graph_has_rows_in_the_order_of_clusters() -> None:
    rng = np.random.default_rng(0)
    dense = rng.random((7, 7))
    dense = np.triu(dense, 1) + np.triu(dense, 1).T
    cluster = np.array([1, 0, 2, 0, 1, 0, 2])
    order = np.array([1, 3, 5, 0, 4, 2, 6])
    exact = graphs.ordered(graphs.Matrix(dense), cluster, 10)
    np.testing.assert_allclose(exact, dense[np.ix_(order, order)])
    found = graphs.ordered(graphs.Matrix(dense), cluster, 3)
    bins = [order[:3], order[3:5], order[5:]]
    np.testing.assert_allclose(found, [[dense[np.ix_(a, b)].mean() for b in bins] for a in bins])


def test_rows_that_share_no_expression_have_no_nearest_graph() -> None:
    """Pairs of like rows, each expressed by the other alone: no two rows are expressed by a common one."""
    graph = expressed("tsc", np.repeat(np.eye(4), 2, axis=0), entries=1)
    with pytest.raises(MethodError, match=r"no two rows are expressed by a common row.*affinity: symmetric"):
        parted(graph, affinity="nearest")


def test_more_edges_than_rows_are_as_many_as_rows() -> None:
    graph = expressed("lsr", union(2, 3, 4, 10, 12)[0], entries=11)
    few, many = (
        parted(graph, clusters=3, affinity="doubly_stochastic", edges=n, starts=2) for n in (36, 10**12)
    )
    assert few.result == many.result


def test_options_beyond_what_can_be_computed_are_refused() -> None:
    """k-means takes no larger seeds, a noise above all singular values leaves nothing, and no number is made with infinite ones."""
    family = {name for name in list_methods() if name.startswith("clustering.")}
    for name in family:
        config = load_method(name).Config
        options = {
            option: math.inf for option, field in config.model_fields.items() if field.annotation is float
        }
        options |= {"seed": 2**32} if "seed" in config.model_fields else {}
        options |= {"noise": 1.0} if name == "clustering.lrr" else {}
        for option, value in options.items():
            with pytest.raises(ValidationError, match=r"less than|finite"):
                config(**{option: value})
