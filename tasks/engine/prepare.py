"""A resolved stage -> its module, its options, its rows and what is known before any row is read."""

from types import ModuleType
from typing import NamedTuple

from schemas.artifact import Artifact
from schemas.base import Frozen
from schemas.errors import MethodError
from schemas.stage import NETWORK, ResolvedStage, RowsRef
from tasks.engine.blocks import to_tensor
from tasks.engine.join import JoinedSource
from tasks.engine.network import NetworkSource, open_network, trainable
from tasks.engine.parameters import load_parameters, wanted
from tasks.engine.reduction import reads_labels, row_labels, rows_ports
from tasks.engine.source import SiteSource, Source, n_rows, n_samples
from tasks.methods.contract import ArtifactPort, Inputs, RowsPort, State, load_method
from tasks.store.artifacts import artifact_arrays, read_artifact
from tasks.store.location import Location


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
        NotFoundError: if a capture or artifact is not there.
    """
    stage = job.stage
    module = load_method(stage.method, job.allowed)
    if stage.version != module.VERSION:
        raise MethodError(
            f"stage {stage.id} asks for version {stage.version} of {stage.method}, this installation has "
            f"{module.VERSION}: plan the run again, or install the version that planned it"
        )
    config: Frozen = module.Config.model_validate(stage.config)
    ports = rows_ports(module)
    _check_ports(stage, module)
    refs = tuple(stage.rows[name] for name in ports)
    source = open_source(job.root, refs, reads_labels(module), row_labels(module, config))
    inputs = _inputs(job, module, config, source, tuple(ports))
    if hasattr(module, "check"):
        module.check(inputs, config)
    return Prepared(module, config, source, inputs, tuple(ports))


def start(ready: Prepared, device: str) -> State:
    """What the method starts with, on a device."""
    carry: State = ready.module.start(ready.inputs, ready.config)
    return {name: tensor.to(device) for name, tensor in carry.items()}


def open_source(
    root: Location, refs: tuple[tuple[RowsRef, ...], ...], labels: bool, of_rows: tuple[str, ...] = ()
) -> Source:
    """The rows of one port, or of two joined ones.

    Args:
        root: where the captures lie.
        refs: captures of each port.
        labels: whether rows carry their samples' labels.
        of_rows: labels of rows that they carry too, of the first port.

    Raises:
        MethodError: for more ports than can be joined.
    """
    if any(ref.site == NETWORK for port in refs for ref in port):
        if len(refs) > 1:
            raise MethodError(f"found {len(refs)} ports; a network is read alone, split the method")
        return NetworkSource(root, refs[0])
    sites = [SiteSource(root, port, labels, of_rows=of_rows if n == 0 else ()) for n, port in enumerate(refs)]
    if len(sites) == 1:
        return sites[0]
    if len(sites) == 2:
        return JoinedSource(*sites)
    raise MethodError(f"found {len(sites)} ports of rows, one or two can be read together; split the method")


def places(source: Source) -> list[str]:
    """A capture and site per port, for messages."""
    return [" + ".join(ref.label for ref in port) for port in source.refs]


def _check_ports(stage: ResolvedStage, module: ModuleType) -> None:
    wanted = {
        name: "rows" if isinstance(port, RowsPort) else "artifact" for name, port in module.READS.items()
    }
    given = dict.fromkeys(stage.rows, "rows") | dict.fromkeys(stage.artifacts, "artifact")
    if given != wanted or not all(stage.rows.values()):
        raise MethodError(
            f"{stage.method} has the ports {wanted}, found {given} connected: connect every port to captures or to "
            "a stage, as it takes, and no other"
        )
    for name, port in rows_ports(module).items():
        if len(stage.rows[name]) > 1 and not port.several:
            raise MethodError(
                f"{stage.method}, port {name!r}: found {len(stage.rows[name])} captures, it takes one; "
                "use a stage for each"
            )


def _inputs(
    job: StageJob, module: ModuleType, config: Frozen, source: Source, ports: tuple[str, ...]
) -> Inputs:
    made = {
        name: _read_port(job, name, port.method)
        for name, port in module.READS.items()
        if isinstance(port, ArtifactPort)
    }
    return Inputs(
        widths=dict(zip(ports, source.widths, strict=True)),
        n_rows=n_rows(source),
        n_samples=n_samples(source),
        categories=source.categories,
        artifacts={
            name: {key: to_tensor(a, job.device) for key, a in artifact_arrays(job.root, artifact.id).items()}
            for name, artifact in made.items()
        },
        results={name: artifact.result for name, artifact in made.items()},
        parameters=_parameters(job, source),
        shapes={name: shape for name, shape in zip(ports, source.shapes, strict=True) if shape is not None},
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


def _read_port(job: StageJob, name: str, method: str) -> Artifact:
    artifact = read_artifact(job.root, job.stage.artifacts[name].artifact)
    if artifact.stage.method != method:
        raise MethodError(
            f"{job.stage.method}, port {name!r}: found an artifact of {artifact.stage.method}, expected one of "
            f"{method}; connect a stage of that method"
        )
    return artifact
