"""Two ports read together: the rows of x that have a partner in y with the same sample key and position."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from schemas.errors import MethodError
from schemas.stage import RowsRef
from tasks.engine.fitting import check_spaces
from tasks.engine.source import Part, Rows, SiteSource, take


class JoinedSource:
    """Walks the rows of x in order and looks up those of y; rows without a partner are left out.

    Costs 16 bytes of memory per row of y, beside the blocks.
    """

    def __init__(self, x: SiteSource, y: SiteSource) -> None:
        self.x, self.y = x, y
        check_spaces(x.parts, y.parts)

    @property
    def parts(self) -> Sequence[Part]:
        """The captures of x."""
        return self.x.parts

    @property
    def refs(self) -> tuple[tuple[RowsRef, ...], ...]:
        """The captures of both ports."""
        return self.x.refs + self.y.refs

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of both ports."""
        return self.x.widths + self.y.widths

    @property
    def shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """See `Source`."""
        return self.x.shapes + self.y.shapes

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """Labels come from x."""
        return self.x.categories

    @property
    def of_rows(self) -> tuple[str, ...]:
        """Labels come from x."""
        return self.x.of_rows

    def n_ok(self, part: int, start: int, stop: int) -> int:
        """See `Source`."""
        return len(self.good_samples(part, start, stop))

    def good_samples(self, part: int, start: int, stop: int) -> np.ndarray:
        """See `Source`."""
        here = self.x.parts[part]
        sample, position = here.column("sample", start, stop), here.column("position", start, stop)
        ok = here.ok[sample]
        sample, position = sample[ok], position[ok]
        joined: np.ndarray = sample[self._partner(part, sample, position) >= 0]
        return joined

    def part_rows(self, part: int, start: int, stop: int) -> Rows:
        """See `Source`."""
        rows = self.x.part_rows(part, start, stop)
        partner = self._partner(part, rows.sample, rows.position)
        matched = partner >= 0
        if not matched.all():
            rows = take(rows, matched)
        return replace(rows, values=(rows.values[0], self._fetch(partner[matched])))

    def _partner(self, part: int, sample: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Row of y (over its captures laid end to end) for each row of x, -1 where there is none."""
        codes, order = self._lookup
        own = self._sample_in_y[part][sample]
        wanted = (own << 32) | position
        if len(codes) == 0:
            return np.full(len(wanted), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        return np.where((own >= 0) & (codes[place] == wanted), order[place], -1)

    def _fetch(self, wanted: np.ndarray) -> np.ndarray:
        """Rows of y by index, read shard by shard; a contiguous run inside one shard is not copied."""
        dtype = self.y.parts[0].values(0, 0).dtype
        out, first = np.empty((len(wanted), self.y.widths[0]), dtype=dtype), 0
        for part in self.y.parts:
            self.y.require_rows(part)
            for shard in np.unique(self._inside(part, wanted, first) // part.space.shard_rows):
                low, high = part.space.shard_bounds(int(shard))
                here = (wanted >= first + low) & (wanted < first + high)
                local = wanted[here] - first
                low, high = int(local.min()), int(local.max()) + 1
                values = part.values(low, high)
                if len(local) == len(wanted) == len(values) and (np.diff(local) == 1).all():
                    return values
                out[here] = values[local - low]
            first += part.space.n_rows
        return out

    @staticmethod
    def _inside(part: Part, wanted: np.ndarray, first: int) -> np.ndarray:
        return wanted[(wanted >= first) & (wanted < first + part.space.n_rows)] - first

    @cached_property
    def _samples_of_y(self) -> dict[str, int]:
        names = [key for part in self.y.parts for key in part.keys]
        found = {key: number for number, key in enumerate(names)}
        if len(found) != len(names):
            raise MethodError(
                f"{len(names) - len(found)} sample keys occur more than once over {len(self.y.parts)} captures: "
                "a join needs unique keys; connect captures of different samples"
            )
        return found

    @cached_property
    def _sample_in_y(self) -> list[np.ndarray]:
        found = self._samples_of_y
        return [np.array([found.get(k, -1) for k in part.keys], dtype=np.int64) for part in self.x.parts]

    @cached_property
    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted codes (sample, position) of the good rows of y, and the row of each."""
        codes, rows, first, first_sample = [], [], 0, 0
        for part in self.y.parts:
            sample, position = part.column("sample"), part.column("position")
            good = np.flatnonzero(part.ok[sample])
            codes.append(((sample[good] + first_sample) << 32) | position[good])
            rows.append(good + first)
            first, first_sample = first + part.space.n_rows, first_sample + part.spec.layout.n_samples
        joined = np.concatenate(codes)
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate(rows)[order]
