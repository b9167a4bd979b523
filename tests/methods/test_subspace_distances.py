"""geometry.subspace_distances: against projectors, planted angles from 1e-9 to right, chance, and sampling noise."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from schemas.errors import MethodError
from tasks.methods.contract import Array, Member
from tasks.methods.geometry import subspace_distances as method
from tasks.numerics.angles import overlap_quantile, pairwise_angles, principal_angles
from tests.methods.subspaces import basis, fitted, inputs_of, member, turned


def run(members: list[Member], **options: Any) -> tuple[method.Result, dict[str, np.ndarray]]:
    result, arrays = method.solve(inputs_of(members), method.Config(**options))
    return result, {
        name: np.asarray(found.values) for name, found in arrays.items() if isinstance(found, Array)
    }


def test_every_pair_is_that_of_scipy_and_of_projectors() -> None:
    bases = [basis(k, 20, seed) for seed, k in enumerate((3, 5, 3, 8))]
    result, found = run([member(b, f"s{k}") for k, b in enumerate(bases)])
    assert (result.n_members, result.n_pairs, result.n_pairs_without) == (4, 6, 0)
    for i, j in combinations(range(4), 2):
        a, b = bases[i].numpy(), bases[j].numpy()
        theta = scipy.linalg.subspace_angles(a.T, b.T)
        smaller, apart = min(len(a), len(b)), abs(len(a) - len(b))
        expected = {
            "geodesic": np.linalg.norm(theta),
            "chordal": np.linalg.norm(np.sin(theta)),
            "projection": np.sin(theta).max(),
            "binet_cauchy": math.sqrt(1 - np.prod(np.cos(theta) ** 2)),
            "ye_lim": math.sqrt((theta**2).sum() + apart * math.pi**2 / 4),
            "overlap": np.trace(a.T @ a @ b.T @ b) / smaller,
            "overlap_null": max(len(a), len(b)) / 20,
            "smallest_angle": theta.min(),
            "largest_angle": theta.max(),
        }
        for name, value in expected.items():
            assert found[name][i, j] == pytest.approx(value, rel=1e-10), name
            assert found[name][j, i] == found[name][i, j]
        weights = np.linspace(2, 1, len(b))
        inside = sum(w * np.linalg.norm(a @ v) ** 2 for w, v in zip(weights, b, strict=True)) / weights.sum()
        assert found["explained_of_other"][i, j] == pytest.approx(inside, rel=1e-10)
        assert found["flag"][i, j] == pytest.approx(bures(a, b), rel=1e-6)


def bures(a: np.ndarray, b: np.ndarray) -> float:
    """From dense covariances of trace 1 and matrix roots."""
    dense = []
    for rows in (a, b):
        weights = np.linspace(2, 1, len(rows))
        dense.append((rows.T * weights / weights.sum()) @ rows)
    values, vectors = np.linalg.eigh(dense[0])
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ dense[1] @ root)
    return math.sqrt(2 - 2 * np.sqrt(np.clip(inner, 0, None)).sum())


@pytest.mark.parametrize(
    "theta", [[1e-9], [1e-9, 1e-5, 0.3], [1e-3, 0.02, 1.2, math.pi / 2], [math.pi / 2] * 3]
)
def test_small_and_right_angles_are_right(theta: list[float]) -> None:
    k, angle = len(theta), torch.tensor(theta, dtype=torch.float64)
    frame = basis(2 * k, 40, 1)
    other = basis(k, k, 2) @ turned(frame[:k], frame[k:], angle)
    _, found = run([member(frame[:k]), member(other)])
    assert found["smallest_angle"][0, 1] == pytest.approx(min(theta), rel=1e-6)
    assert found["largest_angle"][0, 1] == pytest.approx(max(theta), rel=1e-9)
    assert found["geodesic"][0, 1] == pytest.approx(float(angle.norm()), rel=1e-6)
    ((_, _, pairwise),) = pairwise_angles([frame[:k], other])
    np.testing.assert_allclose(pairwise, principal_angles(frame[:k], other), rtol=1e-8, atol=1e-15)


def test_orthogonal_planes_are_a_right_angle_apart_in_each_dimension() -> None:
    eye = torch.eye(20).double()
    result, found = run([member(eye[:4]), member(eye[4:8])])
    assert found["geodesic"][0, 1] == pytest.approx(math.pi / 2 * 2)
    assert found["flag"][0, 1] == pytest.approx(math.sqrt(2))
    assert result.overlap < 1e-30
    assert result.n_unresolved == 0


def test_random_subspaces_have_the_overlap_of_chance() -> None:
    members = [member(basis(6, 90, seed)) for seed in range(24)]
    result, found = run(members)
    pairs = np.triu_indices(24, 1)
    assert result.overlap == pytest.approx(result.overlap_null, rel=0.03)
    assert result.overlap_null == pytest.approx(6 / 90)
    assert 0.92 <= np.mean(found["overlap"][pairs] < found["overlap_null_high"][pairs]) <= 0.98


@pytest.mark.parametrize(("k", "m", "d"), [(1, 3, 12), (4, 9, 30), (7, 8, 12), (5, 12, 12)])
def test_quantiles_of_chance_are_those_of_draws(k: int, m: int, d: int) -> None:
    draws = [
        float((basis(k, d, 10 * seed) @ basis(m, d, 10 * seed + 5).T).square().sum() / min(k, m))
        for seed in range(600)
    ]
    below = np.mean(np.array(draws) <= overlap_quantile(k, m, d, 0.95) + 1e-12)
    assert below == 1 if m == d else 0.92 <= below <= 0.975


def test_noise_is_that_of_two_samples_of_one_law() -> None:
    scales = torch.tensor([4.0, 3.0, 2.5] + [1.0] * 17).double()

    def sample(seed: int, turn: torch.Tensor | None = None) -> Member:
        rows = (
            torch.randn(2000, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scales
        )
        return fitted(rows if turn is None else rows @ turn, f"s{seed}", components=3)

    result, found = run([sample(seed) for seed in range(10)])
    pairs = np.triu_indices(10, 1)
    assert (found["chordal"][pairs] ** 2).mean() == pytest.approx(
        (found["noise"][pairs] ** 2).mean(), rel=0.15
    )
    assert 10 <= result.n_unresolved <= 40
    moved, _ = run([sample(0), sample(1, basis(20, 20, 3))])
    assert moved.n_unresolved == 0


def test_subspaces_that_hold_all_their_rows_are_not_resolved() -> None:
    """Two draws of one law with fewer rows than features: nothing tells their distance from chance."""
    draws = [
        torch.randn(20, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in (0, 1)
    ]
    result, _ = run([fitted(rows, f"s{seed}") for seed, rows in enumerate(draws)])
    assert (result.n_unresolved, result.chordal_noise) == (1, None)


def test_a_subspace_that_ends_in_a_tie_says_so() -> None:
    rows = torch.randn(300, 12, generator=torch.Generator().manual_seed(0)).double()
    result, _ = run([fitted(rows, "a"), fitted(rows + 1, "b")], components=4)
    assert any("cannot be told apart, first at" in note for note in result.caveats)


def test_other_widths_and_dead_sites_have_no_distance() -> None:
    members = [member(basis(3, 10, 0), "a"), member(basis(3, 10, 1), "b"), member(basis(3, 11, 2), "c")]
    dead = member(torch.empty(0, 10).double(), "d")
    result, found = run([*members, dead])
    assert (result.n_pairs, result.n_pairs_without) == (1, 5)
    assert np.isnan(found["geodesic"][2, 0])
    assert result.neighbour_overlap == pytest.approx(found["overlap"][0, 1])
    assert any("do not vary" in note for note in result.caveats)
    with pytest.raises(MethodError, match="10 at capture a, 11 at capture c"):
        run([members[0], members[2]])
    with pytest.raises(MethodError, match="found 1 artifact, expected at least two"):
        run(members[:1])


def test_fewer_components_than_asked_are_named() -> None:
    result, found = run([member(basis(3, 10, 0), "a"), member(basis(6, 10, 1), "b")], components=5)
    assert found["dimension"].tolist() == [3, 5]
    assert any("1 have fewer than 5 components, first capture a" in note for note in result.caveats)


def test_components_about_the_mean_are_not_compared_with_some_about_the_origin() -> None:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    mixed = [fitted(x, "one"), fitted(x, "two", center=False), fitted(x, "three")]
    with pytest.raises(
        MethodError, match="capture one are about the mean, those of capture two about the origin"
    ):
        run(mixed)
    alike = [fitted(x, "one", center=False), fitted(x, "two", center=False)]
    assert run(alike)[0].overlap == pytest.approx(1)
