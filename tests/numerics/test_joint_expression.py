"""One expression of rows in several layers: against loops of least squares, finite differences, dense Laplacians, its own conditions."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.numerics import joint_expression as joint


def layers_of(seed: int, n: int, widths: tuple[int, ...]) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal((n, width)) * 10**k) for k, width in enumerate(widths)]


def row_by_row(z: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Each row by all others; of many solutions the shortest."""
    c = np.zeros((len(z), len(z)))
    for i in range(len(z)):
        others = np.delete(np.arange(len(z)), i)
        if ridge:
            gram = z[others] @ z[others].T + ridge * np.eye(len(others))
            c[i, others] = np.linalg.solve(gram, z[others] @ z[i])
        else:
            c[i, others] = np.linalg.lstsq(z[others].T, z[i], rcond=1e-10)[0]
    return c


def structure(seed: int, n: int) -> Tensor:
    q = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 3)))
    q[1] = q[0]
    return joint.distances(q)


@pytest.mark.parametrize("widths", [(6, 20, 9), (4, 5)])
def test_stage_one_ends_at_the_shortest_least_squares_of_each_row(widths: tuple[int, ...]) -> None:
    """Once more features than rows, so that there is one minimiser; once fewer, so that there are many, all without loss."""
    z = joint.joined(layers_of(0, 25, widths))
    found = joint.express(z, tolerance=-1, most=600)
    np.testing.assert_allclose(found.c.numpy(), row_by_row(z.numpy()), atol=1e-6)


def test_the_closed_form_with_a_ridge_is_that_of_each_row() -> None:
    z = joint.joined(layers_of(1, 30, (8, 40)))
    np.testing.assert_allclose(joint.least_squares(z, 0.3).numpy(), row_by_row(z.numpy(), 0.3), atol=1e-10)


@pytest.mark.parametrize("widths", [(3, 7), (30, 2, 90)])
def test_the_loss_is_the_mean_over_scaled_layers(widths: tuple[int, ...]) -> None:
    layers = layers_of(2, 20, widths)
    z = joint.joined(layers)
    assert z.shape[1] <= 20
    c = torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).fill_diagonal_(0)
    each = []
    for layer in layers:
        rows = layer.numpy() / np.sqrt(np.square(layer.numpy()).sum() / 20)
        each.append(np.square(rows - c.numpy() @ rows).sum())
    assert joint.loss(z, c) == pytest.approx(np.mean(each))
    assert joint.loss(z, torch.zeros_like(c)) == pytest.approx(20)


def test_the_slope_is_that_of_differences() -> None:
    z = joint.joined(layers_of(3, 8, (3, 4)))
    c = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).fill_diagonal_(0)
    slope = joint.loss_slope(z, c)
    assert not slope.diagonal().any()
    for i, j in ((0, 1), (5, 2), (7, 6)):
        step = torch.zeros_like(c)
        step[i, j] = 1e-5
        difference = (joint.loss(z, c + step) - joint.loss(z, c - step)) / 2e-5
        assert float(slope[i, j]) == pytest.approx(difference, rel=1e-6)


def test_the_norm_is_the_trace_of_a_laplacian() -> None:
    rng = np.random.default_rng(4)
    c, q = rng.standard_normal((12, 12)), rng.standard_normal((12, 3))
    np.fill_diagonal(c, 0)
    weights = np.sqrt(np.abs(c) + np.abs(c).T)
    laplacian = np.diag(weights.sum(1)) - weights
    found = joint.structured_norm(torch.from_numpy(c), joint.distances(torch.from_numpy(q)))
    assert found == pytest.approx(np.trace(q.T @ laplacian @ q))


def test_fine_tuning_ends_where_slopes_cancel() -> None:
    """At entries that are left the loss falls as fast as the norm rises; entries that were 0, of rows that are apart, stay 0."""
    z = joint.joined(layers_of(5, 20, (15, 30)))
    first, apart = joint.express(z), structure(5, 20)
    c = first.c.clone()
    c[2, 3] = c[3, 2] = 0
    weight = joint.balance(z, c, apart) / 4
    found = joint.fine_tune(z, c, apart, weight, tolerance=-1, most=800)
    assert found.c[2, 3] == found.c[3, 2] == 0
    left = found.c != 0
    assert 0 < int(left.sum()) < 20 * 19
    size = found.c.abs() + found.c.abs().T
    rise = weight * apart / (2 * size.sqrt()) * found.c.sign()
    total = (joint.loss_slope(z, found.c) + rise)[left]
    assert float(total.abs().max()) < 1e-4 * float(rise[left].abs().max())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(3, 25),
    widths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    kind=st.sampled_from(["plain", "twins", "zeros", "constant", "all zero"]),
)
def test_no_sweep_raises_the_sum(seed: int, n: int, widths: list[int], kind: str) -> None:
    layers = layers_of(seed, n, tuple(widths))
    for layer in layers:
        if kind == "twins":
            layer[1] = layer[0]
        elif kind == "zeros":
            layer[:2] = 0
        elif kind == "all zero":
            layer[:] = 0
    if kind == "constant":
        layers[0][:] = 1
    z, apart = joint.joined(layers), structure(seed, n)
    first = joint.express(z, tolerance=1e-3)
    second = joint.fine_tune(z, first.c, apart, joint.balance(z, first.c, apart), tolerance=1e-3)
    for stage in (first, second):
        assert torch.isfinite(stage.c).all()
        assert not stage.c.diagonal().any()
        assert all(b <= a * (1 + 1e-9) + 1e-12 for a, b in pairwise(stage.sums))
    if kind == "all zero":
        assert first.settled
        assert not second.c.any()
    if kind == "zeros":
        assert not second.c[:2].any()
        assert not second.c[:, :2].any()


def test_the_norm_starts_as_large_as_the_loss_and_a_tuning_without_structure_is_none() -> None:
    z, apart = joint.joined(layers_of(6, 20, (9, 9))), structure(6, 20)
    c = joint.express(z).c
    assert joint.balance(z, c, apart) * joint.structured_norm(c, apart) == pytest.approx(joint.loss(z, c))
    assert joint.balance(z, c, torch.zeros_like(apart)) == 0


def test_a_stage_that_has_not_settled_says_so() -> None:
    z = joint.joined(layers_of(7, 30, (20, 20)))
    assert not joint.express(z, tolerance=0.0, most=2).settled
    found = joint.express(z)
    assert found.settled
    sweeps = len(found.sums) - 1
    cut = [joint.express(z, tolerance=-1, most=n).c for n in (sweeps - 2, sweeps - 1, sweeps)]
    torch.testing.assert_close(cut[2], found.c)
    assert joint.change(cut[1], cut[2]) <= joint.TOLERANCE < joint.change(cut[0], cut[1])


def test_the_change_of_nothing_is_none() -> None:
    nothing, some = torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    assert joint.change(nothing, nothing) == 0
    assert joint.change(some, nothing) == float("inf")
    assert joint.change(some, 2 * some) == 0.5


def test_leading_entries_are_those_of_largest_size() -> None:
    c = torch.tensor([[0.0, -3, 1, 2], [1, 0, 5, -4], [0, 0, 0, 1], [9, -8, 7, 0]], dtype=torch.float64)
    index, value = joint.leading(c, 2)
    assert index[[0, 1, 3]].tolist() == [[1, 3], [2, 3], [0, 1]]
    assert value[[0, 1, 3]].tolist() == [[-3, 2], [5, -4], [9, -8]]
    assert joint.leading(c, 20)[0].shape == (4, 3)
