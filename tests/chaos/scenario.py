"""What a seed stands for: a small run, how it is executed, and what happens to it when."""

import os
import random
from pathlib import Path
from typing import Any, NamedTuple

from schemas.run import RunSpec
from tests.pipelines.runs import vectors_run

EXECUTIONS = {"serial": 34, "threads": 26, "processes": 18, "address": 18, "prefect": 4}
"""How a run is executed, and how often of a hundred."""
FLOW = ("flow SIGKILL", "flow SIGINT", "flow SIGTERM", "flow stopped", "disk full", "clock", "second run")
WORKERS = ("worker SIGKILL", "worker stopped", "worker stopped and killed")
SCHEDULER = ("scheduler SIGKILL", "scheduler stopped")
KINDS = {
    "serial": FLOW,
    "threads": FLOW,
    "processes": (*FLOW, *WORKERS, *WORKERS),
    "address": (*FLOW, *WORKERS, *SCHEDULER, *SCHEDULER),
    "prefect": ("flow SIGKILL", "flow SIGINT", "flow SIGTERM", "worker SIGKILL", "second run"),
}
MOMENTS = ("units", "units", "seal", "stages", "finish", "report")
LEFT = ("nothing", "nothing", "cut shard", "partial files")
"""What lies in the store when the run is started again."""
ARRANGEMENTS = ((96, 4, True), (160, 16, False))
"""Samples, those of a batch, and whether there is a report."""


class Fault(NamedTuple):
    """Something that goes wrong."""

    kind: str
    moment: str
    """What the run is about."""
    units: int
    """Of the moment `units`: so many receipts are there."""
    wait: float
    """Seconds after that moment."""
    hours: float
    """Of a clock: how far it jumps."""

    def __str__(self) -> str:
        at = f"{self.units} units" if self.moment == "units" else self.moment
        return f"{self.kind} at {at}"


class Scenario(NamedTuple):
    """All that is drawn from a seed."""

    seed: int
    execution: str
    arrangement: int
    faults: tuple[Fault, ...]
    left: str


def drawn(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    execution = rng.choices(list(EXECUTIONS), list(EXECUTIONS.values()))[0]
    possible = [k for k in KINDS[execution] if k != "disk full" or os.geteuid() == 0]
    faults = tuple(_fault(rng, rng.choice(possible)) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))
    return Scenario(seed, execution, rng.randrange(len(ARRANGEMENTS)), faults, rng.choice(LEFT))


def _fault(rng: random.Random, kind: str) -> Fault:
    hours = rng.choice((-1, 1)) * rng.uniform(1, 30)
    return Fault(kind, rng.choice(MOMENTS), rng.randint(0, 4), rng.choice((0.0, rng.uniform(0, 0.3))), hours)


def run_of(root: Path, arrangement: int, **execution: Any) -> RunSpec:
    """A capture whose units take a while, a reduction, one of several rounds, a map over rows that reads it, and a part over rows."""
    samples, batch, report = ARRANGEMENTS[arrangement]
    stages = {
        "pca": {"method": "spectrum.pca", "sites": "last", "config": {"components": 4}},
        "rounds": {"method": "spectrum.subspace", "sites": "first", "config": {"components": 3}},
        "scores": {
            "method": "anomaly.residual",
            "inputs": {"x": {"sites": "last"}, "basis": {"stage": "pca"}},
        },
    }
    run = vectors_run(root, n=samples, network={"pause": 0.03}, batch_samples=batch, stages=stages)
    data = run.model_dump(mode="json")
    data["execution"] |= {"retries": 20, **execution}
    data["report"] = {} if report else None
    return RunSpec.model_validate(data)
