"""Moments against LAPACK and NumPy in float64, under every chunking, order, weight and offset."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import MethodError
from tasks.numerics import moments
from tasks.numerics.spectrum import eigen

TOP = 20


def planted(decay: float, offset: float, dtype: torch.dtype, rows: int = 20_000, width: int = 256):
    """Gaussian rows with standard deviations decay^j along random directions, and a common offset."""
    generator = torch.Generator().manual_seed(7)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    scale = decay ** torch.arange(width, dtype=torch.float64)
    draws = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return ((draws * scale) @ basis + offset).to(dtype)


def lapack(x: torch.Tensor):
    """Eigenvalues and top directions from QR and SVD of the centred float64 rows, which square nothing."""
    exact = x.double().numpy()
    _, singular, directions = np.linalg.svd(np.linalg.qr(exact - exact.mean(0), mode="r"))
    return torch.from_numpy(singular**2 / (len(exact) - 1)), torch.from_numpy(directions[:TOP])


def sine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sine of the largest angle between the row spaces of two orthonormal bases."""
    return float(torch.linalg.matrix_norm(b - (b @ a.T) @ a, ord=2))


def folded(x: torch.Tensor, cuts: list[int], order: list[int], precision: moments.Precision = "float64"):
    """Cut the rows, then merge the pieces: `order` says which neighbour of the list joins next."""
    states = [moments.partial(piece, None, precision) for piece in torch.tensor_split(x, cuts)]
    for pick in order:
        at = pick % (len(states) - 1)
        states[at : at + 2] = [moments.merge(states[at], states[at + 1])]
    return states[0]


def difference(a: moments.State, b: moments.State) -> float:
    """Largest relative difference of what two states say: mean, scatter, fourth moment, counts."""
    scatter = moments.covariance(a)
    gap = float((scatter - moments.covariance(b)).abs().max() / torch.linalg.matrix_norm(scatter, ord=2))
    spread = math.sqrt(moments.trace(a))
    means = float((moments.mean(a) - moments.mean(b)).abs().max()) / spread
    fourth = abs(moments.fourth(a) / moments.fourth(b) - 1)
    assert int(a["n"]) == int(b["n"])
    return max(gap, means, fourth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
@pytest.mark.parametrize("decay", [0.97, 0.80])
def test_accuracy_against_lapack(decay: float, offset: float, dtype: torch.dtype) -> None:
    x = planted(decay, offset, dtype)
    values, directions = lapack(x)
    exact = eigen(moments.covariance(moments.partial(x)))
    assert float((exact.values[:TOP] / values[:TOP] - 1).abs().max()) <= 1e-12
    assert sine(exact.vectors[:TOP], directions) <= 1e-11
    fast = eigen(moments.covariance(moments.partial(x, precision="float32")))
    assert float((fast.values - values).abs().max()) <= 1e-7 * float(values[0])
    assert sine(fast.vectors[:TOP], directions) <= 1e-3


def shuffled(x: torch.Tensor, rng: np.random.Generator, most_cuts: int) -> moments.State:
    """Cut the rows anywhere, merge the pieces two at a time in any order: neighbours or not, either one first."""
    cuts = sorted(rng.integers(0, len(x) + 1, rng.integers(1, most_cuts + 1)).tolist())
    states = [moments.partial(piece) for piece in torch.tensor_split(x, cuts)]
    while len(states) > 1:
        one, two = (states.pop(int(rng.integers(len(states)))) for _ in range(2))
        states.append(moments.merge(one, two))
    return states[0]


def against_numpy(x: torch.Tensor, state: moments.State, expected: np.ndarray) -> float:
    """Largest difference from NumPy's covariance and mean of the float64 rows, in units of their size."""
    gap = np.abs(moments.covariance(state).numpy() - expected).max() / np.linalg.norm(expected, ord=2)
    mean = x.double().numpy().mean(0)
    means = np.abs(moments.mean(state).numpy() - mean).max() / np.abs(mean).max()
    assert int(state["n"]) == len(x)
    return max(float(gap), float(means))


@pytest.mark.parametrize(
    ("rows", "width", "cases", "offset"),
    [(20_000, 256, 4, 0.3), (20_000, 256, 4, 1e5), (2000, 32, 100, 0.3), (2000, 32, 100, 1e3)],
)
def test_any_chunking_and_order_agree(rows: int, width: int, cases: int, offset: float) -> None:
    x = planted(0.97, offset, torch.float32, rows, width)
    whole, expected = moments.partial(x), np.cov(x.double().numpy().T)
    rng = np.random.default_rng(rows + int(offset))
    for _ in range(cases):
        state = shuffled(x, rng, most_cuts=16)
        assert against_numpy(x, state, expected) <= 1e-13
        assert difference(whole, state) <= 1e-13


@given(
    rows=st.integers(2, 60),
    width=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    order=st.lists(st.integers(0, 99), min_size=8, max_size=8),
    offset=st.sampled_from([0.0, -3.5, 1e4]),
)
@settings(max_examples=60, deadline=None)
def test_merge_agrees_for_all_shapes(rows, width, cuts, order, offset) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows), dtype=torch.float64) + offset
    cuts = sorted(min(cut, rows) for cut in cuts)
    merged = folded(x, cuts, order[: len(cuts)])
    expected = np.cov(x.numpy().T).reshape(width, width)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(moments.covariance(merged).numpy(), expected, rtol=0, atol=1e-10 * scale)
    assert difference(moments.partial(x), merged) <= 1e-9


