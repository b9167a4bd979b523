"""Stages of a run, resolved: which sites, which captures, which artifacts, and the id of each answer."""

import itertools
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from pipelines.plan import CapturePlan, StagePlan
from schemas.errors import MethodError, SpecError, SubspanError, UnknownNameError, nearest
from schemas.layout import Site
from schemas.run import RunSpec
from schemas.stage import (
    NETWORK,
    ArtifactRef,
    EdgesRef,
    PortInput,
    ResolvedStage,
    RowsRef,
    SeriesRef,
    StageRequest,
    site_of,
    spanning,
)
from tasks.decoders import decoder_of
from tasks.extract.sites import SiteInfo, resolve
from tasks.methods.contract import (
    ArtifactPort,
    BatchesPort,
    GraphPort,
    RowsPort,
    load_method,
    require_packages,
)
from tasks.store.edges import edges_ref


def allowed_packages() -> tuple[str, ...]:
    """Packages outside the project whose methods this process trusts: SUBSPAN_METHOD_PACKAGES, separated by commas."""
    return tuple(name for name in os.environ.get("SUBSPAN_METHOD_PACKAGES", "").split(",") if name)


def resolve_stages(run: RunSpec, captures: Sequence[CapturePlan]) -> tuple[StagePlan, ...]:
    """Every stage at every site, dependencies first.

    Raises:
        UnknownNameError: for a method, capture, stage or site that does not exist.
        SpecError: for options or inputs that do not fit the method.
    """
    made: dict[str, list[StagePlan]] = {}
    for name in _order(run):
        made[name] = _resolve(name, run, captures, made)
    return tuple(plan for name in run.stages for plan in made[name])


def _order(run: RunSpec) -> list[str]:
    """Stage names so that each comes after the stages whose artifacts it reads."""
    ordered: list[str] = []
    waiting = dict(run.stages)
    while waiting:
        ready = [name for name, stage in waiting.items() if not (_needs(name, stage, run) & waiting.keys())]
        if not ready:
            raise SpecError(
                f"stages {', '.join(sorted(waiting))} wait for one another's artifacts; break the circle"
            )
        ordered += ready
        for name in ready:
            del waiting[name]
    return ordered


def _needs(name: str, stage: StageRequest, run: RunSpec) -> set[str]:
    coders = (_coder(name, stage, port, run) for port in _rows_ports(stage))
    one = {coder for coder in coders if coder is not None}
    one |= {maker for port in _single_ports(stage) if (maker := _maker(name, stage, port, run))}
    return one.union(*(_makers(name, stage, port, run) for port in _series_ports(stage)))


def _ports(stage: StageRequest, kind: type) -> list[str]:
    module = load_method(stage.method, allowed_packages())
    return [port for port, what in module.READS.items() if isinstance(what, kind)]


def _rows_ports(stage: StageRequest) -> list[str]:
    return [port for port in _ports(stage, RowsPort) if port not in _ports(stage, BatchesPort)]


def _single_ports(stage: StageRequest) -> list[str]:
    reads = load_method(stage.method, allowed_packages()).READS
    return [port for port in _ports(stage, ArtifactPort) if not reads[port].several]


def _series_ports(stage: StageRequest) -> list[str]:
    return [port for port in _ports(stage, ArtifactPort) if port not in _single_ports(stage)]


def _makers(name: str, stage: StageRequest, port: str, run: RunSpec) -> list[str]:
    """The stages whose artifacts a port takes as a series, in the order of the run file."""
    makers = load_method(stage.method, allowed_packages()).READS[port].makers
    wanted = " or ".join(makers)
    of_method = [other for other, request in run.stages.items() if request.method in makers and other != name]
    pattern = stage.inputs.get(port, PortInput()).stage
    found = [other for other in of_method if pattern is None or fnmatchcase(other, pattern)]
    if not found:
        raise SpecError(
            f"stage {name!r}, port {port!r} takes artifacts of {wanted}; found no stage of that method"
            + (f" called {pattern!r}; nearest: {nearest(pattern, of_method)}" if pattern else ": add one")
        )
    return found


