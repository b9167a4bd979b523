"""The promise of a driver."""

from collections.abc import Callable, Sequence
from threading import Barrier, Event, get_ident
from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tasks.drive import Driver, Threads, results, serial
from tasks.threads import shares_process


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


@pytest.mark.parametrize("driver", [serial, backwards, Threads(2)])
def test_no_items_is_nothing_to_do(driver: Driver) -> None:
    assert results(driver, double, []) == []


@pytest.mark.parametrize("driver", [serial, Threads(1)])
def test_what_finished_before_a_failure_was_told(driver: Driver) -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match="found -1"):
        driver(double, [1, 2, -1, 3], done.append)
    assert done == [2, 4]


def waits_for_another(barrier: Barrier) -> tuple[bool, int]:
    barrier.wait(20)
    return shares_process(), get_ident()


def test_threads_run_items_at_the_same_time() -> None:
    barrier = Barrier(2)
    found = results(Threads(2), waits_for_another, [barrier, barrier])
    assert all(shares for shares, _ in found)
    assert get_ident() not in {thread for _, thread in found}
    assert not shares_process()


def test_interrupted_threads_say_that_running_items_end_first(caplog: pytest.LogCaptureFixture) -> None:
    begun, ended, go_on = Event(), Event(), Event()

    def long(item: int) -> int:
        if item:
            begun.set()
            go_on.wait(20)
            ended.set()
        else:
            begun.wait(20)
        return item

    def stop(_: int) -> None:
        go_on.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Threads(2)(long, [0, 1], stop)
    assert ended.is_set()
    assert "ends first" in caplog.text


def count_blas_threads(_: int) -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info()}


def test_threads_compute_alone() -> None:
    with threadpool_limits(2):
        assert count_blas_threads(0) == {2}
        assert results(Threads(2), count_blas_threads, [0, 1, 2]) == [{1}] * 3
        assert count_blas_threads(0) == {2}
