"""Tucker decompositions: a tensor as a small core that is turned along every mode, and which core a budget of numbers should buy.

T [I_1, ..., I_N] ~ C x_1 U_1 ... x_N U_N with C [R_1, ..., R_N] and orthonormal columns U_n. The higher-order decomposition takes for U_n
the leading eigenvectors of the products of T's n-th unfolding, I_n x I_n, so that no unfolding is ever decomposed itself. In all its
directions it is a rotation of T: the error of any core shape is the energy of the full core outside of the leading block, and at most the
sum over modes of the eigenvalues beyond R_n (De Lathauwer, De Moor, Vandewalle 2000). Alternating over modes (HOOI, the same authors)
only lowers it.

A core costs prod R_n + sum I_n R_n numbers. Which shape is best within a budget is settled by trying all ranks of all modes but the
longest, whose rank is then the largest that the budget leaves: both the error and the sum of eigenvalues beyond R_n fall with every rank.
The sum stands for the error in the packing problem of Ghadiri, Fahrbach, Fu, Mirrokni (Approximately optimal core shapes, 2023).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import spectrum

Whole = Float64[Tensor, "..."]
Basis = Float64[Tensor, "_ _"]

MOST_SHAPES = 1 << 24
"""Shapes that are tried."""
MOST_ROUNDS = 100
SETTLED = 1e-9
"""Rounds end when the energy of the core grows by less than this share."""


class Tucker(NamedTuple):
    """C x_1 U_1 ... x_N U_N."""

    core: Whole
    bases: tuple[Basis, ...]
    """[length of the mode, rank] each, orthonormal columns."""

    def tensor(self) -> Whole:
        """What it stands for."""
        found = self.core
        for mode, basis in enumerate(self.bases):
            found = times(found, basis, mode)
        return found


class Rotated(NamedTuple):
    """A tensor in the leading directions of every mode, none left out."""

    full: Tucker
    squares: tuple[Float64[Tensor, " _"], ...]
    """Energy of the tensor along each direction of each mode, falling."""

    def cut(self, shape: Sequence[int]) -> Tucker:
        """The truncated higher-order decomposition."""
        block = tuple(slice(0, rank) for rank in shape)
        bases = tuple(b[:, :rank] for b, rank in zip(self.full.bases, shape, strict=True))
        return Tucker(self.full.core[block], bases)

    def held(self) -> Whole:
        """Energy of the leading block of every shape: at [R_1 - 1, ..., R_N - 1]."""
        found = self.full.core.square()
        for mode in range(found.ndim):
            found = found.cumsum(mode)
        return found

    def bound(self, shape: Sequence[int]) -> float:
        """Sum of the energies beyond a shape over modes: no less than the squared error of its `cut`, at most N times the best's."""
        return math.fsum(float(s[rank:].sum()) for s, rank in zip(self.squares, shape, strict=True))


class Refined(NamedTuple):
    """What alternation found."""

    tucker: Tucker
    held: tuple[float, ...]
    """Energy of the core after each round; the first is that of the start."""
    settled: bool


def times(tensor: Whole, matrix: Basis, mode: int) -> Whole:
    """The tensor with its mode mapped by a matrix [new length, length]."""
    mapped: Tensor = torch.tensordot(matrix, tensor, dims=([1], [mode]))
    return mapped.movedim(0, mode)


def rotated(tensor: Whole) -> Rotated:
    """The whole higher-order decomposition.

    Args:
        tensor: two modes at least, finite.

    Raises:
        MethodError: if it is not finite, or the eigensolver fails.

    Cost: numbers of the tensor times 2 sum I_n, and I_n^3 for each mode.
    """
    if tensor.ndim < 2:
        raise MethodError(f"found a tensor of {tensor.ndim} modes, expected two at least")
    found = [spectrum.eigen(_products(tensor, mode)) for mode in range(tensor.ndim)]
    bases = tuple(each.vectors.T for each in found)
    core = tensor
    for mode, basis in enumerate(bases):
        core = times(core, basis.T, mode)
    return Rotated(Tucker(core, bases), tuple(each.values.clamp(min=0) for each in found))


