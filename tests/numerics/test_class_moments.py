"""Class moments: numpy class by class, digits that stay under offsets and collapse, merges, bounded memory."""

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import class_moments


def drawn(
    n: int = 400, d: int = 6, k: int = 9, offset: float = 100.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    code = rng.integers(0, k, n) * 3
    x = rng.standard_normal((n, d)) + offset + rng.standard_normal((3 * k, d))[code]
    return torch.from_numpy(x), torch.from_numpy(code), torch.from_numpy(rng.uniform(0.5, 2, n))


def three_passes(x: Tensor, code: Tensor, weight: Tensor) -> dict[int, tuple[np.ndarray, float, np.ndarray]]:
    """Mean, sum of squared distances and scatter of each class."""
    found = {}
    for k in np.unique(code.numpy()):
        rows, w = x.numpy()[code.numpy() == k], weight.numpy()[code.numpy() == k]
        mean = np.average(rows, axis=0, weights=w)
        z = rows - mean
        found[int(k)] = (mean, float((w * (z**2).sum(1)).sum()), (z * w[:, None]).T @ z)
    return found


def folded(x: Tensor, code: Tensor, weight: Tensor | None, pieces: int) -> class_moments.State:
    state = class_moments.empty(x.shape[1])
    for part in torch.arange(len(x)).tensor_split(pieces):
        some = None if weight is None else weight[part]
        state = class_moments.merge(state, class_moments.partial(x[part], code[part], some))
    return state


@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_numbers_are_those_of_three_passes(pieces: int) -> None:
    x, code, weight = drawn()
    state, expected = folded(x, code, weight, pieces), three_passes(x, code, weight)
    assert state["code"].tolist() == sorted(expected)
    for place, k in enumerate(state["code"].tolist()):
        mean, square, _ = expected[k]
        np.testing.assert_allclose(state["mean"][place], mean, rtol=1e-14)
        assert float(state["q"][place]) == pytest.approx(square, rel=1e-12)
    within = sum(scatter for *_, scatter in expected.values())
    np.testing.assert_allclose(class_moments.scatter(state), within, rtol=1e-11, atol=1e-11)
    assert int(state["n"].sum()) == 400
    np.testing.assert_allclose(state["w"].sum(), weight.sum(), rtol=1e-14)


def test_scatter_keeps_its_digits_when_classes_collapse() -> None:
    """Rows a billionth of the distance between classes apart: a total minus what lies between would be noise."""
    x, code, _ = drawn(offset=0)
    centre = torch.from_numpy(np.random.default_rng(1).standard_normal((30, 6)))
    noise = (x * 1024).round() / 1024 * 2.0**-30  # exact beside the centres' few bits
    rows = (centre * 64).round() / 64
    collapsed = rows[code] + noise
    ones = torch.ones(len(x), dtype=torch.float64)
    expected = sum(scatter for *_, scatter in three_passes(noise, code, ones).values())
    found = class_moments.scatter(folded(collapsed, code, None, 5))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * expected.max())


def test_weights_count_rows() -> None:
    x, code, _ = drawn()
    times = torch.arange(400) % 3
    repeated = folded(x.repeat_interleave(times, 0), code.repeat_interleave(times), None, 3)
    weighted = folded(x, code, times.double(), 4)
    for name in ("code", "w", "mean", "q", "g"):
        torch.testing.assert_close(weighted[name], repeated[name], rtol=1e-11, atol=1e-10)


def test_degrees_of_freedom_leave_out_classes_of_one_row() -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    state = class_moments.partial(x, torch.tensor([0, 0, 0, 1, 2, -1]), torch.tensor([1, 1, 1, 5, 0.1, 1]))
    np.testing.assert_allclose(class_moments.degrees(state), [2, 0, 0])
    assert state["n"].tolist() == [3, 1, 1]
    assert float(state["q"][1:].max()) < 1e-28


def test_memory_of_a_vocabulary() -> None:
    """30,000 classes of 256 features in at most 70 MB."""
    code = torch.arange(30_000)
    state = class_moments.partial(torch.zeros(30_000, 256), code)
    other = class_moments.merge(state, class_moments.partial(torch.ones(100, 256), code[:100] * 3))
    assert sum(t.numel() * t.element_size() for t in other.values()) <= 70e6
    few = class_moments.partial(torch.zeros(100, 256), code[:100] * 1000)
    assert sum(t.numel() * t.element_size() for t in few.values()) <= 1e6


def test_nearest_mean() -> None:
    x, _, _ = drawn(offset=1000)
    means = x[:40] + 0.1
    expected = np.linalg.norm(x.numpy()[:, None] - means.numpy()[None], axis=2).argmin(1)
    np.testing.assert_array_equal(class_moments.nearest(x, means, rows=33), expected)


def test_bad_input_is_refused() -> None:
    x, code, weight = drawn(20)
    with pytest.raises(MethodError, match="not negative"):
        class_moments.partial(x, code, -weight)
    with pytest.raises(MethodError, match="NaN"):
        class_moments.partial(x * float("nan"), code)
    with pytest.raises(MethodError, match="6 and 5 features"):
        class_moments.merge(class_moments.partial(x, code), class_moments.partial(x[:, :5], code))
    assert len(class_moments.partial(x, code - 1000)["code"]) == 0