def _maker(name: str, stage: StageRequest, port: str, run: RunSpec) -> str:
    """The stage whose artifact a port takes: the one named, or the only one of the run that runs the port's method."""
    given = stage.inputs.get(port)
    makers = load_method(stage.method, allowed_packages()).READS[port].makers
    wanted = " or ".join(makers)
    if given is not None and given.stage is not None:
        if given.stage not in run.stages:
            raise SpecError(
                f"stage {name!r}, port {port!r} takes one artifact; found {given.stage!r}, which may mean several stages: name one"
            )
        if run.stages[given.stage].method not in makers:
            raise SpecError(
                f"stage {name!r}, port {port!r} takes an artifact of {wanted}; found stage {given.stage!r} of "
                f"{run.stages[given.stage].method}: name another"
            )
        return given.stage
    candidates = [
        other for other, request in run.stages.items() if request.method in makers and other != name
    ]
    if len(candidates) != 1:
        raise SpecError(
            f"stage {name!r}, port {port!r} takes an artifact of {wanted}; found {len(candidates)} stages of that method: "
            f"name one with inputs: {{{port}: {{stage: ...}}}}"
        )
    return candidates[0]


def _resolve(
    name: str, run: RunSpec, captures: Sequence[CapturePlan], made: Mapping[str, Sequence[StagePlan]]
) -> list[StagePlan]:
    request = run.stages[name]
    module = load_method(request.method, allowed_packages())
    require_packages(module, request.method)
    config = _config(name, request, module)
    _check_ports(name, request, module)
    ports = _ports(request, RowsPort)
    if request.partitions == "each":
        parts = _partitions(name, request, ports, captures)
        return [
            plan.model_copy(update={"partition": part})
            for part, own in parts.items()
            for plan in _at_each_site(name, run, own, made, module, config)
        ]
    return _at_each_site(name, run, captures, made, module, config)


def _partitions(
    name: str, request: StageRequest, ports: Sequence[str], captures: Sequence[CapturePlan]
) -> dict[str, list[CapturePlan]]:
    """Partition to the captures as if there were no others; captures that are not partitioned belong to each.

    Raises:
        SpecError: if nothing that it reads is partitioned, or a port lacks a partition that another has.
    """
    if not ports:
        raise SpecError(
            f"stage {name!r} has `partitions: each`, and {request.method} reads artifacts alone: leave it out"
        )
    read = {port: _named_captures(name, request, port, captures) for port in ports}
    keys = {port: [c.partition for c in found if c.partition is not None] for port, found in read.items()}
    every = list(dict.fromkeys(key for found in keys.values() for key in found))
    if not every:
        raise SpecError(
            f"stage {name!r} has `partitions: each`, and no capture that it reads is partitioned: leave it out, or give the capture's data "
            "`partition_by: file`"
        )
    for port, found in keys.items():
        if found and (missing := [key for key in every if key not in found]):
            raise SpecError(
                f"stage {name!r}, port {port!r}: there is no partition {missing[0]!r}; nearest: {nearest(missing[0], found)}"
            )
    return {key: [c for c in captures if c.partition in (None, key)] for key in every}


