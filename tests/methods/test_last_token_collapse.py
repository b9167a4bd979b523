"""geometry.last_token_collapse: planted laws, pairs by hand, precision, and texts without partners."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError, UnknownNameError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.geometry import last_token_collapse


def run(
    x: Tensor, sample: Tensor, families: Tensor | None = None, order: Tensor | None = None, **options: Any
) -> tuple[last_token_collapse.Result, dict[str, Array]]:
    """The method as the engine calls it; `families` are those of samples."""
    start = torch.searchsorted(sample, sample)
    index = torch.arange(len(x))
    labels = {} if families is None else {"family": families[sample]}
    block = Block({"x": x}, sample, index - start, index, labels=labels)
    if order is not None:
        moved = {name: values[order] for name, values in labels.items()}
        block = Block({"x": x[order]}, sample[order], (index - start)[order], index[order], labels=moved)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1)
    config = last_token_collapse.Config.model_validate(({"family": "family"} if labels else {}) | options)
    return last_token_collapse.solve(block, inputs, config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def growing(families: int, lengths: list[int], power: float) -> tuple[Tensor, Tensor, Tensor]:
    """Texts of each family, one of each length, whose last row moves by length^power in a direction of its own."""
    rows, sample, family = [], [], []
    for f in range(families):
        here = 10 * drawn(30, seed=f)
        for k, length in enumerate(lengths):
            step = torch.nn.functional.normalize(drawn(30, seed=1000 + 50 * f + k), dim=0)
            here = here + step * length**power
            rows += [drawn(length - 1, 30, seed=7), here[None]]
            sample += [len(family)] * length
            family.append(f)
    return torch.cat(rows), torch.tensor(sample), torch.tensor(family)


@pytest.mark.parametrize("power", [-1.0, 0.5])
def test_a_planted_law_of_length(power: float) -> None:
    x, sample, family = growing(6, [2, 4, 8, 16, 32], power)
    result, arrays = run(x, sample, family)
    assert (result.n_samples, result.n_families, result.n_pairs, result.n_alone) == (30, 6, 24, 0)
    assert result.exponent == pytest.approx(power)
    assert result.exponent_low == pytest.approx(power, abs=1e-6)
    assert sorted(set(arrays["length"].values.tolist())) == [4, 8, 16, 32]
    assert result.relative is not None
    assert result.relative.low is not None
    mixed = run(x, sample, family, torch.randperm(len(x), generator=torch.Generator().manual_seed(3)))[0]
    assert mixed.exponent == pytest.approx(power)


def test_numbers_are_those_of_a_loop() -> None:
    x, sample, family = growing(4, [3, 5, 4], -0.3)
    result, arrays = run(x, sample, family)
    last = [int(np.flatnonzero(sample.numpy() == s)[-1]) for s in range(12)]
    pairs = [(3 * f + a, 3 * f + b) for f in range(4) for a, b in ((0, 2), (2, 1))]  # lengths 3, 4, 5
    assert list(zip(arrays["first"].values.tolist(), arrays["second"].values.tolist(), strict=True)) == pairs
    rows = x.numpy()
    distance = [np.linalg.norm(rows[last[a]] - rows[last[b]]) for a, b in pairs]
    np.testing.assert_allclose(arrays["distance"].values, distance, rtol=1e-12)
    others = [
        ((rows[last[a]] - rows[last[b]]) ** 2).sum() for a in range(12) for b in range(a) if a // 3 != b // 3
    ]
    assert result.typical == pytest.approx(np.sqrt(np.mean(others)), rel=1e-10)
    assert result.relative is not None
    assert result.relative.value == pytest.approx(np.mean(distance) / np.sqrt(np.mean(others)), rel=1e-10)
    alone = run(x, sample)[0]
    everything = [((rows[last[a]] - rows[last[b]]) ** 2).sum() for a in range(12) for b in range(a)]
    assert alone.typical == pytest.approx(np.sqrt(np.mean(everything)), rel=1e-10)
    assert "all texts count as one family" in alone.caveats[0]


def test_what_low_precision_tells_apart() -> None:
    """Differences of 0.1 % of each value: seen by float32, not by bfloat16, whose steps are 0.4 % to 0.8 %."""
    base = torch.full((1, 8), 1.0)
    x = torch.cat([base, base * 1.001, base, base, base, base * 1.1])
    result, _ = run(x, torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert (result.n_pairs, result.n_equal) == (3, 1)
    assert result.equal_bfloat16 == pytest.approx(2 / 3)


def test_texts_without_partners() -> None:
    result, arrays = run(drawn(5, 4), torch.arange(5), torch.arange(5))
    assert (result.n_pairs, result.n_alone, result.relative, result.exponent) == (0, 5, None, None)
    assert len(arrays["distance"].values) == 0
    assert "no text has another" in " ".join(result.caveats)
    assert run(torch.ones(4, 3), torch.arange(4))[0].relative is None
    with pytest.raises(MethodError, match="found 1 samples"):
        run(drawn(5, 4), torch.zeros(5).long())
    with pytest.raises(UnknownNameError, match="no label 'group'"):
        run(drawn(5, 4), torch.arange(5), torch.arange(5), family="group")
