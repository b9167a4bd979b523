"""The numbers of a site that the page compares: read from whichever methods gave them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.artifact import Artifact
from schemas.stage import NETWORK, spanning
from tasks.catalogue import MEASURES, Measure, Source
from tasks.depth import Place, along_network, places

Vector = npt.NDArray[np.float64]


TOP = 10
WHOLE = 1e-6
"""Eigenvalues that lack no more than this share of the variance are all there."""


class StageArtifact(NamedTuple):
    """An artifact with the arrays that a page shows."""

    stage: str
    """As the run calls it."""
    artifact: Artifact
    arrays: dict[str, npt.NDArray[Any]]
    """Small arrays only."""

    @property
    def site(self) -> str:
        """The site of its rows; several are joined, as are those of a series."""
        rows = [ref.site for refs in self.artifact.stage.rows.values() for ref in refs]
        if not rows:
            return spanning([ref.site for refs in self.artifact.stage.series.values() for ref in refs])
        return " | ".join(dict.fromkeys(rows))

    @property
    def captures(self) -> tuple[str, ...]:
        """Ids of the captures it read."""
        return tuple(dict.fromkeys(ref.capture for refs in self.artifact.stage.rows.values() for ref in refs))


class SiteRow(NamedTuple):
    """All measures of one site, of the rows of one capture or of several together, or of a pair of sites."""

    site: str
    capture: str
    """As the run calls it; several are joined."""
    place: Place
    width: int | None
    rows: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    nulls: dict[str, float]
    """What chance, or uniform directions, would give."""
    plain_ratio: float | None
    """Participation ratio of the sample, without correction for few rows."""
    caveats: tuple[tuple[str, str], ...]
    """Method and what it says of its own numbers."""
    total: float
    """Total variance, also of eigenvalues that `spectrum` lacks; 0 without a spectrum."""
    spectrum: Vector | None
    """[component]: all or the leading eigenvalues, falling; 0 where rounding hides them."""
    band: tuple[Vector, Vector] | None
    """Ends of the interval of each eigenvalue."""
    partner: str = ""
    """The site that it is measured against, where that is another."""
    stage: str = ""
    """Whose measures of classes, or of strange rows, these are, where a method measured them in several stages."""
    of: tuple[str, ...] = ()
    """The ids of its captures."""
    further: bool = False
    """Whether a row of an earlier stage has all else that is known of the site."""

    @property
    def name(self) -> str:
        """The site, or both."""
        return f"{self.site} | {self.partner}" if self.partner else self.site


NAMED = ("classes", "strange")
"""Groups whose measures depend on more than the rows, so that a method may measure one site in several stages."""
GROUP_OF = {s.method: m.group for m in MEASURES if m.group in NAMED for s in m.sources if s.method}
"""Their methods."""
SPECTRUM = "eigenvalue"
"""Name of the array of eigenvalues in the artifacts of spectra; NaN where rounding hides them."""
NO_VARIANCES = ("geometry.", "clustering.")
"""Families whose eigenvalues are of something else, as of rows scaled to length 1 or of a graph of neighbours."""


def site_rows(artifacts: Sequence[StageArtifact], names: Mapping[str, str] | None = None) -> list[SiteRow]:
    """One row per site (and captures) and per pair of sites, shallow to deep; artifacts over several sites are left out.

    Args:
        artifacts: in the order of the run.
        names: ids of captures to what the run calls them.
    """
    groups: dict[tuple[Key, str], list[StageArtifact]] = {}
    for artifact in artifacts:
        if (site := _home(artifact)) is not None:
            groups.setdefault(((site, artifact.captures), artifact.artifact.stage.partner), []).append(
                artifact
            )
    at = _places(list(dict.fromkeys(key for key, _ in groups)))
    of = {key: called(key[1], names or {}) for key in at}
    rows = [
        _row(key[0], of[key], at[key], members)._replace(
            partner=partner, stage=stage, further=n > 0, of=key[1]
        )
        for (key, partner), group in groups.items()
        for n, (stage, members) in enumerate(_by_stages(group))
    ]
    rows = [row for row in rows if row.values or row.spectrum is not None]
    kinds, captures = ({name: n for n, name in enumerate(dict.fromkeys(found))} for found in
                       ([r.place.kind for r in rows], [r.capture for r in rows]))  # fmt: skip
    return sorted(rows, key=lambda r: (r.place.order, kinds[r.place.kind], captures[r.capture]))


def _by_stages(group: list[StageArtifact]) -> list[tuple[str, list[StageArtifact]]]:
    """What is known of a site, in parts where a method of classes, or of strange rows, measured there several times: one for each label,
    and each stage of a method with one label, named by their stages. The first has all else too; an unnamed one is all there is.
    """
    split = [part for of in NAMED for part in _parts([a for a in group if _group_of(a) == of])]
    if not split:
        return [("", group)]
    first, *further = split
    rest = [a for a in group if a in first or not any(a in part for part in split)]
    return [(", ".join(a.stage for a in part), rest if part is first else part) for part in (first, *further)]


def _group_of(a: StageArtifact) -> str | None:
    return GROUP_OF.get(a.artifact.stage.method)


def _parts(group: list[StageArtifact]) -> list[list[StageArtifact]]:
    """Those of one group of measures, so that each part has a method once; none where one part holds all."""
    parts: dict[tuple[str, int], list[StageArtifact]] = {}
    for a in group:
        label, n = str(a.artifact.stage.config.get("label") or ""), 0
        while any(b.artifact.stage.method == a.artifact.stage.method for b in parts.get((label, n), ())):
            n += 1
        parts.setdefault((label, n), []).append(a)
    methods = [a.artifact.stage.method for a in group]
    return [] if len(set(methods)) == len(methods) else list(parts.values())


def _home(artifact: StageArtifact) -> str | None:
    """The site whose row an artifact belongs to; one that compares two ports belongs to the first one's."""
    ports = [tuple(dict.fromkeys(ref.site for ref in refs)) for refs in artifact.artifact.stage.rows.values()]
    if not ports or any(len(sites) != 1 for sites in ports) or ports[0][0] == NETWORK:
        return None
    return ports[0][0] if len(ports) == 2 or len(set(ports)) == 1 else None


