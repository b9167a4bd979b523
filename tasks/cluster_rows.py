"""Rows of clusters, read for a page: a choice of a site's rows with their samples, and what these samples are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.errors import SubspanError
from schemas.layout import SiteLayout
from tasks.example_illustrations import Shown
from tasks.page import CaptureData
from tasks.sample_map import MOST_BYTES, SEED, shards_read
from tasks.store.location import Location
from tasks.store.sealed import open_group

LONGEST_TEXT = 90
Indices = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Some rows of a site of one or several captures."""

    place: Indices
    """[row]: which of those that were wanted."""
    values: npt.NDArray[np.float64]
    """[row, feature]"""
    member: Indices
    """[row]: index of the capture."""
    sample: Indices
    """[row]: index of the sample in its capture."""


def site_layout(capture: CaptureData, site: str) -> SiteLayout | None:
    """The site of a capture that keeps its rows."""
    if capture.spec.request.keep != "rows":
        return None
    return next((each for each in capture.spec.layout.sites if str(each.site) == site), None)


def some_rows(
    root: Location, members: Sequence[CaptureData], site: str, wanted: Indices, most: int
) -> Rows | None:
    """A seeded choice of wanted rows, of a choice of shards where a site is larger than 2 GB; None where rows were not kept.

    Args:
        root: where captures lie.
        members: captures, laid end to end.
        site: of all of them.
        wanted: rows over all captures, ascending.
        most: rows that are read.
    """
    layouts = [site_layout(capture, site) for capture in members]
    pieces, first = [], 0
    for number, (capture, layout) in enumerate(zip(members, layouts, strict=True)):
        if layout is None:
            return None
        space = capture.spec.layout.space(layout.space)
        low, high = np.searchsorted(wanted, [first, first + space.n_rows])
        places, rows = np.arange(low, high), wanted[low:high] - first
        read = np.isin(rows // space.shard_rows, shards_read(space, layout.width, MOST_BYTES // len(members)))
        pieces.append((number, places[read], rows[read]))
        first += space.n_rows
    total = sum(len(rows) for _, _, rows in pieces)
    drawn = np.zeros(total, dtype=bool)
    drawn[np.random.default_rng(SEED).permutation(total)[:most]] = True
    found = []
    for number, places, rows in pieces:
        mine, drawn = drawn[: len(rows)], drawn[len(rows) :]
        found.append(_read(root, members[number], layouts[number], number, places[mine], rows[mine]))
    return Rows(*(np.concatenate(values) for values in zip(*found, strict=True)))


def shown_samples(root: Location, capture: CaptureData, samples: Sequence[int]) -> dict[int, Shown]:
    """What samples of a capture are: their names, with text or image where the data can still be read and hold them under that name.

    Names are read, and the data opened, once for all of them.
    """
    return {sample: shown(*found) for sample, found in sample_values(root, capture, samples).items()}


def sample_values(
    root: Location, capture: CaptureData, samples: Sequence[int]
) -> dict[int, tuple[str, object | None]]:
    """Names of samples of a capture, each with what the data hold under it; None where they can be read no more."""
    wanted = np.unique(np.asarray(samples, dtype=np.int64))
    group: Any = open_group(root, capture.id)["samples"]
    keys, places = (group[name].oindex[wanted] for name in ("key", "source_index"))
    source = _source(capture)
    named = zip(wanted.tolist(), map(str, keys), map(int, places), strict=True)
    return {sample: (key, _value(source, key, place)) for sample, key, place in named}


def samples_of_rows(
    root: Location, members: Sequence[CaptureData], site: str, rows: Indices
) -> list[tuple[int, int] | None]:
    """The capture and sample of each row over all captures; None where there is no such row."""
    found: list[tuple[int, int] | None] = [None] * len(rows)
    first = 0
    for number, capture in enumerate(members):
        layout = site_layout(capture, site)
        if layout is None:
            return found
        space = capture.spec.layout.space(layout.space)
        here = np.flatnonzero((rows >= first) & (rows < first + space.n_rows))
        own, place = np.unique(rows[here] - first, return_inverse=True)
        group: Any = open_group(root, capture.id)
        sample = np.asarray(group[f"rows/{space.name}/sample"].oindex[own])[place]
        for at, each in zip(here.tolist(), sample.tolist(), strict=True):
            found[at] = (number, each)
        first += space.n_rows
    return found


def _read(
    root: Location,
    capture: CaptureData,
    layout: SiteLayout | None,
    number: int,
    places: Indices,
    rows: Indices,
) -> tuple[Indices, npt.NDArray[np.float64], Indices, Indices]:
    """Shard by shard."""
    if layout is None:
        raise ValueError("the capture has no such site")
    space = capture.spec.layout.space(layout.space)
    group: Any = open_group(root, capture.id)
    values = np.zeros((len(rows), layout.width))
    sample = np.zeros(len(rows), dtype=np.int64)
    for shard in np.unique(rows // space.shard_rows):
        low, high = space.shard_bounds(int(shard))
        here = (rows >= low) & (rows < high)
        values[here] = np.asarray(group[layout.site.array][low:high])[rows[here] - low]
        sample[here] = np.asarray(group[f"rows/{space.name}/sample"][low:high])[rows[here] - low]
    return places, values, np.full(len(rows), number), sample


def _source(capture: CaptureData) -> Any:
    """The data of a capture; None where they can be read no more."""
    from tasks.extract.data import open_source

    try:
        return open_source(capture.spec.request.data, capture.spec.partition or None)
    except (SubspanError, OSError, ImportError):
        return None


def _value(source: Any, key: str, index: int) -> object | None:
    try:
        found = None if source is None else source[index]
    except (SubspanError, OSError, IndexError, ImportError):
        found = None
    return None if found is None or found.key != key else found.value


def shown(key: str, value: object | None) -> Shown:
    """A sample by its name and what the data hold: texts cut, of several inputs the first that is an image."""
    if isinstance(value, str):
        text = " ".join(value.split())
        return Shown(key, text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…")
    inputs = value.values() if isinstance(value, Mapping) else (value,)
    return Shown(key, image=next((image for each in inputs if (image := image_of(each)) is not None), None))


def image_of(value: object) -> npt.NDArray[np.float64] | None:
    """Of [height, width], [1, height, width] or [3, height, width]; the values' range becomes 0..1."""
    values = np.asarray(value, dtype=np.float64) if hasattr(value, "__array__") else np.zeros(0)
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = values[0] if len(values) == 1 else np.moveaxis(values, 0, 2)
    is_image = min(values.shape, default=0) >= 3 and (values.ndim == 2 or values.shape[2:] == (3,))
    if not is_image or not np.isfinite(values).all():
        return None
    span = float(np.ptp(values))
    scaled: npt.NDArray[np.float64] = (values - values.min()) / (span if span > 0 else 1)
    return scaled
