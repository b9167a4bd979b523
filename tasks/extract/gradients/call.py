"""An operation under way, what it adds to the gradient of a parameter, and how its axes count samples: what all rules share."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from schemas.errors import ModelError
from tasks.extract.gradients.plan import Maps
from tasks.extract.gradients.projections import Side as SideName
from tasks.extract.gradients.terms import Side, Term, Values, full


class NoRule(Exception):
    """The use is of a kind that no rule covers; the message says why."""


class Holder(Protocol):
    """The part of a keeper that a rule asks in the forward, see `Keeper`."""

    def hold(self, name: str, side: Side, axis: SideName) -> Side:
        """What is kept until the backward of a side."""

    def maps(self, name: str) -> Maps | None:
        """What a convolution's weight is projected by."""


class Call(NamedTuple):
    """An operation under way."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Tensor
    n: int
    """Samples."""
    name: Callable[[Any], str | None]
    """The parameter that an argument is, if its gradient is wanted."""
    keeper: Holder

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
    if values.layout != torch.strided:
        raise NoRule(f"its operand is {str(values.layout).removeprefix('torch.')}")
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
    own = shape[1:] if shape and len(shape) == values.ndim and shape[0] == 1 else shape
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


def kept(tensor: Tensor) -> Callable[[], Tensor]:
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


def sum_use(call: Call, name: str, shape: tuple[int, ...], factor: Callable[[Tensor], Tensor]) -> Use:
    """A parameter that is broadcast: its gradient is the sum over what repeats it."""
    n = call.n
    summed(call.out.detach().new_empty(()).expand(call.out.shape), shape, n)
    return Use(name, lambda g: Values(summed(factor(g), shape, n)))
