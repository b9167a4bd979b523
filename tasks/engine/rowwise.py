"""Runs `map` and `pairs` stages: outputs aligned with rows, written shard by shard, each shard by one worker.

A map sees one shard at a time. A pairs method sees every shard against all shards, in store order, as often as it looks. Rows of
failed samples are fill in the outputs: NaN, -1, False, or 0 of unsigned integers. What is summed over rows goes through the store,
span by span.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial as bind
from typing import NamedTuple

import numpy as np
from torch import Tensor

from schemas.artifact import Artifact
from schemas.errors import MethodError, StoreError
from schemas.receipts import FileDigest
from schemas.stage import ResolvedStage
from tasks.engine.ahead import ahead, in_turn
from tasks.engine.blocks import block_of
from tasks.engine.call import Call
from tasks.engine.outcome import Used, artifact_of, as_numpy
from tasks.engine.pairs import MOST_BYTES, Method, Others
from tasks.engine.prepare import Prepared, StageJob, places, prepare, start
from tasks.engine.reduction import Counted, load_counted, save_counted, span_path
from tasks.engine.source import Part, Rows, n_rows, read, shard_bounds
from tasks.engine.spans import spans, tree
from tasks.engine.stages import finished
from tasks.methods.contract import Block, State
from tasks.store.artifacts import ArtifactWriter, RowArray, RowGrid, write_artifact
from tasks.store.paths import artifact_path

MOST_SPANS = 1024
"""Spans of shards per capture; their states are small."""
SPAN_ROWS = 1 << 12
"""Rows that a map takes together at least, where the shards of a capture are small: what it writes of them waits for the disk once."""
MOST_KEPT_BYTES = 1 << 27
"""Of the rows of a pairs stage that a thread keeps from one job to the next, until it has another stage's: few rows are read and prepared
once, not for every shard. Of the artifacts that a stage reads too, which may be as long as all rows that calibrate it."""
_KEPT = threading.local()


class ShardsJob(NamedTuple):
    """A run of shards of one capture."""

    job: StageJob
    part: int
    span: int


class ShardsDone(NamedTuple):
    """Their outputs and sums are in the store."""

    shards: int
    """Shards read."""


class Begun(NamedTuple):
    """A stage whose outputs have their metadata."""

    stage: ResolvedStage
    spans: tuple[int, ...]
    """Spans of each capture."""


def run(call: Call, stages: Sequence[ResolvedStage]) -> Iterator[Artifact]:
    """Run stages to their artifacts."""
    begun = call.run(begin, [call.job(stage) for stage in stages])
    jobs = [
        ShardsJob(call.job(b.stage), part, span)
        for b in begun
        for part, count in enumerate(b.spans)
        for span in range(count)
    ]
    call.run(fill_shards, jobs, lambda done: done.shards)
    yield from call.run(finish, [call.job(b.stage) for b in begun])


def begin(job: StageJob) -> Begun:
    """Create the outputs of a stage; sums over rows whose outputs were removed since do not count."""
    _forget()
    ready = prepare(job)
    if not job.root.ls(artifact_path(job.stage.id)):
        job.root.delete(_folder(job), recursive=True)
    for part in range(len(ready.source.parts)):
        _writer(job, ready, part).create()
    return Begun(job.stage, tuple(len(_spans(ready, part)) for part in ready.source.parts))


def fill_shards(job: ShardsJob) -> ShardsDone:
    """Write the outputs of a run of shards, and what is summed over them."""
    path = _span_path(job.job, job.part, job.span)
    if load_counted(job.job.root, path, job.job.device) is not None:
        return ShardsDone(0)
    ready, carry = _ready(job.job)
    writer, part = _writer(job.job, ready, job.part), ready.source.parts[job.part]
    first = sum(p.space.n_rows for p in ready.source.parts[: job.part])
    shards = _spans(ready, part)[job.span]
    bounds = [(first + low, first + high) for low, high in map(part.space.shard_bounds, shards)]
    total, n_read = Counted({}, 0), 0
    others = _others(job.job, ready, carry)
    read_before = others.read
    written: dict[int, dict[str, FileDigest]] = {}
    reads = (ahead if ready.module.KIND == "map" else in_turn)(_reads(ready, bounds))
    for shard, (low, high), rows in zip(shards, bounds, reads, strict=True):
        block = _block(job.job, ready, rows)
        outputs = _outputs(ready, carry, block, others)
        written[shard] = writer.put(shard, _aligned(ready, outputs, rows.index - low, high - low))
        total = _add(ready, total, block, outputs, carry)
        n_read += 1
        del rows, block
    writer.confirm(written)
    save_counted(job.job.root, path, total)
    return ShardsDone(n_read + others.read - read_before)


def finish(job: StageJob) -> Artifact:
    """The artifact of a stage whose shards are all written; a worker may have died after it was, before it could say so."""
    _forget()
    if (there := finished(job.root, job.stage.id)) is not None:
        return there
    ready = prepare(job)
    total = _total(job, ready)
    carry = start(ready, job.device)
    result, arrays = ready.module.finish(total.state, carry, ready.inputs, ready.config)
    used = Used(rows=total.rows, dropped=n_rows(ready.source) - total.rows)
    writers = [_writer(job, ready, part) for part in range(len(ready.source.parts))]
    artifact = write_artifact(job.root, artifact_of(job, result, used), as_numpy(arrays), {}, writers)
    job.root.delete(_folder(job), recursive=True)
    return artifact


def _ready(job: StageJob) -> tuple[Prepared, State]:
    """A stage and what it starts with; kept in memory where the artifacts that it reads are small enough."""
    name = (job.root.url, job.stage.id, job.device)
    if getattr(_KEPT, "of", None) == name:
        kept: tuple[Prepared, State] = _KEPT.ready
        return kept
    _forget()
    ready = prepare(job)
    found = ready, start(ready, job.device)
    arrays = [values for given in ready.inputs.artifacts.values() for values in given.values()]
    if sum(values.nbytes for values in arrays) <= MOST_KEPT_BYTES:
        _KEPT.of, _KEPT.ready = name, found
    return found


def _forget() -> None:
    """Let go of a prepared stage."""
    _KEPT.of = _KEPT.ready = None


def _outputs(ready: Prepared, carry: State, block: Block, others: Others) -> dict[str, Tensor]:
    """Outputs of a block's rows."""
    if ready.module.KIND == "map":
        outputs: dict[str, Tensor] = ready.module.apply(block, carry, ready.config)
        return outputs
    method = Method(ready.module, ready.config, ready.inputs, carry)
    return method.outputs(method.prepared(block), others)


