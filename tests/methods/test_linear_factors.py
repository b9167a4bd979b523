"""geometry.linear_factors: sums of parts, parts that meet, concepts that go together, and numpy's own numbers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import linear_factors


def run(
    x: Tensor, codes: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[linear_factors.Result, np.ndarray]:
    config, index = linear_factors.Config.model_validate(options), torch.arange(len(x))
    names = [f"c{k}" for k in range(codes.shape[1])]
    categories = {name: tuple("abcdef") for name in names}
    inputs = Inputs({"x": x.shape[1]}, len(x), len(x), categories=categories)
    linear_factors.check(inputs, config)
    labels = dict(zip(names, codes.T, strict=True))
    block = Block({"x": x}, index if sample is None else sample, index, index, labels)
    result, arrays = linear_factors.solve(block, inputs, config)
    return result, arrays["cosine"].values.numpy()


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grid(repeats: int) -> Tensor:
    """Every combination of three and four values."""
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    return cells.repeat(repeats, 1)


def parts(codes: Tensor, basis: Tensor) -> Tensor:
    """Of two concepts in features of their own."""
    return basis[:3][codes[:, 0]] @ torch.eye(20).double() + basis[3:7][codes[:, 1]]


def test_an_exact_sum_of_orthogonal_parts() -> None:
    codes = grid(10)
    basis = torch.zeros(7, 20).double()
    basis[:3, :8], basis[3:, 8:] = drawn(3, 8), drawn(4, 12, 1)
    result, cosines = run(parts(codes, basis) + 5, codes)
    for share in (result.marginal, result.additive, result.cells, result.linear, result.marginal_whitened):
        assert share is not None
        assert share.value == pytest.approx(1, abs=1e-9)
    assert result.cosine_across is not None
    assert result.cosine_across.value == pytest.approx(0, abs=1e-9)
    assert cosines[0, 1] == pytest.approx(0, abs=1e-9)
    assert [c.rank for c in result.concepts] == [2, 3]
    assert sum(c.share for c in result.concepts) == pytest.approx(1)
    assert (result.n_combinations, result.n_possible) == (12, 12)
    assert result.marginal_chance is not None
    assert result.marginal_chance < 0.2


def test_combinations_of_their_own_are_not_linear() -> None:
    codes = grid(30)
    own = drawn(12, 20)[codes[:, 0] * 4 + codes[:, 1]] + 0.3 * drawn(360, 20, 1)
    result, _ = run(own, codes)
    assert result.linear is not None
    assert result.linear.low is not None
    assert result.linear.high is not None
    expected = 5 / 11  # of 11 directions of cells, 2 + 3 are sums
    assert result.linear.value == pytest.approx(expected, abs=0.12)
    assert result.linear.low < result.linear.value < result.linear.high < 0.9


def test_numbers_are_those_of_numpy() -> None:
    codes = torch.stack([torch.arange(90) % 3, torch.arange(90) * 7 // 5 % 4], dim=1)
    x = drawn(90, 6) + drawn(3, 6, 1)[codes[:, 0]] + drawn(4, 6, 2)[codes[:, 1]]
    result, cosines = run(x, codes)
    xc = (x - x.mean(0)).numpy()
    y = codes.numpy()
    means = [np.stack([xc[y[:, k] == v].mean(0) for v in range(n)]) for k, n in ((0, 3), (1, 4))]
    hat = means[0][y[:, 0]] + means[1][y[:, 1]]
    assert result.marginal is not None
    assert result.marginal_whitened is not None
    assert result.additive is not None
    assert result.cells is not None
    assert result.cosine_across is not None
    assert result.marginal.value == pytest.approx(1 - ((xc - hat) ** 2).sum() / (xc**2).sum(), rel=1e-9)
    root = np.linalg.inv(np.linalg.cholesky(np.cov(xc.T)))
    white, hat_white = xc @ root.T, hat @ root.T
    expected = 1 - ((white - hat_white) ** 2).sum() / (white**2).sum()
    assert result.marginal_whitened.value == pytest.approx(expected, rel=1e-8)
    design = np.concatenate([np.eye(3)[y[:, 0]], np.eye(4)[y[:, 1]]], axis=1)
    fitted = design @ np.linalg.lstsq(design, xc, rcond=None)[0]
    assert result.additive.value == pytest.approx((fitted**2).sum() / (xc**2).sum(), rel=1e-9)
    assert result.additive.value <= result.cells.value
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in means]
    assert result.cosine_across.value == pytest.approx(np.abs(unit[0] @ unit[1].T).mean(), rel=1e-9)
    own = np.abs(unit[1] @ unit[1].T)[~np.eye(4, dtype=bool)].mean()
    assert cosines[1, 1] == pytest.approx(own, rel=1e-9)


def test_concepts_that_go_together_are_said() -> None:
    """The same label twice: the sum of means counts it twice, the best sum once."""
    codes = torch.arange(80)[:, None] % 4
    x = drawn(4, 9)[codes[:, 0]] + 0.1 * drawn(80, 9, 1)
    result, _ = run(x, torch.cat([codes, codes], dim=1))
    assert result.marginal is not None
    assert result.additive is not None
    assert result.marginal.value < 0.1
    assert result.additive.value > 0.95
    assert any("go together" in note for note in result.caveats)
    assert any("4 of 16 combinations" in note for note in result.caveats)


def test_labels_that_say_nothing() -> None:
    rng, sample = np.random.default_rng(0), torch.arange(240) // 4
    codes = torch.from_numpy(rng.integers(0, 3, (60, 2)))[sample]
    result, _ = run(drawn(60, 50)[sample] + 0.2 * drawn(240, 50, 1), codes, sample)
    assert result.additive is not None
    assert result.marginal is not None
    assert result.marginal_chance is not None
    assert result.marginal.value == pytest.approx(result.marginal_chance, abs=0.03)
    assert result.marginal.value > 0.03  # rows of few samples are explained by any label
    assert result.cosine_random == pytest.approx(math.sqrt(2 / math.pi / 50), rel=0.01)


def test_what_is_missing_is_counted() -> None:
    codes = grid(5)
    codes[:4, 0] = -1
    x = drawn(60, 5)
    result, _ = run(x, codes)
    assert (result.n_unlabelled, result.n_rows) == (4, 60)
    one, cosines = run(x, codes[:, 1:])
    assert one.cosine_across is None
    assert any("one concept" in note for note in one.caveats)
    assert cosines.shape == (1, 1)
    single, cosines = run(x, torch.zeros(60, 2, dtype=torch.int64))
    assert single.linear is None
    assert np.isnan(cosines[0, 0])
    constant, _ = run(torch.ones(60, 5).double(), grid(5))
    assert (constant.additive, constant.marginal) == (None, None)


def test_two_runs_are_equal_and_bad_labels_are_refused() -> None:
    assert run(drawn(60, 5), grid(5))[0] == run(drawn(60, 5), grid(5))[0]
    with pytest.raises(MethodError, match="names no classes"):
        run(drawn(60, 5), grid(5), labels=("other",))
    with pytest.raises(MethodError, match="found 0 good rows"):
        run(drawn(60, 5), torch.full((60, 2), -1))
