"""A request with its network and data loaded: sites, rows, ids. Everything that needs torch before the first unit."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipelines.dry_run import DryRun, first_batch, timed_dry_run
from pipelines.fits import check_fit
from pipelines.geometry import item_bytes, make_space, rows_per_sample
from pipelines.gradients import gradient_sites, resolve_gradients, with_quantities
from pipelines.plan import CapturePlan, StagePlan
from pipelines.sizes import BASE_BYTES, OPEN_SHARDS, OPEN_TENSORS, batch_bytes, graph_bytes, state_bytes
from pipelines.stages import allowed_packages, resolve_stages, select_sites
from schemas.base import canonical_json
from schemas.capture import CaptureRequest, CaptureSpec
from schemas.errors import DataError, SpecError
from schemas.layout import Layout, Site, SiteLayout, Space
from schemas.run import RunSpec
from tasks.engine.fusable import check_fusable
from tasks.extract.batches import Batch
from tasks.extract.data import Source, fingerprint, open_source, partitions
from tasks.extract.encode import Encoder, make_encoder
from tasks.extract.geometry import space_size
from tasks.extract.models import network
from tasks.extract.sites import SiteInfo, resolve
from tasks.extract.subset import choose
from tasks.extract.weights import tokenizer_digest, weights_digest
from tasks.store.arrays import SampleTable

MOST_CLASSES = 256
"""Whole numbers with at most this many different values are classes, with more they are measurements."""


class Prepared(NamedTuple):
    """One partition, tokenised, with its network's sites resolved."""

    spec: CaptureSpec
    table: SampleTable
    n_tokens: int
    weight_bytes: int
    """Of parameters."""
    buffer_bytes: int
    batch_bytes: int
    """The largest tensor of a forward at the full token budget."""
    graph_bytes: int
    """What a forward keeps for its backward at the full token budget; 0 where there is none."""
    dry_run: DryRun


def resolve_run(run: RunSpec) -> tuple[tuple[CapturePlan, ...], tuple[StagePlan, ...]]:
    """Captures and stages of a run, with their ids.

    Raises:
        SubspanError: for whatever in the run does not fit the network, the data or a method.
    """
    for name, request in run.captures.items():
        _check_fuse(name, request)
    captures = resolve_captures(run)
    stages = resolve_stages(run, captures)
    check_fit(run, captures, stages, lambda c: sample_table(run.captures[c.name], c.partition))
    return captures, stages


def resolve_captures(run: RunSpec) -> tuple[CapturePlan, ...]:
    """The plan of every capture and partition, in the order of the run."""
    return tuple(
        _capture_plan(name, request, partition)
        for name, request in run.captures.items()
        for partition in partitions(request.data)
    )


def _check_fuse(name: str, request: CaptureRequest) -> None:
    if request.keep == "states" and not request.fuse:
        raise SpecError(
            f"capture {name!r} has keep: states and no fuse, so nothing would be kept; name methods in fuse, or keep: rows"
        )
    for call in request.fuse:
        check_fusable(call, allowed_packages())


def sample_table(request: CaptureRequest, partition: str | None) -> SampleTable:
    """Keys, labels, lengths and row starts of a capture's samples."""
    return prepare(request, partition).table


def prepare(request: CaptureRequest, partition: str | None) -> Prepared:
    """See Prepared; remembered while weights and data stay the same, so that planning and creating share the work."""
    prints = weights_digest(request.model), fingerprint(request.data, partition)
    return _prepare(canonical_json(request), partition or None, prints)


@lru_cache(maxsize=16)
def _prepare(request_json: bytes, partition: str | None, prints: tuple[str | None, str | None]) -> Prepared:
    request = CaptureRequest.model_validate_json(request_json)
    source = open_source(request.data, partition)
    indices, encoder = _draw(source, request)
    net = network(request.model, "cpu", request.precision.threads, prints[0])
    recorded = request.model.kind == "recorded"
    dry = DryRun([], 0.0, 0, "cpu") if recorded else timed_dry_run(net, encoder, request)
    infos = dry.sites
    batch = first_batch(encoder)
    watched = not recorded and _watches_samples(request, infos)
    gradients = None if recorded else resolve_gradients(net, source, encoder, batch, request, watched)
    layout = gradients.layout if gradients else None
    sites = (
        recorded_sites(request, batch)
        if recorded
        else with_quantities(
            resolve(request.sites, gradient_sites(infos, net, batch, request, layout), request.rows.pooling),
            request,
        )
    ) + (gradients.sites if gradients else ())
    spaces, starts = _spaces(sites, encoder, request, len(indices))
    spec = CaptureSpec(
        request=identity_request(request),
        weights=net.digest,
        data=source.fingerprint,
        tokenizer=tokenizer_digest(request.model) if encoder.is_text else None,
        partition=partition or None,
        layout=Layout(n_samples=len(indices), spaces=spaces, sites=sites, gradients=layout),
    )
    table = _table(source, encoder, indices, starts)
    weight_bytes, buffer_bytes = (
        sum(t.numel() * t.element_size() for t in tensors)
        for tensors in (net.module.parameters(), net.module.buffers())
    )
    return Prepared(
        spec=spec,
        table=table,
        n_tokens=int(encoder.lengths().sum()),
        weight_bytes=weight_bytes,
        buffer_bytes=buffer_bytes,
        batch_bytes=batch_bytes(infos, encoder, request),
        graph_bytes=graph_bytes(infos, encoder, request) if request.wants_gradients else 0,
        dry_run=dry,
    )


