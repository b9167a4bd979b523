"""A sample of rows without replacement, taken while rows stream by: those whose hashed numbers are least.

The sample of two parts is that of the whole, for any parts and any order. All rows are in it while they fit. Each row is
in with the same chance; the hash has no seed, so that a row is in the samples of all methods or of none.
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Sample = dict[str, Tensor]
"""`key` [place] int64 ascending, and `value` [place, number] float64; places that are free hold the largest key."""
FREE = torch.iinfo(torch.int64).max
_MIX = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB)


def of_rows(index: Int64[Tensor, " row"], value: Float64[Tensor, "row number"], size: int) -> Sample:
    """The sample of some rows.

    Args:
        index: what rows are called.
        value: what is kept of a row.
        size: places.
    """
    free = torch.full((size,), FREE, dtype=torch.int64, device=index.device)
    none = torch.full((size, value.shape[1]), torch.inf, dtype=torch.float64, device=index.device)
    return _least(torch.cat([_hash(index), free]), torch.cat([value, none]), size)


def merge(a: Sample, b: Sample) -> Sample:
    """The sample of both parts."""
    size = len(a["key"])
    return _least(torch.cat([a["key"], b["key"]]), torch.cat([a["value"], b["value"]]), size)


def values(sample: Sample) -> Float64[Tensor, "place number"]:
    """What is kept of the rows in the sample."""
    return sample["value"][sample["key"] < FREE]


def numbers(index: Int64[Tensor, "*row"]) -> Float64[Tensor, "*row"]:
    """A number in (0, 1) of what a row is called, as good as random."""
    return (_hash(index).double() + 0.5) / 2.0**62


def _least(key: Tensor, value: Tensor, size: int) -> Sample:
    """Equal keys (of rows of equal names in different captures) come in order of their values."""
    order = torch.argsort(key, stable=True)
    ascending = key[order]
    some = order[ascending <= ascending[size - 1]]  # with all that share the last key
    key, value = key[some], value[some]
    if bool(((key[1:] == key[:-1]) & (key[1:] < FREE)).any()):
        for column in reversed(range(value.shape[1])):
            order = torch.argsort(value[:, column], stable=True)
            key, value = key[order], value[order]
        order = torch.argsort(key, stable=True)
        key, value = key[order], value[order]
    return {"key": key[:size].clone(), "value": value[:size].clone()}


def _hash(index: Tensor) -> Tensor:
    """Numbers in 0 .. 2^62 (splitmix64, without its sign)."""
    mixed = index * _MIX[0] + _MIX[0]
    mixed = (mixed ^ ((mixed >> 30) & ((1 << 34) - 1))) * _MIX[1]
    mixed = (mixed ^ ((mixed >> 27) & ((1 << 37) - 1))) * _MIX[2]
    return (mixed ^ ((mixed >> 31) & ((1 << 33) - 1))) & ((1 << 62) - 1)
