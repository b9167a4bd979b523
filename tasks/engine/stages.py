"""Stages -> artifacts. What is finished is returned without reading a row or importing torch."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from schemas.artifact import Artifact
from schemas.errors import NotFoundError
from schemas.stage import ResolvedStage
from tasks.drive import Driver
from tasks.store.artifacts import read_artifact
from tasks.store.location import Location

if TYPE_CHECKING:
    from tasks.engine.call import Call, OnProgress


def run_stage(
    root: Location,
    stage: ResolvedStage,
    driver: Driver,
    device: str = "cpu",
    allowed: Sequence[str] = (),
    on_progress: "OnProgress | None" = None,
) -> Artifact:
    """The artifact of a stage, computed unless it exists: see `run_stages`."""
    return run_stages(root, [stage], driver, device, allowed, on_progress)[stage.id]


def run_stages(
    root: Location,
    stages: Sequence[ResolvedStage],
    driver: Driver,
    device: str = "cpu",
    allowed: Sequence[str] = (),
    on_progress: "OnProgress | None" = None,
) -> dict[str, Artifact]:
    """The artifacts of some stages by id, each computed unless it exists.

    A stage may take the artifact of another one of the list. Reductions over the same site share one read of
    each shard, and equal reductions one state. What was computed before a failure or a kill is not computed
    again.

    Args:
        root: where captures and artifacts lie.
        stages: stages whose captures are sealed.
        driver: runs jobs, here or on workers; see `tasks.drive`.
        device: where workers compute, `cpu` or `cuda`.
        allowed: packages outside the project whose methods may run.
        on_progress: called with jobs done, jobs known so far, and shards read.

    Raises:
        MethodError: if a method is given what it cannot take.
        NotFoundError: if a capture or artifact that a stage reads is not there.
        DamageError: if stored bytes are missing or changed.

    A worker holds at most two shards beside states and what the method itself needs.
    """
    wanted = {stage.id: stage for stage in stages}
    made = {key: artifact for key in wanted if (artifact := finished(root, key)) is not None}
    rest = [stage for key, stage in wanted.items() if key not in made]
    if not rest:
        return made
    from tasks.engine.call import Call, Tally

    call = Call(root, driver, device, tuple(allowed), time.time(), Tally(on_progress))
    while rest:  # ids come from content, so that no two stages can wait for each other
        ready = [s for s in rest if all(_is_there(artifact, made, wanted) for artifact in s.needs)]
        made |= {artifact.id: artifact for artifact in _run(call, ready)}
        rest = [stage for stage in rest if stage.id not in made]
    return made


def finished(root: Location, artifact: str) -> Artifact | None:
    """The artifact of that id if it exists."""
    try:
        return read_artifact(root, artifact)
    except NotFoundError:
        return None


def _is_there(artifact: str, made: dict[str, Artifact], wanted: dict[str, ResolvedStage]) -> bool:
    return artifact in made or artifact not in wanted


def _run(call: "Call", stages: Sequence[ResolvedStage]) -> Iterator[Artifact]:
    """Run stages that do not depend on each other, kind by kind."""
    from tasks.engine import combine, reduce, rowwise, sequential, whole
    from tasks.methods.contract import load_method

    runners = {
        "reduce": reduce.run,
        "map": rowwise.run,
        "pairs": rowwise.run,
        "sequential": sequential.run,
        "whole": whole.run,
        "combine": combine.run,
    }
    kinds: dict[str, list[ResolvedStage]] = {}
    for stage in stages:
        kinds.setdefault(load_method(stage.method, call.allowed).KIND, []).append(stage)
    for kind, group in kinds.items():
        yield from runners[kind](call, group)
