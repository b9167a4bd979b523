"""The promise of a driver."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tasks.drive import Driver, results, serial


def double(item: int) -> int:
    if item < 0:
        raise ValueError(f"found {item}, expected no negative number")
    return 2 * item


def backwards(function: Callable[[Any], Any], items: Sequence[Any], on_done: Callable[[Any], None]) -> None:
    for item in reversed(items):
        on_done(function(item))


def test_serial_runs_in_order() -> None:
    assert results(serial, double, [3, 1, 2]) == [6, 2, 4]


def test_results_come_as_they_finish() -> None:
    assert results(backwards, double, [3, 1, 2]) == [4, 2, 6]


@pytest.mark.parametrize("driver", [serial, backwards])
def test_no_items_is_nothing_to_do(driver: Driver) -> None:
    assert results(driver, double, []) == []


def test_what_finished_before_a_failure_was_told() -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match="found -1"):
        serial(double, [1, 2, -1, 3], done.append)
    assert done == [2, 4]
