"""Triangular factors: singular values that products lose, for any tree, weights and offset."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.numerics import moments, spectrum, triangle


def planted(n: int, d: int, condition: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred rows and their singular values."""
    g = torch.Generator().manual_seed(0)
    left = torch.randn(n, d, generator=g, dtype=torch.float64)
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    singular = torch.logspace(0, -condition, d, dtype=torch.float64)
    return (left * singular) @ right.T, singular


def folded(x: torch.Tensor, pieces: int, weight: torch.Tensor | None = None) -> triangle.State:
    parts = torch.arange(len(x)).tensor_split(pieces)
    states = [triangle.partial(x[p], None if weight is None else weight[p]) for p in parts]
    while len(states) > 1:
        states = [triangle.merge(*states[:2]), *states[2:]]
    return states[0]


def test_twelve_digits_of_condition() -> None:
    """A condition of 1e12: right at the smallest value, where products of features give noise that is said to be none."""
    x, singular = planted(8000, 200, 12)
    found = torch.linalg.svdvals(folded(x, 5)["rows"])
    assert float((found / singular - 1).abs().max()) < 1e-5
    by_products = spectrum.resolve(moments.partial(x))
    least = float(by_products.values[: by_products.rank].min() / by_products.values[0]) ** 0.5
    assert by_products.rank < 140
    assert least > 1e-8


@settings(max_examples=20, deadline=None)
@given(pieces=st.integers(1, 9), offset=st.sampled_from([0.0, 1e3]), seed=st.integers(0, 9))
def test_any_tree_weights_and_offset(pieces: int, offset: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 7, generator=g, dtype=torch.float64) * torch.logspace(0, -4, 7).double() + offset
    weight = torch.rand(40, generator=g).double()
    state = folded(x, pieces, weight)
    mean = (weight @ x) / weight.sum()
    expected = torch.linalg.svdvals((x - mean) * weight.sqrt()[:, None])
    found = torch.linalg.svdvals(state["rows"])[:7]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14 * offset)
    torch.testing.assert_close(state["mean"], mean, rtol=1e-13, atol=1e-13)
    assert float(state["energy"]) == pytest.approx(float(expected.square().sum()), rel=1e-9)
    assert len(state["rows"]) <= 7