def called(captures: Sequence[str], names: Mapping[str, str]) -> str:
    """What the run calls some captures: all partitions of one by its name, some of them one by one.

    Args:
        captures: their ids.
        names: ids of the run's captures to its names, with `/partition` where there is one.
    """
    whole: dict[str, set[str]] = {}
    for capture, name in names.items():
        whole.setdefault(name.partition("/")[0], set()).add(capture)
    found = []
    for capture in captures:
        name = names.get(capture, capture[:8])
        of = name.partition("/")[0]
        found.append(of if whole.get(of, set()) <= set(captures) else name)
    return " + ".join(dict.fromkeys(found))


Key = tuple[str, tuple[str, ...]]
"""Site and captures."""


def _places(keys: Sequence[Key]) -> dict[Key, Place]:
    """Captures that share a site have their places together, others for themselves: layers of two networks may then be the same."""
    found: dict[Key, Place] = {}
    for members in _sharing(keys):
        sites = list(dict.fromkeys(site for site, _ in members))
        at = along_network(sites, places(sites))
        found |= {key: at[key[0]] for key in members}
    return found


def _sharing(keys: Sequence[Key]) -> list[list[Key]]:
    """Keys in groups, such that captures of two groups have no site in common."""
    groups: list[tuple[set[str], list[Key]]] = []
    for captures in dict.fromkeys(captures for _, captures in keys):
        own = [key for key in keys if key[1] == captures]
        sites = {site for site, _ in own}
        joined = [group for group in groups if group[0] & sites]
        groups = [group for group in groups if not group[0] & sites]
        before = [key for group in joined for key in group[1]]
        groups.append((sites.union(*(group[0] for group in joined)), before + own))
    return [members for _, members in groups]


class _Reading(NamedTuple):
    value: float
    interval: tuple[float, float] | None
    null: float | None


def _row(site: str, capture: str, place: Place, group: list[StageArtifact]) -> SiteRow:
    readings = {m.key: found for m in MEASURES if (found := _measured(m, group)) is not None}
    values = {key: found.value for key, found in readings.items()}
    intervals = {key: found.interval for key, found in readings.items() if found.interval is not None}
    nulls = {key: found.null for key, found in readings.items() if found.null is not None}
    spectrum, band, total = _spectrum(group)
    if spectrum is not None and spectrum.sum() > total * (1 - WHOLE):
        values = {**_from_spectrum(spectrum), **values}
    width = next((int(w) for a in group if (w := number(a.artifact.result.get("width"))) is not None), None)
    plain = next(
        (n for a in group if (n := number(a.artifact.result.get("participation_ratio"))) is not None), None
    )
    said = ((a.artifact.stage.method, text) for a in group for text in _caveats(a.artifact.result))
    caveats = tuple(dict.fromkeys(said))
    rows = max(a.artifact.rows_used for a in group)
    return SiteRow(
        site, capture, place, width, rows, values, intervals, nulls, plain, caveats, total, spectrum, band
    )


