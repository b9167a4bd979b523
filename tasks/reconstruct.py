"""Rows made again from the codes of an artifact, lazily. A method whose artifacts can be decoded has an entry in `DECODERS`."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import xarray as xr

from schemas.errors import MethodError

Rows = npt.NDArray[np.float32]
Decoder = Callable[[xr.Dataset, xr.Dataset], xr.DataArray]


def decoder_of(method: str) -> Decoder:
    """What makes rows (row, feature) of a method's arrays: those of the artifact, and those of one capture's rows, which are Dask arrays.

    Raises:
        MethodError: if artifacts of this method hold no codes.
    """
    if method not in DECODERS:
        raise MethodError(
            f"artifacts of {method} hold no codes of rows; those of {', '.join(sorted(DECODERS))} do"
        )
    return DECODERS[method]


def from_principal(arrays: xr.Dataset, rows: xr.Dataset) -> xr.DataArray:
    """(code + 256 high) step, along the components, with the mean, times the length: float32, NaN for rows of failed samples.

    Cost: a product of [row, component] and [component, feature] when it is computed.
    """
    given = {
        "components": arrays["components"].values,
        "mean": arrays["mean"].values,
        "step": np.float32(arrays["step"].item()),
    }
    decoded: xr.DataArray = xr.apply_ufunc(
        _from_principal,
        rows["code"], rows["high"], rows["length"], rows["squared_error"],
        kwargs=given,
        input_core_dims=[["component"], ["component"], [], []],
        output_core_dims=[["feature"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"feature": arrays.sizes["feature"]}},
    )  # fmt: skip
    return decoded.rename("reconstruction")


def _from_principal(
    code: npt.NDArray[np.int8],
    high: npt.NDArray[np.int8],
    length: Rows,
    squared_error: Rows,
    components: Rows,
    mean: Rows,
    step: np.float32,
) -> Rows:
    codes = code.astype(np.float32) + np.float32(256) * high
    rows: Rows = ((codes * step) @ components + mean) * length[:, None]
    rows[np.isnan(squared_error)] = np.nan
    return rows


def from_parts(arrays: xr.Dataset, rows: xr.Dataset) -> xr.DataArray:
    """As `from_principal`, each row along the components of its part: float32, NaN for rows of failed samples.

    Cost: a product of [row, component] and [component, feature] when it is computed.
    """
    given = {"components": arrays["components"].values, "mean": arrays["mean"].values}
    decoded: xr.DataArray = xr.apply_ufunc(
        _from_parts,
        rows["code"], rows["high"], rows["part"], rows["length"], rows["squared_error"],
        kwargs=given | {"step": np.float32(arrays["step"].item())},
        input_core_dims=[["component"], ["component"], [], [], []],
        output_core_dims=[["feature"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"feature": arrays.sizes["feature"]}},
    )  # fmt: skip
    return decoded.rename("reconstruction")


def _from_parts(
    code: npt.NDArray[np.int8],
    high: npt.NDArray[np.int8],
    part: npt.NDArray[np.uint16],
    length: Rows,
    squared_error: Rows,
    components: Rows,
    mean: Rows,
    step: np.float32,
) -> Rows:
    rows = np.empty((len(part), mean.shape[1]), np.float32)
    for number in np.unique(part):
        chosen = part == number
        here = (code[chosen], high[chosen], length[chosen], squared_error[chosen])
        rows[chosen] = _from_principal(*here, components[number], mean[number], step)
    return rows


def from_steps(arrays: xr.Dataset, rows: xr.Dataset) -> xr.DataArray:
    """(code + 256 high) step: float32, NaN for rows of failed samples."""
    step = arrays["step"].item()

    def decoded(code: npt.NDArray[np.int8], high: npt.NDArray[np.int8], error: Rows) -> Rows:
        made: Rows = ((code.astype(np.float64) + 256.0 * high) * step).astype(np.float32)
        made[np.isnan(error)] = np.nan
        return made

    found: xr.DataArray = xr.apply_ufunc(
        decoded,
        rows["code"], rows["high"], rows["largest_error"],
        input_core_dims=[["feature"], ["feature"], []],
        output_core_dims=[["feature"]],
        dask="parallelized",
        output_dtypes=[np.float32],
    )  # fmt: skip
    return found.rename("reconstruction")


def from_codebooks(arrays: xr.Dataset, rows: xr.Dataset) -> xr.DataArray:
    """The named vectors side by side, turned back, with the mean and the scale: float32, NaN for rows of failed samples.

    Cost: a look-up for each code, and a product of [row, component] and [component, feature] where there is a rotation.
    """
    decoded: xr.DataArray = xr.apply_ufunc(
        _from_codebooks,
        rows["code"], rows["gain"], rows["bias"],
        kwargs={name: arrays[name].values for name in ("centre", "rotation", "mean")},
        input_core_dims=[["part"], [], []],
        output_core_dims=[["feature"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"feature": arrays.sizes["feature"]}},
    )  # fmt: skip
    return decoded.rename("reconstruction")


def _from_codebooks(
    code: npt.NDArray[np.uint8], gain: Rows, bias: Rows, centre: Rows, rotation: Rows, mean: Rows
) -> Rows:
    beside = centre[np.arange(len(centre)), code].reshape(len(code), -1)[:, : len(mean)]
    shape = (beside @ rotation if len(rotation) else beside) + mean
    rows: Rows = bias[:, None] + gain[:, None] * shape
    return rows


DECODERS: dict[str, Decoder] = {
    "compression.bounded": from_steps,
    "compression.klt": from_principal,
    "compression.piecewise": from_parts,
    "compression.product_codes": from_codebooks,
}
