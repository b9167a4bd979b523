"""geometry.subspace_retrieval: a rotated copy, a shared subspace under noise, unrelated rows, and ranks by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.geometry import subspace_retrieval as method
from tests.methods import joined


def run(x: np.ndarray, y: np.ndarray, **options: Any) -> tuple[method.Result, dict[str, np.ndarray]]:
    result, arrays = joined.run(method, x, y, **options)
    assert isinstance(result, method.Result)
    return result, arrays


def test_a_rotated_copy_is_matched_row_by_row() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 8)) * np.arange(1, 9) + 20
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    result, arrays = run(x, 3 * x @ turn - 5, variance=1.0, ridge=0.0)
    assert arrays["top_1"].tolist() == [1.0] * 4 == arrays["top_1_back"].tolist()
    assert arrays["median_rank"].tolist() == [1.0] * 4
    assert result.correlation_held_out == pytest.approx(1)
    assert result.n_fitted + result.n_gallery == 600
    assert result.dimensions == 8


def test_a_shared_subspace_matches_better_than_all_features() -> None:
    """Twelve shared directions of small variance beside forty large ones that have nothing in common."""
    rng = np.random.default_rng(1)
    shared = rng.standard_normal((4000, 12))
    sides = []
    for _ in range(2):
        own = 5 * rng.standard_normal((4000, 40))
        turn = np.linalg.qr(rng.standard_normal((52, 52)))[0]
        sides.append(np.concatenate([shared + 0.2 * rng.standard_normal(shared.shape), own], 1) @ turn)
    result, _ = run(*sides, dimensions=12, variance=1.0, ridge=0.0)
    assert result.subspace_top_1 > 0.8
    assert result.subspace_top_1 > result.affine_top_1 + 0.2
    assert result.subspace_affine_top_1 > result.affine_top_1 + 0.2
    assert result.rotation_top_1 < 0.1
    assert result.correlation_held_out == pytest.approx(1 / 1.04, abs=0.02)


def test_unrelated_rows_are_matched_by_chance() -> None:
    rng = np.random.default_rng(2)
    result, _ = run(rng.standard_normal((800, 30)), rng.standard_normal((800, 30)))
    for name in ("subspace_top_1", "affine_top_1", "rotation_top_1", "subspace_top_1_back"):
        assert getattr(result, name) <= 5 * result.top_1_null
    assert result.subspace_median_rank == pytest.approx(result.n_gallery / 2, rel=0.3)
    assert result.correlation_held_out == pytest.approx(0, abs=0.1)


def test_ranks_are_those_of_cosines_counted_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    found = method._retrieve(a, b)
    ranks, back = [], []
    for k in range(9):
        cosine = [float(torch.cosine_similarity(a[k], b[j], dim=0)) for j in range(9)]
        ranks.append(1 + sum(c > cosine[k] for c in cosine))
        cosine = [float(torch.cosine_similarity(a[j], b[k], dim=0)) for j in range(9)]
        back.append(1 + sum(c > cosine[k] for c in cosine))
    assert found.top_1 == pytest.approx(np.mean(np.array(ranks) == 1))
    assert found.top_1_back == pytest.approx(np.mean(np.array(back) == 1))
    assert found.median_rank == np.median(ranks)


def test_rows_of_one_sample_do_not_compete_and_are_not_split() -> None:
    rng = np.random.default_rng(3)
    x = np.repeat(rng.standard_normal((200, 6)), 5, 0) + 1e-6 * rng.standard_normal((1000, 6))
    result, _ = run(x, x[:, ::-1].copy(), per_sample=5, variance=1.0, ridge=0.0)
    assert result.subspace_top_1 == 1
    assert result.n_fitted % 5 == 0
    assert result.n_fitted // 5 + result.n_gallery == 200
    small, _ = run(x, x, per_sample=5, gallery=10)
    assert small.n_gallery == 10


def test_copies_of_one_row_are_not_told_apart() -> None:
    result, _ = run(np.tile(np.eye(4), (20, 1)), np.tile(np.eye(4), (20, 1)), variance=1.0, ridge=0.0)
    assert result.subspace_top_1 < 0.5


def test_bad_input_is_refused() -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(MethodError, match="expected at least 3 and 2"):
        run(rng.standard_normal((3, 4)), rng.standard_normal((3, 4)))
    with pytest.raises(MethodError, match="does not vary"):
        run(np.ones((60, 4)), rng.standard_normal((60, 4)))
    few, _ = run(rng.standard_normal((60, 20)), rng.standard_normal((60, 20)))
    assert any("maps fit chance" in note for note in few.caveats)
