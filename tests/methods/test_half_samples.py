"""Intervals from halves of the samples cover, where rows of a sample depend on each other."""

import numpy as np
import pytest
import torch

from tasks.methods import half_samples


def test_halves_keep_samples_together() -> None:
    sample = torch.arange(60) // 4
    halves = half_samples.draw(sample, 5, seed=3)
    assert len(halves) == 5
    for rows in halves:
        assert len(rows) == 28
        assert sorted(rows.tolist()) == rows.tolist()
        assert all(
            set(rows.tolist()) >= {4 * s, 4 * s + 1, 4 * s + 2, 4 * s + 3} for s in sample[rows].tolist()
        )
    again = half_samples.draw(sample, 5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(halves, again, strict=True))
    assert not torch.equal(halves[0], half_samples.draw(sample, 5, seed=4)[0])
    assert half_samples.draw(torch.zeros(9, dtype=torch.int64), 5, seed=0) == []


@pytest.mark.parametrize("ratio", [False, True])
def test_intervals_cover_dependent_rows(ratio: bool) -> None:
    """A median of rows, and a sum that grows with rows."""
    rng, hits = np.random.default_rng(0), []
    sample = torch.arange(160) // 4
    for seed in range(300):
        x = torch.from_numpy(np.repeat(rng.standard_normal(40), 4) + 5 + 0.1 * rng.standard_normal(160))
        of = (lambda rows: float(rows.sum())) if ratio else (lambda rows: float(rows.median()))
        halves = [of(x[rows]) for rows in half_samples.draw(sample, 12, seed)]
        found = half_samples.interval(of(x), halves, 0.95, ratio)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= (800 if ratio else 5) <= found.high)
    assert 0.91 <= np.mean(hits) <= 0.99


def test_what_is_not_determined() -> None:
    assert half_samples.interval(float("nan"), [1.0, 2.0], 0.95) is None
    for halves in ([], [1.0], [1.0, float("nan")]):
        found = half_samples.interval(1.0, halves, 0.95)
        assert found is not None
        assert (found.value, found.low, found.high) == (1.0, None, None)
    assert half_samples.caveats(torch.zeros(4, dtype=torch.int64)) == ("1 sample: no interval can be given",)
    assert half_samples.caveats(torch.arange(4)) == ("intervals rest on 4 samples",)
    assert half_samples.caveats(torch.arange(10)) == ()
