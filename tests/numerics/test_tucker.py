"""Tucker decompositions against plain loops and LAPACK, planted ones, bounds, and core shapes against all shapes."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import tucker


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decaying(shape: tuple[int, ...], decays: tuple[float, ...], seed: int = 0) -> Tensor:
    tensor = drawn(*shape, seed=seed)
    for mode, decay in enumerate(decays[: len(shape)]):
        turn = torch.linalg.qr(drawn(shape[mode], shape[mode], seed=seed + 7 + mode)).Q
        tensor = tucker.times(tensor, turn * decay ** torch.arange(shape[mode]).double(), mode)
    return tensor


def test_modes_are_mapped_as_a_loop_does() -> None:
    tensor, matrix = drawn(2, 3, 4), drawn(5, 3, seed=1)
    found = tucker.times(tensor, matrix, 1)
    for i, j, k in itertools.product(range(2), range(5), range(4)):
        assert float(found[i, j, k]) == pytest.approx(float(matrix[j] @ tensor[i, :, k]))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple),
    share=st.floats(0.1, 1.0),
    decay=st.floats(0.3, 1.0),
    seed=st.integers(0, 99),
)
def test_errors_are_those_of_the_bound_and_of_lapack(
    shape: tuple[int, ...], share: float, decay: float, seed: int
) -> None:
    tensor = decaying(shape, (decay,) * 4, seed)
    found = tucker.rotated(tensor)
    total = float(tensor.square().sum())
    torch.testing.assert_close(found.full.tensor(), tensor, rtol=0, atol=1e-10 * total**0.5 + 1e-13)
    for mode, squares in enumerate(found.squares):
        unfolded = tensor.movedim(mode, 0).reshape(shape[mode], -1).numpy()
        singular = np.linalg.svd(unfolded, compute_uv=False) ** 2
        padded = np.pad(singular, (0, max(0, shape[mode] - len(singular))))[: shape[mode]]
        np.testing.assert_allclose(squares, padded, rtol=1e-8, atol=1e-12 * total)
    ranks = tuple(max(1, round(share * length)) for length in shape)
    cut = found.cut(ranks)
    error = float((tensor - cut.tensor()).square().sum())
    held = float(found.held()[tuple(rank - 1 for rank in ranks)])
    assert error == pytest.approx(total - held, rel=1e-6, abs=1e-10 * total + 1e-20)
    assert error <= found.bound(ranks) + 1e-10 * total
    best = tucker.refined(tensor, cut)
    refined = float((tensor - best.tucker.tensor()).square().sum())
    assert refined <= error + 1e-9 * total
    assert refined == pytest.approx(total - best.held[-1], abs=1e-9 * total + 1e-20)
    assert (
        found.bound(ranks) <= len(shape) * refined + 1e-9 * total
    )  # quasi-optimal: also against what is better
    for basis in best.tucker.bases:
        eye = torch.eye(basis.shape[1], dtype=torch.float64)
        torch.testing.assert_close(basis.T @ basis, eye, rtol=0, atol=1e-10)


def test_two_modes_are_the_singular_value_decomposition() -> None:
    matrix = decaying((9, 6), (0.8, 0.7))
    singular = torch.linalg.svdvals(matrix).square()
    found = tucker.rotated(matrix)
    for rank in range(1, 7):
        error = (matrix - found.cut((rank, rank)).tensor()).square().sum()
        assert float(error) == pytest.approx(float(singular[rank:].sum()), abs=1e-12)


def test_a_planted_core_is_found_and_alternation_helps() -> None:
    core, bases = (
        drawn(2, 3, 2),
        [torch.linalg.qr(drawn(n, r, seed=n)).Q for n, r in ((9, 2), (8, 3), (7, 2))],
    )
    tensor = tucker.Tucker(core, tuple(bases)).tensor()
    found = tucker.rotated(tensor)
    assert float((tensor - found.cut((2, 3, 2)).tensor()).norm()) < 1e-6 * float(tensor.norm())
    assert tucker.best_shape(found.held(), tucker.numbers((2, 3, 2), (9, 8, 7))) == (2, 3, 2)
    noisy = drawn(9, 8, 7, seed=5)
    start = tucker.rotated(noisy).cut((2, 3, 2))
    better = tucker.refined(noisy, start)
    assert better.settled
    assert better.held[-1] > better.held[0] * 1.01
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(better.held))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    kept=st.floats(0.1, 1.2),
    decays=st.tuples(*[st.floats(0.3, 1.0)] * 4),
    seed=st.integers(0, 99),
)
def test_core_shapes_are_the_best_of_all(
    shape: tuple[int, ...], kept: float, decays: tuple[float, ...], seed: int
) -> None:
    """Of the truncated decomposition's own errors, of the sums that bound them, and within 5 % of what alternation reaches."""
    tensor = decaying(shape, decays, seed)
    found = tucker.rotated(tensor)
    total = float(tensor.square().sum())
    budget = max(tucker.numbers([1] * len(shape), shape), int(kept * math.prod(shape)))
    fitting = [
        ranks
        for ranks in itertools.product(*(range(1, n + 1) for n in shape))
        if tucker.numbers(ranks, shape) <= budget
    ]
    held = found.held()
    chosen = tucker.best_shape(held, budget)
    assert tucker.numbers(chosen, shape) <= budget
    truth = min(total - float(held[tuple(r - 1 for r in ranks)]) for ranks in fitting)
    assert total - float(held[tuple(r - 1 for r in chosen)]) <= truth + 1e-10 * total
    packed = tucker.packed_shape(found.squares, budget)
    assert tucker.numbers(packed, shape) <= budget
    assert found.bound(packed) <= min(found.bound(ranks) for ranks in fitting) + 1e-10 * total
    if len(fitting) <= 60:
        best = max(tucker.refined(tensor, found.cut(ranks)).held[-1] for ranks in fitting)
        mine = tucker.refined(tensor, found.cut(chosen)).held[-1]
        assert (
            math.sqrt(max(0.0, total - mine)) <= 1.05 * math.sqrt(max(0.0, total - best)) + 1e-4 * total**0.5
        )


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(MethodError, match=r"take 10 numbers, and 9 may be used"):
        tucker.shapes_within((4, 5), 9)
    with pytest.raises(MethodError, match="too many shapes"):
        tucker.shapes_within((5000, 5000, 5000), 10**9)
    with pytest.raises(MethodError, match="tensor of 1 modes"):
        tucker.rotated(drawn(4))
    with pytest.raises(MethodError, match="not finite"):
        tucker.rotated(torch.full((3, 3, 3), torch.nan).double())
    nothing = tucker.rotated(torch.zeros(3, 4, 2).double())
    assert not nothing.full.core.any()
    assert tucker.refined(torch.zeros(3, 4, 2).double(), nothing.cut((1, 1, 1))).settled
