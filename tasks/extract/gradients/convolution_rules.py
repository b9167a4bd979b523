"""Rules of convolutions with groups, strides, dilation and every padding."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.extract.gradients.call import Call, NoRule, Use, kept
from tasks.extract.gradients.plan import Maps
from tasks.extract.gradients.terms import Dense, Formed, Outer, Term, Values, full


def convolution(call: Call) -> Iterator[Use]:
    """In one, two or three dimensions."""
    x, weight, bias = call.get(0, "input").detach(), call.get(1, "weight"), call.get(2, "bias")
    stride, padding, dilation, groups = (
        call.get(3, "stride", 1), call.get(4, "padding", 0), call.get(5, "dilation", 1), call.get(6, "groups", 1),
    )  # fmt: skip
    if x.ndim != weight.ndim or len(x) != call.n:
        raise NoRule(f"its input of shape {tuple(x.shape)} does not count the {call.n} samples")
    x, padding = _explicit_padding(x, weight, padding, dilation)
    name = call.name(weight)
    if name is not None:
        options = (stride, padding, dilation, groups)
        yield Use(name, _convolution_use(call, name, x, weight, options))
    if call.name(bias):
        yield _channel_sum(call, str(call.name(bias)))


def _channel_sum(call: Call, name: str) -> Use:
    return Use(name, lambda g: Values(full(g).flatten(2).sum(2)))


def _convolution_use(
    call: Call, name: str, x: Tensor, weight: Tensor, options: tuple[Any, ...]
) -> Callable[[Tensor], Term]:
    maps = call.keeper.maps(name)
    if maps is not None:
        return _projected_convolution(call, name, x, weight, maps, options)
    again = kept(x)
    stride, padding, dilation, groups = options
    spatial = weight.ndim - 2
    like, sizes = weight.detach(), [_tuple(v, spatial) for v in (stride, padding, dilation)]

    def term(g: Tensor) -> Term:
        values = again()

        def matrix(sample: int) -> Tensor:
            here = slice(sample, sample + 1)
            found: Tensor = torch.ops.aten.convolution_backward(
                g[here],
                values[here].to(g.dtype),
                like.to(g.dtype),
                None,
                *sizes,
                False,
                [0] * spatial,
                groups,
                [False, True, False],
            )[1]
            return found.reshape(len(like), -1)

        return Formed(matrix)

    return term


def _projected_convolution(
    call: Call, name: str, x: Tensor, weight: Tensor, maps: Maps, options: tuple[Any, ...]
) -> Callable[[Tensor], Term]:
    """The columns of a convolution's weight times a map are what a convolution with the map's rows as filters gives."""
    stride, padding, dilation, groups = options
    p = len(maps.columns)
    kernel = maps.columns.reshape(p, *weight.shape[1:]).to(x.dtype)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    found = convolve(
        x, kernel.repeat(groups, *[1] * (kernel.ndim - 1)), None, stride, padding, dilation, groups
    )
    n = call.n
    columns = found.reshape(n, groups, p, -1).transpose(2, 3).reshape(n, -1, p)
    held = Dense(columns, projected=True)

    def term(g: Tensor) -> Term:
        rows = g.reshape(n, groups, len(weight) // groups, -1)
        blocks = (torch.eye(len(weight), device=g.device) if maps.rows is None else maps.rows).to(g.dtype)
        blocks = blocks.reshape(len(blocks), groups, -1)
        projected = torch.einsum("ngrs,qgr->ngsq", rows, blocks).reshape(n, -1, len(blocks))
        return Outer(Dense(projected, projected=True), held)

    return term


def _explicit_padding(x: Tensor, weight: Tensor, padding: Any, dilation: Any) -> tuple[Tensor, Any]:
    if padding == "valid":
        return x, 0
    if padding != "same":
        return x, padding
    pads: list[int] = []
    for size, step in zip(
        reversed(weight.shape[2:]), reversed(_tuple(dilation, weight.ndim - 2)), strict=True
    ):
        total = step * (size - 1)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads), 0


def _tuple(value: Any, n: int) -> list[int]:
    return (
        [int(value)] * n
        if isinstance(value, int)
        else [int(v) for v in value] * (n if len(value) == 1 else 1)
    )
