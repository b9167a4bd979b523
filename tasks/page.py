"""The page of a run: one self-contained HTML file, and its figures as files beside it. Pure, no Prefect."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, Protocol

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from schemas.capture import CaptureSpec
from schemas.outcome import RunOutcome
from schemas.receipts import Failure, Fingerprint, Manifest, Receipt
from schemas.run import RunSpec
from tasks.anomaly_findings import anomaly_findings
from tasks.anomaly_illustrations import ScoreHistogram, anomaly_illustrations
from tasks.cluster_illustrations import CLUSTERS, cluster_illustrations
from tasks.cluster_map_illustrations import CLUSTER_MAP, ClusterMap, cluster_map_illustrations
from tasks.comparison import comparisons
from tasks.compression_illustrations import FRONTIER, compression_illustrations
from tasks.costs import cost_lines
from tasks.drawing import draw, inline
from tasks.example_illustrations import EXAMPLES, StageExamples, example_illustrations, example_tables
from tasks.figures import cut
from tasks.findings import INTRINSIC, RowCounts, findings
from tasks.illustrations import SampleMap, illustrations
from tasks.map_illustrations import MAP, StageMaps, map_illustrations
from tasks.measures import SiteRow, StageArtifact, site_rows
from tasks.palette import css
from tasks.series_illustrations import series_illustrations
from tasks.store.location import Location
from tasks.strange_illustrations import STRANGE, StrangeSamples
from tasks.strange_tables import strange_tables
from tasks.tables import comparison_table, measure_notes, measure_tables, stage_tables
from tasks.training_findings import training_findings
from tasks.training_illustrations import NAMES as TRAINING
from tasks.training_illustrations import training_illustrations

PAGE = "report.html"
RUN_FILE = "run.yaml"
GRADIENT_ERROR = 1e-3
"""Relative; what lies further from plain autograd than this, in float32 or wider, is no rounding."""
MOST_FAILURES = 50
"""Failed samples listed; the receipts hold all."""


class CaptureData(NamedTuple):
    """What the page says of a capture."""

    name: str
    id: str
    spec: CaptureSpec
    receipts: tuple[Receipt, ...]
    manifest: Manifest
    counts: tuple[RowCounts, ...]
    """Per row space."""

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Samples without rows."""
        return self.manifest.failures

    @property
    def fingerprints(self) -> tuple[Fingerprint, ...]:
        """What its bytes depend on; more than one only where mixing was allowed."""
        return tuple(
            {receipt.fingerprint.model_dump_json(): receipt.fingerprint for receipt in self.receipts}.values()
        )


class ReportData(NamedTuple):
    """All that a page shows. Gathering it reads stores, rendering it reads nothing."""

    run: RunSpec
    outcome: RunOutcome
    artifacts: tuple[StageArtifact, ...] = ()
    captures: tuple[CaptureData, ...] = ()
    sample_map: SampleMap | None = None
    maps: tuple[StageMaps, ...] = ()
    cluster_maps: tuple[ClusterMap, ...] = ()
    examples: tuple[StageExamples, ...] = ()
    histograms: tuple[ScoreHistogram, ...] = ()
    strange: tuple[StrangeSamples, ...] = ()


class HasRun(Protocol):
    """A plan, of which only the run is needed."""

    @property
    def run(self) -> RunSpec:
        """What was asked."""


def build_report(root: Location, outcome: RunOutcome, run: RunSpec) -> dict[str, bytes]:
    """Gather what a run made and render it; nothing is written.

    Returns:
        File name to bytes, the page under PAGE.

    Raises:
        NotFoundError, DamageError: if something that is shown is gone or changed.
    """
    from tasks.gather import gather

    return render(gather(root, outcome, run))


def write_report(root: Location, outcome: RunOutcome, plan: HasRun, path: str) -> str:
    """Write the page to a path below the root, its figures and run file beside it; the page comes last.

    Returns:
        The URL of the page.
    """
    folder = path.rpartition("/")[0]
    files = build_report(root, outcome, plan.run)
    page = files.pop(PAGE)
    for name, data in files.items():
        root.write(f"{folder}/{name}" if folder else name, data)
    root.write(path, page)
    return root.child(path).url


def render(data: ReportData) -> dict[str, bytes]:
    """The page, its figures and the run file, as file name to bytes."""
    names = capture_names(data.captures)
    rows = site_rows(data.artifacts, names)
    files: dict[str, bytes] = {RUN_FILE: run_yaml(data.run).encode()}
    shown: dict[str, dict[str, Any]] = {}
    formats = data.run.report.figures if data.run.report else ("png", "svg")
    series, maps = [*series_illustrations(data.artifacts, names)], map_illustrations(data.maps)
    training = training_illustrations(data.artifacts)
    clusters = (
        *cluster_illustrations(data.artifacts),
        *cluster_map_illustrations(data.cluster_maps),
        *example_illustrations(data.examples),
    )
    smaller = compression_illustrations(data.artifacts)
    strange = anomaly_illustrations(data.histograms, data.strange)
    every = (*illustrations(rows, data.sample_map), *maps, *series, *training, *clusters, *smaller, *strange)
    for made in every:
        svg = draw(made.figure, "svg")
        for file_format in formats:
            drawn = svg if file_format == "svg" else draw(made.figure, file_format)
            files[f"figures/{made.name}.{file_format}"] = drawn
        shown[made.name] = {**made._asdict(), "svg": inline(svg, made.name, made.description)}
    files[PAGE] = html(data, rows, shown, formats, [made.name for made in series]).encode()
    return files


