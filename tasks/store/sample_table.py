"""The table of samples of a capture: keys, lengths, labels, first rows; written before any forward."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from schemas.capture import CaptureSpec
from schemas.errors import NotFoundError
from tasks.store.codecs import add_array, add_strings
from tasks.store.location import Location
from tasks.store.manifest import is_sealed
from tasks.store.paths import capture_path
from tasks.store.sealed import SealedStore
from tasks.store.zarrstore import LocationStore

SAMPLE_CHUNK = 1 << 16
"""Samples per chunk of the sample table."""


class SampleTable(NamedTuple):
    """What is known of the samples before any forward."""

    keys: list[str]
    """Unique names, in store order."""
    lengths: npt.NDArray[np.int64]
    """[sample]: kept rows of each sample in its token space, or the constant of its only space."""
    labels: dict[str, npt.NDArray[Any]]
    """Label to [sample] codes (integers) or numbers (floats)."""
    categories: dict[str, tuple[str, ...]]
    """Label to the names of its codes."""
    row_start: dict[str, npt.NDArray[np.int64]]
    """Row space to [sample + 1] first rows."""
    truncated: npt.NDArray[np.bool_] | None = None
    """[sample]: whether it was cut to the longest length; None for none."""
    source_index: npt.NDArray[np.int64] | None = None
    """[sample]: its index in the source, of which a subset may have been drawn; None: 0, 1, 2, ..."""


def add_samples(group: zarr.Group, spec: CaptureSpec, samples: SampleTable) -> None:
    """The sample table. `ok` gets its values when the capture is sealed."""
    n = spec.layout.n_samples
    truncated = np.zeros(n, dtype=bool) if samples.truncated is None else samples.truncated
    add_strings(group, "key", samples.keys, "sample", SAMPLE_CHUNK)
    _add_column(group, "length", np.asarray(samples.lengths, dtype=np.int64))
    source_index = np.arange(n) if samples.source_index is None else samples.source_index
    _add_column(group, "truncated", np.asarray(truncated, dtype=bool))
    _add_column(group, "source_index", np.asarray(source_index, dtype=np.int64))
    add_array(group, "ok", (n,), "bool", ("sample",), chunk_rows=SAMPLE_CHUNK)
    starts = group.create_group("row_start")
    for space, start in samples.row_start.items():
        _add_column(starts, space, np.asarray(start, dtype=np.int64), dim="boundary")
    labels = group.create_group("labels")
    for name, values in samples.labels.items():
        kind = np.float64 if np.asarray(values).dtype.kind == "f" else np.int64
        names = {"categories": list(samples.categories[name])} if name in samples.categories else None
        _add_column(labels, name, np.asarray(values, dtype=kind), attributes=names)


def _add_column(
    group: zarr.Group,
    name: str,
    values: npt.NDArray[Any],
    *,
    dim: str = "sample",
    attributes: dict[str, Any] | None = None,
) -> None:
    array = add_array(
        group, name, values.shape, values.dtype.name, (dim,), chunk_rows=SAMPLE_CHUNK, attributes=attributes
    )
    if values.size:
        array[:] = values


class Labels(NamedTuple):
    """What the samples of a capture carry, without their names, which are the larger part of the table."""

    values: dict[str, npt.NDArray[Any]]
    """Label to [sample] codes (integers) or numbers (floats), in order of the labels' names."""
    categories: dict[str, tuple[str, ...]]
    """Label to the names of its codes."""


def read_labels(root: Location, capture_id: str) -> Labels:
    """The labels of a capture's samples, sealed or not yet; raises as `read_samples`."""
    return _labels(_samples_group(root, capture_id))


def read_keys(root: Location, capture_id: str) -> list[str]:
    """The names of a capture's samples, sealed or not yet; raises as `read_samples`."""
    return [str(key) for key in _values(_samples_group(root, capture_id), "key")]


def read_sources(root: Location, capture_id: str) -> npt.NDArray[np.int64]:
    """int64 [sample]: which row of its source of data each sample is, sealed or not yet; raises as `read_samples`."""
    return _values(_samples_group(root, capture_id), "source_index").astype(np.int64, copy=False)


def read_samples(root: Location, capture_id: str) -> SampleTable:
    """The whole sample table of a capture, sealed or not yet.

    Raises:
        NotFoundError: if there is no such capture.
        DamageError: if a sealed table changed.
    """
    group = _samples_group(root, capture_id)
    labels = _labels(group)
    return SampleTable(
        keys=[str(key) for key in _values(group, "key")],
        lengths=_values(group, "length"),
        labels=labels.values,
        categories=labels.categories,
        row_start={name: np.asarray(array[:]) for name, array in _arrays(group, "row_start").items()},
        truncated=_values(group, "truncated"),
        source_index=_values(group, "source_index"),
    )


def _samples_group(root: Location, capture_id: str) -> zarr.Group:
    if is_sealed(root, capture_id):
        store: LocationStore = SealedStore(root, capture_id)
    else:
        store = LocationStore(root.child(capture_path(capture_id)), read_only=True)
    try:
        return zarr.open_group(store, path="samples", mode="r", zarr_format=3)
    except FileNotFoundError as error:
        raise NotFoundError(f"{store.base.url} has no sample table; create the capture first") from error


def _labels(group: zarr.Group) -> Labels:
    arrays = dict(sorted(_arrays(group, "labels").items()))
    return Labels(
        {name: np.asarray(array[:]) for name, array in arrays.items()},
        {n: tuple(a.attrs["categories"]) for n, a in arrays.items() if "categories" in a.attrs},
    )


def _arrays(group: zarr.Group, name: str) -> dict[str, Any]:
    child = group[name]
    return dict(child.arrays()) if isinstance(child, zarr.Group) else {}


def _values(group: zarr.Group, name: str) -> npt.NDArray[Any]:
    array: Any = group[name]
    return np.asarray(array[:])
