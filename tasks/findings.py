"""Headline findings: plain sentences computed from the numbers, none where there is nothing to say."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tasks.catalogue import KEYS, lowered
from tasks.comparison import Comparison, comparisons
from tasks.depth import IN_ORDER, RESIDUAL, Place
from tasks.figures import percent, ranked_kinds, short
from tasks.measures import SiteRow
from tasks.numbers import disjoint, told
from tasks.tables import short_site

MOST_NAMED = 3
"""Sites that a sentence names."""
SAME_SAMPLE = "of the same sample"
"""In the caveats of methods that take rows of one sample as neighbours."""
LEAST_NULL = 0.1
"""Of a collapse index: below, labels that say nothing look collapsed too."""
INTRINSIC = ("twonn", "mle", "local_dimension", "tree_dimension", "magnitude_dimension")
"""Measures of intrinsic dimension, the one that is told first."""
LED = (
    "participation_ratio",
    "twonn",
    "mle",
    "anisotropy",
    "entropy",
    "vci",
    "nc1",
    "effective_rank",
    "accuracy",
)
"""Measures that a comparison tells first, those that have intervals."""


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
    """What a reader should take away. Of several captures that are compared, the first is told and then how others differ.

    Args:
        rows: the sites with their measures.
        counts: rows and outliers of each capture.
        n_samples, n_failed: samples of all captures, and those without rows.
    """
    every, rows = rows, [row for row in rows if not row.further]
    compared = comparisons(rows)
    others = {found.second for found in compared}
    told_rows = [row for row in rows if row.capture not in others]
    found = [
        _dimension(told_rows),
        _intrinsic(told_rows),
        _first_component(told_rows),
        _evenness(told_rows),
        _compression(told_rows),
        _collapse(told_rows),
        _probe(told_rows),
    ]
    if compared:
        found = [_of(compared[0].first, finding) for finding in found if finding is not None]
    found += [_difference(one) for one in compared]
    found += [
        _detection(every),
        _alignment(rows),
        _outliers(counts, n_samples),
        _samples(n_samples, n_failed),
    ]
    return [finding for finding in found if finding is not None]


def _of(capture: str, finding: Finding) -> Finding:
    return finding._replace(sentence=f"{capture}: {finding.sentence}")


def where(place: Place, site: str) -> str:
    """A site in words."""
    names = {"emb": "the embedding", "end": "the end"}
    if place.kind == IN_ORDER:
        return place.label
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
    peaks = f"The dimension of {_line_name(peak)} peaks at {_at(peak)}"
    height = f"with a participation ratio of {_told(peak, 'participation_ratio')}{_of_width(peak)}"
    path = _from_peak(line, top, "participation_ratio")
    return Finding(short(ratios[top]), f"{peaks} {height}{path}.")


class Ends(NamedTuple):
    """The first and last site beside the best one."""

    apart: dict[int, str]
    """Their numbers: 0 for the first site, 1 for the last."""
    rest: str
    """What the samples do not tell apart from the best."""


def _ends(line: Sequence[SiteRow], best: int, key: str) -> Ends:
    """What the first and last site have; what intervals do not tell apart is said to be so."""
    apart, alike = {}, []
    for end, index in enumerate((0, len(line) - 1)):
        if index != best:
            said = f"{_told(line[index], key)} at {_at(line[index])}"
            if _overlap(line[best], line[index], key) or line[index].values[key] == line[best].values[key]:
                alike.append(f"from {said}")
            else:
                apart[end] = said
    rest = f"; {' and '.join(alike)} the samples resolve no difference" if alike else ""
    inner = [row for n, row in enumerate(line) if n not in (0, best, len(line) - 1)]
    return Ends(apart, rest + _not_told_apart([row for row in inner if _overlap(line[best], row, key)]))


def _from_peak(line: Sequence[SiteRow], best: int, key: str) -> str:
    ends = _ends(line, best, key)
    path = [f"{('up from', 'down to')[end]} {said}" for end, said in ends.apart.items()]
    return (f", {' and '.join(path)}" if path else "") + ends.rest


def _not_told_apart(rows: Sequence[SiteRow]) -> str:
    if not rows:
        return ""
    named = [_at(row) for row in rows[:MOST_NAMED]]
    more = f" and {len(rows) - MOST_NAMED} more sites" if len(rows) > MOST_NAMED else ""
    return f"; the samples do not tell it from {', '.join(named)}{more}"


def _overlap(a: SiteRow, b: SiteRow, key: str) -> bool:
    """Whether both have intervals, and these meet."""
    return key in a.intervals and key in b.intervals and not disjoint(a.intervals[key], b.intervals[key])


def _at(row: SiteRow) -> str:
    return where(row.place, short_site(row.site) if row.place.label else row.site)


def _told(row: SiteRow, key: str) -> str:
    return told(row.values[key], row.intervals.get(key), KEYS[key].share)


def _of_width(row: SiteRow) -> str:
    return f" ({row.width} features)" if row.width else ""


def _line_name(row: SiteRow) -> str:
    if row.place.kind == IN_ORDER:
        return "the rows"
    return f"the {row.place.kind}" if row.place.kind == RESIDUAL else row.place.kind


def _intrinsic(rows: Sequence[SiteRow]) -> Finding | None:
    """Where the intrinsic dimension peaks, beside the linear one there."""
    key = next((k for k in INTRINSIC if main_line(rows, k)), None)
    if key is None:
        return None
    line = main_line(rows, key)
    top = max(range(len(line)), key=lambda n: line[n].values[key])
    peak = line[top]
    name = f"intrinsic dimension ({lowered(KEYS[key].title)})"
    if len(line) == 1:
        sentence = f"The {name} at {peak.site} is {_told(peak, key)}"
    else:
        ends = _from_peak(line, top, key)
        sentence = f"The {name} of {_line_name(peak)} peaks at {_at(peak)} with {_told(peak, key)}{ends}"
    if key in peak.nulls:
        sentence += f"; as many rows that fill all directions would give {short(peak.nulls[key])}"
    if any(text.startswith("neighbours") and SAME_SAMPLE in text for _, text in peak.caveats):
        sentence += "; neighbours are also rows of the same sample, whose path alone this may be"
    return Finding(short(peak.values[key]), f"{sentence}.{_beside_linear(peak, key)}")


def _beside_linear(row: SiteRow, key: str) -> str:
    """The participation ratio at a site; how many times as large only where both intervals say so."""
    linear = "participation_ratio"
    if linear not in row.values:
        return ""
    said = f" The participation ratio there is {_told(row, linear)}"
    own, other = row.intervals.get(key), row.intervals.get(linear)
    if own is None or other is None:
        return f"{said}."
    if not disjoint(own, other):
        return f"{said}: no difference that the samples resolve."
    times = row.values[linear] / row.values[key]
    if times < 1:
        return f"{said}, less: few directions hold most of the variance, while neighbours differ in more."
    return f"{said}, {short(times)} times as many: rows fill more directions than tell them from their neighbours."


def _first_component(rows: Sequence[SiteRow]) -> Finding | None:
    having = [row for row in rows if "anisotropy" in row.values]
    if not having:
        return None
    top = max(having, key=lambda row: row.values["anisotropy"])
    share = percent(top.values["anisotropy"])
    kind = (
        f" ({top.place.kind})" if top.place.label and len(ranked_kinds([r.place for r in having])) > 1 else ""
    )
    dominated = sum(row.values["anisotropy"] > 0.5 for row in having)
    rest = f" At {dominated} of {len(having)} sites one direction holds more than half." if dominated else ""
    rivals = [row for row in having if row is not top and _overlap(top, row, "anisotropy")]
    most = _not_told_apart(rivals) if rivals else ", more than anywhere else" if len(having) > 1 else ""
    owned = _told(top, "anisotropy")
    return Finding(
        share, f"The first component owns {owned} of the variance at {_at(top)}{kind}{most}.{rest}"
    )


def _evenness(rows: Sequence[SiteRow]) -> Finding | None:
    """Where directions are most and least even, as entropy over that of uniform directions."""
    line = [row for row in main_line(rows, "entropy") if row.nulls.get("entropy", 0) > 0]
    if not line:
        return None
    shares = [row.values["entropy"] / row.nulls["entropy"] for row in line]
    ranges = [_over_null(row) for row in line]
    most, least = (pick(range(len(line)), key=shares.__getitem__) for pick in (max, min))

    def said(n: int) -> str:
        return f"{_told(line[n], 'entropy')} of the {short(line[n].nulls['entropy'])} of uniform directions"

    figure = percent(shares[most])
    if most == least:
        return Finding(figure, f"The entropy of directions at {line[most].site} is {said(most)}.")
    start = f"Directions are most even at {_at(line[most])}: entropy {said(most)}"
    a, b = ranges[most], ranges[least]
    if a is not None and b is not None and not disjoint(a, b):
        return Finding(figure, f"{start}; between sites the samples resolve no difference.")
    inner = [n for n in range(len(line)) if n not in (most, least)]
    alike = [line[n] for n in inner if a is not None and (r := ranges[n]) is not None and not disjoint(a, r)]
    end = f"; least at {_at(line[least])}: {said(least)} ({percent(shares[least])})"
    return Finding(figure, f"{start}{_not_told_apart(alike)}{end}.")


def _over_null(row: SiteRow) -> tuple[float, float] | None:
    found, null = row.intervals.get("entropy"), row.nulls["entropy"]
    return None if found is None else (found[0] / null, found[1] / null)


def _collapse(rows: Sequence[SiteRow]) -> Finding | None:
    """Where rows of one class are nearest to each other, and what labels that say nothing would give."""
    key = next((k for k in ("vci", "nc1", "cdnv") if main_line(rows, k)), None)
    if key is None:
        return None
    line = main_line(rows, key)
    low = min(range(len(line)), key=lambda n: line[n].values[key])
    best = line[low]
    figure = short(best.values[key])
    if best.nulls.get(key, 1.0) < LEAST_NULL:
        return None  # so few rows look collapsed whatever their labels
    chance = ""
    if key in best.nulls:
        null, interval = best.nulls[key], best.intervals.get(key)
        inside = interval is not None and interval[1] >= null
        chance = f", where labels that say nothing give {short(null)}"
        chance += ": no difference that the samples resolve" if inside else ""
    if len(line) == 1:
        return Finding(figure, f"{KEYS[key].title} at {best.site} is {_told(best, key)}{chance}.")
    ends = _ends(line, low, key)
    beside = f"; it is {' and '.join(ends.apart.values())}" if ends.apart else ""
    start = f"Classes are most collapsed at {_at(best)}: {KEYS[key].title} {_told(best, key)}"
    return Finding(figure, f"{start}{chance}{beside}{ends.rest}.")


def _difference(found: Comparison) -> Finding | None:
    """How often the intervals of two captures do not meet."""
    known = [c for c in found.measures if c.n_known]
    led = [c for key in LED for c in known if c.measure.key == key][:MOST_NAMED]
    if not led:
        return None
    parts = []
    for c in led:
        said = f"in {lowered(c.measure.title)} at {len(c.apart)} of {c.n_known} sites"
        if c.apart:
            a, b = c.largest
            at, key = _at(a), c.measure.key
            said += f" (most at {at}: {_told(a, key)} and {_told(b, key)})"
        parts.append(said)
    apart, n = sum(len(c.apart) for c in led), sum(c.n_known for c in led)
    rest = " Elsewhere the samples resolve no difference." if apart < n else ""
    return Finding(
        f"{len(led[0].apart)} of {led[0].n_known}",
        f"{found.first} and {found.second} differ beyond both intervals {', '.join(parts)}.{rest}",
    )


def _alignment(rows: Sequence[SiteRow]) -> Finding | None:
    """Where two captures, or which two sites, arrange the same rows least alike."""
    key = next((k for k in ("cka_debiased", "cka") if main_line(rows, k)), None)
    if key is None:
        return None
    line = main_line(rows, key)
    least = min(line, key=lambda row: row.values[key])
    value = least.values[key]
    name = "CKA without bias" if key == "cka_debiased" else "CKA"
    figure = f"{value:.{KEYS[key].decimals}f}"
    lowest = f", the lowest of {len(line)} {'pairs' if least.partner else 'sites'}" if len(line) > 1 else ""
    both = f"{' and '.join(short_site(least.name).split(' | '))} ({least.capture})"
    who, at = (both, "") if least.partner else (least.capture, f" at {_at(least)}")
    return Finding(figure, f"{who} arrange the same rows with a {name} of {figure}{at}{lowest}.")


def _compression(rows: Sequence[SiteRow]) -> Finding | None:
    line = [row for row in main_line(rows, "components_90") if row.width]
    if not line:
        return None
    counts = [int(row.values["components_90"]) for row in line]
    low, high = min(counts), max(counts)
    spread = f"{low}" if low == high else f"{low}–{high}"
    words, of_line = spread.replace("–", " to "), _line_name(line[0])
    widths = {row.width for row in line}
    shares = [count / (row.width or 1) for count, row in zip(counts, line, strict=True)]
    share = f"at most {percent(max(shares))} of the directions"
    if len(widths) > 1:
        most = line[shares.index(max(shares))]
        held = f"hold 90 % of the variance of {of_line}, {share}, at {_at(most)}."
        return Finding(spread, f"{words} components {held}")
    held = f"hold 90 % of the variance of {of_line}: {share}."
    return Finding(spread, f"{words} of {widths.pop()} components {held}")


def _probe(rows: Sequence[SiteRow]) -> Finding | None:
    having = [row for row in rows if "accuracy" in row.values]
    if not having:
        return None
    best = max(having, key=lambda row: row.values["accuracy"])
    share = percent(best.values["accuracy"])
    rivals = sum(row is not best and _overlap(best, row, "accuracy") for row in having)
    most = f", the best of {len(having)} sites" if len(having) > 1 else ""
    most += f"; the samples do not tell it from {rivals} of the others" if rivals else ""
    return Finding(share, f"A linear map finds the class of {share} of unseen rows at {best.site}{most}.")


def _detection(rows: Sequence[SiteRow]) -> Finding | None:
    """Where, and by which stage, strange rows are told best from normal ones, and where worst."""
    having = [row for row in rows if "auroc" in row.values]
    if not having:
        return None
    best, worst = (pick(having, key=lambda row: row.values["auroc"]) for pick in (max, min))

    captures = len({row.capture for row in having}) > 1

    def said(row: SiteRow) -> str:
        by = ", ".join([row.stage] * bool(row.stage) + [row.capture] * captures)
        return f"{_told(row, 'auroc')} at {_at(row)}{f' ({by})' if by else ''}"

    rivals = sum(row is not best and _overlap(best, row, "auroc") for row in having)
    rest = f"; the samples do not tell it from {rivals} of {len(having) - 1} others" if rivals else ""
    rest += f"; least {said(worst)}" if best.values["auroc"] > worst.values["auroc"] else ""
    sentence = f"Strange rows are told from normal ones with an AUROC of {said(best)}{rest}; chance is 0.5."
    return Finding(short(best.values["auroc"]), sentence)


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
