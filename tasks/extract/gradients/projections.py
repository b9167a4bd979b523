"""Random maps of gradients: drawn from a name, on the CPU, the same on every worker, thread count and device."""

import hashlib
from collections.abc import Mapping
from math import isqrt, prod
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.errors import SpecError
from schemas.gradients import Distribution, Exact, Factors, Global, Keep, Kronecker, Norms, Sketch

Shape = tuple[int, ...]
Side = Literal["rows", "columns"]


class Output(NamedTuple):
    """What a row of an array is."""

    width: int
    shape: Shape | None = None
    """The row, flattened; None: a vector without axes of its own."""
    features: tuple[str, ...] | None = None
    """Names of the features."""


class Places(NamedTuple):
    """A count sketch of one side: where each entry goes, and with which sign."""

    place: Tensor
    """int64 [n]"""
    sign: Tensor
    """float32 [n]: 1 or -1."""


def matrix_shape(shape: Shape) -> Shape:
    """A parameter as (rows, columns): its first axis, and all others; vectors and numbers have one axis."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (prod(shape),)


def outputs(shapes: Mapping[str, Shape], keep: Keep) -> dict[str, Output]:
    """Name of each array that is kept to what its rows are; the name is empty for all parameters together.

    Args:
        shapes: parameter to shape.
        keep: the form.

    Raises:
        SpecError: if what is kept would be no smaller than the gradient.
    """
    entries = sum(prod(shape) for shape in shapes.values())
    if isinstance(keep, Norms):
        return {"": Output(len(shapes), None, tuple(shapes))}
    if isinstance(keep, Global | Sketch):
        _refuse_joint(keep, entries)
        return {"": Output(keep.dimension)}
    if isinstance(keep, Exact):
        return {name: Output(prod(shape), shape) for name, shape in shapes.items()}
    found = {name: _projected(matrix_shape(shape), keep) for name, shape in shapes.items()}
    if all(output.width >= prod(shapes[name]) for name, output in found.items()):
        what = f"dimension {keep.dimension}" + (f" and rank {keep.rank}" if isinstance(keep, Factors) else "")
        raise SpecError(
            f"parameter_gradients: {keep.kind} with {what} is no smaller than the gradient of any of the {len(shapes)} parameters; "
            "lower it, or keep: {kind: exact}"
        )
    return found


def kept_axis(n: int, dimension: int | None) -> int:
    """Entries of a side after projection; one that is not longer stays as it is."""
    return n if dimension is None else min(n, dimension)


def projection(seed: int, name: str, side: Side, p: int, n: int, distribution: Distribution) -> Tensor:
    """float32 [p, n] of mean square 1 / p, from seed, parameter and side alone."""
    generator = _generator(seed, name, side)
    if distribution == "normal":
        values = generator.standard_normal((p, n), dtype=np.float32)
    else:
        values = generator.integers(0, 2, (p, n), dtype=np.int8).astype(np.float32) * 2 - 1
    return torch.from_numpy(values / np.float32(np.sqrt(p)))


def places(seed: int, name: str, side: Side, p: int, n: int) -> Places:
    """A count sketch of n entries into p."""
    generator = _generator(seed, name, side)
    where = torch.from_numpy(generator.integers(0, p, n, dtype=np.int64))
    sign = generator.integers(0, 2, n, dtype=np.int8).astype(np.float32) * 2 - 1
    return Places(where, torch.from_numpy(sign))


def _generator(seed: int, name: str, side: Side) -> np.random.Generator:
    key = hashlib.sha256(f"{seed}/{name}/{side}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


def _projected(shape: Shape, keep: Kronecker | Factors) -> Output:
    sides = tuple(kept_axis(n, keep.dimension) for n in shape)
    if len(sides) == 1:
        return Output(sides[0])
    if isinstance(keep, Kronecker):
        return Output(prod(sides), sides)
    return Output(keep.rank * sum(sides))


def _refuse_joint(keep: Global | Sketch, entries: int) -> None:
    if keep.dimension >= entries:
        raise SpecError(
            f"parameter_gradients: {keep.kind} with dimension {keep.dimension} is no smaller than the whole gradient of {entries} entries; "
            "lower it, or keep: {kind: exact}"
        )
    if isinstance(keep, Global) and isqrt(keep.dimension) ** 2 != keep.dimension:
        near = max(2, isqrt(keep.dimension)) ** 2
        raise SpecError(
            f"parameter_gradients: global has dimension {keep.dimension}, expected a square, such as {near} or "
            f"{(isqrt(keep.dimension) + 1) ** 2}"
        )
