"""geometry.flag_mean: against dense projector sums, planted centres and outliers, and a brute-force median."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from schemas.errors import MethodError
from tasks.methods.contract import Array, Member
from tasks.methods.geometry import flag_mean as method
from tests.methods.subspaces import basis, inputs_of, member


def run(members: list[Member], **options: Any) -> tuple[method.Result, dict[str, Array]]:
    return method.solve(inputs_of(members), method.Config(**options))


def near(centre: torch.Tensor, seed: int, size: float) -> torch.Tensor:
    """A subspace close to another one, each direction close to its own."""
    rows = centre + size * torch.randn(centre.shape, generator=torch.Generator().manual_seed(seed)).double()
    found = torch.linalg.qr(rows.T)
    columns: torch.Tensor = found.Q * found.R.diagonal().sign()
    return columns.T.contiguous()


def projector(rows: torch.Tensor) -> np.ndarray:
    return (rows.T @ rows).numpy()


@pytest.mark.parametrize(("d", "count"), [(60, 5), (12, 8)])
def test_the_mean_is_that_of_the_sum_of_projectors(d: int, count: int) -> None:
    bases = [basis(k, d, seed) for seed, k in enumerate([4, 3, 5, 6, 4, 4, 5, 3][:count])]
    weights = tuple(float(w) for w in range(1, count + 1))
    result, arrays = run([member(b) for b in bases], weights=weights)
    dense = sum(w * projector(b) for w, b in zip(weights, bases, strict=True)) / sum(weights)
    values, vectors = np.linalg.eigh(dense)
    expected = vectors[:, ::-1][:, :3]
    np.testing.assert_allclose(projector(arrays["mean"].values), expected @ expected.T, atol=1e-12)
    np.testing.assert_allclose(arrays["share"].values, values[::-1][:3], atol=1e-13)
    assert result.gap == pytest.approx(values[-3] - values[-4], abs=1e-12)
    assert result.residual < 1e-12
    for name in ("mean", "median"):
        rows = arrays[name].values
        np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-12)
    expected_distances = [
        math.sqrt(3 - np.trace(projector(arrays["mean"].values) @ projector(b))) for b in bases
    ]
    np.testing.assert_allclose(arrays["distance"].values, expected_distances, rtol=1e-10)


def test_the_authors_weights_are_squares_of_ours() -> None:
    bases = [basis(2, 15, seed) for seed in range(3)]
    weights = np.array([1.0, 2.0, 3.0])
    stacked = np.concatenate([w * b.numpy() for w, b in zip(weights, bases, strict=True)])
    theirs = np.linalg.svd(stacked)[2][:2]
    _, arrays = run([member(b) for b in bases], weights=tuple(weights**2))
    np.testing.assert_allclose(projector(arrays["mean"].values), theirs.T @ theirs, atol=1e-12)


def test_an_outlier_has_a_small_weight_in_the_median() -> None:
    centre = basis(3, 30, 0)
    members = [member(near(centre, seed, 0.02), f"s{seed}") for seed in range(6)]
    members.append(member(basis(3, 30, 99), "odd"))
    result, arrays = run(members)
    assert result.converged
    assert result.outliers == ("capture odd",)
    weight = arrays["weight"].values
    assert float(weight[-1]) < 0.15 * float(weight[:-1].min())
    apart = {
        name: np.linalg.norm(projector(arrays[name].values) - projector(centre))
        for name in ("mean", "median")
    }
    assert apart["median"] < 0.7 * apart["mean"]


def test_the_median_is_the_least_sum_of_distances() -> None:
    """Of lines in a plane, by trying all of them."""
    angle = np.array([0.0, 0.1, 0.2, 1.3, 0.15])
    lines = [torch.tensor([[math.cos(t), math.sin(t), 0.0]]).double() for t in angle]
    _, arrays = run([member(line) for line in lines], iterations=2000, tolerance=1e-14)

    def total(t: float) -> float:
        return float(np.abs(np.sin(angle - t)).sum())

    found = arrays["median"].values[0]
    best = scipy.optimize.minimize_scalar(
        total, bounds=(-0.5, 1.5), method="bounded", options={"xatol": 1e-10}
    )
    assert total(math.atan2(float(found[1]), float(found[0]))) == pytest.approx(best.fun, rel=1e-6)


def test_a_flag_keeps_its_nested_subspaces() -> None:
    centre = basis(6, 40, 3)
    members = [member(near(centre, seed, 0.05)) for seed in range(20)]
    result, arrays = run(members, flag=(1, 3, 6))
    assert result.dimensions == (1, 3, 6)
    assert result.gap is None
    assert result.residual < 1e-7
    for end in (1, 3, 6):
        found = projector(arrays["mean"].values[:end])
        assert np.linalg.norm(found - projector(centre[:end])) < 0.3
    mixed = [member(basis(3, 3, seed) @ centre[:3]) for seed in range(9)]
    assert run(mixed, flag=(1, 3))[0].share < 0.75 < run(mixed, components=3)[0].share


def test_a_flag_mean_is_stationary() -> None:
    """No small rotation of its rows does better."""
    members = [member(basis(4, 9, seed)) for seed in range(5)]
    _, arrays = run(members, flag=(1, 4), iterations=5000, tolerance=1e-13)
    x = arrays["mean"].values

    def value(rows: torch.Tensor) -> float:
        parts = [(m.arrays["components"][:1], m.arrays["components"][1:4]) for m in members]
        return sum(float((rows[:1] @ a.T).square().sum() + (rows[1:] @ b.T).square().sum()) for a, b in parts)

    for seed in range(30):
        skew = torch.randn(9, 9, generator=torch.Generator().manual_seed(seed)).double()
        turn = torch.linalg.matrix_exp(1e-3 * (skew - skew.T))
        assert value(x @ turn) < value(x)


def test_equal_members_are_their_own_mean() -> None:
    one = basis(3, 20, 0)
    result, arrays = run([member(one), member(basis(3, 3, 1) @ one), member(one)])
    assert result.share == pytest.approx(1)
    assert result.distance < 1e-14
    assert result.converged
    np.testing.assert_allclose(projector(arrays["median"].values), projector(one), atol=1e-13)


def test_a_mean_that_is_not_unique_says_so() -> None:
    eye = torch.eye(6).double()
    result, _ = run([member(eye[:1]), member(eye[1:2])])
    assert any("not unique" in note for note in result.caveats)


def test_bad_input_is_refused() -> None:
    members = [member(basis(3, 10, 0), "a"), member(basis(2, 10, 1), "b")]
    for options, reason in (
        ({"components": 3}, "asked for 3 dimensions, but capture b has 2"),
        ({"flag": (2, 1)}, "must rise"),
        ({"weights": (1.0,)}, "expected 2 positive weights"),
        ({"weights": (1.0, -1.0)}, "expected 2 positive weights"),
    ):
        with pytest.raises(MethodError, match=reason):
            run(members, **options)
    with pytest.raises(MethodError, match="10 at capture a, 11 at capture site"):
        run([members[0], member(basis(3, 11, 0))])
