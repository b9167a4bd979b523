"""Rules of parameters that are added, multiplied or copied: gradients are sums over what repeats them."""

from collections.abc import Callable, Iterator
from functools import partial
from operator import mul
from typing import Any

from torch import Tensor

from tasks.extract.gradients.call import Call, NoRule, Use, kept, sum_use
from tasks.extract.gradients.terms import Values


def multiply(call: Call) -> Iterator[Use]:
    """parameter x other, the parameter broadcast."""
    for parameter, other in _operands(call):
        name = call.name(parameter)
        if name is not None:
            if call.name(other):
                raise NoRule("a product of two parameters")
            factor = (
                partial(_times, kept(other.detach())) if isinstance(other, Tensor) else partial(mul, other)
            )
            yield sum_use(call, name, tuple(parameter.shape), factor)


def add(call: Call) -> Iterator[Use]:
    """parameter + other, the parameter broadcast."""
    if call.kwargs.get("alpha", 1) != 1:
        raise NoRule("a sum with a factor")
    for parameter, _ in _operands(call):
        name = call.name(parameter)
        if name is not None:
            yield sum_use(call, name, tuple(parameter.shape), lambda g: g)


def subtract(call: Call) -> Iterator[Use]:
    """A difference with a parameter on either side."""
    if call.kwargs.get("alpha", 1) != 1:
        raise NoRule("a difference with a factor")
    for sign, (parameter, _) in zip((1, -1), _operands(call), strict=True):
        name = call.name(parameter)
        if name is not None:
            yield sum_use(call, name, tuple(parameter.shape), partial(mul, sign))


def _times(again: Callable[[], Tensor], g: Tensor) -> Tensor:
    return g * again()


def _operands(call: Call) -> list[tuple[Any, Any]]:
    a, b = call.get(0, "input"), call.get(1, "other")
    return [(a, b), (b, a)]


def repeat(call: Call) -> Iterator[Use]:
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