def refined(tensor: Whole, start: Tucker) -> Refined:
    """Bases that hold more, one mode after the other with the others as they are, until nothing is gained.

    Args:
        tensor: that `start` stands for.
        start: its ranks are kept.

    Raises:
        MethodError: if the energy of the core falls, which exact arithmetic forbids, or the eigensolver fails.

    Cost: for each round and mode some products of the tensor with bases, and I_n^3.
    """
    bases, total = list(start.bases), float(tensor.square().sum())
    core, held = start.core, [float(start.core.square().sum())]
    for _ in range(MOST_ROUNDS):
        for mode in range(tensor.ndim):
            inside = tensor
            for other in range(tensor.ndim):
                if other != mode:
                    inside = times(inside, bases[other].T, other)
            bases[mode] = spectrum.eigen(_products(inside, mode)).vectors[: bases[mode].shape[1]].T
            core = times(inside, bases[mode].T, mode)
        held.append(float(core.square().sum()))
        if held[-1] < held[-2] - 1e-9 * total:
            raise MethodError(
                f"the energy of the core fell from {held[-2]:.6e} to {held[-1]:.6e} in a round, which cannot be: the eigensolver of this "
                "torch build has failed"
            )
        if held[-1] - held[-2] <= SETTLED * total:
            return Refined(Tucker(core, tuple(bases)), tuple(held), settled=True)
    return Refined(Tucker(core, tuple(bases)), tuple(held), settled=False)


def numbers(shape: Sequence[int], lengths: Sequence[int]) -> int:
    """Of a core of that shape and its bases."""
    return math.prod(shape) + sum(r * i for r, i in zip(shape, lengths, strict=True))


def shapes_within(lengths: Sequence[int], budget: int) -> Int64[Tensor, "shape mode"]:
    """All ranks of all modes but the longest, whose rank is the largest that the budget leaves.

    Args:
        lengths: I_1, ..., I_N.
        budget: most numbers of core and bases.

    Raises:
        MethodError: if not even the shape of ones fits, or more than 2^24 would have to be tried.
    """
    if numbers([1] * len(lengths), lengths) > budget:
        raise MethodError(
            f"a core of one number and its bases take {numbers([1] * len(lengths), lengths)} numbers, and {budget} may be used; keep more"
        )
    longest = max(range(len(lengths)), key=lambda mode: lengths[mode])
    rest = [mode for mode in range(len(lengths)) if mode != longest]
    if math.prod(lengths[mode] for mode in rest) > MOST_SHAPES:
        raise MethodError(
            f"modes of {', '.join(map(str, lengths))} have too many shapes to be tried, at most {MOST_SHAPES} are; join short modes"
        )
    ranks = torch.cartesian_prod(*(torch.arange(1, lengths[mode] + 1) for mode in rest)).reshape(
        -1, len(rest)
    )
    left = budget - (ranks * torch.tensor([lengths[mode] for mode in rest])).sum(1)
    last = (left // (ranks.prod(1) + lengths[longest])).clamp(max=lengths[longest])
    found = torch.empty(len(ranks), len(lengths), dtype=torch.int64)
    found[:, rest], found[:, longest] = ranks, last
    return found[last >= 1]


def best_shape(held: Whole, budget: int) -> tuple[int, ...]:
    """The shape within a budget whose truncated higher-order decomposition has the least error.

    Args:
        held: from `Rotated.held`.
        budget: most numbers of core and bases.

    Raises:
        MethodError: as `shapes_within`.
    """
    shapes = shapes_within(held.shape, budget)
    energy = held[tuple((shapes - 1).to(held.device).unbind(1))].cpu()
    return _largest(shapes, energy)


def packed_shape(squares: Sequence[Float64[Tensor, " _"]], budget: int) -> tuple[int, ...]:
    """The shape within a budget with the least sum of energies beyond it, which bounds the error.

    Args:
        squares: from `Rotated`.
        budget: most numbers of core and bases.

    Raises:
        MethodError: as `shapes_within`.
    """
    shapes = shapes_within([len(s) for s in squares], budget)
    held = [s.cumsum(0).cpu()[shapes[:, mode] - 1] for mode, s in enumerate(squares)]
    return _largest(shapes, torch.stack(held).sum(0))


def _largest(shapes: Int64[Tensor, "shape mode"], energy: Float64[Tensor, " shape"]) -> tuple[int, ...]:
    """Of the shapes that hold most, the first."""
    return tuple(int(rank) for rank in shapes[int(energy.argmax())])


def _products(tensor: Whole, mode: int) -> Float64[Tensor, "length length"]:
    """Of the rows of an unfolding."""
    rows = tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)
    return rows @ rows.T
