"""Operations that use parameters, and what each use adds to the parameter's gradient when the output's gradient comes.

A rule gets the call and its output, and returns for each parameter it knows a function of the output's gradient. What has no rule here
takes a pass for each sample: slower, as exact. To add a rule, write a function and name its operations in `RULES`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.errors import ModelError
from tasks.extract.gradients.keepers import Keeper
from tasks.extract.gradients.plan import Maps
from tasks.extract.gradients.terms import Convolution, Dense, Hot, Outer, Term, Values, full


class NoRule(Exception):
    """The use is of a kind that no rule covers; the message says why."""


class Call(NamedTuple):
    """An operation under way."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Tensor
    n: int
    """Samples."""
    name: Callable[[Any], str | None]
    """The parameter that an argument is, if its gradient is wanted."""
    keeper: Keeper

    def get(self, index: int, key: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(key, default)


class Use(NamedTuple):
    """One use of one parameter."""

    name: str
    term: Callable[[Tensor], Term]
    """What the gradient of the operation's output adds. It must not hold the call: tensors and their hooks would wait for each other."""


Rule = Callable[[Call], Iterator[Use]]


def by_sample(values: Tensor, n: int) -> Tensor:
    """[sample, position, feature] of a tensor whose first axis is samples, or samples x positions.

    Raises:
        NoRule: if the first axis cannot be that.
    """
    if values.ndim == 0 or len(values) == 0 or len(values) % n or (values.ndim == 1 and len(values) != n):
        raise NoRule(f"its first axis does not count the {n} samples: shape {tuple(values.shape)}")
    if len(values) == n:
        return values.reshape(n, -1, values.shape[-1]) if values.ndim > 1 else values[:, None, None]
    return values.reshape(n, -1, values.shape[-1])


def summed(values: Tensor, shape: tuple[int, ...], n: int) -> Tensor:
    """[sample, *shape]: the sum, sample by sample, over what broadcasting repeated.

    Raises:
        NoRule: if the parameter has an axis of its own for samples, or the first axis does not count samples.
    """
    own = shape[1:] if len(shape) == values.ndim and shape[0] == 1 else shape
    if len(own) >= values.ndim:
        raise NoRule(
            f"a parameter of shape {shape} meets values of shape {tuple(values.shape)} that have no axis for samples"
        )
    if len(values) % n or len(values) == 0:
        raise NoRule(f"its first axis does not count the {n} samples: shape {tuple(values.shape)}")
    tail = values.shape[values.ndim - len(own) :]
    flat = full(values.reshape(n, -1, *tail)).sum(1)
    repeated = [axis + 1 for axis, size in enumerate(own) if size == 1 and tail[axis] != 1]
    flat = flat.sum(repeated, keepdim=True) if repeated else flat
    return flat.reshape(n, *shape)


def _kept(tensor: Tensor) -> Callable[[], Tensor]:
    """The tensor again, later, if nobody wrote into it."""
    version = tensor._version

    def again() -> Tensor:
        if tensor._version != version:
            raise ModelError(
                "the network wrote into a tensor that a layer had read, so that no gradient of the layer's weight exists (plain autograd "
                "refuses it too); make the operation not in-place"
            )
        return tensor

    return again


def _linear(call: Call) -> Iterator[Use]:
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    yield from _product(call, x, call.name(weight), columns_first=True)
    yield from _bias(call, call.name(bias), bias)


def _addmm(call: Call) -> Iterator[Use]:
    """Hugging Face's Conv1D: bias + x @ weight, with weight [in, out]."""
    if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
        raise NoRule("addmm scales its terms")
    bias, x, weight = call.get(0, "input"), call.get(1, "mat1"), call.get(2, "mat2")
    if call.name(x):
        raise NoRule("the parameter is the left factor of addmm")
    yield from _product(call, x, call.name(weight), columns_first=False)
    yield from _bias(call, call.name(bias), bias)


def _matmul(call: Call) -> Iterator[Use]:
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
    again = _kept(x) if isinstance(held, Dense) and held.values.data_ptr() == values.data_ptr() else None

    n = call.n

    def term(g: Tensor) -> Term:
        if again is not None:
            again()
        other = Dense(by_sample(g, n))
        return Outer(other, held) if columns_first else Outer(held, other)

    yield Use(name, term)


def _bias(call: Call, name: str | None, bias: Any) -> Iterator[Use]:
    if name is not None:
        yield _sum_use(call, name, tuple(bias.shape), lambda g: g)


def _sum_use(call: Call, name: str, shape: tuple[int, ...], factor: Callable[[Tensor], Tensor]) -> Use:
    """A parameter that is broadcast: its gradient is the sum over what repeats it."""
    n = call.n
    summed(call.out.detach().new_empty(()).expand(call.out.shape), shape, n)
    return Use(name, lambda g: Values(summed(factor(g), shape, n)))


def _embedding(call: Call) -> Iterator[Use]:
    ids, weight = call.get(0, "input"), call.get(1, "weight")
    if (
        call.get(3, "max_norm") is not None
        or call.get(5, "scale_grad_by_freq", False)
        or call.get(6, "sparse", False)
    ):
        raise NoRule("the embedding renormalises, scales by frequency or is sparse")
    name = call.name(weight)
    if name is None:
        return
    padding = call.get(2, "padding_idx")
    if padding is not None and padding < 0:
        padding += len(weight)
    flat = by_sample(
        ids.expand(call.n, *ids.shape[1:])[..., None] if len(ids) == 1 else ids[..., None], call.n
    )[..., 0]
    if ids.ndim == 1 and len(ids) != call.n:
        raise NoRule(f"its ids of shape {tuple(ids.shape)} do not count the {call.n} samples")
    hot = Hot(flat, len(weight), None if padding is None else (flat != padding).to(weight.dtype))
    held, n = call.keeper.hold(name, hot, "rows"), call.n
    yield Use(name, lambda g: Outer(held, Dense(by_sample(g, n))))


def _normalised(
    call: Call, weight_at: int, bias_at: int, plain: Callable[[Tensor], Tensor], channels: bool
) -> Iterator[Use]:
    """A norm layer: weight x normalised + bias, per feature or per channel."""
    x, weight, bias = call.get(0, "input"), call.get(weight_at, "weight"), call.get(bias_at, "bias")
    again = _kept(x.detach())

    def facing(values: Tensor) -> Tensor:
        return values.movedim(1, -1) if channels else values

    for parameter, factor in ((weight, lambda g: g * plain(again())), (bias, lambda g: g)):
        name = call.name(parameter)
        if name is not None:
            if len(call.out) != call.n and channels:
                raise NoRule(
                    f"its first axis does not count the {call.n} samples: shape {tuple(call.out.shape)}"
                )
            shape = tuple(parameter.shape)
            summed(facing(call.out.detach()), shape, call.n)
            yield _norm_use(call, name, shape, factor, facing)


def _norm_use(
    call: Call,
    name: str,
    shape: tuple[int, ...],
    factor: Callable[[Tensor], Tensor],
    facing: Callable[[Tensor], Tensor],
) -> Use:
    n = call.n
    return Use(name, lambda g: Values(summed(facing(factor(g)), shape, n)))


def _layer_norm(call: Call) -> Iterator[Use]:
    shape, eps = call.get(1, "normalized_shape"), call.get(4, "eps", 1e-5)
    yield from _normalised(call, 2, 3, lambda x: F.layer_norm(x, shape, None, None, eps), channels=False)


def _rms_norm(call: Call) -> Iterator[Use]:
    shape, eps = call.get(1, "normalized_shape"), call.get(3, "eps")
    yield from _normalised(call, 2, 99, lambda x: F.rms_norm(x, shape, None, eps), channels=False)


def _group_norm(call: Call) -> Iterator[Use]:
    groups, eps = call.get(1, "num_groups"), call.get(4, "eps", 1e-5)
    yield from _normalised(call, 2, 3, lambda x: F.group_norm(x, groups, None, None, eps), channels=True)


def _batch_norm(call: Call) -> Iterator[Use]:
    mean, variance, eps = call.get(1, "running_mean"), call.get(2, "running_var"), call.get(7, "eps", 1e-5)
    if call.get(5, "training", False) or mean is None:
        raise NoRule("batch normalisation takes the statistics of the batch")
    yield from _normalised(
        call, 3, 4, lambda x: F.batch_norm(x, mean, variance, None, None, False, 0.0, eps), channels=True
    )


def _instance_norm(call: Call) -> Iterator[Use]:
    mean, variance = call.get(1, "running_mean"), call.get(2, "running_var")
    own, momentum, eps = (
        call.get(5, "use_input_stats", True),
        call.get(6, "momentum", 0.1),
        call.get(7, "eps", 1e-5),
    )
    if own and mean is not None:
        raise NoRule("instance normalisation changes its running statistics")
    yield from _normalised(
        call,
        3,
        4,
        lambda x: F.instance_norm(x, mean, variance, None, None, own, momentum, eps),
        channels=True,
    )


def _convolution(call: Call) -> Iterator[Use]:
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
    again = _kept(x)
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

        return Convolution(matrix)

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


def _multiply(call: Call) -> Iterator[Use]:
    for parameter, other in _operands(call):
        name = call.name(parameter)
        if name is not None:
            if call.name(other):
                raise NoRule("a product of two parameters")
            factor = (
                partial(_times, _kept(other.detach())) if isinstance(other, Tensor) else partial(mul, other)
            )
            yield _sum_use(call, name, tuple(parameter.shape), factor)


def _add(call: Call) -> Iterator[Use]:
    if call.kwargs.get("alpha", 1) != 1:
        raise NoRule("a sum with a factor")
    for parameter, _ in _operands(call):
        name = call.name(parameter)
        if name is not None:
            yield _sum_use(call, name, tuple(parameter.shape), lambda g: g)


def _subtract(call: Call) -> Iterator[Use]:
    if call.kwargs.get("alpha", 1) != 1:
        raise NoRule("a difference with a factor")
    for sign, (parameter, _) in zip((1, -1), _operands(call), strict=True):
        name = call.name(parameter)
        if name is not None:
            yield _sum_use(call, name, tuple(parameter.shape), partial(mul, sign))


def _times(again: Callable[[], Tensor], g: Tensor) -> Tensor:
    return g * again()


def _operands(call: Call) -> list[tuple[Any, Any]]:
    a, b = call.get(0, "input"), call.get(1, "other")
    return [(a, b), (b, a)]


def _repeat(call: Call) -> Iterator[Use]:
    """A token that is copied to every sample: `cls.expand(n, -1, -1)`."""
    parameter = call.args[0]
    name = call.name(parameter)
    shape = tuple(parameter.shape)
    if name is None:
        return
    if call.out.ndim != len(shape) or shape[0] != 1 or tuple(call.out.shape) != (call.n, *shape[1:]):
        raise NoRule(
            f"a copy of shape {tuple(call.out.shape)} of a parameter of shape {shape} is not one for each of {call.n} samples"
        )
    n = call.n
    yield Use(name, lambda g: Values(g.reshape(n, *shape)))


RULES: dict[Any, Rule] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), _matmul),
    **dict.fromkeys(
        (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply), _multiply
    ),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), _subtract),
    **dict.fromkeys((Tensor.expand, Tensor.repeat, torch.broadcast_to, Tensor.expand_as), _repeat),
}
"""Operation -> its rule."""


def uses_of(operation: Any, call: Call, wanted: Sequence[str], selected: bool) -> list[Use]:
    """What an operation does with parameters.

    Args:
        operation: as torch calls it.
        call: with its arguments and output.
        wanted: the parameters among its arguments.
        selected: whether rows were chosen by their values before it, so that a first axis may count anything.

    Raises:
        NoRule: if it is not known.
    """
    rule = RULES.get(operation)
    if rule is None:
        raise NoRule("no rule covers this operation")
    if len(set(wanted)) < len(wanted):
        raise NoRule("it takes the parameter twice")
    if selected and (call.out.ndim < 3 or len(call.out) != call.n):
        raise NoRule(
            "rows were chosen by their values before it, so that nothing tells which sample each belongs to"
        )
    return list(rule(call))