def _others(job: StageJob, ready: Prepared, carry: State) -> Others:
    """What a pairs method compares rows with; kept in memory where the method prepares it and all is small enough."""
    name = (job.root.url, job.stage.id, job.device)
    kept: Others | None = _KEPT.others if getattr(_KEPT, "name", None) == name else None
    if kept is None or kept.held > MOST_KEPT_BYTES:
        kept = _new_others(job, ready, carry)
    _KEPT.name, _KEPT.others = name, kept
    return kept


def _new_others(job: StageJob, ready: Prepared, carry: State) -> Others:
    method = Method(ready.module, ready.config, ready.inputs, carry)

    def other(low: int, high: int) -> Block:
        return method.prepared(_block(job, ready, read(ready.source, low, high)))

    most = MOST_BYTES if hasattr(ready.module, "prepared") else 0
    return Others([bind(other, *bounds) for bounds in shard_bounds(ready.source)], most)


def _add(ready: Prepared, total: Counted, block: Block, outputs: dict[str, Tensor], carry: State) -> Counted:
    module = ready.module
    if not hasattr(module, "partial"):
        return Counted({}, total.rows + len(block))
    state: State = module.partial(block, outputs, carry, ready.config)
    merged = module.merge(total.state, state) if total.state else state
    return Counted(merged, total.rows + len(block))


def _total(job: StageJob, ready: Prepared) -> Counted:
    """What is summed over all rows: spans in a fixed tree, captures in order."""

    def merge(a: Counted, b: Counted) -> Counted:
        state = ready.module.merge(a.state, b.state) if a.state else {}
        return Counted(state, a.rows + b.rows)

    def load(part: int, span: int) -> Counted:
        path = _span_path(job, part, span)
        found = load_counted(job.root, path, job.device)
        if found is None:
            raise StoreError(f"{job.root.url}/{path} is missing or damaged; run the stage again")
        return found

    parts = [
        tree(bind(load, number), len(_spans(ready, part)), merge)
        for number, part in enumerate(ready.source.parts)
    ]
    total = parts[0]
    for other in parts[1:]:
        total = merge(total, other)
    return total


def _aligned(
    ready: Prepared, outputs: Mapping[str, Tensor], rows: np.ndarray, n: int
) -> dict[str, np.ndarray]:
    """Outputs of good rows among the fill of failed ones.

    Raises:
        MethodError: if an output is not what the method declared.
    """
    blocks = {}
    for name, declared in ready.module.outputs(ready.inputs, ready.config).items():
        values = outputs[name].detach().cpu().numpy()
        shape = (len(rows),) if declared.width is None else (len(rows), declared.width)
        if values.dtype != np.dtype(declared.dtype) or values.shape != shape:
            raise MethodError(
                f"output {name!r} has shape {values.shape} of {values.dtype}, declared {shape} of {declared.dtype}; "
                "the method is wrong"
            )
        blocks[name] = np.full((n, *shape[1:]), _fill(values.dtype), dtype=values.dtype)
        blocks[name][rows] = values
    return blocks


def _fill(dtype: np.dtype) -> float | int | bool:
    return {"f": np.nan, "b": False, "u": 0}.get(dtype.kind, -1)


def _reads(ready: Prepared, bounds: Sequence[tuple[int, int]]) -> list["bind[Rows]"]:
    return [bind(read, ready.source, low, high) for low, high in bounds]


def _block(job: StageJob, ready: Prepared, rows: Rows) -> Block:
    return block_of(rows, ready.ports, job.device, places(ready.source))


def _spans(ready: Prepared, part: Part) -> list[range]:
    least = SPAN_ROWS // part.space.shard_rows if ready.module.KIND == "map" else 1
    return spans(part.space.n_shards, MOST_SPANS, least)


def _folder(job: StageJob) -> str:
    return f"states/rows/{job.stage.id}"


def _span_path(job: StageJob, part: int, span: int) -> str:
    grid = f"{part:04d}-{SPAN_ROWS}"  # sums of other spans, as another version cut them, are not these
    return span_path(f"{_folder(job)}/{grid}", span, MOST_SPANS)


def _writer(job: StageJob, ready: Prepared, number: int) -> ArtifactWriter:
    parts = ready.source.parts
    names = [part.ref.capture for part in parts]
    if len(set(names)) != len(names):
        raise MethodError(f"{job.stage.method}: a capture is connected twice to a port; connect each once")
    space = parts[number].space
    grid = RowGrid(space.n_rows, space.chunk_rows, space.shard_rows)
    outputs = {
        name: RowArray(declared.dtype, declared.width, declared.dim, declared.codec)
        for name, declared in ready.module.outputs(ready.inputs, ready.config).items()
    }
    group = "" if len(parts) == 1 else names[number]
    return ArtifactWriter(job.root, job.stage.id, grid, outputs, group)
