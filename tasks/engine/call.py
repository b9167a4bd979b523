"""What one call of `run_stages` hands to the runner of each kind."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from schemas.stage import ResolvedStage
from tasks.drive import Driver
from tasks.engine.prepare import StageJob
from tasks.store.location import Location

T = TypeVar("T")
R = TypeVar("R")
OnProgress = Callable[[int, int, int], None]
"""Called with jobs done, jobs known so far, and shards read."""


class Tally:
    """Counts jobs and shards of a call."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.on_progress = on_progress
        self.done = self.total = self.shards = 0

    def expect(self, jobs: int) -> None:
        """So many more jobs are known."""
        self.total += jobs

    def finish(self, shards: int) -> None:
        """One job is done; it read so many shards."""
        self.done += 1
        self.shards += shards
        if self.on_progress is not None:
            self.on_progress(self.done, self.total, self.shards)


class Call(NamedTuple):
    """How the stages of a call are run."""

    root: Location
    driver: Driver
    device: str
    allowed: tuple[str, ...]
    begun: float
    tally: Tally

    def job(self, stage: ResolvedStage) -> StageJob:
        """The stage as it goes to a worker."""
        return StageJob(self.root, stage, self.device, self.allowed, self.begun)

    def run(
        self, function: Callable[[T], R], items: Sequence[T], shards: Callable[[R], int] = lambda _: 0
    ) -> list[R]:
        """Run a function over items on the driver; results come in the order of finishing."""
        found: list[R] = []

        def on_done(result: R) -> None:
            found.append(result)
            self.tally.finish(shards(result))

        self.tally.expect(len(items))
        self.driver(function, items, on_done)
        return found
