"""Two captures side by side: the same places of both, and where their numbers differ beyond both intervals."""

from collections.abc import Sequence
from typing import NamedTuple

from tasks.catalogue import MEASURES, Measure
from tasks.measures import SiteRow
from tasks.numbers import disjoint


class Pair(NamedTuple):
    """One place in two captures."""

    first: SiteRow
    second: SiteRow

    def differs(self, key: str) -> bool | None:
        """Whether the intervals of a measure do not meet; None where one of both has none."""
        a, b = self.first.intervals.get(key), self.second.intervals.get(key)
        return None if a is None or b is None else disjoint(a, b)

    def has(self, key: str) -> bool:
        """Whether both have a measure."""
        return key in self.first.values and key in self.second.values


class Comparison(NamedTuple):
    """Two captures of a run."""

    first: str
    second: str
    pairs: tuple[Pair, ...]

    def of(self, measure: Measure) -> "Compared | None":
        """A measure at all places that have it in both captures; None where there are none."""
        pairs = [pair for pair in self.pairs if pair.has(measure.key)]
        if not pairs:
            return None
        known = [pair for pair in pairs if pair.differs(measure.key) is not None]
        apart = [pair for pair in known if pair.differs(measure.key)]
        largest = max(apart or pairs, key=lambda pair: _ratio(pair, measure.key))
        return Compared(measure, len(pairs), len(known), tuple(apart), largest)

    @property
    def measures(self) -> "list[Compared]":
        """Those that both have, in the order of the page."""
        return [found for measure in MEASURES if (found := self.of(measure)) is not None]


class Compared(NamedTuple):
    """A measure in two captures."""

    measure: Measure
    n_sites: int
    n_known: int
    """With intervals in both."""
    apart: tuple[Pair, ...]
    """Whose intervals do not meet."""
    largest: Pair
    """The largest difference, among those apart where there are some."""


def comparisons(rows: Sequence[SiteRow]) -> list[Comparison]:
    """The first capture with each other one that has a measure at the same places.

    Places are the same if sites have one name, or one kind and depth. A capture and a pair that it is part of are not compared: two
    layers of one network and the same layers of two are different things. Nor are partitions of one capture, of which there may be many.
    """
    rows = [row for row in rows if "/" not in row.capture]
    members = {row.capture: set(row.of) for row in rows}
    names = list(dict.fromkeys(row.capture for row in rows))
    found, done = [], set()
    for a in names:
        for b in names[names.index(a) + 1 :]:
            pairs = [pair for pair in _pairs(rows, a, b) if any(pair.has(m.key) for m in MEASURES)]
            if pairs and b not in done and a not in done and not members[a] & members[b]:
                found.append(Comparison(a, b, tuple(pairs)))
                done.add(b)
    return found


def compared_with(rows: Sequence[SiteRow]) -> dict[tuple[str, str], Pair]:
    """Site and capture of each second row of a pair, to the pair."""
    return {
        (pair.second.name, pair.second.capture): pair for found in comparisons(rows) for pair in found.pairs
    }


def _pairs(rows: Sequence[SiteRow], a: str, b: str) -> list[Pair]:
    first, second = ([row for row in rows if row.capture == name and not row.further] for name in (a, b))
    by_name = {row.name: row for row in second}
    by_place = {(row.place.kind, row.place.order): row for row in second if not row.partner}
    named = any(row.name in by_name for row in first)
    partners = [
        by_name.get(r.name) if named or r.partner else by_place.get((r.place.kind, r.place.order))
        for r in first
    ]
    return [Pair(row, other) for row, other in zip(first, partners, strict=True) if other is not None]


def _ratio(pair: Pair, key: str) -> float:
    """How far apart two values are, relative to the larger one."""
    a, b = pair.first.values[key], pair.second.values[key]
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0
