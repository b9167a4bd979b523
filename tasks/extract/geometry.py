"""Row geometry: which axis of a tensor counts samples, which count rows, which holds features.

A shape alone cannot tell; two shapes can. The same call is seen in two batches that differ in their number
of samples and, for texts, in their padded length: the axis that follows the samples is the batch, the one
that follows the length is the tokens, and everything else must stay as it is.
"""

import re
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from torch import nn

from schemas.capture import Rows

Shape = tuple[int, ...]

CHANNELS_FIRST = (
    nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm,
    nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.LPPool1d,
)  # fmt: skip
"""Modules whose tensors of three axes are (sample, channel, place)."""

CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
"""Modules whose features are the last axis, however many axes there are."""


class Probe(NamedTuple):
    """Size of a probing batch: samples, and padded tokens where it is text."""

    samples: int
    tokens: int | None


class Geometry(NamedTuple):
    """How rows lie in a tensor. `refusal` says why there are none; then the rest means nothing."""

    space: str = ""
    width: int = 0
    feature_axis: int = 0
    tokens: bool = False
    refusal: str = ""


def describe(module: nn.Module, shapes: tuple[Shape, Shape], probes: tuple[Probe, Probe]) -> Geometry:
    """The geometry of a tensor that had these two shapes in the two probing batches."""
    first, second = shapes
    both = f"{first} in a batch of {_size(probes[0])}, {second} in one of {_size(probes[1])}"
    if len(first) != len(second) or len(first) < 2:
        return Geometry(refusal=f"it needs a batch axis and a feature axis; its shape is {both}")
    if (first[0], second[0]) != (probes[0].samples, probes[1].samples):
        return Geometry(refusal=f"its first axis does not count the samples; its shape is {both}")
    if 0 in first:
        return Geometry(refusal=f"it holds no values; its shape is {both}")
    moving = [axis for axis in range(1, len(first)) if first[axis] != second[axis]]
    if not moving:
        return _constant(module, first)
    if len(first) == 3 and len(moving) == 1 and _follows_tokens(shapes, probes, moving[0]):
        feature = 3 - moving[0]
        return Geometry("tokens", first[feature], feature, tokens=True)
    return Geometry(refusal=f"its number of rows depends on the data; its shape is {both}")


def space_size(space: str) -> int | None:
    """Places per sample in a space that `describe` named; None for tokens.

    `sample` has 1, `seq197` 197, `grid7x7` 49.
    """
    if space == "sample":
        return 1
    sizes = re.fullmatch(r"(?:seq|grid)(\d+(?:x\d+)*)", space)
    return prod(int(size) for size in sizes[1].split("x")) if sizes else None


def kept_positions(size: int, rows: Rows) -> range:
    """The kept places of a sample that always has `size` of them, in raster order, before pooling."""
    if size == 1 or rows.positions == "all":
        return range(size)
    bounds = {"first": (0, 1), "last": (size - 1, size), "not-first": (1, size)}
    return range(*bounds[rows.positions])


def _constant(module: nn.Module, shape: Shape) -> Geometry:
    if len(shape) == 2:
        return Geometry("sample", shape[1], 1)
    last = len(shape) - 1
    if len(shape) == 3 and not isinstance(module, CHANNELS_FIRST):
        return Geometry(f"seq{shape[1]}", shape[2], 2)
    if isinstance(module, CHANNELS_LAST):
        return Geometry(_grid(shape[1:last]), shape[last], last)
    return Geometry(_grid(shape[2:]), shape[1], 1)


def _grid(sizes: Sequence[int]) -> str:
    return "grid" + "x".join(str(size) for size in sizes)


def _follows_tokens(shapes: tuple[Shape, Shape], probes: tuple[Probe, Probe], axis: int) -> bool:
    return (shapes[0][axis], shapes[1][axis]) == (probes[0].tokens, probes[1].tokens)


def _size(probe: Probe) -> str:
    return f"{probe.samples} samples" + (f" x {probe.tokens} tokens" if probe.tokens is not None else "")
