"""Headline findings: plain sentences computed from the numbers, none where there is nothing to say."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tasks.depth import RESIDUAL, Place
from tasks.figures import percent, ranked_kinds, short
from tasks.measures import SiteRow


class Finding(NamedTuple):
    """A number that leads, and the sentence that says what it is."""

    figure: str
    """The number, short."""
    sentence: str


class RowCounts(NamedTuple):
    """Rows of a capture and how many of them are outliers, by site."""

    rows: int
    outliers: Mapping[str, int]
    """Site to flagged rows."""
    multiple: float
    """Of the unit's median norm."""


def findings(
    rows: Sequence[SiteRow], counts: Sequence[RowCounts], n_samples: int, n_failed: int
) -> list[Finding]:
    """What a reader should take away.

    Args:
        rows: the sites with their measures.
        counts: rows and outliers of each capture.
        n_samples, n_failed: samples of all captures, and those without rows.
    """
    found = [
        _dimension(rows),
        _first_component(rows),
        _compression(rows),
        _probe(rows),
        _outliers(counts, n_samples),
    ]
    return [finding for finding in [*found, _samples(n_samples, n_failed)] if finding is not None]


def where(place: Place, site: str) -> str:
    """A site in words."""
    names = {"emb": "the embedding", "end": "the end"}
    if place.label in names:
        return names[place.label]
    return f"layer {place.label}" if place.label else site


def main_line(rows: Sequence[SiteRow], key: str) -> list[SiteRow]:
    """Sites of the kind that is told first, shallow to deep, that have a measure."""
    having = [row for row in rows if key in row.values]
    kinds = ranked_kinds([row.place for row in having])
    return [row for row in having if row.place.kind == kinds[0]] if kinds else []


def _dimension(rows: Sequence[SiteRow]) -> Finding | None:
    line = main_line(rows, "participation_ratio")
    if not line:
        return None
    ratios = [row.values["participation_ratio"] for row in line]
    top = max(range(len(line)), key=ratios.__getitem__)
    peak = line[top]
    if len(line) == 1:
        spread = f"spread over about {short(ratios[0])} directions (participation ratio)"
        return Finding(short(ratios[0]), f"The rows at {peak.site} {spread}{_of_width(peak)}.")
    first, last = line[0], line[-1]
    path = [f"up from {short(ratios[0])} at {where(first.place, first.site)}"] if top != 0 else []
    path += [f"down to {short(ratios[-1])} at {where(last.place, last.site)}"] if top != len(line) - 1 else []
    shape = f", {' and '.join(path)}" if path else ""
    peaks = f"The dimension of {_line_name(peak)} peaks at {where(peak.place, peak.site)}"
    height = f"with a participation ratio of {short(ratios[top])}{_of_width(peak)}"
    return Finding(short(ratios[top]), f"{peaks} {height}{shape}.")


def _of_width(row: SiteRow) -> str:
    return f" ({row.width} features)" if row.width else ""


def _line_name(row: SiteRow) -> str:
    return f"the {row.place.kind}" if row.place.kind == RESIDUAL else row.place.kind


def _first_component(rows: Sequence[SiteRow]) -> Finding | None:
    having = [row for row in rows if "anisotropy" in row.values]
    if not having:
        return None
    top = max(having, key=lambda row: row.values["anisotropy"])
    share = percent(top.values["anisotropy"])
    where_ = where(top.place, top.site)
    kind = (
        f" ({top.place.kind})" if top.place.label and len(ranked_kinds([r.place for r in having])) > 1 else ""
    )
    dominated = sum(row.values["anisotropy"] > 0.5 for row in having)
    rest = f" At {dominated} of {len(having)} sites one direction holds more than half." if dominated else ""
    most = ", more than anywhere else" if len(having) > 1 else ""
    return Finding(share, f"The first component owns {share} of the variance at {where_}{kind}{most}.{rest}")


def _compression(rows: Sequence[SiteRow]) -> Finding | None:
    line = [row for row in main_line(rows, "components_90") if row.width]
    if not line:
        return None
    counts = [int(row.values["components_90"]) for row in line]
    low, high = min(counts), max(counts)
    width = line[counts.index(high)].width or 0
    spread = f"{low}" if low == high else f"{low}–{high}"
    share = percent(high / width)
    held = f"hold 90 % of the variance of {_line_name(line[0])}: at most {share} of the directions."
    return Finding(spread, f"{spread.replace('–', ' to ')} of {width} components {held}")


def _probe(rows: Sequence[SiteRow]) -> Finding | None:
    having = [row for row in rows if "accuracy" in row.values]
    if not having:
        return None
    best = max(having, key=lambda row: row.values["accuracy"])
    share = percent(best.values["accuracy"])
    most = f", the best of {len(having)} sites" if len(having) > 1 else ""
    return Finding(share, f"A linear map finds the class of {share} of unseen rows at {best.site}{most}.")


def _outliers(counts: Sequence[RowCounts], n_samples: int) -> Finding | None:
    flagged = [(n, site, count) for count in counts for site, n in count.outliers.items()]
    if not flagged:
        return None
    most, site, count = max(flagged, key=lambda entry: (entry[0], entry[1]))
    multiple = f"{count.multiple:g} times the median norm"
    if most == 0:
        return Finding("0", f"No row is longer than {multiple} at any site.")
    share = percent(most / count.rows)
    what = f"{most:,} of {count.rows:,} rows ({share}) at {site} are longer than {multiple}"
    each = ", about one per sample" if n_samples and 0.9 < most / n_samples < 1.1 else ""
    return Finding(f"{most:,}", f"{what}{each}; such rows can own the first components.")


def _samples(n_samples: int, n_failed: int) -> Finding | None:
    if n_samples == 0:
        return None
    if n_failed == 0:
        return Finding(f"{n_samples:,}", f"None of {n_samples:,} captured samples failed.")
    failed = f"{n_failed:,} of {n_samples:,} samples failed and have no rows"
    return Finding(f"{n_failed:,}", f"{failed}; they are listed below with the reason.")
