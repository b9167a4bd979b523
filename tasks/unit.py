"""One unit of a capture, produced by one worker alone: samples -> network -> whole shards -> receipt.

A unit may run twice, at the same time, or die half way; the stored bytes are the same. Inside a shard samples are
sorted by length and packed by token budget. The writer gets a site of a shard when the shard's
last batch has passed the site, and works beside the forwards of the next shard (its first batch where the disk is local, all of it
elsewhere); it is drained before the receipt is written.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import UnidentifiedImageError
from threadpoolctl import threadpool_limits
from torch import Tensor

from schemas.base import Frozen
from schemas.capture import CaptureRequest, CaptureSpec, MethodCall
from schemas.errors import DataError, ResourceError, StoreError, SubspanError, UnitError
from schemas.layout import Space, UnitRef
from schemas.loss import FactoryLoss
from schemas.receipts import Failure, Receipt
from tasks.buffers import ShardBuffers, flag_outliers, is_finite, row_norms, to_stored
from tasks.engine.fusion import Fusion
from tasks.extract.batches import pack
from tasks.extract.collect import Early, collect
from tasks.extract.data import open_source
from tasks.extract.encode import Encoder, make_encoder
from tasks.extract.geometry import kept_positions, space_size
from tasks.extract.guard import settle
from tasks.extract.models import Network, network
from tasks.extract.replica import replica
from tasks.extract.turns import FORWARDS, TakeTurns
from tasks.fingerprint import fingerprint, worker_name
from tasks.gradients import Gradients, make_gradients, needs_backward
from tasks.peak import peak_bytes
from tasks.store.capture_spec import read_spec
from tasks.store.events import tell, within
from tasks.store.location import Location
from tasks.store.receipts import receipt_of, write_receipt
from tasks.store.samples import UnitSamples, sample_key, samples_between
from tasks.threads import shares_process
from tasks.writer import UnitWriter

LOG = logging.getLogger(__name__)
MANY = 4
"""From this many samples on, a unit in which every one raised is a failed unit."""
TRANSIENT = (StoreError, ResourceError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""What says nothing of a sample."""
PROBE_EVERY = 16
"""Every so many units, one sample is also computed alone and compared with its batch."""


class UnitJob(Frozen):
    """All that a worker needs to know."""

    root: str
    capture: str
    unit: UnitRef
    device: str = "cpu"
    fuse: tuple[MethodCall, ...] = ()
    """One-pass methods to run while rows are in memory."""
    allowed: tuple[str, ...] = ()
    """Packages outside the project whose methods may run."""
    request: CaptureRequest | None = None
    """As asked now: where the data and the network lie may have changed since the capture was begun."""


class UnitDone(Frozen):
    """A unit's receipt, and whether it was there already."""

    receipt: Receipt
    skipped: bool
    forwards: int = 0


class _Context(NamedTuple):
    """What one running unit works with."""

    job: UnitJob
    spec: CaptureSpec
    space: Space
    samples: UnitSamples
    encoder: Encoder
    network: Network
    buffers: ShardBuffers
    early: bool
    """Whether sites may go to the writer one by one, to be named with the shard: on a local disk only, and not from a backward."""
    gradients: "Gradients | None" = None
    """None where the space holds activations alone."""


