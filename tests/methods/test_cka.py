"""Alignment: against kernels formed in full, planted rotations, and unrelated rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.methods.contract import Inputs
from tasks.methods.geometry import cka
from tasks.numerics import joint_moments
from tasks.numerics.similarity import Alignment, linear_cka
from tests.methods import cases
from tests.methods.cases import Case


def by_kernels(x: np.ndarray, y: np.ndarray) -> Alignment:
    """Both values from n x n kernels, as the papers define them."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    h = np.eye(n) - 1 / n

    def biased(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ h @ b @ h))

    def unbiased(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        one = np.ones(n)
        middle = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
        return float(np.trace(a @ b) + middle - 2 / (n - 2) * (one @ a @ b @ one)) / (n * (n - 3))

    return Alignment(*(f(k, m) / np.sqrt(f(k, k) * f(m, m)) for f in (biased, unbiased)))


def aligned(x: np.ndarray, y: np.ndarray, edges: list[int] | None = None) -> cka.Result:
    inputs = Inputs(widths={"x": x.shape[1], "y": y.shape[1]}, n_rows=len(x), n_samples=len(x))
    block = cases._block({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, len(x), False)
    here = Case(cka, cka.Config(), inputs, block)
    result: cka.Result = cases.run(here, cases.cut(block, edges or [])).result
    return result


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), n=st.integers(8, 60), edges=st.lists(st.integers(0, 8), max_size=4))
def test_it_equals_the_definition(seed: int, n: int, edges: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 5)) + 3
    y = x @ rng.standard_normal((5, 7)) + 2 * rng.standard_normal((n, 7)) - 8
    expected, found = by_kernels(x, y), aligned(x, y, edges)
    assert found.cka == pytest.approx(expected.biased, rel=1e-9)
    assert found.cka_debiased == pytest.approx(expected.debiased, rel=1e-7, abs=1e-9)


def test_a_rotated_scaled_copy_is_the_same() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 12)) * np.arange(1, 13)
    turn = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    found = aligned(x, 5 * x @ turn + 100)
    assert found.cka == pytest.approx(1, abs=1e-12)
    assert found.cka_debiased == pytest.approx(1, abs=1e-9)


def test_unrelated_rows_are_unrelated_however_few() -> None:
    rng = np.random.default_rng(0)
    found = [aligned(rng.standard_normal((40, 100)), rng.standard_normal((40, 100))) for _ in range(50)]
    biased, debiased = (np.array([getattr(f, name) for f in found]) for name in ("cka", "cka_debiased"))
    assert biased.mean() > 0.6
    assert abs(debiased.mean()) < 4 * debiased.std() / np.sqrt(50)
    assert any("read the debiased value" in note for note in found[0].caveats)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_a_large_offset_costs_nothing(offset: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6))
    y = x[:, :4] + 0.3 * rng.standard_normal((300, 4))
    far = aligned(x + offset, y - offset, [100, 101])
    near = by_kernels((x + offset) - offset, (y - offset) + offset)
    assert far.cka == pytest.approx(near.biased, rel=1e-8)
    assert far.cka_debiased == pytest.approx(near.debiased, rel=1e-7)


def test_a_side_that_does_not_vary_has_no_alignment() -> None:
    found = aligned(np.ones((20, 3)), np.random.default_rng(0).standard_normal((20, 2)))
    assert found.cka is None
    assert found.cka_debiased is None


def test_moving_the_shift_is_exact() -> None:
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((50, 3))), torch.from_numpy(rng.standard_normal((50, 2)))
    state = joint_moments.partial(x, y)
    moved = joint_moments.move(state, torch.arange(5, dtype=torch.float64))
    z = torch.cat([x, y], 1) - torch.arange(5)
    r = torch.stack([z[:, :3].square().sum(1), z[:, 3:].square().sum(1)])
    for name, expected in {"s": z.sum(0), "g": z.T @ z, "t": r @ z, "f": r @ r.T}.items():
        torch.testing.assert_close(moved[name], expected, rtol=1e-12, atol=1e-9)
    assert linear_cka(moved).biased == pytest.approx(linear_cka(state).biased, rel=1e-12)


def test_an_interval_covers_dependent_rows() -> None:
    """Samples of eight rows that are almost one row: the truth of endless rows lies inside."""
    rng = np.random.default_rng(5)
    turn = rng.standard_normal((4, 4))

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.standard_normal((n, 4))
        return x, x @ turn + 2 * rng.standard_normal((n, 4))

    truth = aligned(*drawn(60_000)).cka_debiased
    hits = []
    for _ in range(60):
        x, y = (np.repeat(side, cases.PER_SAMPLE, 0) for side in drawn(150))
        found = aligned(x + 0.01 * rng.standard_normal(x.shape), y)
        assert found.cka_debiased_low is not None
        assert found.cka_debiased_high is not None
        assert truth is not None
        hits.append(found.cka_debiased_low <= truth <= found.cka_debiased_high)
    assert 0.8 <= np.mean(hits) <= 1