def recorded_sites(request: CaptureRequest, batch: Batch) -> tuple[SiteLayout, ...]:
    """Parameters of recorded steps, as the request names them."""
    there = {Site.parse(name): tuple(value.shape[1:]) for name, value in batch.inputs.items()}
    chosen = list(there)
    if request.sites:
        chosen = [site for site in there if any(site in select_sites(p, list(there)) for p in request.sites)]
    return tuple(
        SiteLayout(
            site=site,
            space="sample",
            width=int(np.prod(there[site], dtype=np.int64)),
            feature_axis=1,
            shape=there[site] or None,
        )
        for site in chosen
    )


def identity_request(request: CaptureRequest) -> CaptureRequest:
    """The part of a request that changes stored values: fused methods only where nothing else is kept."""
    return request if request.keep == "states" else request.model_copy(update={"fuse": ()})


def _draw(source: Source, request: CaptureRequest) -> tuple[np.ndarray, Encoder]:
    if len(source) == 0:
        raise DataError("the data hold no samples; expected at least one")
    everything = np.arange(len(source))
    subset = request.data.subset
    if subset.max_tokens is None and subset.max_samples is None and not subset.skip_samples:
        return everything, make_encoder(source, everything, request.model, request)
    lengths = None
    if subset.max_tokens is not None:
        # Texts that are too long refuse the run only if they are drawn.
        drawing = make_encoder(
            source, everything, request.model, request.model_copy(update={"too_long": "truncate"})
        )
        lengths = drawing.lengths() if drawing.is_text else None
    indices = choose(source.labels(), lengths, subset, n_samples=len(source))
    return indices, make_encoder(source, indices, request.model, request)


def _watches_samples(request: CaptureRequest, infos: Sequence[SiteInfo]) -> bool:
    """Whether gradients at sites lie in the row space of those of parameters, so that one pass gives both."""
    if not request.wants_activation_gradients:
        return False
    return any(site.space == "sample" for site in resolve(request.sites, infos, request.rows.pooling))


def _spaces(
    sites: Sequence[SiteLayout], encoder: Encoder, request: CaptureRequest, n_samples: int
) -> tuple[tuple[Space, ...], dict[str, np.ndarray]]:
    spaces: list[Space] = []
    starts: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(site.space for site in sites):
        widths = [site.width for site in sites if site.space == name]
        counts, per_sample = _counts(name, encoder, request, n_samples)
        starts[name] = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        n_rows = int(starts[name][-1])
        if n_rows == 0:
            raise DataError(
                f"the row selection {request.rows.model_dump()} keeps no row of {n_samples} samples; keep more positions"
            )
        spaces.append(make_space(name, n_samples, n_rows, per_sample, widths, request.store))
    return tuple(spaces), starts


def _counts(
    name: str, encoder: Encoder, request: CaptureRequest, n_samples: int
) -> tuple[np.ndarray, int | None]:
    if name == "tokens":
        return encoder.kept_rows(), None
    per_sample = rows_per_sample(space_size(name) or 1, request.rows)
    return np.full(n_samples, per_sample, dtype=np.int64), per_sample


def _table(
    source: Source, encoder: Encoder, indices: np.ndarray, starts: dict[str, np.ndarray]
) -> SampleTable:
    keys = source.keys()
    labels: dict[str, np.ndarray] = {}
    categories: dict[str, tuple[str, ...]] = {}
    for name, column in source.labels().items():
        chosen = [column[i] for i in indices]
        names = sorted(set(chosen))
        if isinstance(column[0], str) or (isinstance(column[0], int) and len(names) <= MOST_CLASSES):
            code = {value: n for n, value in enumerate(names)}
            labels[name] = np.array([code[value] for value in chosen], dtype=np.int64)
            categories[name] = tuple(str(value) for value in names)
        else:
            labels[name] = np.asarray(chosen)
    return SampleTable(
        keys=[keys[i] for i in indices],
        lengths=encoder.lengths(),
        labels=labels,
        categories=categories,
        row_start=starts,
        source_index=np.asarray(indices, dtype=np.int64),
        truncated=encoder.truncated(),
    )


def _capture_plan(name: str, request: CaptureRequest, partition: str) -> CapturePlan:
    prepared = prepare(request, partition)
    spec, layout = prepared.spec, prepared.spec.layout
    size = item_bytes(request.store)
    row_bytes = {
        space.name: sum(site.width for site in layout.sites_of(space.name)) * size for space in layout.spaces
    }
    shard_set = max((space.shard_rows * row_bytes[space.name] for space in layout.spaces), default=0)
    on_disk = sum(
        s.n_rows * (row_bytes[s.name] + 16 + 5 * len(layout.sites_of(s.name))) for s in layout.spaces
    )
    shared = BASE_BYTES + prepared.weight_bytes
    return CapturePlan(
        name=name,
        partition=partition or None,
        id=spec.id,
        spec=spec,
        n_units=sum(space.n_units for space in layout.spaces),
        bytes=(on_disk if request.keep == "rows" else 0) + len(request.fuse) * state_bytes(layout),
        shared_memory_bytes=shared,
        worker_memory_bytes=shared
        + prepared.buffer_bytes
        + OPEN_SHARDS * shard_set
        + OPEN_TENSORS * prepared.batch_bytes
        + prepared.graph_bytes,
        n_tokens=prepared.n_tokens,
        dry_run_seconds=prepared.dry_run.seconds_per_token,
    )
