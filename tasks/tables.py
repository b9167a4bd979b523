"""Tables of a page, as text that is ready to show. Methods it does not know get a table of their Result."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.catalogue import Group, Measure, groups_of
from tasks.comparison import Comparison, Pair, compared_with
from tasks.figures import short
from tasks.measures import SiteRow, StageArtifact, called, interval_of, number
from tasks.numbers import Interval, bracket, whole_or_short, written

MOST_COLUMNS = 12
MOST_TOGETHER = 7
"""Measures up to which one table holds all."""
MOST_NOTES = 6
MOST_UNNAMED = 2
"""Methods up to which it is plain who speaks of its numbers."""
_OWN = frozenset({"width", "caveats"})


class Mark(NamedTuple):
    """Part of a text in a cell."""

    text: str
    weight: float | None = None
    """0..1: how strong its background is; None for none."""
    tip: str = ""
    """Shown when pointed at."""


class Cell(NamedTuple):
    """What a cell says."""

    text: str
    note: str = ""
    """Smaller, below: an interval."""
    null: str = ""
    """Smaller, below that: what chance would give."""
    numeric: bool = True
    weight: float | None = None
    """0..1: where the value stands in its column, for a bar behind it."""
    apart: str = ""
    """What it differs from beyond both intervals."""
    marks: tuple[Mark, ...] = ()
    """The whole text in parts that have backgrounds, in the place of `text`, which is shortened."""


EMPTY = Cell("–")


class Table(NamedTuple):
    """Headings with their meaning, and rows."""

    title: str
    headings: tuple[tuple[str, str], ...]
    """Heading and its meaning."""
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    question: str = ""
    """What it answers."""


def measure_tables(rows: Sequence[SiteRow]) -> list[Table]:
    """Sites by measures: one table, or one for each group where measures are many. What is equal at all sites is said once, below."""
    groups = groups_of({key for row in rows for key in row.values})
    if sum(len(measures) for measures in groups.values()) <= MOST_TOGETHER:
        every = [measure for measures in groups.values() for measure in measures]
        return [_measure_table(Group("all", "Sites", ""), every, rows, rows)] if rows else []
    tables = []
    for group, measures in groups.items():
        having = [row for row in rows if any(m.key in row.values for m in measures)]
        tables.append(_measure_table(group, measures, having, rows))
    return tables


def measure_notes(rows: Sequence[SiteRow]) -> list[str]:
    """What is to be said below all tables of sites."""
    notes = []
    if any(row.intervals for row in rows):
        notes.append("Brackets are intervals, of 95 % where a stage says nothing else.")
    if compared_with(rows):
        notes.append(
            "≠ marks a number whose interval does not meet that of the first capture. Captures of the same samples may differ "
            "by less than that and still not by chance: each interval is of its capture alone."
        )
    return [*notes, *_same(_sizes(rows)), *_caveats(rows)]


def _sizes(rows: Sequence[SiteRow]) -> dict[str, list[int | None]]:
    return {"Rows": [row.rows for row in rows], "Features": [row.width for row in rows]}


def _measure_table(
    group: Group, measures: Sequence[Measure], rows: Sequence[SiteRow], every: Sequence[SiteRow]
) -> Table:
    spans = {m.key: _span([row.values[m.key] for row in rows if m.key in row.values]) for m in measures}
    varying = [name for name, values in _sizes(every).items() if len(set(values) - {None}) > 1]
    columns = {name: values for name, values in _sizes(rows).items() if name in varying}
    captures, stages = len({row.capture for row in every}) > 1, len({row.stage for row in rows}) > 1
    pairs = compared_with(every)
    body = []
    for index, row in enumerate(rows):
        cells = [Cell(short_site(row.name), numeric=False)]
        cells += [Cell(row.capture, numeric=False)] if captures else []
        cells += [Cell(f"{values[index]:,}" if values[index] else "–") for values in columns.values()]
        cells += [Cell(row.stage or "–", numeric=False)] if stages else []
        pair = None if row.further else pairs.get((row.name, row.capture))
        body.append((*cells, *(_measure_cell(row, m, spans[m.key], pair) for m in measures)))
    stage_heading = (("Stage", "whose classes, or scores, these are"),)
    first = (
        ("Site", ""),
        *((("Capture", ""),) if captures else ()),
        *(stage_heading if stages else ()),
        *((name, "") for name in columns),
    )
    headings = (*first, *((m.title, m.meaning) for m in measures))
    return Table(group.title, headings, tuple(body), question=group.question)


def comparison_table(found: Comparison) -> Table:
    """Measures by how often two captures differ."""
    body = []
    for c in found.measures:
        a, b = c.largest
        apart = f"{len(c.apart)} of {c.n_known}" if c.n_known else "no intervals"
        counts = (Cell(c.measure.title, numeric=False), Cell(f"{c.n_sites}"), Cell(apart))
        where = Cell(short_site(a.name), numeric=False)
        body.append((*counts, where, *(_value_cell(row, c.measure) for row in (a, b))))
    headings = (
        ("Measure", ""), ("Sites", "that both captures have"),
        ("Apart", "sites at which the intervals do not meet, of those where both captures have one"),
        ("Largest difference", "relative to the larger value; among the sites apart where there are some"),
        (found.first, "its value there"), (found.second, "its value there"),
    )  # fmt: skip
    return Table(f"{found.first} and {found.second}", headings, tuple(body))


def _value_cell(row: SiteRow, measure: Measure) -> Cell:
    value, interval = row.values[measure.key], row.intervals.get(measure.key)
    if measure.decimals is not None and interval is None:
        return Cell(f"{value:.{measure.decimals}f}")
    note = bracket(value, interval, measure.share) if interval else ""
    return Cell(written(value, interval, measure.share), note)


def _same(sizes: dict[str, list[int | None]]) -> Iterator[str]:
    """Sizes that all sites share, as a sentence."""
    found = {name: set(values) - {None} for name, values in sizes.items()}
    said = [
        f"{max(v for v in known if v):,} {name.lower()}"
        for name, known in found.items()
        if len(known) == 1 and any(known)
    ]
    if said:
        yield f"{' of '.join(said)} at every site." if len(said) > 1 else f"{said[0]} at every site."


def short_site(site: str) -> str:
    """A site without what is usual: its output, its first call."""
    return " | ".join(part.removesuffix(":0").removesuffix(":out") or "network" for part in site.split(" | "))


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(min(values), 0.0), max(values)


def _measure_cell(row: SiteRow, measure: Measure, span: tuple[float, float], pair: Pair | None) -> Cell:
    value = row.values.get(measure.key)
    if value is None:
        return EMPTY
    low, high = span
    return _value_cell(row, measure)._replace(
        null=_null(row, measure, value),
        weight=(value - low) / (high - low) if high > low else None,
        apart=pair.first.capture if pair is not None and pair.differs(measure.key) else "",
    )


def _null(row: SiteRow, measure: Measure, value: float) -> str:
    """What chance would give; for the participation ratio, what the sample itself gives where that is less."""
    if measure.key in row.nulls:
        null = written(row.nulls[measure.key], row.intervals.get(measure.key), measure.share)
        return f"{measure.null} {null}"
    plain = row.plain_ratio
    if measure.key == "participation_ratio" and plain is not None and plain < 0.99 * value:
        return f"plain {short(plain)}"
    return ""


def _caveats(rows: Sequence[SiteRow]) -> Iterator[str]:
    """What the methods say of their own numbers."""
    speakers: dict[str, list[str]] = {}
    for method, text in (said for row in rows for said in row.caveats):
        speakers.setdefault(text, []).append(method.rpartition(".")[2])
    several = len({method for row in rows for method, _ in row.caveats}) > MOST_UNNAMED
    names = {text: ", ".join(dict.fromkeys(found)) if several else "" for text, found in speakers.items()}
    notes = [note for row in rows for note in dict.fromkeys(text for _, text in row.caveats)]
    yield from _counted(notes, len(rows), names)


def _counted(notes: Sequence[str], results: int, names: Mapping[str, str] | None = None) -> Iterator[str]:
    """Each sentence once, with who says it and the number of its sites."""
    counts = {note: notes.count(note) for note in dict.fromkeys(notes)}
    for note, n in list(counts.items())[:MOST_NOTES]:
        said = [(names or {}).get(note, ""), "" if n == results else f"{n} of {results} sites"]
        where = f" ({'; '.join(part for part in said if part)})" if any(said) else ""
        yield f"{note[:1].upper()}{note[1:].rstrip('.')}{where}."
    if len(counts) > MOST_NOTES:
        yield f"{len(counts) - MOST_NOTES} more caveats are in the artifacts."


def stage_tables(
    artifacts: Sequence[StageArtifact], captures: Mapping[str, str] | None = None
) -> Iterator[Table]:
    """One table per stage: scalar fields of its Results; of many, those equal everywhere are said once, below.

    Args:
        artifacts: of the run.
        captures: ids of captures to what the run calls them.
    """
    for stage in dict.fromkeys(a.stage for a in artifacts):
        members = [a for a in artifacts if a.stage == stage]
        flat = [
            {name: _field_cell(value) for name, value in _scalars(_with_names(a, captures or {}))}
            for a in members
        ]
        names = [n for n in dict.fromkeys(name for fields in flat for name in fields) if n not in _OWN]
        same = _everywhere(flat, names) if len(names) > MOST_COLUMNS else []
        names = [n for n in names if n not in same]
        headings = (("Site", ""), *((_heading(name), name) for name in names[:MOST_COLUMNS]))
        rows = tuple(
            (
                Cell(_row_name(a, members, captures or {}), numeric=False),
                *(fields.get(name, EMPTY) for name in names[:MOST_COLUMNS]),
            )
            for a, fields in zip(members, flat, strict=True)
        )
        method, version = members[0].artifact.stage.method, members[0].artifact.stage.version
        said = [text for a in members for text in a.artifact.result.get("caveats") or ()]
        notes = (*_equal(flat[0], same), *_left_out(names[MOST_COLUMNS:]), *_counted(said, len(members)))
        yield Table(f"{stage} ({method}, version {version})", headings, rows, notes)


def _row_name(a: StageArtifact, members: Sequence[StageArtifact], captures: Mapping[str, str]) -> str:
    """The site, and the captures where the stage has several artifacts there."""
    site = short_site(a.site) if a.site else "–"
    return f"{site} ({called(a.captures, captures)})" if sum(m.site == a.site for m in members) > 1 else site


def _with_names(a: StageArtifact, captures: Mapping[str, str]) -> dict[str, Any]:
    """The result, with the members of its series under the names of the run."""
    labels = {}
    for ref in (ref for refs in a.artifact.stage.series.values() for ref in refs):
        name = called(ref.captures, captures)
        labels[f"{' + '.join(c[:8] for c in ref.captures)} {ref.site}"] = f"{name} {short_site(ref.site)}"

    def named(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [named(each) for each in value]
        return labels.get(value, value) if isinstance(value, str) else value

    return {key: named(value) for key, value in a.artifact.result.items()} if labels else a.artifact.result


def _everywhere(flat: Sequence[Mapping[str, Cell]], names: Sequence[str]) -> list[str]:
    """Fields that say the same at all of several results, and those that say nothing at any."""
    return [
        name
        for name in names
        if len(said := {fields.get(name, EMPTY) for fields in flat}) == 1
        and (len(flat) > 1 or said == {EMPTY})
    ]


def _heading(name: str) -> str:
    return name.replace("_", " ").replace(".", ": ")


def _equal(fields: Mapping[str, Cell], names: Sequence[str]) -> Iterator[str]:
    told = [name for name in names if fields.get(name, EMPTY) != EMPTY]
    if told:
        said = ", ".join(f"{_heading(n)} {fields[n].text} {fields[n].note}".strip() for n in told)
        yield f"The same everywhere: {said}."


def _left_out(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"Also in the artifacts: {', '.join(_heading(name) for name in names)}."


def _scalars(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields with one value each; nested mappings are joined by dots, lists are counted or written out.

    A number with an interval is one field, whose value is the number and its interval.
    """
    ends = {f"{name}_{end}" for name in result for end in ("low", "high") if interval_of(result, name)}
    for key, value in result.items():
        name = f"{prefix}{key}"
        if key in ends:
            continue
        if isinstance(value, dict) and value.keys() >= {"value", "low", "high"}:
            yield name, (value["value"], interval_of(result, key))
        elif isinstance(value, dict):
            yield from _scalars(value, f"{name}.")
        elif isinstance(value, list):
            yield name, _list_text(value)
        elif number(value) is not None and (interval := interval_of(result, key)) is not None:
            yield name, (value, interval)
        else:
            yield name, value


def _list_text(values: list[Any]) -> str:
    plain = all(isinstance(v, str | int | float) or v is None for v in values)
    if plain and len(values) <= 4:
        return ", ".join(_text(v) for v in values) or "none"
    return f"{len(values)} values"


def _text(value: Any) -> str:
    as_number = number(value)
    if as_number is not None:
        return whole_or_short(as_number)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def _field_cell(value: Any) -> Cell:
    if isinstance(value, tuple):
        return _interval_cell(*value)
    return Cell(_text(value), numeric=number(value) is not None or value is None)


def _interval_cell(value: Any, interval: Interval | None) -> Cell:
    found = number(value)
    if found is None:
        return EMPTY
    return Cell(written(found, interval), bracket(found, interval) if interval else "")