def _at_each_site(
    name: str,
    run: RunSpec,
    captures: Sequence[CapturePlan],
    made: Mapping[str, Sequence[StagePlan]],
    module: ModuleType,
    config: dict[str, Any],
) -> list[StagePlan]:
    request = run.stages[name]
    ports = _ports(request, RowsPort)
    graphs = {port: _edges(name, request, port) for port in _ports(request, GraphPort)}
    series = {
        port: _series(name, request, port, run, captures, made)
        for port in _series_ports(request)
        if not module.READS[port].aligned
    }
    if not ports:
        return [_combined(name, request, run, series, made)]
    columns = {
        port: _coded(
            name,
            port,
            _rows(name, request, port, module.READS[port], captures),
            _coder(name, request, port, run),
            made,
        )
        for port in ports
    }
    plans: list[StagePlan] = []
    for row in (_every if request.pairs == "all" else _zip)(name, columns):
        site = row[ports[0]][0].site
        if len(ports) > 1 and all(row[port] == row[ports[0]] for port in ports):
            raise SpecError(
                f"stage {name!r}: ports {' and '.join(ports)} both read {row[ports[0]][0].label}; connect different sites or captures, "
                f"with inputs: {{{ports[0]}: {{sites: ...}}, {ports[1]}: {{sites: ...}}}}"
            )
        artifacts = {
            port: _artifact(name, request, port, run, site, row[ports[0]], made)
            for port in _single_ports(request)
        }
        stage = ResolvedStage(
            method=request.method,
            version=module.VERSION,
            config=config,
            rows=row,
            artifacts=artifacts,
            series=series
            | {
                port: _aligned_series(name, request, port, run, row[ports[0]], made)
                for port in _series_ports(request)
                if port not in series
            },
            graphs=graphs,
        )
        plans.append(StagePlan(name=name, site=site, id=stage.id, stage=stage))
    return plans


def _combined(
    name: str,
    request: StageRequest,
    run: RunSpec,
    series: Mapping[str, tuple[SeriesRef, ...]],
    made: Mapping[str, Sequence[StagePlan]],
) -> StagePlan:
    """The stage of a method that reads artifacts alone: one, over all of them."""
    module = load_method(request.method, allowed_packages())
    site = spanning([ref.site for refs in series.values() for ref in refs])
    stage = ResolvedStage(
        method=request.method,
        version=module.VERSION,
        config=_config(name, request, module),
        artifacts={
            port: _artifact(name, request, port, run, site, (), made) for port in _single_ports(request)
        },
        series=dict(series),
    )
    return StagePlan(name=name, site=site, id=stage.id, stage=stage)


def _series(
    name: str,
    request: StageRequest,
    port: str,
    run: RunSpec,
    captures: Sequence[CapturePlan],
    made: Mapping[str, Sequence[StagePlan]],
) -> tuple[SeriesRef, ...]:
    """The artifacts of a port that takes several: stage by stage as written, in each site by site.

    Raises:
        UnknownNameError: if the pattern of sites matches none of a stage's, or a capture is not there.
        SpecError: if nothing is left.
    """
    given = request.inputs.get(port, PortInput(sites=request.sites))
    wanted = {c.id for each in given.captures for c in _captures(name, each, captures)}
    found: list[SeriesRef] = []
    for maker in _makers(name, request, port, run):
        for plan in _at_sites(given.sites, made[maker]):
            of = tuple(dict.fromkeys(capture for capture, _ in plan.stage.places))
            new = plan.id not in (ref.artifact for ref in found)  # two names may stand for one question
            if new and (not wanted or wanted.issuperset(of)):
                found.append(SeriesRef(artifact=plan.id, site=plan.site, captures=of))
    if not found:
        raise SpecError(
            f"stage {name!r}, port {port!r}: no artifact is made from the captures {', '.join(given.captures)} alone"
        )
    return tuple(found)


def _aligned_series(
    name: str,
    request: StageRequest,
    port: str,
    run: RunSpec,
    rows: tuple[RowsRef, ...],
    made: Mapping[str, Sequence[StagePlan]],
) -> tuple[SeriesRef, ...]:
    """The artifacts of the same rows, of each stage that a port means.

    Raises:
        SpecError: if one of them gives these rows nothing.
    """
    found: list[SeriesRef] = []
    for maker in _makers(name, request, port, run):
        own = [plan for plan in made[maker] if next(iter(plan.stage.rows.values())) == rows]
        if not own:
            _check_aligned(name, port, rows, maker, next(iter(made[maker][0].stage.rows.values())))
        captures = tuple(ref.capture for ref in rows)
        found += [SeriesRef(artifact=plan.id, site=plan.site, captures=captures) for plan in own]
    return tuple({ref.artifact: ref for ref in found}.values())


