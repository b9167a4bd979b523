"""Whether stages fit the captures that they read: labels, tokens, widths, options. Refused before anything is captured for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType

from torch import Tensor

from pipelines.plan import CapturePlan, StagePlan
from pipelines.stages import allowed_packages
from schemas.base import Frozen
from schemas.errors import MethodError, SubspanError, UnknownNameError, nearest
from schemas.run import RunSpec
from schemas.stage import NETWORK, ResolvedStage
from tasks.engine.edges import Samples, sample_edges
from tasks.engine.fitting import (
    Planned,
    check_spaces,
    check_tokens,
    check_widths,
    merged_categories,
    other_weights,
    planned,
)
from tasks.engine.kept import check_kept
from tasks.engine.parameters import load_parameters, wanted
from tasks.engine.reduction import reads_labels, row_labels, rows_ports
from tasks.methods.contract import ROW_LABELS, ArtifactPort, Edges, GraphPort, Inputs, RowsPort, load_method
from tasks.store.sample_table import SampleTable

TableOf = Callable[[CapturePlan], SampleTable]
Places = dict[str, list[Planned]]
"""Port to the sites that it reads, those of networks left out."""


def check_fit(
    run: RunSpec, captures: Sequence[CapturePlan], stages: Sequence[StagePlan], table: TableOf
) -> None:
    """Refuse what would fail, or say nothing, once everything is captured.

    A method's own `check` is asked where it takes rows alone: what it knows of artifacts is not there yet.

    Args:
        run: the run.
        captures: its captures.
        stages: its stages at all their sites.
        table: gives the samples of a capture.

    Raises:
        UnknownNameError: for a label or parameter that is not there.
        MethodError: for rows that cannot be read together, or that the method does not take with these options.
    """
    fit = _Fit(run, captures, stages, table)
    fit.check_color()
    fit.check_weights()
    fit.check_labels()
    for stage in stages:
        try:
            fit.check(stage.stage)
        except SubspanError as error:
            where = " at ".join(filter(None, (f"stage {stage.name!r}", stage.place)))
            raise type(error)(f"{where}: {error}") from error


class _Fit:
    """A run whose captures and stages are known."""

    def __init__(
        self, run: RunSpec, captures: Sequence[CapturePlan], stages: Sequence[StagePlan], table: TableOf
    ) -> None:
        self.run, self.table_of = run, table
        self.tables: dict[str, SampleTable] = {}
        self.captures = {capture.id: capture for capture in captures}
        self.first = {capture.name: capture for capture in reversed(captures)}
        self.made = {stage.id: stage.stage for stage in stages}

    def check_color(self) -> None:
        """Refuse a label that is to colour the report and is not there."""
        asked = self.run.report.color_by if self.run.report else None
        if asked is None:
            return
        labels = {label for capture in self.first.values() for label in self.table(capture.id).labels}
        if asked not in labels:
            raise UnknownNameError(
                f"report.color_by: no capture has a label {asked!r}; nearest: {nearest(asked, labels)}"
            )

    def check_weights(self) -> None:
        """Refuse a label that is to weigh rows and is not there."""
        asked: set[tuple[str, object]] = {
            (name, call.config.get("weight_label"))
            for name, r in self.run.captures.items()
            for call in r.fuse
        }
        for stage in self.made.values():
            first = next(iter(stage.rows.values()), ())  # of joined rows, labels are those of the first port
            read = {self.captures[ref.capture].name for ref in first}
            asked |= {(name, stage.config.get("weight_label")) for name in read}
        for name, label in asked:
            columns = {} if label is None else self.table(self.first[name].id).labels
            numbers = [n for n, column in columns.items() if column.dtype.kind == "f"]
            if label is not None and label not in numbers:
                raise UnknownNameError(
                    f"weight_label: capture {name!r} has no label {label!r} of floating point numbers; nearest: "
                    f"{nearest(str(label), numbers) or 'it has none at all'}"
                )

    def check_labels(self) -> None:
        """Refuse a label that is to name classes and is not there."""
        asked: list[tuple[str, str, Mapping[str, object]]] = [
            (name, call.method, call.config) for name, r in self.run.captures.items() for call in r.fuse
        ]
        for stage in self.made.values():
            first = next(iter(stage.rows.values()), ())  # of joined rows, labels are those of the first port
            asked += [(self.captures[ref.capture].name, stage.method, stage.config) for ref in first]
        texts = {
            (name, method, str(label))
            for name, method, c in asked
            if isinstance(label := c.get("label"), str)
        }
        for name, method, label in sorted(found for found in texts if _takes_label(*found[1:])):
            labels = self.table(self.first[name].id).labels
            if label not in labels:
                raise UnknownNameError(
                    f"label of {method}: capture {name!r} has no label {label!r}; nearest: {nearest(label, labels)}"
                )

    def check(self, stage: ResolvedStage) -> None:
        """Refuse one stage at one site."""
        module = load_method(stage.method, allowed_packages())
        config: Frozen = module.Config.model_validate(stage.config)
        places: Places = {
            port: [planned(self.captures[ref.capture].spec, ref) for ref in refs]
            for port, refs in stage.rows.items()
            if refs[0].site != NETWORK
        }
        for read in places.values():
            check_widths(read)
        if len(places) == 2:
            check_spaces(*places.values())
        first = next(iter(places.values()), [])
        self._check_tokens(module, config, first)
        self._check_artifacts(stage, module, first)
        self._ask(stage, module, config, places, self._graphs(stage, first))

    def _graphs(self, stage: ResolvedStage, first: Sequence[Planned]) -> dict[str, Edges]:
        """The files of edges, whose ids must be those of samples."""
        samples = [
            Samples(self.table(place.ref.capture), place.space.name, place.ref.label)
            for place in first
            if stage.graphs
        ]
        return {name: sample_edges(ref, samples) for name, ref in stage.graphs.items()}

    def _check_tokens(self, module: ModuleType, config: Frozen, first: Sequence[Planned]) -> None:
        tables = [self.table(place.ref.capture) for place in first]
        if any(not any(name in t.labels for t in tables) for name in row_labels(module, config)):
            check_tokens(first)

    def _check_artifacts(self, stage: ResolvedStage, module: ModuleType, first: Sequence[Planned]) -> None:
        """Refuse a series that is too short, and artifacts of rows of another width."""
        for name, port in module.READS.items():
            if not isinstance(port, ArtifactPort):
                continue
            ids = (
                [ref.artifact for ref in stage.series[name]]
                if port.several
                else [stage.artifacts[name].artifact]
            )
            if len(ids) < port.least:
                raise MethodError(
                    f"port {name!r} of {stage.method} takes {port.least} artifacts or more, found {len(ids)}: {self._label(ids[0])}; "
                    f"give inputs: {{{name}: ...}} more sites or stages"
                )
            if port.one_place:
                self._check_place(stage, name, ids, first)
            if port.one_width:
                known = {self._label(i): width for i in ids if (width := self._width(i))}
                known |= {place.ref.label: place.layout.width for place in first[:1]}
                if len(set(known.values())) > 1:
                    listed = ", ".join(f"{width} at {label}" for label, width in known.items())
                    raise MethodError(
                        f"port {name!r} of {stage.method} takes artifacts of one width, found features {listed}; connect sites of one width"
                    )

    def _check_place(
        self, stage: ResolvedStage, name: str, ids: Sequence[str], first: Sequence[Planned]
    ) -> None:
        """Refuse what was made of rows of another network, or at another site."""
        here = first[0]
        for ref in (ref for i in ids for refs in self.made[i].rows.values() for ref in refs):
            spec = self.captures[ref.capture].spec
            other = other_weights(spec, here.spec)
            if other or ref.site != here.ref.site:
                found = [
                    f"{at.label} (weights {s.weights[:8]})" for at, s in ((ref, spec), (here.ref, here.spec))
                ]
                raise MethodError(
                    f"port {name!r} of {stage.method} takes what was made of rows of one network at one site, found "
                    f"{' and '.join(found)}, which differ in {'the network' if other else 'the site'}: make it anew of rows of "
                    f"{here.ref.label}"
                )

    def _ask(
        self,
        stage: ResolvedStage,
        module: ModuleType,
        config: Frozen,
        places: Places,
        graphs: Mapping[str, Edges],
    ) -> None:
        """What the method itself says of widths, labels, weights and numbers of rows; and whether there will be any."""
        first = next(iter(stage.rows.values()), ())
        if not first:
            return
        specs = [self.captures[ref.capture].spec for ref in first]
        weights = load_parameters(specs, wanted(module, config, first[0].site))
        if list(places) != [name for name, port in module.READS.items() if not isinstance(port, GraphPort)]:
            return
        inputs = replace(self._inputs(module, places, weights), graphs=graphs)
        if hasattr(module, "check"):
            module.check(inputs, config)
        for place in (place for read in places.values() for place in read):
            if place.spec.request.keep == "states":
                own = self.table(place.ref.capture).categories
                check_kept(place, stage.method, config, inputs, own, allowed_packages())

    def _inputs(self, module: ModuleType, places: Places, weights: Mapping[str, Tensor]) -> Inputs:
        parts = places[next(iter(rows_ports(module)))]
        labels = [self.table(place.ref.capture).categories for place in parts] if reads_labels(module) else []
        return Inputs(
            widths={port: read[0].layout.width for port, read in places.items()},
            n_rows=sum(place.space.n_rows for place in parts),
            n_samples=sum(place.spec.layout.n_samples for place in parts),
            categories=merged_categories(labels),
            shapes={
                port: shape for port, read in places.items() if (shape := read[0].layout.shape) is not None
            },
            weights=weights,
        )

    def table(self, capture: str) -> SampleTable:
        """The samples of a capture, asked for once."""
        if capture not in self.tables:
            self.tables[capture] = self.table_of(self.captures[capture])
        return self.tables[capture]

    def _label(self, artifact: str) -> str:
        """Where an artifact is made."""
        return " + ".join(ref.label for refs in self.made[artifact].rows.values() for ref in refs)

    def _width(self, artifact: str) -> int | None:
        """Features of the rows that an artifact is made of; None for others."""
        refs = next(iter(self.made[artifact].rows.values()), ())
        known = [ref for ref in refs if ref.site != NETWORK]
        return planned(self.captures[known[0].capture].spec, known[0]).layout.width if known else None


def _takes_label(method: str, label: str) -> bool:
    """Whether the option `label` of a method means a label of the samples."""
    ports = [p for p in load_method(method, allowed_packages()).READS.values() if isinstance(p, RowsPort)]
    own = label in ROW_LABELS and any(port.tokens for port in ports)
    return any(port.labels for port in ports) and not own
