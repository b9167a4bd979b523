"""BLAS routines on tensors of a CPU, with Python's lock released, so that threads of one process compute beside each other.

SciPy's own wrappers of BLAS hold the lock while they compute: two threads then take turns, and no read goes on meanwhile. What is called
here is the same library, through the function pointers that `scipy.linalg.cython_blas` exports. Matrices are those of torch, row by
row; BLAS, which goes column by column, sees their transposes, and its lower triangle is their upper one.
"""

import ctypes
from ctypes import POINTER, byref, c_char, c_double, c_float, c_int, c_void_p
from typing import Any

import torch
from jaxtyping import Float, Float64
from scipy.linalg import cython_blas
from torch import Tensor

_CHAR, _INT = POINTER(c_char), POINTER(c_int)


def add_product(c: Float[Tensor, "size size"], z: Float[Tensor, "row feature"], rows: bool = False) -> None:
    """The upper triangle of c += z^T z in place; of z z^T with `rows`.

    Both float32 or both float64, contiguous, on the CPU.

    Raises:
        ValueError: for others, and for shapes that do not fit.
    """
    real, routine = (c_double, _DSYRK) if c.dtype == torch.float64 else (c_float, _SSYRK)
    n, k, width = len(c), z.shape[1] if rows else len(z), z.shape[1]
    _check(c, c.dtype)
    _check(z, c.dtype)
    if n != (len(z) if rows else width):  # BLAS would go past the end of the memory
        raise ValueError(
            f"found {n} sums for rows of shape {tuple(z.shape)}, expected one for each {'row' if rows else 'feature'}"
        )
    if n == 0 or k == 0:
        return
    one, trans = real(1.0), b"T" if rows else b"N"
    routine(
        b"L", trans, byref(c_int(n)), byref(c_int(k)), byref(one), z.data_ptr(), byref(c_int(width)), byref(one),
        c.data_ptr(), byref(c_int(n)),
    )  # fmt: skip


def add_outer(
    c: Float64[Tensor, "feature feature"], a: Float64[Tensor, " feature"], b: Float64[Tensor, " feature"]
) -> None:
    """The upper triangle of c += a b^T + b a^T in place; contiguous, on the CPU."""
    for tensor in (c, a, b):
        _check(tensor, torch.float64)
    if len(c) == 0:
        return
    n, one = c_int(len(c)), c_int(1)
    _DSYR2(
        b"L", byref(n), byref(c_double(1.0)), a.data_ptr(), byref(one), b.data_ptr(), byref(one), c.data_ptr(), byref(n)
    )  # fmt: skip


def _check(tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"found {tensor.dtype} of strides {tensor.stride()} on {tensor.device}, expected contiguous {dtype} on the CPU"
        )


def _routine(name: str, *arguments: Any) -> Any:
    """A routine without a result; calls of it release the lock."""
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_blas.__pyx_capi__[name]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *arguments)(address)


def _syrk(name: str, real: Any) -> Any:
    return _routine(
        name, _CHAR, _CHAR, _INT, _INT, POINTER(real), c_void_p, _INT, POINTER(real), c_void_p, _INT
    )


_DSYRK, _SSYRK = _syrk("dsyrk", c_double), _syrk("ssyrk", c_float)
_DSYR2 = _routine("dsyr2", _CHAR, _INT, POINTER(c_double), c_void_p, _INT, c_void_p, _INT, c_void_p, _INT)
