"""A resolved stage -> its module, its options, its rows and what is known before any row is read."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from types import ModuleType
from typing import NamedTuple

import numpy as np
from torch import Tensor

from schemas.artifact import Artifact
from schemas.base import Frozen
from schemas.errors import MethodError
from schemas.stage import NETWORK, ResolvedStage, RowsRef
from tasks.engine.aligned import ROW, AlignedSource, check_aligned
from tasks.engine.blocks import block_of, to_tensor
from tasks.engine.edges import Samples, sample_edges
from tasks.engine.fitting import other_weights
from tasks.engine.fusable import without_rows
from tasks.engine.join import JoinedSource
from tasks.engine.made import common_samples, how_made, reference_captures
from tasks.engine.network import NetworkSource, open_network, trainable
from tasks.engine.parameters import load_parameters, wanted
from tasks.engine.reduction import (
    aligned_ports,
    artifact_ports,
    reads_labels,
    reads_values,
    row_labels,
    rows_ports,
)
from tasks.engine.source import SiteSource, Source, n_rows, n_samples, read
from tasks.methods.contract import (
    ArtifactPort,
    Edges,
    Inputs,
    MadeOver,
    Member,
    Port,
    RowsPort,
    State,
    load_method,
    require_packages,
)
from tasks.store.artifacts import artifact_arrays, read_artifact
from tasks.store.capture_spec import read_spec
from tasks.store.location import Location
from tasks.store.sample_table import read_samples

MOST_SERIES_BYTES = 1 << 32
"""Of the arrays of all members of a series, which lie in memory together."""


class StageJob(NamedTuple):
    """A stage, as it goes to a worker."""

    root: Location
    stage: ResolvedStage
    device: str
    allowed: tuple[str, ...]
    begun: float
    """Seconds since the epoch when work on the stage began."""


class Prepared(NamedTuple):
    """A stage that is ready to read blocks."""

    module: ModuleType
    config: Frozen
    source: Source
    inputs: Inputs
    ports: tuple[str, ...]
    """Names of the rows ports, in the order of a block's values."""


def prepare(job: StageJob) -> Prepared:
    """Open what a stage reads and check that its method can take it.

    Raises:
        MethodError: if ports, captures or options do not fit the method.
        NotFoundError: if a capture, artifact or file of edges is not there.
        DataError: if a file of edges changed, or does not fit the samples.
    """
    module, config = opened(job)
    ports = rows_ports(module)
    made = single_artifacts(job, module)
    aligned = {name: made[name].id for name in aligned_ports(module)} | aligned_series(job.stage, module)
    refs = tuple(job.stage.rows[name] for name in ports)
    source = open_source(
        job.root, refs, reads_labels(module), aligned, reads_values(module), row_labels(module, config)
    )
    for part in source.parts:
        if not part.keeps_rows and (module.KIND != "reduce" or len(ports) > 1):
            raise without_rows(part.ref.label, part.spec, job.stage.method, config, job.allowed)
    inputs = _inputs(job, module, config, source, made)
    if hasattr(module, "check"):
        module.check(inputs, config)
    return Prepared(module, config, source, inputs, tuple(ports))


def opened(job: StageJob) -> tuple[ModuleType, Frozen]:
    """A stage's module and options, its ports connected as the method wants them.

    Raises:
        MethodError: if version, ports or options do not fit the method, or a package that it needs is not installed.
    """
    stage = job.stage
    module = load_method(stage.method, job.allowed)
    if stage.version != module.VERSION:
        raise MethodError(
            f"stage {stage.id} asks for version {stage.version} of {stage.method}, this installation has "
            f"{module.VERSION}: plan the run again, or install the version that planned it"
        )
    require_packages(module, stage.method)
    config: Frozen = module.Config.model_validate(stage.config)
    _check_ports(stage, module)
    return module, config


def start(ready: Prepared, device: str) -> State:
    """What the method starts with, on a device."""
    carry: State = ready.module.start(ready.inputs, ready.config)
    return {name: tensor.to(device) for name, tensor in carry.items()}


