"""Progress of a run: what the executor tells, and how a terminal shows it."""

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """Told what happens; draws it or not."""

    def link(self, text: str, url: str) -> None:
        """A page about the run that works while it does."""

    def begin(self, label: str, total: int, done: int = 0) -> None:
        """A step of `total` units starts, `done` of them finished earlier."""

    def advance(self, label: str, tokens: int = 0) -> None:
        """One more unit of that step is done."""

    def at(self, label: str, done: int, total: int) -> None:
        """That many units of a step are done, of those known so far."""

    def end(self, label: str) -> None:
        """That step is done."""


class Quiet:
    """Shows nothing."""

    def link(self, text: str, url: str) -> None:
        """Say nothing."""

    def begin(self, label: str, total: int, done: int = 0) -> None:
        """Say nothing."""

    def advance(self, label: str, tokens: int = 0) -> None:
        """Say nothing."""

    def at(self, label: str, done: int, total: int) -> None:
        """Say nothing."""

    def end(self, label: str) -> None:
        """Say nothing."""


class Terminal:
    """Bars on standard error, one per step, with tokens per second. Use as a context manager."""

    def __init__(self) -> None:
        self._bars = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._ids: dict[str, TaskID] = {}
        self._tokens: dict[str, int] = {}

    def __enter__(self) -> "Terminal":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def link(self, text: str, url: str) -> None:
        """A line above the bars."""
        self._bars.console.print(f"{text}: {url}", highlight=False, markup=False, soft_wrap=True)

    def begin(self, label: str, total: int, done: int = 0) -> None:
        """Add a bar."""
        if label not in self._ids:
            self._ids[label] = self._bars.add_task(label, total=total, completed=done, rate="")

    def advance(self, label: str, tokens: int = 0) -> None:
        """One unit more."""
        self._tokens[label] = self._tokens.get(label, 0) + tokens
        task = self._bars.tasks[self._bars.task_ids.index(self._ids[label])]
        rate = self._tokens[label] / task.elapsed if task.elapsed else 0.0
        self._bars.update(self._ids[label], advance=1, rate=f"{rate:,.0f} tokens/s")

    def at(self, label: str, done: int, total: int) -> None:
        """So many units done."""
        if label in self._ids:
            self._bars.update(self._ids[label], completed=done, total=total)

    def end(self, label: str) -> None:
        """Fill the bar."""
        task = self._bars.tasks[self._bars.task_ids.index(self._ids[label])]
        self._bars.update(self._ids[label], completed=task.total or 1)
