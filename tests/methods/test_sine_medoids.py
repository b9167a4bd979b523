"""clustering.sine_medoids: all sets of medoids, scikit-learn's silhouette, LAPACK's directions, and rows that lie badly."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.clustering import assign, sine_medoids
from tasks.methods.contract import Block, Inputs
from tasks.numerics import medoids, sines
from tests.methods import cases
from tests.methods.cases import Case


def run(x: Tensor, code: Tensor | None = None, **options: Any) -> cases.Answer:
    index, config = torch.arange(len(x)), sine_medoids.Config.model_validate(options)
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        categories={} if code is None else {"kind": ("a", "b", "c")},
    )
    sine_medoids.check(inputs, config)
    labels = {} if code is None else {"kind": code}
    block = Block({"x": x}, index, 0 * index, 10 + index, labels)
    return cases.run(Case(sine_medoids, config, inputs, block))


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bundles(n: int = 90, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """Rows about three axes, of any length and sign."""
    code = torch.arange(n) % 3
    x = torch.eye(8, dtype=torch.float64)[code] + noise * drawn(n, 8) / 8**0.5
    return x * drawn(n, 1, 1) * 10, code


def regimes(n: int = 120) -> tuple[Tensor, Tensor]:
    """A bump that travels to the right, or another shape in other places: few modes hold one of them, more hold both."""
    at = torch.linspace(0, 1, 200, dtype=torch.float64)
    time = torch.rand(n, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    code = torch.arange(n) % 2
    first = torch.exp(-((at - 0.2 - 0.05 * time) ** 2) / 0.005)
    second = torch.sin(9 * (1 + 0.1 * time) * at) * (at > 0.5)
    return torch.where(code[:, None] == 0, first, second) * (1 + 4 * time), code


def looped(d: np.ndarray, chosen: tuple[int, ...]) -> float:
    """Sum of what rows lose to the best of some medoids."""
    return sum(min(d[row, medoid] for medoid in chosen) for row in range(len(d)))


def test_sines_are_distances_from_lines() -> None:
    x = drawn(30, 5)
    unit = x / x.norm(dim=1, keepdim=True)
    for i, row in enumerate(sines.pairwise(unit)):
        for j, found in enumerate(row):
            left = unit[i] - (unit[i] @ x[j]) / (x[j] @ x[j]) * x[j]
            assert float(found) == pytest.approx(float(left.norm()), abs=1e-7)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_medoids_are_the_best_of_all_sets(k: int) -> None:
    """An exchange at a time ends at the best of all sets nearly always, and never where an exchange would help."""
    hits = 0
    for seed in range(12):
        x = drawn(13, 4, seed)
        d = sines.pairwise(x / x.norm(dim=1, keepdim=True))
        found, matrix = medoids.improved(d, medoids.built(d, k)), d.numpy()
        here = tuple(found.medoid.tolist())
        assert found.cost == pytest.approx(looped(matrix, here), rel=1e-12)
        changes = medoids.changes(d, found.medoid)
        for m in range(k):
            for row in range(13):
                other = looped(matrix, (*here[:m], row, *here[m + 1 :])) - found.cost
                assert float(changes[m, row]) == pytest.approx(other, abs=1e-12)
                assert other > -1e-12
        best = min(looped(matrix, chosen) for chosen in combinations(range(13), k))
        hits += found.cost <= best + 1e-12
        assert found.cost <= 1.05 * best
        assert torch.equal(found.cluster, d[found.medoid].argmin(0))
    assert hits >= 9


def test_the_silhouette_is_that_of_scikit_learn() -> None:
    for seed in range(5):
        x = drawn(40, 3, seed)
        d = sines.pairwise(x / x.norm(dim=1, keepdim=True))
        found = medoids.improved(d, medoids.built(d, 9))
        expected = silhouette_score(d.numpy(), found.cluster.numpy(), metric="precomputed")
        assert medoids.silhouette(d, found.cluster) == pytest.approx(expected, rel=1e-10)


def test_planted_bundles_and_their_number_are_found() -> None:
    x, code = bundles()
    answer = run(x, code, label="kind", tolerance=0.3)
    result, arrays = answer.result, answer.arrays
    assert (result.clusters, result.chosen_by, result.candidates[0]) == (3, "silhouette", 3)
    assert result.accuracy == result.adjusted_rand == 1
    assert torch.equal(arrays["number"], torch.arange(2, 11))
    assert result.silhouette == float(arrays["silhouette"].max())
    assert torch.equal(arrays["cluster"][arrays["medoid"] - 10], torch.arange(3))
    assert arrays["row"].tolist() == list(range(10, 100))
    assert result.caveats == ()


def test_lengths_and_signs_count_nothing() -> None:
    x, code = bundles(noise=1.5)
    factor = torch.tensor([-3.0, 1e200, 1e-6], dtype=torch.float64)[code, None]
    plain, scaled = (run(rows, clusters=4, tolerance=0.3) for rows in (x, factor * x))
    for name in ("cluster", "medoid", "size", "dimension"):
        assert torch.equal(plain.arrays[name], scaled.arrays[name])
    for name in ("error_rms", "error_largest", "eigenvalue"):
        torch.testing.assert_close(scaled.arrays[name], plain.arrays[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-2, 0.2])
def test_bases_keep_what_they_promise_with_the_fewest_directions(tolerance: float) -> None:
    x, code = bundles(noise=1.0)
    answer = run(x, code, clusters=3, tolerance=tolerance)
    arrays = {name: values.numpy() for name, values in answer.arrays.items()}
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    for k in range(3):
        rows, most = unit[arrays["cluster"] == k], arrays["dimension"][k]
        singular = np.linalg.svd(rows, compute_uv=False)
        basis = arrays["basis"][k]
        np.testing.assert_allclose(basis[:most] @ basis[:most].T, np.eye(most), atol=1e-12)
        assert not basis[most:].any()
        error = np.linalg.norm(rows - rows @ basis.T @ basis, axis=1)
        rms = np.sqrt(np.mean(error**2))
        assert arrays["error_rms"][k] == pytest.approx(rms, abs=1e-12)
        assert arrays["error_largest"][k] == pytest.approx(error.max(), abs=1e-12)
        assert rms <= tolerance * (1 + 1e-9)
        assert np.sqrt((singular[most - 1 :] ** 2).sum() / len(rows)) > tolerance
        np.testing.assert_allclose(arrays["eigenvalue"][k], singular**2 / len(rows), atol=1e-12)
        assert arrays["size"][k] == len(rows)
    assert answer.result.directions == arrays["dimension"].sum()


def test_two_regimes_need_fewer_modes_apart() -> None:
    x, code = regimes()
    result = run(x, code, label="kind", tolerance=1e-3, max_clusters=4).result
    assert (result.clusters, result.accuracy) == (2, 1)
    assert result.dimension_largest < result.dimension_global
    assert result.dimension_local < result.dimension_dealt <= result.dimension_global
    assert result.error_rms <= 1e-3


def test_rows_without_clusters_are_owned_up_to() -> None:
    result = run(drawn(400, 6), tolerance=0.3).result
    assert result.silhouette < 0.25
    assert "hardly fall into clusters" in result.caveats[0]
    wide = run(drawn(300, 100), clusters=2).result
    assert wide.dimension_local == pytest.approx(wide.dimension_dealt, abs=2)
    assert wide.dimension_global - wide.dimension_local > 1
    assert any("dealt by chance" in note for note in wide.caveats)
    common = run(drawn(100, 6) + 20).result
    assert any("what all have in common" in note for note in common.caveats)


def test_assign_can_read_the_bases() -> None:
    """Names, axes and meaning are those of clustering.k_subspaces."""
    x, code = regimes()
    answer, index = run(x, code, clusters=2, tolerance=0.01), torch.arange(len(x))
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        artifacts={"subspaces": answer.arrays},
        results={"subspaces": answer.result.model_dump(mode="json")},
    )
    assign.check(inputs, assign.Config())
    given = Case(assign, assign.Config(), inputs, Block({"x": x}, index, 0 * index, index))
    found = cases.run(given)
    assert torch.equal(found.arrays["cluster"], answer.arrays["cluster"])
    assert found.result.distance_rms == pytest.approx(answer.result.error_rms, rel=1e-5)
    assert found.result.distance_max == pytest.approx(answer.result.error_largest, rel=1e-5)


def test_rows_of_zeros_and_duplicates() -> None:
    x, code = bundles()
    more = torch.cat([x, torch.zeros(5, 8, dtype=torch.float64), -2 * x[:30], x[:30]])
    codes = torch.cat([code, torch.zeros(5, dtype=torch.int64), code[:30], code[:30]])
    answer = run(more, codes, clusters=3, label="kind")
    assert (answer.result.n_rows, answer.result.n_zero, answer.result.accuracy) == (155, 5, 1)
    assert answer.arrays["cluster"][90:95].tolist() == [-1] * 5
    assert int(answer.arrays["size"].sum()) == 150
    single = run(torch.cat([x[:30], x[:30]]), clusters=30)
    assert single.result.sine == 0
    assert single.arrays["size"].tolist() == [2] * 30
    assert single.arrays["dimension"].tolist() == [1] * 30


def test_wrong_questions_are_refused() -> None:
    x, code = bundles(30)
    lines = torch.eye(8, dtype=torch.float64)[code] * drawn(30, 1)
    with pytest.raises(MethodError, match="30 rows have 3 different directions up to sign, 4 clusters"):
        run(lines, clusters=4)
    with pytest.raises(MethodError, match="have 1 different directions up to sign, 2 clusters"):
        run(torch.ones(9, 4))
    with pytest.raises(MethodError, match="have 0 different directions"):
        run(torch.zeros(9, 4))
    with pytest.raises(MethodError, match="found 30 rows for 30 clusters"):
        run(x, clusters=30)
    with pytest.raises(MethodError, match="names no classes"):
        run(x, code, label="king")
    assert run(lines, clusters=3).result.sine == 0
    assert sine_medoids.max_rows(sine_medoids.Config()) == 5000
