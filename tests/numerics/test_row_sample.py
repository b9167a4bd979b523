"""A sample of rows: all while they fit, the same for any parts, and with equal chances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.numerics import row_sample


def drawn(n: int, size: int, edges: list[int] | None = None, order: bool = False) -> row_sample.Sample:
    index = torch.arange(n)
    value = torch.stack([index.double() * 2, -index.double()], 1)
    parts = torch.tensor_split(index, sorted(edges or []))
    parts = tuple(reversed(parts)) if order else parts
    total = row_sample.of_rows(parts[0], value[parts[0]], size)
    for part in parts[1:]:
        total = row_sample.merge(total, row_sample.of_rows(part, value[part], size))
    return total


@settings(max_examples=20, deadline=None)
@given(edges=st.lists(st.integers(0, 90), max_size=6), size=st.integers(1, 120), order=st.booleans())
def test_parts_and_their_order_do_not_matter(edges: list[int], size: int, order: bool) -> None:
    whole, other = drawn(90, size), drawn(90, size, edges, order)
    assert all(torch.equal(whole[name], other[name]) for name in ("key", "value"))
    values = row_sample.values(whole)
    assert len(values) == min(size, 90)
    assert torch.equal(values[:, 0], -2 * values[:, 1])
    assert len(torch.unique(values[:, 0])) == len(values)


def test_all_rows_are_there_while_they_fit() -> None:
    assert sorted(row_sample.values(drawn(50, 64))[:, 1].neg().long().tolist()) == list(range(50))


def test_chances_are_equal() -> None:
    """Of 100,000 rows, 10,000: each tenth of the rows has its share, as has each residue, within four standard errors."""
    rows = row_sample.values(drawn(100_000, 10_000))[:, 1].neg().long().numpy()
    for counts in (np.histogram(rows, 10, (0, 100_000))[0], np.bincount(rows % 10)):
        np.testing.assert_allclose(counts, 1000, atol=4 * np.sqrt(1000 * 0.9 * 0.9))


def test_rows_of_equal_names_are_kept_apart_by_their_values() -> None:
    """As those of two captures, whose rows are counted from 0 in each."""
    index = torch.arange(10)
    a, b = (row_sample.of_rows(index, torch.full((10, 1), value).double(), 15) for value in (1.0, 2.0))
    both, swapped = row_sample.merge(a, b), row_sample.merge(b, a)
    assert torch.equal(both["value"], swapped["value"])
    assert both["value"].sum() == pytest.approx(8 * 1 + 7 * 2)


def test_numbers_of_rows_are_as_good_as_random() -> None:
    found = row_sample.numbers(torch.arange(100_000)).numpy()
    assert found.min() > 0
    assert found.max() < 1
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
