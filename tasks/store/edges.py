"""Files of edges: ids of both ends and weights, from CSV, TSV, Parquet or NumPy's archive, local or on any fsspec URL.

Errors are those of a run file's author: DataError for what a file holds, NotFoundError where there is none.
"""

import io
import zipfile
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from schemas.errors import DataError, NotFoundError
from schemas.stage import EdgesRef
from tasks.store.location import Location, digest_of

COLUMNS, WEIGHT = ("source", "target"), "weight"
IDS = (str, int, np.integer)
"""What an id may be."""


class Lines(NamedTuple):
    """A file's edges as they are written, not changed by who reads them."""

    source: np.ndarray
    """[line]: names, as text or as numbers."""
    target: np.ndarray
    """[line]: likewise."""
    weight: np.ndarray
    """float64 [line], not negative; 1 where the file has none."""


def edges_ref(url: str) -> EdgesRef:
    """The file as it is now. Reads its bytes.

    Raises:
        DataError: for a file of another kind.
        NotFoundError: if there is none.
    """
    place = Location(url)
    _reader(place.url)
    try:
        found = place.digest("")
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no file of edges {place.url}; correct the path, or the working folder it is relative to"
        ) from error
    return EdgesRef(url=place.url, **found.model_dump())


@lru_cache(maxsize=2)
def read_edges(ref: EdgesRef) -> Lines:
    """The lines of a file; the last ones are kept, as a stage at several sites reads them for each.

    Raises:
        DataError: if the file changed, lacks a column, has no lines, or weights that are negative or no numbers.
        NotFoundError: if it is gone.
    """
    data = Location(ref.url).read("")
    if digest_of(data).blake3 != ref.blake3:
        raise DataError(f"{ref.url} changed since the run was planned; plan the run again")
    try:
        table = _reader(ref.url)(data)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:  # what the formats' libraries raise
        raise DataError(f"{ref.url} cannot be read as edges: {type(error).__name__}: {error}") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise DataError(
            f"{ref.url} has no {' and no '.join(map(repr, missing))}; found {', '.join(map(repr, table)) or 'nothing'}, expected 'source', "
            "'target' and, if edges have weights, 'weight'"
        )
    if not len(table["source"]):
        raise DataError(
            f"{ref.url} holds no edges; expected at least one line below the names of its columns"
        )
    source, target = (_ids(ref.url, name, table[name]) for name in COLUMNS)
    return Lines(source, target, _weights(ref.url, table))


def _ids(url: str, name: str, ids: np.ndarray) -> np.ndarray:
    """As they are.

    Raises:
        DataError: if they are neither text nor whole numbers, or some are missing.
    """
    if ids.dtype.kind == "O":
        wrong = [name for name in ids if not isinstance(name, IDS)]
    else:
        wrong = [] if ids.dtype.kind in "Uiu" else ids[:1].tolist()
    if wrong:
        raise DataError(
            f"{url} has ids that are neither text nor whole numbers, such as {wrong[0]} in {name!r} ({ids.dtype}); expected the keys of "
            "samples, or rows of the data, and none missing"
        )
    return ids


def _weights(url: str, table: dict[str, np.ndarray]) -> np.ndarray:
    n = len(table["source"])
    given = table.get(WEIGHT, np.ones(n))
    if given.dtype.kind in "cmMV":
        raise DataError(f"{url} has weights that are no numbers: found {given.dtype}")
    try:
        weight = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{url} has weights that are no numbers: {error}") from error
    wrong = np.flatnonzero(~np.isfinite(weight) | (weight < 0))
    if len(wrong):
        raise DataError(
            f"{url}: {len(wrong)} of {n} weights are negative or not finite, first {weight[wrong[0]]:g} in line {wrong[0]} of the edges "
            "(from 0); weights say how strong an edge is: leave such edges out, or write positive ones"
        )
    if n and weight.max() > np.finfo(np.float64).max / (4 * n):
        raise DataError(
            f"{url} has weights up to {weight.max():g}, whose sums are no numbers; divide all by the largest"
        )
    return weight


def _reader(url: str) -> Callable[[bytes], dict[str, np.ndarray]]:
    kind = url.rpartition(".")[2].lower() if "." in url.rpartition("/")[2] else ""
    if kind not in _READERS:
        raise DataError(
            f"{url} is no file of edges by its name; expected one that ends with .{', .'.join(_READERS)}"
        )
    return _READERS[kind]


def _csv(data: bytes) -> dict[str, np.ndarray]:
    return _separated(data, ",")


def _tsv(data: bytes) -> dict[str, np.ndarray]:
    return _separated(data, "\t")


def _separated(data: bytes, mark: str) -> dict[str, np.ndarray]:
    """Ids as they are written: `007` stays, and `NA` is a name. Lines longer than the first are refused."""
    import pandas as pd

    if not data.strip():
        return {}
    text = io.BytesIO(data)
    table = pd.read_csv(text, sep=mark, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    names = [str(name) for name in table.iloc[0]]
    twice = [name for name in (*COLUMNS, WEIGHT) if names.count(name) > 1]
    if twice:
        raise ValueError(f"found several columns {twice[0]!r}, expected one")
    return {name: table[n].iloc[1:].to_numpy() for n, name in enumerate(names)}


def _parquet(data: bytes) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    names = [name for name in pq.read_schema(io.BytesIO(data)).names if name in (*COLUMNS, WEIGHT)]
    table = pq.read_table(io.BytesIO(data), columns=names).to_pandas()
    return {name: table[name].to_numpy() for name in names}


def _npz(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        table = {name: file[name] for name in (*COLUMNS, WEIGHT) if name in file.files}
    lengths = {name: values.shape for name, values in table.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
        raise ValueError(f"found arrays of shapes {lengths}, expected one axis of one length")
    return table


_READERS = {"csv": _csv, "tsv": _tsv, "parquet": _parquet, "npz": _npz}
