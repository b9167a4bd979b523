"""Rows made again from the codes of an artifact, lazily, as xarray."""

import numpy as np
import xarray as xr

from tasks.decoders import Decoder


def reconstructed(decoder: Decoder, arrays: xr.Dataset, rows: xr.Dataset) -> xr.DataArray:
    """(row, feature), float32, NaN for rows of failed samples.

    Args:
        decoder: of the method that coded.
        arrays: of the artifact.
        rows: of one capture's rows, which are Dask arrays.
    """
    fixed = {name: arrays[name].values for name in decoder.fixed}
    none = {name: np.zeros((0, *rows[name].shape[1:]), rows[name].dtype) for name in decoder.of_rows}
    width = decoder.decode(fixed, none).shape[1]

    def decoded(*given: np.ndarray) -> np.ndarray:
        return decoder.decode(fixed, dict(zip(decoder.of_rows, given, strict=True)))

    found: xr.DataArray = xr.apply_ufunc(
        decoded,
        *(rows[name] for name in decoder.of_rows),
        input_core_dims=[list(rows[name].dims[1:]) for name in decoder.of_rows],
        output_core_dims=[["feature"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"feature": width}},
    )
    return found.rename("reconstruction")
