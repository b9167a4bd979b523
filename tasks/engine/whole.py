"""Runs `whole` stages: all rows, or a stated seeded draw of rows or of whole samples, in memory at once."""

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
from tasks.engine.source import Rows, concatenate, n_rows, n_samples, read, shard_bounds, take


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
        MethodError: if there are more rows than the method takes and its options state no draw, or too large a one.
    """
    ready = prepare(job)
    counts = _good_rows(ready)
    of_samples = getattr(ready.config, "samples", None) is not None
    chosen = _choose_samples(job, ready) if of_samples else _choose(job, ready, sum(counts))
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
        cure = f"sample_rows to {most} or less for a seeded sample"
        if asked is None and hasattr(ready.config, "samples"):
            cure = "samples to the number of whole samples that are drawn with the seed"
        raise MethodError(
            f"{job.stage.method} takes up to {most} rows in memory, found {size} of {places(ready.source)[0]}; "
            f"set {cure}"
        )
    return np.arange(n) if size == n else np.sort(_drawn(ready, n, size))


def _choose_samples(job: StageJob, ready: Prepared) -> np.ndarray:
    """Which good rows are used, sorted: those of whole samples that are drawn among the ones with good rows.

    Of the rows only their samples are read, twice, shard by shard.
    """
    rows = np.zeros(n_samples(ready.source), dtype=np.int64)
    for sample in _samples_by_shard(ready):
        np.add.at(rows, sample, 1)
    there = np.flatnonzero(rows)
    asked = min(int(getattr(ready.config, "samples", 0)), len(there))
    drawn = there if asked == len(there) else there[_drawn(ready, len(there), asked)]
    size, most = int(rows[drawn].sum()), int(ready.module.max_rows(ready.config))
    if size > most:
        raise MethodError(
            f"{job.stage.method} takes up to {most} rows in memory, found {size} in the {asked} drawn samples of "
            f"{places(ready.source)[0]}; set samples to about {max(1, most * asked // size)} or less"
        )
    wanted, first, chosen = np.zeros(len(rows), dtype=bool), 0, []
    wanted[drawn] = True
    for sample in _samples_by_shard(ready):
        chosen.append(np.flatnonzero(wanted[sample]) + first)
        first += len(sample)
    return np.concatenate(chosen) if chosen else np.arange(0)


def _samples_by_shard(ready: Prepared) -> Iterator[np.ndarray]:
    """The samples of each shard's good rows, counted over all captures."""
    first = 0
    for number, part in enumerate(ready.source.parts):
        for shard in range(part.space.n_shards):
            yield ready.source.good_samples(number, *part.space.shard_bounds(shard)) + first
        first += part.spec.layout.n_samples


def _drawn(ready: Prepared, n: int, size: int) -> np.ndarray:
    """`size` of n things, without replacement, by the seed of the options."""
    seed = int(getattr(ready.config, "seed", 0))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    return generator.choice(n, size=size, replace=False)


def _gather(ready: Prepared, counts: Sequence[int], chosen: np.ndarray) -> list[Rows]:
    """The chosen rows, shard by shard; shards without any are not read, but the first, which gives the
    shapes."""
    first = np.concatenate([[0], np.cumsum(counts)])
    wanted = [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(first)]
    bounds = shard_bounds(ready.source)
    shards = [s for s, rows in enumerate(wanted) if len(rows)] or [0]
    reads = [bind(read, ready.source, *bounds[s]) for s in shards]
    return [take(rows, wanted[s]) for s, rows in zip(shards, ahead(reads), strict=True)]
