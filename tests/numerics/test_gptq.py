"""GPTQ against a plain loop of optimal-brain-quantisation updates, and against rounding to the nearest."""

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import gptq
from tasks.numerics.weight_codes import nearest, rounded, scale_of, values


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(width: int, seed: int) -> Tensor:
    rows = drawn(6 * width, width // 3, seed=seed) @ drawn(width // 3, width, seed=seed + 1)
    rows += 0.3 * drawn(6 * width, width, seed=seed + 2) + 0.5
    return rows.T @ rows / len(rows)


def plain(
    weight: Tensor, second: Tensor, bits: int, group: int | None, symmetric: bool, by_energy: bool, clip: bool
) -> Tensor:
    """One input after the other; the inverse loses its row and column as the input is fixed."""
    work, out, width = weight.clone(), torch.empty_like(weight), weight.shape[1]
    inverse = torch.linalg.inv(second + 0.01 * second.diagonal().mean() * torch.eye(width).double())
    order = second.diagonal().argsort(descending=True).tolist() if by_energy else list(range(width))
    size = group or width
    fixed = group is None or by_energy
    scales = {
        part: scale_of(weight[:, part * size : (part + 1) * size], bits, symmetric, clip)
        for part in range(-(-width // size))
    }
    for j in order:
        if not fixed and j % size == 0:
            scales[j // size] = scale_of(work[:, j : j + size], bits, symmetric, clip)
        step, zero = (each[:, None] for each in scales[j // size])
        out[:, j : j + 1] = values(nearest(work[:, j : j + 1], step, zero, bits), step, zero)
        work = work - torch.outer((work[:, j] - out[:, j]) / inverse[j, j], inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j] = inverse[:, j] = 0
    return out


def error(weight: Tensor, other: Tensor, second: Tensor) -> float:
    return float(((weight - other) @ second * (weight - other)).sum())


@pytest.mark.parametrize("block", [1, 7, 128])
@pytest.mark.parametrize(
    ("group", "by_energy"), [(None, False), (None, True), (8, False), (8, True), (13, False)]
)
@pytest.mark.parametrize(("symmetric", "clip"), [(True, False), (False, False), (True, True)])
def test_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    group: int | None,
    by_energy: bool,
    symmetric: bool,
    clip: bool,
) -> None:
    monkeypatch.setattr(gptq, "BLOCK", block)
    weight, second = drawn(9, 30, seed=5), correlated(30, 1)
    coded = gptq.gptq(weight, second, 3, group, symmetric, 0.01, by_energy, clip)
    torch.testing.assert_close(coded.weight(), plain(weight, second, 3, group, symmetric, by_energy, clip))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 16])
def test_correlated_inputs_make_up_for_rounding(bits: int, group: int | None) -> None:
    for seed in range(5):
        weight, second = drawn(24, 48, seed=seed), correlated(48, 10 * seed)
        near = error(weight, rounded(weight, bits, group, True).weight(), second)
        assert error(weight, gptq.gptq(weight, second, bits, group).weight(), second) < 0.6 * near


def test_without_correlation_it_is_the_nearest() -> None:
    weight, second = drawn(6, 12), torch.diag(torch.arange(12).double())
    for group in (None, 5):
        found, expected = gptq.gptq(weight, second, 4, group), rounded(weight, 4, group, True)
        assert torch.equal(found.code, expected.code)
        assert torch.equal(found.step, expected.step)


def test_dead_inputs_and_few_rows() -> None:
    """An input that is always zero is rounded to the nearest, and takes no part."""
    rows = drawn(5, 20, seed=3)
    rows[:, 4] = rows[:, 11] = 0
    weight, second = drawn(6, 20), rows.T @ rows / 5
    weight[:, [4, 11]] *= 0.1  # so that they set no scale
    found = gptq.gptq(weight, second, 4)
    assert torch.equal(found.code[:, [4, 11]], rounded(weight, 4, None, True).code[:, [4, 11]])
    kept = [j for j in range(20) if j not in (4, 11)]
    damping = 0.01 * 18 / 20  # of the mean diagonal, which dead inputs lower
    alone = gptq.gptq(weight[:, kept], second[kept][:, kept], 4, damping=damping)
    assert torch.equal(found.code[:, kept], alone.code)
    assert error(weight, found.weight(), second) < error(
        weight, rounded(weight, 4, None, True).weight(), second
    )


def test_singular_without_damping() -> None:
    rows = drawn(5, 20, seed=3)
    with pytest.raises(MethodError, match=r"second moment of 20 inputs is singular .* raise damping"):
        gptq.gptq(drawn(6, 20), torch.zeros(20, 20).double(), 4)
    with pytest.raises(MethodError, match="singular"):
        gptq.gptq(drawn(6, 20), rows.T @ rows - torch.eye(20).double(), 4, damping=0)
