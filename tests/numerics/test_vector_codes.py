"""The nearest vectors are those of all differences, decoded rows those of plain NumPy, and distances from codes those of decoded rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import MethodError
from tasks.numerics import vector_codes
from tasks.numerics.vector_codes import Codebooks, Scale


def books(width: int, place: int, codes: int, scale: Scale = "none", turned: bool = False) -> Codebooks:
    rng = torch.Generator().manual_seed(0)
    centre = torch.randn(-(-width // place), codes, place, generator=rng, dtype=torch.float64)
    centre[-1, :, width - place * (len(centre) - 1) :] = 0
    mean = torch.randn(width, generator=rng, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.float64))[0]
    return Codebooks(centre, mean, turn if turned else turn[:0], scale)


def rows(n: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1


def test_the_nearest_are_those_of_all_differences() -> None:
    parts, centre = rows(700, 12).reshape(700, 4, 3), books(12, 3, 16).centre
    expected = ((parts[:, :, None] - centre) ** 2).sum(3).argmin(2)
    assert torch.equal(vector_codes.nearest(parts, centre), expected)


def test_the_first_of_equal_vectors_is_named() -> None:
    centre = torch.ones(1, 5, 2, dtype=torch.float64)
    assert vector_codes.nearest(torch.ones(3, 1, 2, dtype=torch.float64), centre).tolist() == [[0]] * 3


@pytest.mark.parametrize("scale", ["none", "gain", "gain_bias"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("place", [4, 5, 11, 30])
def test_errors_are_those_of_decoded_rows(scale: Scale, turned: bool, place: int) -> None:
    """Also where the last part has fewer features, and where one part is wider than rows are."""
    x, given_books = rows(40, 11), books(11, place, 8, scale, turned)
    found = vector_codes.coded(x, given_books)
    told = vector_codes.decoded(found.code.to(torch.uint8), found.gain, found.bias, given_books)
    np.testing.assert_allclose(found.squared_error, ((x - told) ** 2).sum(1), rtol=1e-10)
    if scale != "none":
        np.testing.assert_allclose(found.gain, (x - found.bias[:, None]).norm(dim=1), rtol=1e-6)
    np.testing.assert_allclose(found.bias, x.mean(1) if scale == "gain_bias" else 0, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(edge=st.integers(0, 1200), seed=st.integers(0, 5))
def test_no_bit_depends_on_the_rows_beside(edge: int, seed: int) -> None:
    x, given_books = rows(1200, 10, seed).float(), books(10, 4, 16, "gain_bias", True)
    whole = vector_codes.coded(x, given_books)
    parts = [vector_codes.coded(some, given_books) for some in (x[:edge], x[edge:])]
    for name in whole._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name


def test_rows_without_length_come_back() -> None:
    x = torch.zeros(2, 6, dtype=torch.float64)
    x[1] = 3
    given_books = books(6, 2, 4, "gain_bias")
    found = vector_codes.coded(x, given_books)
    assert torch.equal(vector_codes.decoded(found.code, found.gain, found.bias, given_books), x)
    assert found.squared_error.tolist() == [0, 0]


@pytest.mark.parametrize("turned", [False, True])
def test_distances_of_exact_rows_from_codes(turned: bool) -> None:
    x, query, given_books = rows(60, 10), rows(7, 10, 2), books(10, 4, 8, turned=turned)
    found = vector_codes.coded(x, given_books)
    told = vector_codes.decoded(found.code, found.gain, found.bias, given_books)
    expected = ((query[:, None] - told) ** 2).sum(2)
    np.testing.assert_allclose(
        vector_codes.asymmetric(query, found.code.to(torch.uint8), given_books), expected, rtol=1e-10
    )


def test_distances_from_codes_with_a_scale_are_refused() -> None:
    given_books = books(10, 4, 8, "gain")
    with pytest.raises(MethodError, match="need `none`"):
        vector_codes.asymmetric(rows(2, 10), torch.zeros(3, 3, dtype=torch.uint8), given_books)


def test_perplexity() -> None:
    count = torch.tensor([[5, 5, 5, 5], [9, 0, 0, 0], [3, 3, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(vector_codes.perplexity(count), [4, 1, 2, 1], rtol=1e-12)
