"""What a worker must know of a capture that is still being made: its spec and where each sample's rows go."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from tasks.store.location import Location
from tasks.store.paths import capture_path
from tasks.store.zarrstore import LocationStore


class UnitSamples(NamedTuple):
    """The samples that have rows in a range of store rows, in store order."""

    sample: npt.NDArray[np.int64]
    """[sample]: index in the capture."""
    source_index: npt.NDArray[np.int64]
    """[sample]: index in the source of the data."""
    start: npt.NDArray[np.int64]
    """[sample]: first store row."""
    rows: npt.NDArray[np.int64]
    """[sample]: rows."""


def samples_between(root: Location, capture: str, space: str, first: int, last: int) -> UnitSamples:
    """The samples with rows in [first, last) of a space. Reads the row starts once per process."""
    starts = _row_starts(root, capture, space)
    low = int(np.searchsorted(starts, first, side="right")) - 1
    high = int(np.searchsorted(starts, last, side="left"))
    count = np.diff(starts[low : high + 1])
    index = np.arange(low, high)
    group = _group(root, capture)
    keep = count > 0
    return UnitSamples(
        sample=index[keep],
        source_index=_column(group, "source_index", low, high)[keep],
        start=starts[low:high][keep],
        rows=count[keep],
    )


def sample_key(root: Location, capture: str, sample: int) -> str:
    """The key of a sample. Decodes a chunk of keys: for the few samples that are named, such as failed ones."""
    return str(_column(_group(root, capture), "key", sample, sample + 1)[0])


def _column(group: zarr.Group, name: str, low: int, high: int) -> Any:
    return np.asarray(group[name][low:high])  # type: ignore[index]


@lru_cache(maxsize=4)
def _row_starts(root: Location, capture: str, space: str) -> npt.NDArray[np.int64]:
    return np.asarray(_group(root, capture)[f"row_start/{space}"][:])  # type: ignore[index]


@lru_cache(maxsize=4)
def _group(root: Location, capture: str) -> zarr.Group:
    store = LocationStore(root.child(capture_path(capture)), read_only=True)
    return zarr.open_group(store, path="samples", mode="r", zarr_format=3, use_consolidated=False)
