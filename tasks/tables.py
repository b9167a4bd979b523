"""Tables of a page, as text that is ready to show. Methods it does not know get a table of their Result."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tasks.figures import short
from tasks.measures import MEASURES, Measure, SiteRow, StageArtifact, number

MOST_COLUMNS = 12
MOST_NOTES = 6
_OWN = frozenset({"width", "caveats"})


class Cell(NamedTuple):
    """What a cell says."""

    text: str
    note: str = ""
    """Smaller, below: an interval."""
    numeric: bool = True
    weight: float | None = None
    """0..1: where the value stands in its column, for a bar behind it."""


class Table(NamedTuple):
    """Headings with their meaning, and rows."""

    title: str
    headings: tuple[tuple[str, str], ...]
    """Heading and its meaning."""
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def measure_table(rows: Sequence[SiteRow]) -> Table:
    """Sites by measures; what is equal at all sites is said once, below."""
    measures = [m for m in MEASURES if any(m.key in row.values for row in rows)]
    sizes: dict[str, list[int | None]] = {
        "Rows": [row.rows for row in rows],
        "Features": [row.width for row in rows],
    }
    columns = {name: values for name, values in sizes.items() if len(set(values)) > 1}
    spans = {m.key: _span([row.values[m.key] for row in rows if m.key in row.values]) for m in measures}
    body = []
    for index, row in enumerate(rows):
        cells = [Cell(short_site(row.site), numeric=False)]
        cells += [Cell(f"{values[index]:,}" if values[index] else "–") for values in columns.values()]
        body.append((*cells, *(_measure_cell(row, m, spans[m.key]) for m in measures)))
    headings = (("Site", ""), *((name, "") for name in columns), *((m.title, m.meaning) for m in measures))
    return Table("Sites", headings, tuple(body), (*_same(sizes), *_caveats(rows)))


def _same(sizes: dict[str, list[int | None]]) -> Iterator[str]:
    """Sizes that all sites share, as a sentence."""
    said = [
        f"{values[0]:,} {name.lower()}"
        for name, values in sizes.items()
        if len(set(values)) == 1 and values[0]
    ]
    if said:
        yield f"{' of '.join(said)} at every site." if len(said) > 1 else f"{said[0]} at every site."


def short_site(site: str) -> str:
    """A site without what is usual: its output, its first call."""
    return " | ".join(part.removesuffix(":0").removesuffix(":out") or "network" for part in site.split(" | "))


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(min(values), 0.0), max(values)


def _measure_cell(row: SiteRow, measure: Measure, span: tuple[float, float]) -> Cell:
    value = row.values.get(measure.key)
    if value is None:
        return Cell("–")
    interval = row.intervals.get(measure.key)
    write = _share if measure.share else _whole_or_short
    note = f"{write(interval[0])} – {write(interval[1])}" if interval else ""
    if (
        measure.key == "participation_ratio"
        and row.plain_ratio is not None
        and row.plain_ratio < 0.99 * value
    ):
        note = f"plain {short(row.plain_ratio)}"
    low, high = span
    return Cell(write(value), note, weight=(value - low) / (high - low) if high > low else None)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _whole_or_short(value: float) -> str:
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e9 else short(value)


def _caveats(rows: Sequence[SiteRow]) -> Iterator[str]:
    """What the methods say of their own numbers."""
    yield from _counted([note for row in rows for note in row.caveats], len(rows))


def _counted(notes: Sequence[str], results: int) -> Iterator[str]:
    """Each sentence once, with the number of its sites."""
    counts = {note: notes.count(note) for note in dict.fromkeys(notes)}
    for note, n in list(counts.items())[:MOST_NOTES]:
        where = "" if n == results else f" ({n} of {results} sites)"
        yield f"{note[:1].upper()}{note[1:].rstrip('.')}{where}."
    if len(counts) > MOST_NOTES:
        yield f"{len(counts) - MOST_NOTES} more caveats are in the artifacts."


def stage_tables(artifacts: Sequence[StageArtifact]) -> Iterator[Table]:
    """One table per stage: all scalar fields of its Results."""
    for stage in dict.fromkeys(a.stage for a in artifacts):
        members = [a for a in artifacts if a.stage == stage]
        flat = [dict(_scalars(a.artifact.result)) for a in members]
        names = list(dict.fromkeys(name for fields in flat for name in fields if name not in _OWN))[
            :MOST_COLUMNS
        ]
        headings = (("Site", ""), *((name.replace("_", " ").replace(".", ": "), name) for name in names))
        rows = tuple(
            (
                Cell(short_site(a.site) if a.site else "–", numeric=False),
                *(_field_cell(fields.get(name)) for name in names),
            )
            for a, fields in zip(members, flat, strict=True)
        )
        method, version = members[0].artifact.stage.method, members[0].artifact.stage.version
        said = [text for a in members for text in a.artifact.result.get("caveats") or ()]
        yield Table(
            f"{stage} ({method}, version {version})", headings, rows, tuple(_counted(said, len(members)))
        )


def _scalars(result: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields with one value each; nested mappings are joined by dots, lists are counted or written out."""
    for key, value in result.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _scalars(value, f"{name}.")
        elif isinstance(value, list):
            yield name, _list_text(value)
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
        return _whole_or_short(as_number)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def _field_cell(value: Any) -> Cell:
    return Cell(_text(value), numeric=number(value) is not None or value is None)
