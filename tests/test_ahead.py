"""Reading ahead: in order, one read further than what is worked on, and no wait for what nobody wants any more."""

import threading
from collections.abc import Callable

from tasks.engine.ahead import ahead


def test_results_come_in_order() -> None:
    reads: list[Callable[[], int]] = [lambda n=n: n for n in range(5)]  # type: ignore[misc]
    assert list(ahead(reads)) == [0, 1, 2, 3, 4]
    assert list(ahead(())) == []


def test_one_read_runs_ahead() -> None:
    begun = [threading.Event() for _ in range(3)]
    loop = ahead([event.set for event in begun])
    next(loop)
    assert begun[1].wait(20)
    assert not begun[2].is_set()


def test_a_loop_that_is_left_waits_for_no_read() -> None:
    """Whoever collects it may be the thread that the read needs."""
    begun, goes_on, ended = (threading.Event() for _ in range(3))

    def slow() -> None:
        begun.set()
        goes_on.wait(60)
        ended.set()

    loop = ahead([lambda: None, slow, lambda: None])
    next(loop)
    assert begun.wait(20)
    closing = threading.Thread(target=loop.close)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert not ended.is_set()
    goes_on.set()
    assert ended.wait(20)
