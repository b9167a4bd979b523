"""Runs `sequential` stages: seeded passes over shuffled rows, with a checkpoint after each shard.

In every pass the shards come in a shuffled order, and the rows of a shard in a shuffled order, cut into
batches. Each shuffle has a generator of its own, keyed by seed, pass and shard, so that the position of the
generators is the number of the pass and of the shard in it, and a resumed run sees the very batches of an
undisturbed one.
"""

from collections.abc import Iterator, Sequence
from functools import partial as bind
from typing import NamedTuple

import numpy as np

from schemas.artifact import Artifact
from schemas.stage import ResolvedStage
from tasks.engine.ahead import ahead
from tasks.engine.blocks import block_of
from tasks.engine.call import Call
from tasks.engine.outcome import Used, write_outcome
from tasks.engine.prepare import Prepared, StageJob, places, prepare, start
from tasks.engine.reduction import from_numpy, plain
from tasks.engine.source import Rows, n_rows, read, shard_bounds, take
from tasks.methods.contract import State
from tasks.store.states import load_state, save_state

PASS, SHARD, ROWS = "engine.pass", "engine.shard", "engine.rows"


class Position(NamedTuple):
    """Where a stage stands."""

    number: int
    """The pass."""
    shard: int
    """Shards of the pass that are done."""
    rows: int
    """Good rows seen in the first pass."""


class Trained(NamedTuple):
    """An artifact and what it cost."""

    artifact: Artifact
    shards: int


def run(call: Call, stages: Sequence[ResolvedStage]) -> Iterator[Artifact]:
    """Run stages to their artifacts, each as one job."""
    yield from (
        t.artifact
        for t in call.run(train, [call.job(stage) for stage in stages], lambda trained: trained.shards)
    )


def train(job: StageJob) -> Trained:
    """All passes of a stage from where it stands, then its artifact."""
    ready = prepare(job)
    state, here = _resume(job, ready)
    shards = 0
    for number in range(here.number, ready.module.passes(ready.config)):
        if here.shard == 0 and hasattr(ready.module, "begin_pass"):
            state = ready.module.begin_pass(state, number, ready.config)
        for rows in ahead(_reads(ready, number, here.shard)):
            state = _step(job, ready, state, number, here.shard, rows)
            seen = here.rows + (len(rows.index) if number == 0 else 0)
            here, shards = Position(number, here.shard + 1, seen), shards + 1
            _checkpoint(job, state, here)
            del rows
        here = Position(number + 1, 0, here.rows)
    result, arrays = ready.module.finish(state, {}, ready.inputs, ready.config)
    used = Used(rows=here.rows, dropped=n_rows(ready.source) - here.rows)
    artifact = write_outcome(job, result, arrays, used)
    job.root.delete(_path(job))
    return Trained(artifact, shards)


def _resume(job: StageJob, ready: Prepared) -> tuple[State, Position]:
    kept = load_state(job.root, _path(job))
    if kept is None:
        return start(ready, job.device), Position(0, 0, 0)
    here = Position(*(int(kept.pop(name)) for name in (PASS, SHARD, ROWS)))
    return from_numpy(kept, job.device), here


def _checkpoint(job: StageJob, state: State, here: Position) -> None:
    position = {PASS: here.number, SHARD: here.shard, ROWS: here.rows}
    numbers = {name: np.array(value, dtype=np.int64) for name, value in position.items()}
    save_state(job.root, _path(job), plain(state) | numbers)


def _path(job: StageJob) -> str:
    return f"states/checkpoints/{job.stage.id}.npz"


def _reads(ready: Prepared, number: int, done: int) -> list["bind[Rows]"]:
    bounds = shard_bounds(ready.source)
    order = _generator(ready, number, len(bounds)).permutation(len(bounds))
    return [bind(read, ready.source, *bounds[shard]) for shard in order[done:]]


def _step(job: StageJob, ready: Prepared, state: State, number: int, shard: int, rows: Rows) -> State:
    size = ready.module.batch_rows(ready.config)
    order = _generator(ready, number, shard).permutation(len(rows.index))
    where = places(ready.source)
    for first in range(0, len(order), size):
        batch = take(rows, order[first : first + size])
        state = ready.module.step(block_of(batch, ready.ports, job.device, where), state, ready.config)
    return state


def _generator(ready: Prepared, number: int, shard: int) -> np.random.Generator:
    seed = int(getattr(ready.config, "seed", 0))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, number, shard))))