class _Tally:
    """What one running unit counts."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.failures: dict[int, str] = {}
        self.raised = 0
        self.forwards = 0
        self.tokens = 0
        self.padded = 0
        self.seconds = 0.0
        self.difference: float | None = None
        self.looped: set[str] = set()
        self.weighed = 0
        self.gradient_error: float | None = None


def run_unit(job: UnitJob) -> UnitDone:
    """Produce a unit, or return its receipt when it is done.

    A sample that fails does not raise: it is in the receipt, and its rows stay fill.

    Raises:
        UnitError: if the network, the device or the store fails as a whole.
        SubspanError: what the store, the data or the network refused.
    """
    with within(capture=job.capture, unit=job.unit.name):
        try:
            return _run(job)
        except Exception as error:
            tell(LOG, "unit.failed", logging.ERROR, reason=f"{type(error).__name__}: {error}")
            raise


def _run(job: UnitJob) -> UnitDone:
    root = Location(job.root)
    done = receipt_of(root, job.capture, job.unit)
    if done is not None:
        tell(LOG, "unit.skipped", made_by=done.worker)
        return UnitDone(receipt=done, skipped=True)
    tell(LOG, "unit.begin", logging.DEBUG)
    try:
        spec = read_spec(root, job.capture)
        if job.request is not None:
            spec = spec.model_copy(update={"request": job.request})
        with threadpool_limits(spec.request.precision.threads):
            if shares_process():
                with suppress(TakeTurns):
                    return _produce(root, job, spec, own=True)
                with FORWARDS.alone():
                    settle()
            return _produce(root, job, spec)
    except SubspanError:
        raise
    except Exception as error:
        raise UnitError(
            f"unit {job.unit.name} of capture {job.capture} failed on {worker_name()}: {error!r}"
        ) from error


def _produce(root: Location, job: UnitJob, spec: CaptureSpec, own: bool = False) -> UnitDone:
    """Produce a unit, with the network of the process or the thread's own copy."""
    tally = _Tally()
    norms: list[np.ndarray] = []
    fusion = Fusion(job.fuse, root, spec, job.unit, job.device, job.allowed) if job.fuse else None
    with UnitWriter(root, spec, job.unit) as writer:
        context = _open(root, job, spec, writer)
        if own:
            context = context._replace(network=_own_network(context))
        context = context._replace(gradients=make_gradients(spec, context.space, context.network))
        for shard, group in _groups(context.space, job.unit, context.samples):
            columns = _row_columns(context, shard)
            writer.put_columns(shard, columns)
            _compute(context, tally, group)
            finished = context.buffers.take()
            writer.put(finished)
            norms.append(row_norms(finished, context.buffers.sites))
            if fusion is not None:
                ok = ~np.isin(columns["sample"], list(tally.failures))
                index = np.arange(*context.space.shard_bounds(shard))
                fusion.add(finished.rows, ok, columns["sample"], columns["position"].astype(np.int64), index)
        column = np.concatenate(norms)
        writer.put_norms(column, flag_outliers(column, spec.request.rows.outlier_multiple))
    if fusion is not None:
        writer.files.update(fusion.save())
    if tally.raised == len(context.samples.sample) >= MANY:
        raise UnitError(
            f"all {tally.raised} samples of unit {job.unit.name} made the network raise, such as {next(iter(tally.failures.values()))}: "
            "that is no fault of the samples; check the network and the options, then run again"
        )
    receipt = _receipt(root, context, tally, writer)
    write_receipt(root, receipt)
    _tell_done(receipt)
    return UnitDone(receipt=receipt, skipped=False, forwards=tally.forwards)


def _tell_done(receipt: Receipt) -> None:
    for failure in receipt.failures:
        tell(LOG, "sample.failed", logging.WARNING, key=failure.key, reason=failure.reason)
    facts = ("rows", "tokens", "seconds", "forward_seconds", "write_seconds", "wait_seconds", "peak_bytes")
    tell(LOG, "unit.done", **{name: getattr(receipt, name) for name in facts}, bytes=receipt.written_bytes)


def _open(root: Location, job: UnitJob, spec: CaptureSpec, writer: UnitWriter) -> _Context:
    request = spec.request
    sets = 1 if root.is_local else 2
    space = spec.layout.space(job.unit.space)
    samples = samples_between(root, job.capture, space.name, *space.unit_rows(job.unit.index))
    source = open_source(request.data, spec.partition)
    if source.fingerprint != spec.data:
        raise DataError(
            f"the data have fingerprint {source.fingerprint[:12]}, those that were planned {spec.data[:12]}: they changed, or the factory "
            "gives other samples each time; plan the run again: changed data are another capture"
        )
    return _Context(
        job=job,
        spec=spec,
        space=space,
        samples=samples,
        encoder=make_encoder(source, samples.source_index, request.model, request),
        network=network(request.model, job.device, request.precision.threads, spec.weights),
        buffers=ShardBuffers(
            space,
            spec.layout.sites_of(space.name),
            job.unit.index,
            request.store.dtype,
            partial(writer.wait, but=sets - 1),
            sets,
            writer.put_early,
        ),
        early=root.is_local and not needs_backward(spec, space),
    )