def _at_sites(pattern: str, plans: Sequence[StagePlan]) -> list[StagePlan]:
    """The plans of a stage at the sites that a pattern means."""
    if pattern == "**":
        return list(plans)
    chosen = {str(site) for site in select_sites(pattern, [site_of(plan.site) for plan in plans])}
    return [plan for plan in plans if plan.site in chosen]


def _config(name: str, request: StageRequest, module: ModuleType) -> dict[str, Any]:
    try:
        config: dict[str, Any] = module.Config.model_validate(request.config).model_dump(mode="json")
    except ValidationError as error:
        valid = ", ".join(module.Config.model_fields) or "none"
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"stage {name!r}: option {where!r} of {request.method}: {first['msg']}, found {first['input']!r}; "
            f"options: {valid}{_hint(where, module)}"
        ) from error
    return config


def _hint(where: str, module: ModuleType) -> str:
    return (
        f"; nearest: {nearest(where, module.Config.model_fields)}"
        if where not in module.Config.model_fields
        else ""
    )


def _check_ports(name: str, request: StageRequest, module: ModuleType) -> None:
    for port, given in request.inputs.items():
        if port not in module.READS:
            raise UnknownNameError(
                f"stage {name!r}: {request.method} has no port {port!r}; it has {', '.join(module.READS) or 'none'}"
            )
        if given.codes is not None and port not in _rows_ports(request):
            raise SpecError(
                f"stage {name!r}, port {port!r} of {request.method} reads no rows, found codes: {given.codes!r}; ports that do: "
                f"{', '.join(_rows_ports(request)) or 'none'}"
            )
        if given.edges is not None and not isinstance(module.READS[port], GraphPort):
            raise SpecError(
                f"stage {name!r}, port {port!r} of {request.method} takes no graph, found edges: {given.edges!r}; ports that do: "
                f"{', '.join(_ports(request, GraphPort)) or 'none'}"
            )


def _edges(name: str, request: StageRequest, port: str) -> EdgesRef:
    """The file of edges of a port, as it is now.

    Raises:
        SpecError: if none is named, or something else beside it.
        DataError: if it is of another kind.
        NotFoundError: if it is not there.
    """
    given = request.inputs.get(port, PortInput())
    if given.edges is None or given != PortInput(edges=given.edges):
        raise SpecError(
            f"stage {name!r}, port {port!r} of {request.method} takes a file of edges and nothing else, found "
            f"{given.model_dump(exclude_defaults=True) or 'nothing'}; give inputs: {{{port}: {{edges: path}}}}"
        )
    try:
        return edges_ref(given.edges)
    except SubspanError as error:
        raise type(error)(f"stage {name!r}, port {port!r}: {error}") from error


def _rows(
    name: str, request: StageRequest, port: str, what: RowsPort, captures: Sequence[CapturePlan]
) -> list[tuple[RowsRef, ...]]:
    """For one port: the captures' rows, one entry per site."""
    given = request.inputs.get(port, PortInput(sites=request.sites))
    chosen = _named_captures(name, request, port, captures)
    if len(chosen) > 1 and not what.several:
        raise SpecError(
            f"stage {name!r}, port {port!r} of {request.method} takes one capture, found {len(chosen)}"
        )
    if isinstance(what, BatchesPort):
        return [_network(name, port, request.method, chosen)]
    sites = select_sites(given.sites, [site.site for site in chosen[0].spec.layout.sites])
    for capture in chosen:
        there = {str(site.site) for site in capture.spec.layout.sites}
        missing = [str(site) for site in sites if str(site) not in there]
        if missing:
            raise UnknownNameError(
                f"stage {name!r}: capture {capture.name!r} has no site {missing[0]!r}; nearest: {nearest(missing[0], there)}"
            )
    return [tuple(RowsRef(capture=c.id, digest=c.id, site=str(site)) for c in chosen) for site in sites]