def open_source(
    root: Location,
    refs: tuple[tuple[RowsRef, ...], ...],
    labels: bool,
    aligned: Mapping[str, str] | None = None,
    values: bool = True,
    of_rows: tuple[str, ...] = (),
) -> Source:
    """The rows of one port, or of two joined ones.

    Args:
        root: where captures and artifacts lie.
        refs: the captures of each port.
        labels: whether rows come with their samples' labels.
        aligned: artifact port to the artifact whose row-aligned arrays come with the rows.
        values: whether the rows themselves are read.
        of_rows: labels of rows that they carry too, of the first port.

    Raises:
        MethodError: for more ports than can be joined.
    """
    if any(ref.site == NETWORK for port in refs for ref in port):
        if len(refs) > 1:
            raise MethodError(f"found {len(refs)} ports; a network is read alone, split the method")
        return NetworkSource(root, refs[0])
    if aligned:
        return AlignedSource(open_source(root, refs, labels, None, values, of_rows), root, aligned)
    if len(refs) == 1:
        return SiteSource(root, refs[0], labels, values=values, of_rows=of_rows)
    sites = [SiteSource(root, port, labels, of_rows=of_rows if n == 0 else ()) for n, port in enumerate(refs)]
    if len(sites) == 2:
        return JoinedSource(*sites)
    raise MethodError(f"found {len(sites)} ports of rows, one or two can be read together; split the method")


def places(source: Source) -> list[str]:
    """A capture and site per port, for messages."""
    return [" + ".join(ref.label for ref in port) for port in source.refs]


def _taken(port: Port) -> str:
    """What a port takes, in a word."""
    if isinstance(port, ArtifactPort):
        return "artifacts" if port.several else "artifact"
    return "rows" if isinstance(port, RowsPort) else "graph"


def _check_ports(stage: ResolvedStage, module: ModuleType) -> None:
    wanted = {name: _taken(port) for name, port in module.READS.items()}
    kinds = (
        (stage.rows, "rows"),
        (stage.artifacts, "artifact"),
        (stage.series, "artifacts"),
        (stage.graphs, "graph"),
    )
    given = {port: kind for ports, kind in kinds for port in ports}
    if given != wanted or not all((*stage.rows.values(), *stage.series.values())):
        raise MethodError(
            f"{stage.method} has the ports {wanted}, found {given} connected: connect every port to captures, a "
            "stage or a file of edges, as it takes, and no other"
        )
    for name, port in rows_ports(module).items():
        if len(stage.rows[name]) > 1 and not port.several:
            raise MethodError(
                f"{stage.method}, port {name!r}: found {len(stage.rows[name])} captures, it takes one; "
                "use a stage for each"
            )


def artifact_inputs(job: StageJob, module: ModuleType, single: Mapping[str, Artifact]) -> Inputs:
    """What a stage is given of other stages; row-aligned arrays come with the rows.

    Args:
        job: the stage.
        module: its method.
        single: from `single_artifacts`.

    Raises:
        MethodError: for artifacts of another method, or of other rows than they must go with, or a series that is too large for memory.
        NotFoundError: if an artifact is not there.
    """
    ports, aligned = artifact_ports(module), aligned_ports(module)
    with_rows = {
        name: read_artifact(job.root, artifact)
        for name, artifact in aligned_series(job.stage, module).items()
    }
    return Inputs(
        widths={},
        n_rows=0,
        n_samples=0,
        artifacts={
            name: _arrays(job, artifact, ROW if name in aligned else None)
            for name, artifact in single.items()
        },
        results={name: artifact.result for name, artifact in single.items()},
        made={
            name: how_made(job.root, artifact, job.allowed, over=_over(job, artifact, ports[name]))
            for name, artifact in single.items()
            if any(port.of_rows for port in ports.values())
        }
        | {name: how_made(job.root, artifact, job.allowed) for name, artifact in with_rows.items()},
        series={name: _series(job, name, port) for name, port in ports.items() if port.several},
    )


def _over(job: StageJob, artifact: Artifact, port: ArtifactPort) -> MadeOver | None:
    """The rows of an artifact, where its port asks for them."""
    if not port.of_rows:
        return None
    refs = next(iter(artifact.stage.rows.values()))
    source = SiteSource(job.root, refs, labels=True, values=False)
    rows = read(source, 0, n_rows(source))
    here = [ref.capture for ref in refs]
    read_here = [ref.capture for ref in next(iter(job.stage.rows.values()), ())]
    return MadeOver(
        block_of(replace(rows, values=()), (), job.device, ()),
        source.categories,
        common_samples(job.root, here, read_here),
        common_samples(job.root, here, sorted(reference_captures(job.root, artifact, job.allowed))),
    )


def single_artifacts(job: StageJob, module: ModuleType) -> dict[str, Artifact]:
    """What each port takes that takes one artifact.

    Raises:
        MethodError: for an artifact of another method, or of other rows than it must go with.
        NotFoundError: if it is not there.
    """
    ports = {name: port for name, port in artifact_ports(module).items() if not port.several}
    made = {
        name: _read(job, name, job.stage.artifacts[name].artifact, port.makers)
        for name, port in ports.items()
    }
    for name, port in ports.items():
        if port.aligned or port.own_rows:
            check_aligned(job.stage, name, port, made[name], job.allowed)
    return made


