"""`subspan plan --probe`: the longest planned batch, run for real in a process like a worker's.

What runs is what a unit runs: the encoder, one `collect`, the rows scattered into the shards' buffers. What is left out
is encoding and writing, which a unit does beside the next forward.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil

from pipelines.estimate import Pace
from pipelines.plan import CapturePlan, Plan
from pipelines.serial import set_threads
from schemas.base import Frozen
from schemas.capture import CaptureRequest, CaptureSpec
from schemas.errors import ResourceError, SubspanError, UnitError
from schemas.layout import Space, UnitRef
from tasks.peak import peak_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.store.sample_table import SampleTable

MOST_SHARDS = 16
"""Shards that are packed to find the longest batch: where all samples are as long, any will do."""


class TrialJob(Frozen):
    """A planned batch."""

    name: str
    """Of the capture."""
    spec: CaptureSpec
    request: CaptureRequest
    unit: UnitRef
    source_index: tuple[int, ...]
    """Samples of the batch, by their index in the source."""
    start: tuple[int, ...]
    """First store row of each."""
    rows: tuple[int, ...]
    """Rows of each."""
    tokens: int
    """Real tokens (or samples) of the batch."""
    padded_tokens: int
    longest: int
    device: str


class Trial(Frozen):
    """What a batch cost."""

    capture: str
    """As the run file calls it."""
    space: str
    device: str
    samples: int
    longest: int
    """Tokens of its longest sample; 1 where there are none."""
    tokens: int
    padded_tokens: int
    seconds: float
    """Of the second of two runs: encoding the inputs, the forward, and scattering the rows."""
    seconds_per_1000: float
    """For 1,000 real tokens (or samples)."""
    peak_bytes: int
    """Peak resident memory of the process, with the shards it filled."""
    device_peak_bytes: int | None
    """Peak of torch's memory on the GPU; None on a CPU."""
    projected_bytes: int
    """What the plan projects for a worker."""


class Planned(NamedTuple):
    """A planned batch: places in the sample table, and where it belongs."""

    places: list[int]
    unit: int
    longest: int
    padded: int


def run_trials(plan: Plan, device: str) -> list[Trial]:
    """The longest batch of every capture and row space that is still to be made, one after the other.

    Raises:
        ResourceError: if a batch does not fit into the memory of the device or of this machine.
        SubspanError: what the network or the data refused.
    """
    todo: dict[tuple[str, str], TrialJob] = {}
    projected: dict[str, int] = {}
    for capture in plan.captures:
        if not capture.sealed:
            projected[capture.name] = max(projected.get(capture.name, 0), capture.worker_memory_bytes)
            for job in _jobs(plan, capture, device):
                key = capture.name, job.unit.space
                todo[key] = max(todo.get(key, job), job, key=lambda j: (j.longest, j.padded_tokens))
    return [_in_process(job, projected[job.name]) for job in todo.values()]


def paces(trials: list[Trial]) -> dict[str, Pace]:
    """Capture name to seconds per token over all its row spaces."""
    seconds: dict[str, float] = {}
    for trial in trials:
        seconds[trial.capture] = seconds.get(trial.capture, 0.0) + trial.seconds_per_1000 / 1000
    basis = "the longest batch of each capture, forwards alone"
    return {name: Pace(total, basis) for name, total in seconds.items()}


def _jobs(plan: Plan, capture: CapturePlan, device: str) -> list[TrialJob]:
    """The longest batch of each row space of a capture."""
    from pipelines.resolve import prepare

    request = plan.run.captures[capture.name]
    table = prepare(request, capture.partition).table
    return [_job(request, capture, space, table, device) for space in capture.spec.layout.spaces]


def _job(
    request: CaptureRequest, capture: CapturePlan, space: Space, table: "SampleTable", device: str
) -> TrialJob:
    starts = table.row_start[space.name]
    batch = longest_batch(request, space, starts, table.lengths)
    places = np.asarray(batch.places)
    index = places if table.source_index is None else table.source_index[places]
    return TrialJob(
        name=capture.name,
        spec=capture.spec,
        request=request,
        unit=UnitRef(space=space.name, index=batch.unit),
        source_index=tuple(index.tolist()),
        start=tuple(starts[places].tolist()),
        rows=tuple((starts[places + 1] - starts[places]).tolist()),
        tokens=int(table.lengths[places].sum()),
        padded_tokens=batch.padded,
        longest=batch.longest,
        device=device,
    )


