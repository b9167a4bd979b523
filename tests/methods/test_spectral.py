"""Spectral clustering: planted groups, against scikit-learn, and what it says when there are none."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import laplacian
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from schemas.errors import MethodError, UnknownNameError
from tasks.methods.clustering import spectral
from tasks.methods.contract import Block, Inputs
from tasks.numerics import affinity
from tests.methods import cases
from tests.methods.cases import Case


def clustered(x: np.ndarray, target: np.ndarray | None = None, **options: Any) -> cases.Answer:
    n = len(x)
    index = torch.arange(n)
    labels = {} if target is None else {"kind": torch.from_numpy(target)}
    names = {} if target is None else {"kind": tuple(map(str, range(int(target.max()) + 1)))}
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=n, n_samples=n, categories=names)
    config = spectral.Config(**options)
    spectral.check(inputs, config)
    block = Block({"x": torch.from_numpy(x)}, index, 0 * index, index, labels)
    return cases.run(Case(spectral, config, inputs, block))


def directions(seed: int, n: int, k: int, noise: float, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows along k directions, of very different lengths."""
    rng = np.random.default_rng(seed)
    target = np.sort(rng.integers(0, k, n))
    axes = np.linalg.qr(rng.standard_normal((20, k)))[0].T
    rows = axes[target] + noise * rng.standard_normal((n, 20)) / np.sqrt(20)
    return rows * rng.lognormal(0, 1, (n, 1)) + offset, target


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("n", [300, 900])
def test_planted_directions_and_their_number_are_found(k: int, n: int) -> None:
    x, target = directions(k, n, k, 0.5)
    answer = clustered(x, target, label="kind", center=False)
    assert answer.result.clusters == k
    assert answer.result.chosen_by == "eigengap"
    assert answer.result.candidates[0] == k
    assert answer.result.adjusted_rand > 0.97
    assert answer.result.normalised_mutual_information > 0.95
    assert answer.result.caveats == ()
    sizes = answer.arrays["size"].numpy()
    assert (np.diff(sizes) <= 0).all()
    np.testing.assert_array_equal(sizes, np.bincount(answer.arrays["cluster"].numpy()))


def test_a_common_offset_is_taken_away() -> None:
    x, target = directions(0, 300, 3, 0.2)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert clustered(x + 1000, target, label="kind", clusters=3).result.adjusted_rand > 0.95


def test_scikit_learn_agrees_on_the_same_graph() -> None:
    x, _ = directions(1, 500, 4, 1.2)
    found = clustered(x, clusters=4, center=False)
    graph = affinity.cosine_graph(torch.from_numpy(x), 15)
    theirs = SpectralClustering(4, affinity="precomputed", random_state=0, n_init=10).fit_predict(
        graph.toarray()
    )
    assert adjusted_rand_score(theirs, found.arrays["cluster"].numpy()) > 0.9


def test_the_graph_is_that_of_all_cosines() -> None:
    x = np.random.default_rng(0).standard_normal((60, 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    chosen = np.zeros((60, 60))
    for row, columns in enumerate(np.argsort(-cosine, axis=1)[:, :4]):
        chosen[row, columns] = (1 + cosine[row, columns]) / 2
    np.testing.assert_allclose(
        affinity.cosine_graph(torch.from_numpy(x), 4).toarray(), (chosen + chosen.T) / 2, atol=1e-12
    )


def test_both_eigensolvers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = affinity.cosine_graph(torch.from_numpy(directions(0, 300, 3, 1.0)[0]), 10)
    expected = np.linalg.eigvalsh(laplacian(graph, normed=True).toarray())[:8]
    dense = affinity.embed(graph, 8, 0)
    monkeypatch.setattr(affinity, "DENSE", 10)
    sparse = affinity.embed(graph, 8, 0)
    np.testing.assert_allclose(dense.values, np.clip(expected, 0, 2), atol=1e-12)
    np.testing.assert_allclose(sparse.values, dense.values, atol=1e-8)


def test_rows_without_groups_are_owned_up_to() -> None:
    x = np.random.default_rng(0).standard_normal((400, 10))
    result = clustered(x, clusters=7).result
    assert any("no clear jump" in note for note in result.caveats)


def test_more_parts_than_clusters_are_told() -> None:
    x, target = directions(0, 200, 4, 0.01)
    result = clustered(x, target, label="kind", clusters=2, neighbours=3, center=False).result
    assert result.parts >= 4
    assert any("parts for 2 clusters" in note for note in result.caveats)


def test_rows_of_zeros_and_duplicates_are_taken() -> None:
    x, _ = directions(0, 100, 2, 0.3)
    x[:10] = 0
    x[20:60] = x[20]
    assert clustered(x, clusters=2, center=False).result.n_rows == 100


def test_rows_without_a_class_agree_with_nothing() -> None:
    x, target = directions(0, 100, 2, 0.3)
    unknown = clustered(x, np.full(100, -1), label="kind", clusters=2).result
    assert unknown.adjusted_rand is None
    assert unknown.normalised_mutual_information is None
    some = clustered(x, np.where(np.arange(100) % 2, target, -1), label="kind", clusters=2)
    cluster = some.arrays["cluster"].numpy()[1::2]
    assert some.result.adjusted_rand == pytest.approx(adjusted_rand_score(target[1::2], cluster))


def test_wrong_questions_are_refused() -> None:
    x, target = directions(0, 10, 2, 0.3)
    with pytest.raises(UnknownNameError, match="nearest: kind"):
        clustered(x, target, label="king")
    with pytest.raises(MethodError, match="found 10 rows, these options need at least 16"):
        clustered(x)
