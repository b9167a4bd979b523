"""Largest products: against sorting all of them, in any cuts, with ties."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.numerics.largest_products import Largest, Precision, largest, none_yet, tiles


def sorted_all(x: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    product = x @ x.T
    np.fill_diagonal(product, 0)
    order = np.argsort(-np.abs(product), axis=1, kind="stable")[:, :places]
    value = np.take_along_axis(product, order, 1)
    return value, np.where(value != 0, order, -1)


def searched(x: np.ndarray, places: int, edges: list[int]) -> Largest:
    rows, index = torch.from_numpy(x), torch.arange(len(x))
    found = none_yet(len(x), places, "cpu")
    for a, b in zip([0, *edges], [*edges, len(x)], strict=True):
        if a < b:
            found = largest(found, rows, index, rows[a:b], index[a:b])
    return found


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 60),
    width=st.integers(1, 5),
    places=st.integers(1, 9),
    seed=st.integers(0, 99),
    edges=st.lists(st.integers(0, 60), max_size=5),
)
def test_those_of_a_sort_with_the_smaller_index_first(
    n: int, width: int, places: int, seed: int, edges: list[int]
) -> None:
    """Of whole numbers, which are often equal, and whose products are exact."""
    x = np.random.default_rng(seed).integers(-2, 3, (n, width)).astype(np.float64)
    found = searched(x, places, sorted(min(e, n) for e in edges))
    value, column = sorted_all(x, places)
    missing = max(0, places - n)
    np.testing.assert_array_equal(found.column, np.pad(column, ((0, 0), (0, missing)), constant_values=-1))
    np.testing.assert_array_equal(found.product, np.pad(value, ((0, 0), (0, missing))))
    product = np.abs(x @ x.T)
    np.testing.assert_array_equal(found.total, product.sum(1) - product.diagonal())


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("width", [1, 7, 50, 384, 1000])
def test_the_place_in_a_tile_changes_no_bit(width: int, precision: Precision) -> None:
    rng = np.random.default_rng(width)
    for _ in range(3):
        x = torch.from_numpy(rng.standard_normal((1, width))).expand(700, width)
        y = torch.from_numpy(rng.standard_normal((1, width))).expand(1300, width)
        values = torch.cat([tile.products.flatten().clone() for tile in tiles(x, y, precision)])
        assert len(values.unique()) == 1


def test_cuts_change_no_bit() -> None:
    """Beyond one tile of rows and of columns."""
    x = np.random.default_rng(0).standard_normal((2600, 7))
    whole, cut = searched(x, 6, []), searched(x, 6, [1, 513, 2049, 2050])
    assert torch.equal(whole.column, cut.column)
    assert torch.equal(whole.product, cut.product)
    np.testing.assert_array_equal(whole.column, sorted_all(x, 6)[1])


def test_cuts_change_no_sum_of_single_precision() -> None:
    """But for its last bits of double precision: shares that are kept are written in single."""
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((600, 50)))
    index, sums = torch.arange(600), []
    for edges in ([0, 600], [0, 37, 300, 600]):
        found = none_yet(600, 5, "cpu")
        for a, b in pairwise(edges):
            found = largest(found, x, index, x[a:b], index[a:b], "float32")
        sums.append(found.total)
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-13)


def test_single_precision_is_near() -> None:
    x = np.random.default_rng(1).standard_normal((300, 40))
    rows, index = torch.from_numpy(x), torch.arange(300)
    found = largest(none_yet(300, 4, "cpu"), rows, index, rows, index, "float32")
    np.testing.assert_allclose(found.product, sorted_all(x, 4)[0], rtol=1e-5)