def longest_batch(request: CaptureRequest, space: Space, starts: np.ndarray, lengths: np.ndarray) -> Planned:
    """The planned batch with the longest sample; of several, the one with most padded tokens.

    Batches are packed inside a shard, so that only shards in which a longest sample begins are packed.

    Args:
        request: gives the budgets.
        space: the row space.
        starts: int64 [sample + 1], first rows.
        lengths: int64 [sample], tokens.
    """
    counts = np.diff(starts)
    longest = int(lengths[counts > 0].max())
    begins = starts[:-1][(counts > 0) & (lengths == longest)]
    shards = np.unique(begins // space.shard_rows)[:MOST_SHARDS].tolist()
    found = [batch for shard in shards for batch in _planned(request, space, starts, lengths, shard)]
    return max(found, key=lambda batch: (batch.longest, batch.padded))


def _planned(
    request: CaptureRequest, space: Space, starts: np.ndarray, lengths: np.ndarray, shard: int
) -> list[Planned]:
    """The batches of a shard, as a unit packs them."""
    from tasks.extract.batches import pack

    group = _shard_samples(space, starts, shard)
    sizes = lengths[group].tolist()
    packed = pack(sizes, request.batch_tokens, request.batch_samples, request.batch_overhead)
    unit = shard // space.unit_shards
    return [Planned(group[p].tolist(), unit, top := max(sizes[n] for n in p), top * len(p)) for p in packed]


def _shard_samples(space: Space, starts: np.ndarray, shard: int) -> np.ndarray:
    """int64 [n]: the samples that a unit computes for a shard; its first one also takes what straddles in."""
    first, stop = starts[:-1], starts[1:]
    low, high = space.shard_bounds(shard)
    mine = (first >= low) & (first < high)
    if shard % space.unit_shards == 0:
        mine |= (first < low) & (stop > low)
    return np.flatnonzero(mine & (stop > first))


def _in_process(job: TrialJob, projected: int) -> Trial:
    """Run a batch in a fresh process, so that its peak memory is its own."""
    set_threads(job.request.precision.threads)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(run_trial, job, projected).result()
        except BrokenProcessPool as error:
            free = psutil.virtual_memory().available
            raise ResourceError(
                f"the longest batch of capture {job.name!r} ended its process, most often for want of memory: the plan projects "
                f"{projected:,} bytes, {free:,} are free; lower batch_tokens, batch_samples or store.shard_rows"
            ) from error


def run_trial(job: TrialJob, projected: int) -> Trial:
    """Run a batch in this process, once to warm up and once to measure.

    Raises:
        ResourceError: if the memory of the device does not suffice.
        UnitError: if the network raises.
    """
    try:
        _, seconds = _run_batch(job)
    except SubspanError:
        raise
    except Exception as error:
        raise UnitError(
            f"the longest batch of capture {job.name!r}, {len(job.source_index)} samples of up to {job.longest} tokens, raised "
            f"{type(error).__name__}: {error}; a unit would try its samples one by one and leave out those that raise"
        ) from error
    return Trial(
        capture=job.name,
        space=job.unit.space,
        device=job.device,
        samples=len(job.source_index),
        longest=job.longest,
        tokens=job.tokens,
        padded_tokens=job.padded_tokens,
        seconds=seconds,
        seconds_per_1000=1000 * seconds / job.tokens,
        peak_bytes=peak_bytes(),
        device_peak_bytes=_device_peak(job.device),
        projected_bytes=projected,
    )


def _run_batch(job: TrialJob) -> list[float]:
    """Seconds of two runs of a batch, each as a unit does it: inputs, forward, rows into the buffers."""
    from threadpoolctl import threadpool_limits

    from tasks.buffers import ShardBuffers
    from tasks.extract.collect import collect
    from tasks.extract.data import open_source
    from tasks.extract.encode import make_encoder
    from tasks.extract.models import network

    request, layout = job.request, job.spec.layout
    sites = layout.sites_of(job.unit.space)
    source = open_source(request.data, job.spec.partition)
    encoder = make_encoder(source, np.asarray(job.source_index), request.model, request)
    net = network(request.model, job.device, request.precision.threads, job.spec.weights)
    buffers = ShardBuffers(layout.space(job.unit.space), sites, job.unit.index, request.store.dtype)
    seconds = []
    with threadpool_limits(request.precision.threads):
        for _ in range(2):
            begun = time.perf_counter()
            inputs = encoder.batch(range(len(job.source_index)))
            rows = collect(net, inputs, sites, request.rows, request.precision)
            buffers.put(rows, _destination(job))
            seconds.append(time.perf_counter() - begun)
    for _ in layout.space(job.unit.space).unit_shard_range(job.unit.index):
        buffers.take()  # fills a shard set, for the peak
    return seconds


def _destination(job: TrialJob) -> "Tensor":
    """int64 [row]: the store row of each row of the batch."""
    import torch

    parts = [np.arange(first, first + n) for first, n in zip(job.start, job.rows, strict=True)]
    return torch.from_numpy(np.concatenate(parts))


def _device_peak(device: str) -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else None