def _named_captures(
    name: str, request: StageRequest, port: str, captures: Sequence[CapturePlan]
) -> list[CapturePlan]:
    """Those that a port reads."""
    given = request.inputs.get(port, PortInput(sites=request.sites))
    names = given.captures or tuple(dict.fromkeys(c.name for c in captures))
    if not given.captures and len(names) > 1:
        raise SpecError(
            f"stage {name!r}, port {port!r}: the run has the captures {', '.join(names)}; "
            f"name those to read: inputs: {{{port}: {{captures: [...]}}}}"
        )
    return [c for wanted in names for c in _captures(name, wanted, captures)]


def _coder(name: str, request: StageRequest, port: str, run: RunSpec) -> str | None:
    """The stage whose codes a port of rows reads.

    Raises:
        UnknownNameError: if there is no such stage.
        MethodError: if its method codes no rows.
    """
    given = request.inputs.get(port, PortInput()).codes
    if given is None:
        return None
    if given not in run.stages or given == name:
        others = [other for other in run.stages if other != name]
        raise UnknownNameError(
            f"stage {name!r}, port {port!r}: there is no stage {given!r} of codes; nearest: {nearest(given, others)}"
        )
    try:
        decoder_of(run.stages[given].method)
    except MethodError as error:
        raise MethodError(f"stage {name!r}, port {port!r}, codes of stage {given!r}: {error}") from error
    return given


def _coded(
    name: str,
    port: str,
    column: list[tuple[RowsRef, ...]],
    coder: str | None,
    made: Mapping[str, Sequence[StagePlan]],
) -> list[tuple[RowsRef, ...]]:
    """The same rows, as the codes of a stage tell them.

    Raises:
        SpecError: if the stage codes others.
    """
    if coder is None:
        return column
    by_rows = {next(iter(plan.stage.rows.values())): plan.id for plan in made[coder]}
    for rows in column:
        if rows not in by_rows:
            raise SpecError(
                f"stage {name!r}, port {port!r}: stage {coder!r} codes no {' + '.join(ref.label for ref in rows)}; expected the same "
                f"captures in the same order, at the same site: it codes {'; '.join(' + '.join(r.label for r in one) for one in by_rows)}"
            )
    return [tuple(ref.model_copy(update={"codes": by_rows[rows]}) for ref in rows) for rows in column]


def _network(name: str, port: str, method: str, chosen: Sequence[CapturePlan]) -> tuple[RowsRef, ...]:
    """The network of a capture with a loss.

    Raises:
        SpecError: if the capture has none.
    """
    for capture in chosen:
        if capture.spec.request.loss is None:
            raise SpecError(
                f"stage {name!r}, port {port!r} of {method}: capture {capture.name!r} has no loss; give it one, such as loss: {{kind: lm}}"
            )
    return tuple(RowsRef(capture=c.id, digest=c.id, site=NETWORK) for c in chosen)


def select_sites(pattern: str, sites: Sequence[Site]) -> list[Site]:
    """The captured sites that a pattern means, written as in a capture's request; `**` means all.

    Raises:
        UnknownNameError: if it matches none; the message has the nearest.
    """
    if pattern == "**":
        return list(sites)
    infos = [SiteInfo(site=site, path=site.element, type_name="", shape=()) for site in sites]
    return [layout.site for layout in resolve([pattern], infos)]


def _captures(name: str, wanted: str, captures: Sequence[CapturePlan]) -> list[CapturePlan]:
    found = [c for c in captures if wanted in (c.name, c.id)]
    if not found:
        raise UnknownNameError(
            f"stage {name!r}: there is no capture {wanted!r}; nearest: {nearest(wanted, [c.name for c in captures])}"
        )
    return found


