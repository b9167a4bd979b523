"""Runs `whole` stages: all rows, or a stated seeded sample of them, in memory at once."""

from collections.abc import Iterator, Sequence
from functools import partial as bind
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from schemas.artifact import Artifact
from schemas.errors import MethodError
from schemas.stage import ResolvedStage
from tasks.engine.ahead import ahead
from tasks.engine.blocks import block_of
from tasks.engine.call import Call
from tasks.engine.outcome import Used, write_outcome
from tasks.engine.prepare import Prepared, StageJob, places, prepare
from tasks.engine.source import Rows, concatenate, n_rows, read, shard_bounds, take


class Solved(NamedTuple):
    """An artifact and what it cost."""

    artifact: Artifact
    shards: int


def run(call: Call, stages: Sequence[ResolvedStage]) -> Iterator[Artifact]:
    """Run stages to their artifacts, each as one job."""
    jobs = [call.job(stage) for stage in stages]
    yield from (s.artifact for s in call.run(solve, jobs, lambda solved: solved.shards))


def solve(job: StageJob) -> Solved:
    """Read the rows of a stage and run its method.

    Raises:
        MethodError: if there are more rows than the method takes and its options state no sample.
    """
    ready = prepare(job)
    counts = _good_rows(ready)
    chosen = _choose(job, ready, sum(counts))
    pieces = _gather(ready, counts, chosen)
    block = block_of(concatenate(pieces), ready.ports, job.device, places(ready.source))
    result, arrays = ready.module.solve(block, ready.inputs, ready.config)
    used = Used(rows=len(block), dropped=n_rows(ready.source) - sum(counts))
    return Solved(write_outcome(job, result, arrays, used), len(pieces))


def _good_rows(ready: Prepared) -> list[int]:
    """Good rows of each shard, known without reading the rows."""
    return [
        ready.source.n_ok(number, *part.space.shard_bounds(shard))
        for number, part in enumerate(ready.source.parts)
        for shard in range(part.space.n_shards)
    ]


def _choose(job: StageJob, ready: Prepared, n: int) -> np.ndarray:
    """Which of n good rows are used, sorted: all, or a draw without replacement."""
    most = int(ready.module.max_rows(ready.config))
    asked = getattr(ready.config, "sample_rows", None)
    size = n if asked is None else min(int(asked), n)
    if size > most:
        raise MethodError(
            f"{job.stage.method} takes up to {most} rows in memory, found {size} of {places(ready.source)[0]}; "
            f"set sample_rows to {most} or less for a seeded sample"
        )
    if size == n:
        return np.arange(n)
    seed = int(getattr(ready.config, "seed", 0))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    return np.sort(generator.choice(n, size=size, replace=False))


def _gather(ready: Prepared, counts: Sequence[int], chosen: np.ndarray) -> list[Rows]:
    """The chosen rows, shard by shard; shards without any are not read, but the first, which gives the
    shapes."""
    first = np.concatenate([[0], np.cumsum(counts)])
    wanted = [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(first)]
    bounds = shard_bounds(ready.source)
    shards = [s for s, rows in enumerate(wanted) if len(rows)] or [0]
    reads = [bind(read, ready.source, *bounds[s]) for s in shards]
    return [take(rows, wanted[s]) for s, rows in zip(shards, ahead(reads), strict=True)]
