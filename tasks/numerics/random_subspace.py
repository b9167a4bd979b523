"""Random subspaces of a large space, as maps that are never asked for the whole matrix: out(z) = P z and back(g) = P' g.

Columns of P have length 1, so that P keeps lengths on average, and those of a shorter z are the first of a longer one's. Drawn on
the CPU, in float32: the same on every device.

Li et al., ICLR 2018 (dense). Le, Sarlos, Smola, ICML 2013 (Fastfood).
"""

import threading
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["dense", "fastfood"]
_making = threading.Lock()
SMALLEST = 256
"""Rows of a Hadamard matrix at least: shorter ones mix few entries."""


@runtime_checkable
class Subspace(Protocol):
    """P, [entry, coordinate]."""

    def out(self, z: Float[Tensor, " coordinate"]) -> Float[Tensor, " entry"]:
        """P z; a shorter z is continued with zeros."""

    def back(self, g: Float[Tensor, " entry"], d: int) -> Float[Tensor, " coordinate"]:
        """The first d entries of P' g."""


class Dense:
    """Normal entries, columns scaled to length 1. Memory and cost: entries x coordinates."""

    def __init__(self, entries: int, coordinates: int, seed: int, like: Tensor) -> None:
        drawn = torch.randn(coordinates, entries, generator=torch.Generator().manual_seed(seed))
        drawn /= torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
        self._rows = drawn.to(like)

    def out(self, z: Tensor) -> Tensor:
        """See `Subspace`."""
        return torch.mv(self._rows[: len(z)].T, z)

    def back(self, g: Tensor, d: int) -> Tensor:
        """See `Subspace`."""
        return torch.mv(self._rows[:d], g)


class Fastfood:
    """Blocks H G Q H B with signs B, a permutation Q, normal G and the Hadamard matrix H. Memory: entries; cost: entries x log coordinates.

    A column's length is 1 within some per cent: it is that of a mean over all entries.
    """

    def __init__(self, entries: int, coordinates: int, seed: int, like: Tensor) -> None:
        rows = 1 << max(coordinates - 1, SMALLEST - 1).bit_length()
        blocks = -(-entries // rows)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (blocks, rows), generator=generator, dtype=torch.int8) * 2 - 1
        self._order = torch.rand(blocks, rows, generator=generator).argsort(1).to(like.device)
        normal = torch.randn(blocks, rows, generator=generator)
        self._signs, self._normal = signs.to(like), normal.to(like)
        self._entries, self._scale = entries, (entries * rows) ** -0.5

    def out(self, z: Tensor) -> Tensor:
        """See `Subspace`."""
        padded = torch.nn.functional.pad(z, (0, self._signs.shape[1] - len(z)))
        mixed = hadamard(self._signs * padded).gather(1, self._order)
        entries: Tensor = hadamard(self._normal * mixed).flatten()[: self._entries] * self._scale
        return entries

    def back(self, g: Tensor, d: int) -> Tensor:
        """See `Subspace`."""
        padded = torch.nn.functional.pad(g, (0, self._signs.numel() - len(g))).view_as(self._signs)
        mixed = self._normal * hadamard(padded)
        unmixed = torch.zeros_like(mixed).scatter_(1, self._order, mixed)
        coordinates: Tensor = (self._signs * hadamard(unmixed)).sum(0)[:d] * self._scale
        return coordinates


def hadamard(x: Float[Tensor, "*batch entry"]) -> Float[Tensor, "*batch entry"]:
    """Every row times the Hadamard matrix of Sylvester's order, unscaled: twice gives entries x the row.

    Cost: entries x log2(entries) additions a row. Entries are a power of two.
    """
    shape, half = x.shape, 1
    while half < shape[-1]:
        pairs = x.view(*shape[:-1], -1, 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack((a + b, a - b), -2).view(shape)
        half *= 2
    return x


@lru_cache(maxsize=1)
def _kept(
    kind: Kind, entries: int, coordinates: int, seeds: tuple[int, ...], device: str, dtype: torch.dtype
) -> tuple[Subspace, ...]:
    made = Dense if kind == "dense" else Fastfood
    like = torch.empty(0, dtype=dtype, device=device)
    return tuple(made(entries, coordinates, seed, like) for seed in seeds)


def random_subspaces(
    kind: Kind, entries: int, coordinates: int, seed: int, draws: int, like: Tensor
) -> tuple[Subspace, ...]:
    """Independent subspaces, in the dtype and on the device of `like`; those of the last call stay in memory, for all threads."""
    words = np.random.SeedSequence(seed).generate_state(draws, np.uint64)
    with _making:
        return _kept(
            kind, entries, coordinates, tuple(int(word >> 1) for word in words), str(like.device), like.dtype
        )