def aligned_series(stage: ResolvedStage, module: ModuleType) -> dict[str, str]:
    """Name in `Block.aligned` to artifact, of ports that take several whose arrays come with the rows."""
    ports = [name for name, port in artifact_ports(module).items() if port.aligned and port.several]
    return {f"{name}.{n}": ref.artifact for name in ports for n, ref in enumerate(stage.series[name])}


def _series(job: StageJob, name: str, port: ArtifactPort) -> tuple[Member, ...]:
    refs = job.stage.series[name]
    made = [_read(job, name, ref.artifact, port.makers) for ref in refs]
    without = ROW if port.aligned else None
    if port.aligned:
        for artifact in made:
            check_aligned(job.stage, name, port, artifact, job.allowed)
    kept = [info for a in made for info in a.arrays.values() if without is None or without not in info.dims]
    size = sum(prod(info.shape) * np.dtype(info.dtype).itemsize for info in kept)
    if size > MOST_SERIES_BYTES:
        raise MethodError(
            f"{job.stage.method}, port {name!r}: {len(made)} artifacts hold {size:,} bytes, at most {MOST_SERIES_BYTES:,} are read "
            "together; choose fewer sites, or fewer stages, or keep fewer components where the method has such an option"
        )
    return tuple(
        Member(
            ref.site,
            ref.captures,
            _arrays(job, artifact, without),
            artifact.result,
            artifact.stage.method,
            artifact.stage.config,
        )
        for ref, artifact in zip(refs, made, strict=True)
    )


def _arrays(job: StageJob, artifact: Artifact, without: str | None = None) -> dict[str, Tensor]:
    arrays = artifact_arrays(job.root, artifact.id, without=without)
    return {key: to_tensor(values, job.device) for key, values in arrays.items()}


def _inputs(
    job: StageJob, module: ModuleType, config: Frozen, source: Source, single: Mapping[str, Artifact]
) -> Inputs:
    ports = tuple(rows_ports(module))
    given = artifact_inputs(job, module, single)
    return replace(
        given,
        seen={port: _seen(job, source, members) for port, members in given.series.items()},
        strangers={port: _strangers(job, source, members) for port, members in given.series.items()},
        widths=dict(zip(ports, source.widths, strict=True)),
        n_rows=n_rows(source),
        n_samples=n_samples(source),
        categories=source.categories,
        captures={name: tuple(ref.capture for ref in refs) for name, refs in job.stage.rows.items()},
        sites={name: refs[0].site for name, refs in job.stage.rows.items()},
        parameters=_parameters(job, source),
        shapes={name: shape for name, shape in zip(ports, source.shapes, strict=True) if shape is not None},
        graphs=_graphs(job, source),
        weights=load_parameters(
            [part.spec for part in source.parts],
            wanted(module, config, source.refs[0][0].site),
            job.device,
        ),
    )


def _parameters(job: StageJob, source: Source) -> dict[str, tuple[int, ...]]:
    """Of a network that a port takes, which is loaded for it."""
    if not isinstance(source, NetworkSource):
        return {}
    net = open_network(source.parts[0].spec, job.device)
    return {name: tuple(parameter.shape) for name, parameter in trainable(net).items()}


def _seen(job: StageJob, source: Source, members: tuple[Member, ...]) -> int:
    """Samples of a network's capture from which artifacts were made too."""
    if not isinstance(source, NetworkSource):
        return 0
    made = {capture for member in members for capture in member.captures}
    return common_samples(job.root, [source.parts[0].ref.capture], sorted(made))


def _strangers(job: StageJob, source: Source, members: tuple[Member, ...]) -> int:
    """Artifacts that were made from captures of another network than the one that a port takes."""
    if not isinstance(source, NetworkSource):
        return 0
    here = source.parts[0].spec
    specs = {capture: read_spec(job.root, capture) for member in members for capture in member.captures}
    other = {capture for capture, spec in specs.items() if other_weights(spec, here)}
    return sum(not other.isdisjoint(member.captures) for member in members)


def _graphs(job: StageJob, source: Source) -> dict[str, Edges]:
    """The files of edges, over the samples of the first port of rows."""
    captures = [
        Samples(read_samples(part.root, part.ref.capture), part.space.name, part.ref.label)
        for part in source.parts
        if job.stage.graphs
    ]
    return {name: sample_edges(ref, captures) for name, ref in job.stage.graphs.items()}


def _read(job: StageJob, name: str, artifact_id: str, makers: tuple[str, ...]) -> Artifact:
    artifact = read_artifact(job.root, artifact_id)
    if artifact.stage.method not in makers:
        raise MethodError(
            f"{job.stage.method}, port {name!r}: found an artifact of {artifact.stage.method}, expected one of "
            f"{' or '.join(makers)}; connect a stage of that method"
        )
    return artifact
