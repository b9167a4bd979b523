"""Two bytes hold every code, counts give the entropies that all codes have, and quantiles those of the sorted numbers."""

import numpy as np
import pytest
import torch
from scipy import stats

from tasks.numerics import uniform_codes as uc


def test_every_code_is_split_and_joined() -> None:
    every = torch.arange(-uc.LARGEST, uc.LARGEST + 1)[:, None]
    low, high = uc.split(every)
    assert torch.equal(uc.join(low, high), every)
    assert torch.equal(high == 0, (every <= 127) & (every >= -128))


def test_codes_are_the_nearest_and_never_wrap() -> None:
    given = torch.tensor([[0.24, -0.26, 0.76, 1e9, -1e9]], dtype=torch.float64)
    assert uc.codes(given, 0.5).tolist() == [[0, -1, 2, uc.LARGEST, -uc.LARGEST]]


def test_entropies_are_those_of_all_codes() -> None:
    rng = np.random.default_rng(0)
    deviations = torch.tensor([0.1, 1.0, 12.0, 90.0], dtype=torch.float64)
    code = torch.from_numpy(np.rint(rng.standard_normal((60_000, 4)) * deviations.numpy())).long()
    width = uc.bins(deviations)
    assert width.tolist() == [1, 1, 1, 6]
    counts = uc.count(code[:100], width) + uc.count(code[100:], width)
    found = uc.entropies(counts, width)
    for k in range(4):
        expected = stats.entropy(np.unique(code[:, k], return_counts=True)[1], base=2)
        assert float(found[k]) == pytest.approx(expected, abs=1e-9 if width[k] == 1 else 0.01)


def test_no_codes_have_no_entropy() -> None:
    width = torch.tensor([1, 6])
    assert uc.entropies(uc.count(torch.zeros(0, 2, dtype=torch.int64), width), width).tolist() == [0, 0]


def test_quantiles_are_those_of_sorted_numbers() -> None:
    values = np.random.default_rng(0).lognormal(-8, 2, 5000)
    counts, total = uc.distances(torch.from_numpy(values))
    assert float(total) == pytest.approx(values.sum())
    for share in (0.01, 0.5, 0.99):
        assert 1 <= uc.quantile(counts, share) / np.quantile(values, share, method="inverted_cdf") <= 1.045
    assert np.isnan(uc.quantile(torch.zeros_like(counts), 0.99))
    edges = uc.distances(torch.tensor([0.0, 4.0], dtype=torch.float64))
    assert uc.quantile(edges.counts, 0.5) <= 2**-47
    assert uc.quantile(edges.counts, 1.0) == 4


def test_rows_of_parts_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    coordinates, part = rng.standard_normal((50, 3)), rng.integers(0, 4, 50)
    components, mean = rng.standard_normal((5, 3, 7)), rng.standard_normal((5, 7))
    given = [torch.from_numpy(values) for values in (coordinates, part, components, mean)]
    loop = [c @ components[k] + mean[k] for c, k in zip(coordinates, part, strict=True)]
    np.testing.assert_allclose(uc.in_parts(*given), loop, atol=1e-12)


def test_what_entropies_of_few_counts_lack() -> None:
    """With it they are right on average, to a twentieth of what they lack."""
    rng, chance = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1])
    counts = torch.from_numpy(rng.multinomial(60, chance, 4000))
    lacking = stats.entropy(chance, base=2) - float(uc.entropies(counts, torch.ones(4000).long()).mean())
    assert float(uc.unseen(counts).mean()) / 60 == pytest.approx(lacking, rel=0.1)
    assert uc.unseen(torch.tensor([[0, 0], [3, 0]])).tolist() == [0, 0]