def _own_network(context: _Context) -> Network:
    """The thread's copy; the network itself, which takes turns, where its forward over one sample draws or fails."""

    if isinstance(context.spec.request.loss, FactoryLoss) or context.spec.request.model.kind == "recorded":
        return context.network  # whatever the function keeps, threads would share

    def forward(network: Network) -> object:
        request = context.spec.request
        # With no site to end at, the whole forward: other captures go deeper than this one.
        return collect(network, context.encoder.batch([0]), (), request.rows, request.precision)

    try:
        return replica(context.network, forward)
    except Exception as error:  # noqa: BLE001  see _try
        _refuse_transient(error)
        return context.network


def _groups(space: Space, unit: UnitRef, samples: UnitSamples) -> Iterator[tuple[int, list[int]]]:
    """The shards of a unit with the samples that begin in each; what straddles in from before goes to the first."""
    shards = space.unit_shard_range(unit.index)
    owner = np.maximum(samples.start // space.shard_rows, shards.start)
    for shard in shards:
        yield shard, np.flatnonzero(owner == shard).tolist()


def _compute(context: _Context, tally: _Tally, group: Sequence[int]) -> None:
    """Run a group of samples (indices into the unit's samples) through the network, into the buffers."""
    request = context.spec.request
    lengths = context.encoder.lengths()
    sizes = [int(lengths[n]) for n in group]
    packs = pack(sizes, request.batch_tokens, request.batch_samples, request.batch_overhead)
    for number, packed in enumerate(packs, 1):
        batch = [group[n] for n in packed]
        rows = _try(context, tally, batch, last=number == len(packs))
        if rows is None:
            for sample in batch:
                _try_alone(context, tally, sample)
        else:
            _probe(context, tally, batch, rows)
        del rows  # else they would be there during the next forward


def _try(context: _Context, tally: _Tally, batch: list[int], last: bool) -> dict[str, Tensor] | None:
    """The rows of a batch, put into the buffers; None if it raised or gave a value that is not finite.

    On a local disk the writer gets each site of a shard as soon as the shard's last batch has passed it.
    """
    buffers, destination = context.buffers, _destination(context.samples, batch)
    last = last and context.early and buffers.completes(destination)
    early = partial(buffers.put_early, destination) if last else None
    try:
        rows = _forward(context, tally, batch, early)
    except Exception as error:  # noqa: BLE001  any sample may make any network raise in any way: each is then tried alone
        _refuse_transient(error)
        buffers.recall()
        return None
    if not all(is_finite(values) for values in rows.values()):
        buffers.recall()
        return None
    buffers.put(rows, destination)
    return rows


def _try_alone(context: _Context, tally: _Tally, sample: int) -> None:
    reason = ""
    try:
        rows = _forward(context, tally, [sample])
        bad = [site for site, values in rows.items() if not is_finite(values)]
        reason = f"NaN or infinite values at {bad[0]}" if bad else ""
        if bad and context.encoder.kept_rows()[sample] == 0:
            reason = "the row selection keeps no row of this sample"
    except Exception as error:  # noqa: BLE001  see _try
        _refuse_transient(error)
        reason = f"{type(error).__name__}: {error}"
        tally.raised += 1
    if reason:
        tally.failures[int(context.samples.sample[sample])] = reason[:500]
    else:
        context.buffers.put(rows, _destination(context.samples, [sample]))


def _refuse_transient(error: Exception) -> None:
    """Raise what says nothing of the sample: memory, storage or device. The unit fails, and may be run again."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TRANSIENT) or (
            isinstance(cause, OSError)
            and not isinstance(cause, UnidentifiedImageError)
            and cause.errno is not None
        ):
            raise error
        if "DefaultCPUAllocator" in str(cause):
            raise ResourceError(
                f"a batch did not fit into memory: {cause}; lower batch_tokens or batch_samples, or use fewer workers"
            ) from error
        cause = cause.__cause__


def _forward(
    context: _Context, tally: _Tally, batch: list[int], early: Early | None = None
) -> dict[str, Tensor]:
    request = context.spec.request
    begun = time.perf_counter()
    inputs = context.encoder.batch(batch)
    if request.model.kind == "recorded":
        rows = {str(s.site): inputs.inputs[str(s.site)].flatten(1) for s in context.buffers.sites}
    elif context.gradients is None:
        rows = collect(context.network, inputs, context.buffers.sites, request.rows, request.precision, early)
    else:
        rows, looped, weighed = context.gradients(context.network, inputs, context.buffers.sites)
        tally.looped.update(looped)
        tally.weighed += weighed
    tally.seconds += time.perf_counter() - begun
    tally.forwards += 1
    lengths = context.encoder.lengths()[batch]
    tally.tokens += int(lengths.sum())
    tally.padded += int(lengths.max()) * len(batch)
    expected = int(context.samples.rows[batch].sum())
    for site, values in rows.items():
        if len(values) != expected:
            raise UnitError(
                f"site {site} gave {len(values)} rows for samples that hold {expected}; the network's shapes vary"
            )
    return rows


def _destination(samples: UnitSamples, batch: list[int]) -> Tensor:
    """int64 [row]: the store row of each row of a batch."""
    parts = [np.arange(samples.start[n], samples.start[n] + samples.rows[n]) for n in batch]
    return torch.from_numpy(np.concatenate(parts))


def _probe(context: _Context, tally: _Tally, batch: list[int], rows: dict[str, Tensor]) -> None:
    """Once in some units: the largest difference between a sample alone and in its batch, as stored."""
    if tally.difference is not None or len(batch) < 2 or context.job.unit.index % PROBE_EVERY:
        return
    chosen = len(batch) - 1 - context.job.unit.index // PROBE_EVERY % len(batch)  # another place in each unit
    first = int(context.samples.rows[batch[:chosen]].sum())
    size = int(context.samples.rows[batch[chosen]])
    try:
        alone = _forward(context, _Tally(), [batch[chosen]])
    except Exception:  # noqa: BLE001  some networks take no batch of one: then there is nothing to compare
        return
    beside = {site: values[first : first + size] for site, values in rows.items()}
    dtype = context.spec.request.store.dtype
    difference = max(
        float((to_stored(values, dtype)[0].double() - to_stored(alone[site], dtype)[0].double()).abs().max())
        for site, values in beside.items()
    )
    tally.difference = difference if np.isfinite(difference) else None
    if context.gradients is not None:
        inputs = context.encoder.batch([batch[chosen]])
        tally.gradient_error = context.gradients.error(context.network, inputs, context.buffers.sites, beside)


def _row_columns(context: _Context, shard: int) -> dict[str, np.ndarray]:
    """sample, position and token id of every row of a shard."""
    first, last = context.space.shard_bounds(shard)
    samples = context.samples
    inside = np.flatnonzero((samples.start < last) & (samples.start + samples.rows > first))
    parts = [_sample_columns(context, int(n)) for n in inside]
    begin = int(samples.start[inside[0]])
    return {
        name: np.concatenate([part[name] for part in parts])[first - begin : last - begin]
        for name in parts[0]
    }


def _sample_columns(context: _Context, n: int) -> dict[str, np.ndarray]:
    count = int(context.samples.rows[n])
    if context.space.per_sample is None:
        token_id, position = context.encoder.row_columns(n)
    else:
        places = kept_positions(space_size(context.space.name) or 1, context.spec.request.rows)
        token_id, position = np.full(count, -1), np.asarray(places)
    return {
        "sample": np.full(count, context.samples.sample[n], dtype=np.int64),
        "position": position.astype(np.int32),
        "token_id": token_id.astype(np.int32),
    }


def _receipt(root: Location, context: _Context, tally: _Tally, writer: UnitWriter) -> Receipt:
    first, last = context.space.unit_rows(context.job.unit.index)
    return Receipt(
        capture=context.job.capture,
        unit=context.job.unit,
        rows=last - first,
        files=writer.files,
        failures=tuple(
            Failure(sample=n, key=sample_key(root, context.job.capture, n), reason=why)
            for n, why in sorted(tally.failures.items())
        ),
        truncated=int(context.encoder.truncated().sum()),
        saturated=context.buffers.saturated,
        max_batch_difference=tally.difference,
        looped=tuple(sorted(tally.looped)),
        batches=0 if context.gradients is None else tally.forwards,
        weighed=tally.weighed,
        max_gradient_error=tally.gradient_error,
        seconds=time.perf_counter() - tally.begun,
        forward_seconds=tally.seconds,
        write_seconds=writer.seconds,
        wait_seconds=writer.wait_seconds,
        tokens=tally.tokens,
        padded_tokens=tally.padded,
        peak_bytes=peak_bytes(),
        fingerprint=fingerprint(context.job.device),
        worker=worker_name(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