def capture_names(captures: Sequence[CaptureData]) -> dict[str, str]:
    """Ids of captures to what the run calls them, with `/partition` where there is one."""
    parts = {capture.id: capture.spec.partition for capture in captures}
    return {c.id: c.name if parts[c.id] is None else f"{c.name}/{parts[c.id]}" for c in captures}


def html(
    data: ReportData,
    rows: Sequence[SiteRow],
    shown: Mapping[str, Mapping[str, Any]],
    formats: Sequence[str],
    series: Sequence[str],
) -> str:
    """The page's text.

    Args:
        data: of the run.
        rows: the sites with their measures.
        shown: figures by name.
        formats: of the files beside the page.
        series: names of figures over several sites together.
    """
    environment = Environment(
        loader=PackageLoader("tasks"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shortened"] = cut
    n_samples = sum(capture.spec.layout.n_samples for capture in data.captures)
    n_failed = sum(len(capture.failures) for capture in data.captures)
    counts = [count for capture in data.captures for count in capture.counts]
    return environment.get_template("report.html").render(
        title=title(data.run),
        run=data.run,
        outcome=data.outcome,
        n_sites=len({site for a in data.artifacts for _, site in a.artifact.stage.places}),
        findings=[
            *training_findings(data.artifacts),
            *anomaly_findings(data.artifacts),
            *findings(rows, counts, n_samples, n_failed),
        ],
        figures=shown,
        training=[name for name in TRAINING if name in shown],
        formats=formats,
        depth=[name for name in shown if name.startswith("profiles") or name == "heat-map"],
        series=series,
        maps=[name for name in shown if name.startswith(MAP)],
        clusters=[name for name in shown if name.startswith((CLUSTERS, CLUSTER_MAP, EXAMPLES))],
        smaller=[name for name in shown if name.startswith(FRONTIER)],
        examples=[*example_tables(data.examples)],
        strange=[name for name in shown if name.startswith(STRANGE)],
        strange_samples=[*strange_tables(data.strange)],
        measures=measure_tables(rows),
        notes=measure_notes(rows),
        compared=[comparison_table(found) for found in comparisons(rows)],
        stages=list(stage_tables(data.artifacts, capture_names(data.captures))),
        artifacts=data.artifacts,
        captures=[capture_facts(capture) for capture in data.captures],
        failures=[(c.name, failure) for c in data.captures for failure in c.failures][:MOST_FAILURES],
        n_failed=n_failed,
        limits=limits(data, rows),
        fingerprints=provenance(data),
        costs=cost_lines(data.outcome),
        command=f"subspan run {RUN_FILE}",
        run_yaml=run_yaml(data.run),
        css_light=css(dark=False),
        css_dark=css(dark=True),
        version=own_version(),
    )


def title(run: RunSpec) -> str:
    """The heading."""
    return (run.report.title if run.report else None) or run.name


def run_yaml(run: RunSpec) -> str:
    """The run as a file that repeats it."""
    short = _with_kinds(run.model_dump(mode="json"), run.model_dump(mode="json", exclude_defaults=True))
    return yaml.safe_dump(short, sort_keys=False, allow_unicode=True)


def _with_kinds(full: Any, short: Any) -> Any:
    """The shorter one with every `kind`, which tells what a part is even where it is the default of its class."""
    if isinstance(short, dict):
        kind = {"kind": full["kind"]} if "kind" in full else {}
        return kind | {key: _with_kinds(full[key], value) for key, value in short.items()}
    if isinstance(short, list):
        return [_with_kinds(a, b) for a, b in zip(full, short, strict=True)]
    return short


def own_version() -> str:
    """The version of subspan, `unknown` where it is not installed."""
    try:
        return version("subspan")
    except PackageNotFoundError:
        return "unknown"


def capture_facts(capture: CaptureData) -> dict[str, Any]:
    """Numbers of a capture for the table of samples."""
    request, layout, receipts = capture.spec.request, capture.spec.layout, capture.receipts
    differences = [r.max_batch_difference for r in receipts if r.max_batch_difference is not None]
    seconds, tokens = sum(r.seconds for r in receipts), sum(r.tokens for r in receipts)
    padded = sum(r.padded_tokens for r in receipts)
    model = request.model
    return {
        "name": capture.name,
        "id": capture.id,
        "partition": capture.spec.partition,
        "model": str(getattr(model, "name", None) or getattr(model, "factory", model.kind)),
        "data": request.data.source.kind,
        "samples": layout.n_samples,
        "failed": len(capture.failures),
        "rows": {space.name: space.n_rows for space in layout.spaces},
        "sites": len(layout.sites),
        "truncated": capture.manifest.truncated,
        "saturated": sum(capture.manifest.saturated.values()),
        "difference": max(differences, default=None),
        "dtype": request.store.dtype,
        "bytes": sum(f.bytes for r in receipts for f in r.files.values()),
        "seconds": seconds,
        "units": len(receipts),
        "rate": tokens / seconds if seconds > 0 else None,
        "padding": 1 - tokens / padded if padded else 0.0,
        "weights": capture.spec.weights,
        "fingerprint": capture.spec.data,
        "tokenizer": capture.spec.tokenizer,
    }


def provenance(data: ReportData) -> list[tuple[str, Fingerprint]]:
    """Who computed with what: each fingerprint once, with what it made."""
    made: dict[str, tuple[list[str], Fingerprint]] = {}
    sources = [(capture.name, f) for capture in data.captures for f in capture.fingerprints]
    sources += [(a.stage, a.artifact.fingerprint) for a in data.artifacts]
    for name, fingerprint in sources:
        names, _ = made.setdefault(fingerprint.model_dump_json(), ([], fingerprint))
        names.append(name)
    return [(", ".join(dict.fromkeys(names)), fingerprint) for names, fingerprint in made.values()]


def limits(data: ReportData, rows: Sequence[SiteRow]) -> list[str]:
    """What the numbers do not say, as far as it applies to this run."""
    said = [
        "Everything here is about these data and these weights; "
        "other data can give another picture of the same network."
    ]
    if any("participation_ratio" in row.values for row in rows):
        said.append(
            "Participation ratio, effective rank and stable rank count directions weighted by variance. "
            "They are no intrinsic dimension: a curved sheet of two dimensions can have a ratio of fifty."
        )
    if any(key in row.values for row in rows for key in INTRINSIC):
        said.append(
            "Intrinsic dimensions are of the scale of the nearest rows, and too low where they are high: "
            "compare sites with each other rather than with the truth."
        )
    if any("nc1" in row.values for row in rows):
        said.append(
            "Measures of collapse depend on the number of classes and of rows: compare sites, and captures of the same samples."
        )
    if any(space.per_sample is None for capture in data.captures for space in capture.spec.layout.spaces):
        grouped = any("groups" in a.artifact.stage.config for a in data.artifacts)
        allowed = " Those from leaving out groups of samples allow for that." if grouped else ""
        said.append(
            "Rows are tokens. Tokens of one text resemble each other, so an interval that treats rows as "
            f"independent is too narrow.{allowed}"
        )
    if any(sum(count.outliers.values()) for capture in data.captures for count in capture.counts):
        said.append(
            "Outlier rows are counted and kept: the measures include them unless a stage says otherwise."
        )
    if any(capture.spec.request.rows.pooling != "none" for capture in data.captures):
        said.append(
            "Rows are pooled per sample: variation inside a sample is gone before any measure sees it."
        )
    said += [text for capture in data.captures for text in _gradient_limits(capture)]
    if data.sample_map is not None:
        said.append(
            "The map shows means of samples on two linear components; distances in it are not clusters."
        )
    if any(len(capture.fingerprints) > 1 for capture in data.captures):
        said.append(
            "Workers of different versions or devices made one capture: equal bytes are not promised for it."
        )
    said.append("Large variance is not importance: a small direction can decide what a network says.")
    return said


def _gradient_limits(capture: CaptureData) -> list[str]:
    """How far gradients were from plain autograd where that was looked at, and which of them took a pass for each sample."""
    errors = [r.max_gradient_error for r in capture.receipts if r.max_gradient_error is not None]
    looped = sorted({name for receipt in capture.receipts for name in receipt.looped})
    said = []
    if errors:
        request = capture.spec.request
        wide = request.model.dtype in ("float32", "float64") and request.precision.autocast == "off"
        far = wide and max(errors) > GRADIENT_ERROR
        more = (
            ", more than rounding explains: look at that network's gradients before you use them"
            if far
            else ""
        )
        said.append(
            f"Gradients of {capture.name} lay within {max(errors):.1e} of those of plain autograd for one sample alone, at the one "
            f"sample of each unit that was looked at{more}."
        )
    if looped:
        said.append(
            f"Gradients of {len(looped)} parameters of {capture.name} took a pass for each sample, such as {looped[0]}."
        )
    weighed = sum(receipt.weighed for receipt in capture.receipts)
    if weighed:
        every = sum(receipt.batches for receipt in capture.receipts)
        said.append(
            f"Of {every:,} batches of {capture.name} {weighed:,} took four passes or more: their graphs do not tell that rows stay with "
            "their samples."
        )
    return said
