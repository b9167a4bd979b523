"""geometry.token_collapse: planted collapse, a loop over pairs, and texts that determine nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.geometry import token_collapse


def run(x: Tensor, sample: Tensor, **options: Any) -> tuple[token_collapse.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    index = torch.arange(len(x))
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1)
    config = token_collapse.Config.model_validate(options)
    return token_collapse.solve(Block({"x": x}, sample, index, index), inputs, config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def texts(n: int, each: int) -> Tensor:
    return torch.arange(n).repeat_interleave(each)


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.3, 3.0])
def test_a_planted_collapse(noise: float) -> None:
    """A row of its own for each text, and noise: the residual is that of the noise; across texts nothing is alike."""
    sample = texts(60, 20)
    result, _ = run(drawn(60, 50)[sample] + noise * drawn(1200, 50, seed=1), sample)
    assert result.residual is not None
    assert result.cosine is not None
    assert result.residual_mixed is not None
    assert result.residual.value == pytest.approx(math.sqrt(noise**2 * 0.95 / (1 + noise**2)), abs=0.02)
    assert result.cosine.value == pytest.approx(1 / (1 + noise**2), abs=0.02)
    assert result.residual_mixed == pytest.approx(math.sqrt(0.95), abs=0.02)
    assert result.cosine_mixed == pytest.approx(0, abs=0.02)
    assert result.effective_rank is not None
    assert noise or result.effective_rank.value == pytest.approx(1)


def test_rows_that_are_alike_everywhere_are_told_from_texts_that_collapse() -> None:
    sample = texts(30, 12)
    result, _ = run(drawn(1, 40) + 0.1 * drawn(360, 40, seed=1), sample)
    assert result.residual is not None
    assert result.residual_mixed == pytest.approx(result.residual.value, rel=0.05)
    assert result.cosine is not None
    assert result.cosine_mixed == pytest.approx(result.cosine.value, rel=0.02)


def test_rank_one_lets_lengths_differ() -> None:
    sample = texts(10, 8)
    result, _ = run(drawn(10, 20)[sample] * drawn(80, 1, seed=2), sample)
    assert result.rank_one_residual is not None
    assert result.residual is not None
    assert result.rank_one_residual.value < 1e-7
    assert result.residual.value > 0.5
    assert result.effective_rank is not None
    assert result.effective_rank.value == pytest.approx(1)


def test_numbers_are_those_of_a_loop() -> None:
    sample = torch.tensor([0] * 5 + [1] + [2] * 7 + [3] * 3)
    x = drawn(16, 6) + 1
    result, arrays = run(x, sample)
    assert (result.n_samples, result.n_measured, result.n_rows) == (4, 3, 16)
    assert arrays["sample"].values.tolist() == [0, 2, 3]
    assert arrays["rows"].values.tolist() == [5, 7, 3]
    for k, text in enumerate((0, 2, 3)):
        rows = x[sample == text].numpy()
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = (unit @ unit.T)[~np.eye(len(rows), dtype=bool)]
        s = np.linalg.svd(rows, compute_uv=False) ** 2
        share = s / s.sum()
        expected = {
            "residual": np.linalg.norm(rows - rows.mean(0)) / np.linalg.norm(rows),
            "rank_one_residual": math.sqrt(s[1:].sum() / s.sum()),
            "cosine": cosines.mean(),
            "effective_rank": math.exp(-(share * np.log(share)).sum()),
        }
        for name, value in expected.items():
            assert float(arrays[name].values[k]) == pytest.approx(value, rel=1e-9)
    long = np.flatnonzero(sample.numpy() != 1)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    pairs = [unit[a] @ unit[b] for a in long for b in long if sample[a] != sample[b]]
    assert result.cosine_mixed == pytest.approx(np.mean(pairs), rel=1e-10)


def test_intervals_cover() -> None:
    truth = run(drawn(4000, 9, seed=99)[texts(4000, 6)] + drawn(24_000, 9, seed=98), texts(4000, 6))[
        0
    ].residual
    assert truth is not None
    hits = []
    for seed in range(40):
        found = run(drawn(25, 9, seed=seed)[texts(25, 6)] + drawn(150, 9, seed=500 + seed), texts(25, 6))[0]
        assert found.residual is not None
        assert found.residual.low is not None
        assert found.residual.high is not None
        hits.append(found.residual.low <= truth.value <= found.residual.high)
    assert np.mean(hits) >= 0.85


def test_zeros_and_single_rows() -> None:
    sample = texts(4, 5)
    x = drawn(20, 6)
    x[:5] = 0
    x[7] = 0
    result, arrays = run(x, sample)
    assert result.n_zero == 6
    assert arrays["residual"].values.isnan().tolist() == [True, False, False, False]
    assert result.cosine is not None
    with pytest.raises(MethodError, match="none of 20 samples has two rows"):
        run(x, torch.arange(20))
