"""What a capture keeps of which parameters: their shapes, and their random maps with how these are applied."""

from collections.abc import Mapping
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.gradients import Factors, Global, Keep, Kronecker, Sketch
from tasks.extract.gradients.projections import (
    Places,
    Shape,
    kept_axis,
    matrix_shape,
    places,
    projection,
)
from tasks.extract.gradients.projections import (
    Side as SideName,
)
from tasks.extract.gradients.terms import Dense, Side


class Maps(NamedTuple):
    """Random maps of a matrix."""

    rows: Tensor | None
    """[q, row]; None: rows stay as they are."""
    columns: Tensor
    """[p, column]"""


class Plan:
    """Names, shapes and random maps of a capture's parameters; maps are drawn once and kept on the device."""

    def __init__(
        self, shapes: Mapping[str, Shape], keep: Keep, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shapes = dict(shapes)
        self.keep = keep
        self.device = device
        self.dtype = dtype
        self._seed = seed
        self._maps: dict[tuple[str, SideName], Tensor | None] = {}
        self._places: dict[tuple[str, SideName], Places] = {}

    def matrix(self, name: str) -> Shape:
        """(rows, columns), or (entries,)."""
        return matrix_shape(self.shapes[name])

    def map(self, name: str, side: SideName) -> Tensor | None:
        """[p, n] of a side; None where it stays as it is."""
        key = name, side
        if key not in self._maps:
            self._maps[key] = self._draw(name, side)
        return self._maps[key]

    def maps(self, name: str) -> Maps | None:
        """Both maps of a matrix; None where its columns stay as they are."""
        columns = self.map(name, "columns")
        return None if columns is None else Maps(self.map(name, "rows"), columns)

    def places(self, name: str, side: SideName) -> Places:
        """The count sketch of a side."""
        key = name, side
        if key not in self._places:
            n = self._length(name, side)
            found = places(self._seed, name, side, self._dimension, n)
            self._places[key] = Places(found.place.to(self.device), found.sign.to(self.device, self.dtype))
        return self._places[key]

    def zeros(self, n: int, width: int) -> Tensor:
        """[sample, feature] of what got no gradient."""
        return torch.zeros(n, width, dtype=self.dtype, device=self.device)

    @property
    def _dimension(self) -> int:
        keep = self.keep
        return keep.dimension if isinstance(keep, Global | Sketch) else 0

    def _length(self, name: str, side: SideName) -> int:
        shape = self.matrix(name)
        return shape[0] if side == "rows" else (shape[1] if len(shape) > 1 else 1)

    def _draw(self, name: str, side: SideName) -> Tensor | None:
        keep, n = self.keep, self._length(name, side)
        if isinstance(keep, Global):
            p = isqrt(keep.dimension)
        elif isinstance(keep, Kronecker | Factors):
            p = kept_axis(n, keep.dimension)
            if p == n:
                return None
        else:
            return None
        drawn = projection(self._seed, name, side, p, n, keep.distribution)
        return drawn.to(self.device, self.dtype)


def project(side: Side, found: Tensor | None, dtype: torch.dtype) -> Side:
    """A side after its map; without one a dense side as it is."""
    if isinstance(side, Dense):
        values = side.values.to(dtype)
        return Dense(values if found is None else F.linear(values, found), projected=True)
    if found is None:
        return side
    picked = found.T[side.ids]
    return Dense(
        picked if side.weight is None else picked * side.weight[:, :, None].to(dtype), projected=True
    )


def apply_maps(plan: Plan, name: str, values: Tensor) -> Tensor:
    """L G R' of formed gradients [sample, row, column], or L g of vectors [sample, entry]."""
    rows, columns = plan.map(name, "rows"), plan.map(name, "columns")
    values = values.to(plan.dtype)
    if values.ndim == 2:
        values = values if rows is None else values @ rows.T
        return (
            values
            if columns is None or not isinstance(plan.keep, Global)
            else values[:, :, None] * columns[:, 0]
        )
    values = values if columns is None else values @ columns.T
    return values if rows is None else rows @ values
