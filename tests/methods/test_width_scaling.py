"""spectrum.width_scaling: planted exponents, scipy's regression, white noise, and too few widths."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tasks.methods.contract import Array, Block, Inputs, Member
from tasks.methods.spectrum import summary, width_scaling


def member(rows: Tensor, capture: str = "", site: str = "a") -> Member:
    """The summary of some rows, as another stage made it."""
    config, index = summary.Config(), torch.arange(len(rows))
    inputs = Inputs(widths={"x": rows.shape[1]}, n_rows=len(rows), n_samples=len(rows))
    state = summary.partial(Block({"x": rows}, index, index * 0, index), {}, config)
    result, _ = summary.finish(state, {}, inputs, config)
    return Member(site, (capture or f"capture-{rows.shape[1]}",), {}, result.model_dump(mode="json"))


def faked(width: int, rank: float, capture: str = "", **more: Any) -> Member:
    """A summary with the numbers that matter."""
    result = {"width": width, "n_eff": 100.0 * width} | dict.fromkeys(width_scaling.MEASURES, rank) | more
    return Member("a", (capture or f"capture-{width}",), {}, result)


def run(*members: Member, confidence: float = 0.95) -> tuple[width_scaling.Result, dict[str, Array]]:
    inputs = Inputs(widths={}, n_rows=0, n_samples=0, series={"summaries": members})
    return width_scaling.solve(inputs, width_scaling.Config(confidence=confidence))


def drawn(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_planted_law() -> None:
    result, arrays = run(*(faked(w, 1.5 * w**0.6) for w in (64, 128, 256, 512)))
    law = result.effective_rank
    assert law is not None
    assert (law.exponent, law.factor, law.r_squared) == pytest.approx((0.6, 1.5, 1))
    assert law.low == pytest.approx(0.6, abs=1e-6)
    assert law.high == pytest.approx(0.6, abs=1e-6)
    assert arrays["width"].values.tolist() == [64, 128, 256, 512]


def test_the_interval_is_that_of_scipy() -> None:
    widths, ranks = [32, 64, 128, 256, 512], [9.0, 14.0, 17.5, 31.0, 40.0]
    law = run(*(faked(w, r) for w, r in zip(widths, ranks, strict=True)), confidence=0.9)[
        0
    ].participation_ratio
    found = stats.linregress(np.log(widths), np.log(ranks))
    reach = stats.t.ppf(0.95, 3) * found.stderr
    assert law is not None
    assert (law.exponent, law.low, law.high) == pytest.approx(
        (found.slope, found.slope - reach, found.slope + reach)
    )
    assert law.r_squared == pytest.approx(found.rvalue**2)


def test_rows_with_a_planted_soft_and_hard_rank() -> None:
    """Half of the energy in four directions, half in all others: 4 sqrt(width - 4) soft, and a hard one that hardly grows."""
    members = []
    for width in (32, 64, 128, 256):
        scale = torch.full((width,), math.sqrt(0.5 / (width - 4)), dtype=torch.float64)
        scale[:4] = math.sqrt(0.5 / 4)
        members.append(member(drawn(40 * width, width) * scale))
    result, _ = run(*members)
    assert result.effective_rank is not None
    assert result.participation_ratio_unbiased is not None
    widths = np.array([32, 64, 128, 256])
    expected = stats.linregress(np.log(widths), np.log(4 * np.sqrt(widths - 4))).slope
    assert result.effective_rank.exponent == pytest.approx(expected, abs=0.01)
    assert result.participation_ratio_unbiased.exponent < 0.1


def test_white_noise_is_its_own_null() -> None:
    """The same number of rows at every width: ranks of the sample grow slower than the width."""
    result, _ = run(*(member(drawn(300, width)) for width in (50, 100, 200, 400)))
    for law in (result.participation_ratio, result.effective_rank):
        assert law is not None
        assert law.exponent_null is not None
        assert law.exponent < 0.9
        assert law.exponent == pytest.approx(law.exponent_null, abs=0.02)
    assert result.participation_ratio_unbiased is not None
    assert result.participation_ratio_unbiased.exponent == pytest.approx(1, abs=0.02)
    assert "4 of 4 artifacts have less than 10 rows per feature" in " ".join(result.caveats)


def test_sites_of_a_capture_are_one_point() -> None:
    members = [faked(w, r * w) for w in (10, 20, 40) for r in (0.1, 0.4)]
    result, arrays = run(*members)
    assert (result.n_artifacts, result.n_points, result.n_widths) == (6, 3, 3)
    np.testing.assert_allclose(arrays["effective_rank"].values, [2, 4, 8])
    again, _ = run(*(faked(w, r * w, f"seed-{r}-{w}") for w in (10, 20, 40) for r in (0.1, 0.4)))
    assert again.n_points == 6


def test_too_few_widths_and_missing_numbers() -> None:
    result, _ = run(faked(10, 2), faked(20, 3), faked(20, 4, "other"))
    assert result.effective_rank is None
    assert "2 different widths, a law takes 3" in result.caveats[0]
    members = [faked(w, w / 2) for w in (10, 20, 40)]
    result, arrays = run(*members, faked(80, 1, participation_ratio_unbiased=None))
    assert result.participation_ratio_unbiased is not None
    assert result.participation_ratio_unbiased.points == 3
    assert arrays["participation_ratio_unbiased"].values.isnan().tolist() == [False, False, False, True]