def test_fixed_grid_and_tree_give_the_same_bits() -> None:
    x = planted(0.9, 10.0, torch.float32, rows=3000, width=48)
    first, second = (folded(x.clone(), [700, 1400, 2100], [0, 1, 0]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_memory_layout_does_not_change_the_bits() -> None:
    x = planted(0.9, 10.0, torch.float32, rows=1000, width=48)
    wide = torch.zeros(1000, 97)
    wide[:, 1::2] = x
    columns = x.T.contiguous().T
    whole = moments.partial(x)
    for other in (wide[:, 1::2], columns):
        assert all(torch.equal(whole[name], moments.partial(other)[name]) for name in whole)


def test_outlying_first_row_does_no_lasting_harm() -> None:
    x = planted(0.9, 0.0, torch.float64, rows=4000, width=32)
    x[0] *= 1e6
    state = moments.partial(x[:1])
    for piece in x[1:].split(500):
        state = moments.merge(state, moments.partial(piece))
    without = moments.partial(x[1:])
    assert float(state["c"].norm()) < 1e-2 * float(x[0].norm())
    assert difference(moments.partial(x), state) <= 1e-13
    assert int(without["n"]) == int(state["n"]) - 1


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_integer_weights_equal_repetition(precision: moments.Precision) -> None:
    x = planted(0.9, 5.0, torch.float64, rows=300, width=16)
    counts = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(0))
    weighted = moments.partial(x, counts.double(), precision)
    repeated = moments.partial(x.repeat_interleave(counts, dim=0), None, precision)
    scale = float(moments.covariance(repeated).abs().max())
    gap = moments.covariance(weighted, weights="count") - moments.covariance(repeated)
    limit = 1e-13 if precision == "float64" else 1e-6
    assert float(gap.abs().max()) <= limit * scale
    assert moments.trace(weighted, "count") == pytest.approx(moments.trace(repeated), rel=limit)
    assert moments.fourth(weighted) == pytest.approx(moments.fourth(repeated), rel=10 * limit)
    assert float((moments.mean(weighted) - moments.mean(repeated)).abs().max()) <= limit * 10
    assert moments.n_eff(weighted, "count") == len(x.repeat_interleave(counts, dim=0))


def test_weights_against_numpy() -> None:
    x = planted(0.9, 5.0, torch.float64, rows=400, width=12)
    weight = torch.rand(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    merged = moments.merge(moments.partial(x[:150], weight[:150]), moments.partial(x[150:], weight[150:]))
    reliability = np.cov(x.numpy().T, aweights=weight.numpy())
    np.testing.assert_allclose(moments.covariance(merged).numpy(), reliability, rtol=1e-12, atol=1e-12)
    counts = torch.randint(1, 5, (400,), generator=torch.Generator().manual_seed(2))
    counted = moments.covariance(moments.partial(x, counts.double()), weights="count")
    np.testing.assert_allclose(counted, np.cov(x.numpy().T, fweights=counts.numpy()), rtol=1e-12, atol=1e-12)
    assert moments.n_eff(merged) == pytest.approx(float(weight.sum() ** 2 / weight.square().sum()))


def test_rows_of_weight_zero_are_absent() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(20)
    weight[3] = 0
    x[3] = math.nan
    with_zero = moments.partial(x, weight)
    kept = torch.cat([x[:3], x[4:]])
    assert int(with_zero["n"]) == 19
    assert difference(with_zero, moments.partial(kept)) <= 1e-15


def test_about_the_origin() -> None:
    x = planted(0.9, 3.0, torch.float64, rows=500, width=8)
    state = moments.partial(x)
    expected = x.T @ x / len(x)
    torch.testing.assert_close(moments.covariance(state, center=False), expected, rtol=1e-13, atol=1e-13)
    assert moments.trace(state, center=False) == pytest.approx(float(expected.trace()), rel=1e-13)


def test_fourth_moment_about_the_mean() -> None:
    x = planted(0.9, 100.0, torch.float64, rows=700, width=8)
    state = folded(x, [100, 101, 400], [2, 0, 0])
    expected = float((x - x.mean(0)).square().sum(1).square().sum())
    assert moments.fourth(state) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_rows_are_widened_exactly(dtype: torch.dtype) -> None:
    x = planted(0.9, 3.0, dtype, rows=500, width=8)
    state, widened = moments.partial(x), moments.partial(x.double())
    assert difference(state, widened) <= 1e-14


@pytest.mark.parametrize("value", [0.1, 1e5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_columns_have_no_variance(value: float, dtype: torch.dtype) -> None:
    x = torch.full((1000, 3), value, dtype=dtype)
    x[:, 1] = torch.linspace(-1, 1, 1000, dtype=dtype)
    state = folded(x, [1, 300], [0, 0])
    spread = moments.covariance(state).diagonal()
    assert float(spread[[0, 2]].abs().max()) <= 1e-25
    assert float(spread[1]) == pytest.approx(float(x[:, 1].double().var()), rel=1e-13)


def test_empty_blocks_are_neutral() -> None:
    state = moments.partial(planted(0.9, 3.0, torch.float32, rows=50, width=6))
    nothing = moments.partial(torch.empty(0, 6))
    assert {name: tensor.shape for name, tensor in nothing.items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    for merged in (moments.merge(nothing, state), moments.merge(state, nothing)):
        assert all(torch.equal(merged[name], state[name]) for name in state)
    assert int(moments.merge(nothing, nothing)["n"]) == 0


def test_one_row_has_a_mean_and_no_covariance() -> None:
    x = torch.tensor([[1.0, -2.0, 1e6]])
    state = moments.partial(x)
    assert torch.equal(moments.mean(state), x[0].double())
    with pytest.raises(MethodError, match="at least two rows, found 1"):
        moments.covariance(state)
    with pytest.raises(MethodError, match="found 0 rows"):
        moments.mean(moments.empty(3))


def test_merge_changes_neither_argument() -> None:
    a, b = (moments.partial(torch.randn(9, 5) + shift) for shift in (0.0, 50.0))
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in (a, b)]
    moments.merge(a, b)
    assert all(
        torch.equal(old[name], new[name]) for old, new in zip(before, (a, b), strict=True) for name in old
    )


def test_states_in_column_order_merge_too() -> None:
    a, b = (moments.partial(torch.randn(9, 5) + shift) for shift in (0.0, 50.0))
    turned = a | {"g": a["g"].T.contiguous().T}
    for merged, same in (
        (moments.merge(turned, b), moments.merge(a, b)),
        (moments.merge(b, turned), moments.merge(b, a)),
    ):
        assert torch.equal(merged["g"], same["g"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_rows_that_are_not_finite_are_refused(bad: float, precision: moments.Precision) -> None:
    x = torch.randn(30, 4)
    x[17, 2] = bad
    with pytest.raises(MethodError, match="1 of 30 rows hold NaN or infinity, first at row 17"):
        moments.partial(x, precision=precision)


def test_rows_that_overflow_are_refused() -> None:
    with pytest.raises(MethodError, match="overflows"):
        moments.partial(torch.tensor([[1e200], [-1e200]], dtype=torch.float64))


def test_wrong_weights_and_widths_are_refused() -> None:
    x = torch.randn(4, 2)
    for weight in ([1.0, 1.0, -1.0, 1.0], [1.0, 1.0, math.nan, 1.0]):
        with pytest.raises(MethodError, match="finite and not negative"):
            moments.partial(x, torch.tensor(weight))
    with pytest.raises(MethodError, match="2 and 3 features"):
        moments.merge(moments.partial(x), moments.partial(torch.randn(4, 3)))


def test_scratch_stays_small_when_features_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "BLOCK_ROWS", 7)
    x = planted(0.9, 5.0, torch.float32, rows=100, width=16)
    state = moments.partial(x)
    np.testing.assert_allclose(
        moments.covariance(state), np.cov(x.double().numpy().T), rtol=1e-12, atol=1e-13
    )


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "limit"), [("float64", 1e-12), ("float32", 1e-6)])
def test_gpu_agrees(precision: moments.Precision, limit: float) -> None:
    x = planted(0.9, 1e3, torch.float32, rows=5000, width=64)
    there = moments.merge(*(moments.partial(part.cuda(), None, precision) for part in x.split(2500)))
    assert difference(moments.partial(x), {name: t.cpu() for name, t in there.items()}) <= limit


@pytest.mark.parametrize(("weighted", "error"), [(False, 1e-9), (True, 2e-8)])  # weights are rounded
def test_the_trace_of_float32_products_is_that_of_the_rows(weighted: bool, error: float) -> None:
    x = planted(0.97, 1e3, torch.float32, rows=6000, width=64)
    weight = torch.rand(6000, dtype=torch.float64) + 0.1 if weighted else None
    state = moments.partial(x, weight, precision="float32")
    true = np.cov(x.double().numpy().T, aweights=None if weight is None else weight.numpy())
    assert moments.trace(state) == pytest.approx(float(np.trace(true)), rel=error)
