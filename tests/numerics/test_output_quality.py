"""Quality of outputs: against scipy and plain loops, with ties."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from scipy.stats import spearmanr

from tasks.numerics import output_quality as quality


def rows(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rank_correlation_of_cosines() -> None:
    a, b = rows(30, 5, 0), rows(30, 7, 1)
    pairs = quality.drawn_pairs(30, 1000, 0)
    assert len(pairs) == 30 * 29 // 2
    found = quality.rank_correlation(quality.cosines(a, pairs), quality.cosines(b, pairs))
    expected = spearmanr(
        [float(torch.cosine_similarity(a[i], a[j], dim=0)) for i, j in pairs.tolist()],
        [float(torch.cosine_similarity(b[i], b[j], dim=0)) for i, j in pairs.tolist()],
    ).statistic
    assert found == pytest.approx(expected, abs=1e-12)
    some = quality.drawn_pairs(30, 100, 3)
    assert len(some) == 100
    assert (some[:, 0] != some[:, 1]).all()
    assert int(some.min()) >= 0
    assert int(some.max()) < 30
    assert np.isnan(quality.rank_correlation(torch.ones(3).double(), torch.arange(3).double()))


@pytest.mark.parametrize("n", [20, 700])
def test_recall_against_a_loop(n: int) -> None:
    a, b = rows(n, 6, 2), rows(n, 6, 2) + 0.3 * rows(n, 6, 3)
    found = quality.recall(a, b, 5)
    for i in range(0, n, 7):
        sims = [torch.nn.functional.cosine_similarity(x[i], x, dim=1) for x in (a, b)]
        near = [set((s.masked_fill(torch.arange(n) == i, -9)).topk(5).indices.tolist()) for s in sims]
        assert float(found[i]) == pytest.approx(len(near[0] & near[1]) / 5)


def test_neighbours_that_are_equally_near_count() -> None:
    a = rows(6, 4, 4).repeat(3, 1)  # each thrice: with k = 1 either other copy is right
    shuffled = a + 1e-9 * rows(18, 4, 5)
    assert (quality.recall(a, shuffled, 1) == 1).all()
    assert (quality.recall(a, a, 2) == 1).all()


def test_outputs_that_are_no_numbers_have_no_neighbours() -> None:
    a = rows(20, 4, 4)
    one, none = a.clone(), a * torch.nan
    one[3, 0] = torch.inf
    assert quality.recall(a, one, 5).isnan().all()  # whether the third is near is not known of any
    assert quality.recall(a, none, 5).isnan().all()


def test_divergence() -> None:
    a, b = rows(9, 4, 6), rows(9, 4, 7)
    p, q = (torch.softmax(x, 1).numpy() for x in (a, b))
    np.testing.assert_allclose(quality.divergence(a, b), rel_entr(p, q).sum(1), rtol=1e-10)
    assert not quality.divergence(a, a + 3).abs().max() > 1e-12
