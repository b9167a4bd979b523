"""What a run did: the answer of a flow, and the summary at the end of the page."""

from typing import Any, Literal

from pydantic import Field

from schemas.alert import Alert
from schemas.base import Frozen
from schemas.receipts import Failure


class CaptureOutcome(Frozen):
    """A sealed capture of the run."""

    name: str
    """As the run file calls it."""
    partition: str | None = None
    id: str
    rows: dict[str, int]
    """Row space to rows."""
    failures: tuple[Failure, ...] = ()
    """Samples without rows."""
    truncated: int = 0
    """Samples that were cut to the longest length."""
    saturated: dict[str, int] = Field(default_factory=dict)
    """Site to values that the store's dtype cannot hold: they are infinite there."""
    computed: bool = True
    """False: it was already sealed, nothing was computed."""
    seconds: float = 0.0


def place_of(site: str, partner: str, partition: str | None) -> str:
    """What tells an artifact of a stage from its others."""
    sites = f"{site} | {partner}" if partner else site
    return sites if partition is None else f"{sites} ({partition})"


class ArtifactOutcome(Frozen):
    """An artifact of the run."""

    stage: str
    """As the run file calls it."""
    site: str
    """`str(Site)`; of a stage over several, their names together."""
    partner: str = ""
    """The site that it is measured against, where that is another."""
    partition: str | None = None
    """Of the captures that it is made of, where the stage runs for each."""
    id: str
    method: str
    result: dict[str, Any] = Field(default_factory=dict)
    """The scalars of its Result, and its caveats where there are some."""
    alerts: tuple[Alert, ...] = ()
    """What somebody should look at."""
    bytes: int = 0
    """Of its arrays on disk."""
    computed: bool = True
    seconds: float = 0.0

    @property
    def place(self) -> str:
        """The site, or both, and the partition."""
        return place_of(self.site, self.partner, self.partition)


class StageFailure(Frozen):
    """A stage that could not be computed."""

    stage: str
    site: str
    """As `ArtifactOutcome.place` names it."""
    reason: str


StepKind = Literal["capture", "stages", "report"]


class StepWork(Frozen):
    """What one step of a run took: a capture, stages that share reads, or the report. What an earlier run finished is not in it."""

    label: str
    kind: StepKind
    units: int = 0
    """Units of a capture, or jobs of stages."""
    skipped: int = 0
    """Of these, found finished by the worker that was given them."""
    rows: int = 0
    """Captured."""
    tokens: int = 0
    """Real tokens or samples that went through the network."""
    seconds: float = 0.0
    """By the wall."""
    worker_seconds: float = 0.0
    """Of all its units, end to end."""
    forward_seconds: float = 0.0
    """Of these, in the network."""
    write_seconds: float = 0.0
    """Of writers, beside the forwards."""
    wait_seconds: float = 0.0
    """That forwards waited for writers."""
    slowest_seconds: float = 0.0
    """Of its longest unit."""
    shards_read: int = 0
    read_bytes: int = 0
    """From the store, by all processes."""
    written_bytes: int = 0


class RunOutcome(Frozen):
    """What a run did."""

    run: str
    """Name of the run."""
    root: str
    captures: tuple[CaptureOutcome, ...] = ()
    artifacts: tuple[ArtifactOutcome, ...] = ()
    stage_failures: tuple[StageFailure, ...] = ()
    report: str | None = None
    """URL of the page; None where none was asked for."""
    seconds: float = 0.0
    forwards: int = 0
    """Forward passes of the network."""
    shards_read: int = 0
    """Shards that stages read."""
    work: tuple[StepWork, ...] = ()
    """What each step took; empty in records of older versions."""
    workers: int = 0
    """The most that were there at a time; 0 where it is not known."""
    worker_seconds: float | None = None
    """Of all workers while they were there, idle or not: what is paid for. None in records of older versions."""
    device: str = ""
    """Where they computed; empty where it is not known."""
    price_per_worker_hour: float | None = None
    """As the run file gave it."""

    @property
    def failures(self) -> int:
        """Failed samples and failed stages together."""
        return sum(len(capture.failures) for capture in self.captures) + len(self.stage_failures)

    @property
    def exit_code(self) -> int:
        """0: everything done; 2: finished with failures."""
        return 2 if self.failures else 0
