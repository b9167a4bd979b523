"""One number for each group of rows, beside a loop."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.numerics.pooling import pooled


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    st.integers(0, 99),
)
def test_the_mean_of_the_highest_share_is_that_of_a_loop(sizes: list[int], share: float, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-3, 4, sum(sizes)).astype(np.float64)
    groups = np.split(values, np.cumsum(sizes)[:-1])
    first = np.zeros(len(values), dtype=bool)
    first[np.cumsum([0, *sizes[:-1]])] = True
    found = pooled(torch.from_numpy(values), torch.from_numpy(first), share)
    wanted = [np.sort(g)[::-1][: max(1, math.ceil(round(share * len(g), 9)))].mean() for g in groups]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_a_share_of_whole_rows_is_not_rounded_up() -> None:
    values = torch.arange(100, dtype=torch.float64)
    first = torch.zeros(100, dtype=torch.bool)
    first[0] = True
    assert float(pooled(values, first, 0.07)) == float(values[-7:].mean())


def test_infinite_scores_and_no_rows() -> None:
    values, first = torch.tensor([1.0, torch.inf, 2.0]).double(), torch.tensor([True, False, True])
    assert pooled(values, first, 0.0).tolist() == [torch.inf, 2.0]
    assert pooled(values[:0], first[:0], 0.5).shape == (0,)