def _measured(measure: Measure, group: list[StageArtifact]) -> _Reading | None:
    """A measure from its best source. An interval that is of the sample's own number is moved to that without bias, in proportion."""
    found = next((reading for source in measure.sources for reading in _readings(source, group)), None)
    if found is not None and found.null is None:
        null = _null(found.value, measure, group) if measure.chance is None else measure.chance
        found = found._replace(null=null)
    if found is None or found.interval is not None or measure.interval_of is None:
        return found
    other = next(_readings(measure.interval_of, group), None)
    if other is None or other.interval is None or not other.value > 0:
        return found
    low, high = (end * found.value / other.value for end in other.interval)
    return found._replace(interval=(low, high))


def _null(value: float, measure: Measure, group: list[StageArtifact]) -> float | None:
    """Of another source of the same number."""
    every = (reading for source in measure.sources for reading in _readings(source, group))
    return next((r.null for r in every if r.value == value and r.null is not None), None)


def _readings(source: Source, group: list[StageArtifact]) -> Iterator[_Reading]:
    for a in group:
        if source.method not in (None, a.artifact.stage.method):
            continue
        result = _fields(a)
        told = result.get(source.field)
        value = number(told.get("value") if isinstance(told, dict) else told)
        if value is not None:
            null = number(result.get(source.null)) if source.null else None
            yield _Reading(value, interval_of(result, source.field), null)


def _fields(a: StageArtifact) -> dict[str, Any]:
    """The result; a concentration in ten components gets the name that says so."""
    result = a.artifact.result
    if "concentration" in result and a.artifact.stage.config.get("top", TOP) == TOP:
        return {**result, "top_10": result["concentration"]}
    return result


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def interval_of(result: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """The interval of a field: its own `low` and `high`, or the fields `<name>_low` and `<name>_high`; both ends or none."""
    told = result.get(name)
    ends = (
        [told.get(end) for end in ("low", "high")]
        if isinstance(told, dict)
        else [result.get(f"{name}_{end}") for end in ("low", "high")]
    )
    low, high = (number(end) for end in ends)
    return (low, high) if low is not None and high is not None else None


def _caveats(result: dict[str, Any]) -> list[str]:
    """Sentences that a method put beside its numbers."""
    found = result.get("caveats") or ()
    return (
        [text for text in found if isinstance(text, str)] if isinstance(found, list | tuple) else [str(found)]
    )


def _spectrum(group: list[StageArtifact]) -> tuple[Vector | None, tuple[Vector, Vector] | None, float]:
    """Eigenvalues, their intervals and the total variance, from the artifact that has most of them."""
    having = [a for a in group if SPECTRUM in a.arrays and a.arrays[SPECTRUM].size]
    having = [a for a in having if not a.artifact.stage.method.startswith(NO_VARIANCES)]
    having.sort(key=lambda a: (-a.arrays[SPECTRUM].size, f"{SPECTRUM}_low" not in a.arrays))
    if not having:
        return None, None, 0.0
    arrays = having[0].arrays
    values = np.maximum(np.nan_to_num(np.asarray(arrays[SPECTRUM], dtype=np.float64)), 0.0)
    total = max(float(values.sum()), number(having[0].artifact.result.get("trace")) or 0.0)
    if not values.sum() > 0:
        return None, None, 0.0
    low, high = (arrays.get(f"{SPECTRUM}_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return values, None, total
    return values, (np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)), total


def _from_spectrum(values: Vector) -> dict[str, float]:
    """Measures that all eigenvalues together give, where no method gave them."""
    total, share = float(values.sum()), values / values.sum()
    positive = share[share > 0]
    return {
        "participation_ratio": total**2 / float((values**2).sum()),
        "effective_rank": float(np.exp(-(positive * np.log(positive)).sum())),
        "stable_rank": total / float(values.max()),
        "anisotropy": float(share.max()),
        "top_10": float(share[:TOP].sum()),
        "components_90": float(np.argmax(np.cumsum(share) >= 0.9 - 1e-12) + 1),
    }
