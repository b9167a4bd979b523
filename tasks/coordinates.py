"""Coordinates that belong to a row's sample, looked up when they are read: keys and labels."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing


class PerRow(BackendArray):
    """A value of each row's sample, without a copy per row: reads the rows' sample numbers, then looks up."""

    def __init__(self, sample: "zarr.Array[Any]", table: np.ndarray) -> None:
        self.sample, self.table = sample, table
        self.shape: tuple[int, ...] = sample.shape
        self.dtype = table.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._at)

    def _at(self, key: tuple[Any, ...]) -> Any:
        return self.table[np.asarray(self.sample.oindex[key])]


def row_coordinates(
    group: zarr.Group, space: str, samples: pd.DataFrame, chunks: dict[str, int] | None
) -> dict[str, xr.Variable]:
    """`key` and every label of each row of a space, as lazy variables over `row`."""
    sample: Any = group[f"rows/{space}/sample"]
    labels = [name for name in samples.columns if name not in ("length", "truncated")]
    tables = {name: _values(samples[name]) for name in labels}
    taken = {"key", "sample", "position", "token_id", "norm", "outlier", "activation", "row", "feature"}
    named = {f"label_{name}" if name in taken else name: table for name, table in tables.items()}
    found = {}
    for name, table in ({"key": samples.index.to_numpy(dtype=object)} | named).items():
        lazy = xr.Variable("row", indexing.LazilyIndexedArray(PerRow(sample, table)))
        found[name] = lazy if chunks is None else lazy.chunk(chunks)
    return found


def _values(column: "pd.Series[Any]") -> np.ndarray:
    """Names as objects, numbers as they are."""
    kind = object if isinstance(column.dtype, pd.CategoricalDtype) else None
    return column.to_numpy(dtype=kind)
