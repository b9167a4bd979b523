"""Rules of linear maps and embeddings: their gradients are sums of outer products, which are kept as factors."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tasks.extract.gradients.call import Call, NoRule, Use, by_sample, kept, sum_use
from tasks.extract.gradients.terms import Dense, Hot, Outer, Term


def linear(call: Call) -> Iterator[Use]:
    """x @ weight' + bias."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    yield from _product(call, x, call.name(weight), columns_first=True)
    yield from _bias(call, call.name(bias), bias)


def addmm(call: Call) -> Iterator[Use]:
    """Hugging Face's Conv1D: bias + x @ weight, with weight [in, out]."""
    if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
        raise NoRule("addmm scales its terms")
    bias, x, weight = call.get(0, "input"), call.get(1, "mat1"), call.get(2, "mat2")
    if call.name(x):
        raise NoRule("the parameter is the left factor of addmm")
    yield from _product(call, x, call.name(weight), columns_first=False)
    yield from _bias(call, call.name(bias), bias)


def matmul(call: Call) -> Iterator[Use]:
    """x @ weight."""
    x, weight = call.get(0, "input"), call.get(1, "other")
    if call.name(x) or weight.ndim != 2:
        raise NoRule("a product whose parameter is not a matrix on the right")
    yield from _product(call, x, call.name(weight), columns_first=False)


def _product(call: Call, x: Tensor, name: str | None, columns_first: bool) -> Iterator[Use]:
    """A weight [out, in] (columns are the inputs) or [in, out] (rows are)."""
    if name is None:
        return
    values = by_sample(x.detach(), call.n)
    by_sample(call.out, call.n)
    held = call.keeper.hold(name, Dense(values), "columns" if columns_first else "rows")
    again = kept(x) if isinstance(held, Dense) and held.values.data_ptr() == values.data_ptr() else None

    n = call.n

    def term(g: Tensor) -> Term:
        if again is not None:
            again()
        other = Dense(by_sample(g, n))
        return Outer(other, held) if columns_first else Outer(held, other)

    yield Use(name, term)


def _bias(call: Call, name: str | None, bias: Any) -> Iterator[Use]:
    if name is not None:
        yield sum_use(call, name, tuple(bias.shape), lambda g: g)


def embedding(call: Call) -> Iterator[Use]:
    """Rows of a matrix, picked by ids."""
    ids, weight = call.get(0, "input"), call.get(1, "weight")
    if call.get(3, "max_norm") is not None or call.get(5, "scale_grad_by_freq", False):
        raise NoRule("the embedding renormalises or scales by frequency")
    padding = call.get(2, "padding_idx")
    if padding is not None and padding < 0:
        padding += len(weight)
    yield from _picked(call, ids, weight, padding)


def picked(call: Call) -> Iterator[Use]:
    """The same written as weight[ids] or weight[ids, :]."""
    weight, index = call.args
    ids, *rest = index if isinstance(index, tuple) else (index,)
    whole = all(isinstance(one, slice) and one == slice(None) for one in rest)
    if (
        not isinstance(ids, Tensor)
        or ids.dtype not in (torch.int64, torch.int32)
        or weight.ndim != 2
        or not whole
    ):
        raise NoRule("it picks something else than rows of a matrix by whole numbers")
    yield from _picked(call, ids % len(weight), weight, None)


def _picked(call: Call, ids: Tensor, weight: Tensor, padding: int | None) -> Iterator[Use]:
    name, n = call.name(weight), call.n
    if name is None:
        return
    if ids.ndim == 0 or len(ids) != n:
        raise NoRule(f"its ids of shape {tuple(ids.shape)} do not count the {n} samples")
    flat = by_sample(ids[..., None], n)[..., 0]
    hot = Hot(flat, len(weight), None if padding is None else (flat != padding).to(weight.dtype))
    held = call.keeper.hold(name, hot, "rows")
    yield Use(name, lambda g: Outer(held, Dense(by_sample(g, n))))
