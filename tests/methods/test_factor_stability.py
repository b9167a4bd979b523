"""spectrum.factor_stability: planted parts, clusters and silhouettes by loops, and rows that have no parts."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.spectrum import factor_stability
from tasks.numerics import factor_clusters
from tasks.numerics.factor_clusters import Factors
from tests.methods import cases
from tests.methods.cases import Answer, Case

QUICK = {"repetitions": 5, "most": 5, "sample_rows": None}


def solved(x: np.ndarray, sample: np.ndarray | None = None, **options: object) -> Answer:
    n = len(x)
    sample = np.arange(n) if sample is None else sample
    inputs = Inputs({"x": x.shape[1]}, n_rows=n, n_samples=n)
    index = torch.arange(n)
    block = Block({"x": torch.from_numpy(x)}, torch.from_numpy(sample), index * 0, index)
    config = factor_stability.Config.model_validate(QUICK | options)
    factor_stability.check(inputs, config)
    return cases.run(Case(factor_stability, config, inputs, block))


def parts(
    k: int, rows: int = 200, width: int = 24, noise: float = 0.02, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sparse non-negative mixtures of k overlapping parts, and the parts with length 1."""
    rng = np.random.default_rng(seed)
    found = rng.exponential(1.0, (k, width)) * (rng.random((k, width)) < 0.4)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    mix = rng.exponential(1.0, (rows, k)) * (rng.random((rows, k)) < 0.5)
    return mix @ found + noise * rng.random((rows, width)), found


@pytest.mark.parametrize("perturbation", ["samples", "noise"])
def test_planted_parts_are_counted_and_found(perturbation: str) -> None:
    x, truth = parts(3)
    answer = solved(x, perturbation=perturbation)
    assert answer.result.dimension == 3
    assert answer.result.silhouette > 0.9
    assert answer.result.silhouette_next < 0.75
    assert answer.result.error < 0.5 * answer.result.error_null
    assert not any("permuted" in note for note in answer.result.caveats)
    found = answer.arrays["factor"].numpy()
    assert (found @ truth.T).max(0).min() > 0.97
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-12)
    error = answer.arrays["error"].numpy()
    assert error[2] < 0.3 * error[1]
    assert error[2] < 1.6 * error[3]


def test_silhouettes_are_those_of_loops() -> None:
    rng = np.random.default_rng(3)
    base = rng.random((3, 7))
    runs = []
    for _ in range(4):
        factor = base[rng.permutation(3)] + 0.1 * rng.random((3, 7))
        runs.append(Factors(factor / np.linalg.norm(factor, axis=1, keepdims=True), rng.random(), True))
    found = factor_clusters.stability(runs)
    clusters = [[max(run.factor, key=lambda f, c=c: f @ c) for run in runs] for c in found.centre]
    for own, value in zip(clusters, found.silhouette, strict=True):
        scores = []
        for i, point in enumerate(own):
            inside = np.mean([cosine(point, other) for j, other in enumerate(own) if j != i])
            outside = min(
                np.mean([cosine(point, p) for p in other]) for other in clusters if other is not own
            )
            scores.append((outside - inside) / max(inside, outside))
        assert value == pytest.approx(np.mean(scores), rel=1e-9)


def test_every_cluster_has_one_factor_of_each_run() -> None:
    """Two factors of one run that are alike are not put into one cluster."""
    a, b = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    near = np.array([1.0, 0.1, 0.0]) / np.sqrt(1.01)
    runs = [Factors(np.stack(f), e, True) for f, e in (((a, b), 0.1), ((b, a), 0.2), ((near, a), 0.3))]
    found = factor_clusters.stability(runs)
    assert (found.centre @ np.stack([a, b]).T).argmax(1).tolist() == [0, 1]
    assert found.centre[1] @ near > 0.3


def test_features_that_vary_alone_are_stable_but_no_parts() -> None:
    """A negative control: stability, by which the paper counts, sees factors in columns that have nothing in common."""
    x, _ = parts(3)
    result = solved(np.random.default_rng(1).permuted(x, axis=0)).result
    assert result.dimension > 3
    assert result.error == pytest.approx(result.error_null, rel=0.1)
    assert any("permuted columns are fitted nearly as well" in note for note in result.caveats)


def test_rows_of_one_sample_stay_together() -> None:
    x, _ = parts(2, rows=40)
    result = solved(np.repeat(x, 5, 0), np.repeat(np.arange(40), 5), most=3).result
    assert (result.n_samples, result.n_rows, result.dimension) == (40, 200, 2)


def test_bad_rows() -> None:
    x, _ = parts(2, rows=30)
    negative = x.copy()
    negative[3, 4] = -0.01
    with pytest.raises(MethodError, match=r"1 of 720 entries are negative and hold 0.00015"):
        solved(negative, negative_share=0)
    assert solved(negative, most=2).result.n_negative == 1
    with pytest.raises(MethodError, match="lower `most` to 24"):
        solved(x, most=25)
    with pytest.raises(MethodError, match="found 0 rows with values"):
        solved(np.zeros((30, 24)))
    zeros = np.concatenate([x, np.zeros((6, 24))])
    zeros[:, 5] = 0
    result = solved(zeros, most=3).result
    assert (result.n_zero, result.n_rows) == (6, 30)
    same = solved(np.tile(x[:1], (30, 1)), most=2, null=False).result
    assert same.error < 1e-3


def test_limits_are_told() -> None:
    x, _ = parts(4)
    result = solved(x, most=3, null=False, iterations=10).result
    assert result.n_unconverged > 0
    assert any("stopped" in note for note in result.caveats)
    assert any("raise `most`" in note for note in solved(parts(3)[0], most=3, null=False).result.caveats)