def _zip(name: str, columns: Mapping[str, list[tuple[RowsRef, ...]]]) -> list[dict[str, tuple[RowsRef, ...]]]:
    """One entry per site: ports whose sites have the same names are joined by name, others in order, so that each site is read once."""
    lengths = {port: len(rows) for port, rows in columns.items()}
    if len(set(lengths.values())) > 1:
        raise MethodError(
            f"stage {name!r}: its ports have different numbers of sites, {lengths}; choose sites so that they pair up"
        )
    first, *others = columns
    by_site = {port: {rows[0].site: rows for rows in columns[port]} for port in columns}
    named = {port for port in others if by_site[port].keys() == by_site[first].keys()}
    return [
        {first: rows}
        | {port: by_site[port][rows[0].site] if port in named else columns[port][n] for port in others}
        for n, rows in enumerate(columns[first])
    ]


def _every(
    name: str, columns: Mapping[str, list[tuple[RowsRef, ...]]]
) -> list[dict[str, tuple[RowsRef, ...]]]:
    """One entry for every two sites of two ports; none for a site with itself, nor for two the other way round."""
    if len(columns) != 2:
        raise SpecError(
            f"stage {name!r}: pairs: all needs a method with two ports of rows, found {', '.join(columns)}; leave it out"
        )
    x, y = columns
    taken: dict[frozenset[tuple[RowsRef, ...]], dict[str, tuple[RowsRef, ...]]] = {}
    for one, other in itertools.product(columns[x], columns[y]):
        if one != other:
            taken.setdefault(frozenset((one, other)), {x: one, y: other})
    if not taken:
        raise SpecError(
            f"stage {name!r}: both ports read {columns[x][0][0].label} alone, found no pair; choose more sites"
        )
    return list(taken.values())


def _artifact(
    name: str,
    request: StageRequest,
    port: str,
    run: RunSpec,
    site: str,
    rows: tuple[RowsRef, ...],
    made: Mapping[str, Sequence[StagePlan]],
) -> ArtifactRef:
    maker = _maker(name, request, port, run)
    what = load_method(request.method, allowed_packages()).READS[port]
    aligned = what.aligned or what.own_rows
    for plan in _of_partition(name, port, maker, rows, made[maker]):
        if plan.site in (site, NETWORK):
            if aligned:
                _check_aligned(name, port, rows, maker, next(iter(plan.stage.rows.values())))
            return ArtifactRef(artifact=plan.id)
    named = request.inputs.get(port)
    if named is not None and named.stage is not None and len(made[maker]) == 1 and not aligned:
        return ArtifactRef(artifact=made[maker][0].id)  # named, and at one site: meant for all
    raise SpecError(
        f"stage {name!r} at {site} takes the artifact of stage {maker!r}, which does not run there; "
        f"it runs at {nearest(site, [p.site for p in made[maker]])}"
    )


def _of_partition(
    name: str, port: str, maker: str, rows: tuple[RowsRef, ...], plans: Sequence[StagePlan]
) -> list[StagePlan]:
    """Of a stage that runs for each partition the plans of the one whose rows are read; of others all.

    Raises:
        SpecError: if it did not run for it.
    """
    if all(plan.partition is None for plan in plans):
        return list(plans)
    own = {ref.capture for ref in rows}
    found = [plan for plan in plans if own == {capture for capture, _ in plan.stage.places}]
    if not found:
        raise SpecError(
            f"stage {name!r}, port {port!r}: stage {maker!r} runs for each partition, and for none of these rows, "
            f"{' + '.join(ref.label for ref in rows)}; let both run for `each` partition of the same capture, or both for all together"
        )
    return found


def _check_aligned(
    name: str, port: str, ours: tuple[RowsRef, ...], maker: str, theirs: tuple[RowsRef, ...]
) -> None:
    """What belongs to rows must be of the same rows."""
    if ours != theirs:
        found = [" + ".join(ref.label for ref in refs) for refs in (ours, theirs)]
        raise SpecError(
            f"stage {name!r}, port {port!r} takes what stage {maker!r} gives each row, over the same captures in the same order; "
            f"found {found[0]} here and {found[1]} there"
        )
