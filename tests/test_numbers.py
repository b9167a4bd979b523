"""Digits of numbers: those that intervals support, and no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.numbers import bracket, decimals, disjoint, told, written


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (38.2345, (36.1, 40.5), "38.2 [36.1, 40.5]"),
        (4.21312, (4.2011, 4.2254), "4.213 [4.201, 4.225]"),
        (153.4, (120.0, 190.0), "153 [120, 190]"),
        (5.0, (5.0, 5.0), "5 [5.0, 5.0]"),
        (2e15, (1e14, 3e16), "2.0e+15 [1.0e+14, 3.0e+16]"),
        (4e-5, (1e-5, 9e-5), "4.0e-05 [1.0e-05, 9.0e-05]"),
        (1037.2, (566.0, 1898.0), "1,037 [566, 1,898]"),
    ],
)
def test_an_interval_says_how_many_digits(value: float, interval: tuple[float, float], text: str) -> None:
    assert told(value, interval) == text


def test_shares_are_per_cent() -> None:
    assert told(0.3041, (0.279, 0.332), share=True) == "30.4 % [27.9, 33.2]"
    assert written(0.5, share=True) == "50.0 %"
    assert told(0.5, share=True) == "50 %"


@given(st.floats(0.01, 1e4), st.floats(0.001, 0.5))
def test_ends_that_differ_are_told_apart(value: float, relative: float) -> None:
    interval = (value * (1 - relative), value * (1 + relative))
    low, high = bracket(value, interval).strip("[]").replace(", ", " ").replace(",", "").split()
    assert float(low) < float(high)
    places = decimals(value, interval)
    assert places is not None
    assert abs(float(low) - interval[0]) <= 0.5 * 10**-places * 1.0001


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [((1, 2), (3, 4), True), ((3, 4), (1, 2), True), ((1, 3), (2, 4), False), ((1, 2), (2, 3), False)],
)
def test_disjoint(a: tuple[float, float], b: tuple[float, float], apart: bool) -> None:
    assert disjoint(a, b) is apart
