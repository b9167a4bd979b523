"""The graph behind a loss: where it begins, and a backward that changes no `.grad` of a network."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import _engine_run_backward

from schemas.errors import ModelError

MADE = "_subspan_made"
"""Attribute of leaves that are not the network's: the pass that made them."""
CHECKPOINT = "CheckpointFunctionBackward"
"""What a reentrant checkpoint of torch is called in a graph."""
_GRADS = threading.Lock()
"""Threads share parameters, and so their `.grad`."""


class DifferentiatesItself(BaseException):
    """Raised inside the forward of a network that differentiates itself; no `Exception`, which networks catch."""


class Graph(NamedTuple):
    """What a backward would reach."""

    nodes: set[Any]
    leaves: tuple[Tensor, ...]
    reentrant: bool
    """Whether a part of the network may run again in the backward, with a graph of its own (reentrant checkpoints, functions of one's own):
    what begins there is not among the leaves."""
    foreign: bool
    """Whether any such part is no checkpoint of torch."""


def opened(tensor: Tensor, by: object = None) -> Tensor:
    """The same floating values at the beginning of a graph; no leaf, so that a network may write into them. `by`: the pass."""
    return leaf_of(tensor, by).clone()


def leaf_of(tensor: Tensor, by: object = None) -> Tensor:
    """The same memory at the beginning of a graph, known from now on as what this pass made."""
    leaf = tensor.detach().requires_grad_()
    setattr(leaf, MADE, by)
    return leaf


def refuse_kept(graph: Graph, by: object = None) -> None:
    """Refuse a graph that begins at what another pass made.

    Raises:
        ModelError: if it does.
    """
    if any(getattr(leaf, MADE, None) not in (None, by) for leaf in graph.leaves):
        raise ModelError(
            "the network keeps between forwards what it made of its parameters, so that no gradient reaches these any more; make it anew "
            "in each forward"
        )


def graph_of(loss: Tensor) -> Graph:
    """Walk the graph of a loss."""
    leaves: list[Tensor] = []
    reentrant = foreign = False
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # A function in Python may run a backward of its own.
        if issubclass(type(node), BackwardCFunction):
            reentrant, foreign = True, foreign or type(node).__name__ != CHECKPOINT
        if hasattr(node, "variable") and node.variable.requires_grad:  # a parameter may be frozen again
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return Graph(seen, tuple(leaves), reentrant, foreign)


def backward(loss: Tensor, graph: Graph, parameters: Iterable[nn.Parameter]) -> None:
    """Run the backward of a loss for its hooks alone; parameters keep their `.grad`.

    Args:
        loss: a number with a graph.
        graph: behind it.
        parameters: of the network.
    """
    if graph.reentrant:  # takes no list of inputs
        with grads_kept(parameters):
            _run(loss, ())
    elif graph.leaves:
        _run(loss, graph.leaves)


def gradients_at(loss: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """As torch.autograd.grad, which switches function modes off that a checkpoint needs when it runs again; the graph is kept."""
    found: tuple[Tensor | None, ...] = _run(loss, tuple(tensors), keep=True)
    return found


def _run(loss: Tensor, inputs: tuple[Tensor, ...], keep: bool = False) -> Any:
    """As torch.autograd.backward, or grad where there are inputs."""
    return _engine_run_backward(
        (loss,),
        (torch.ones_like(loss),),
        keep,
        False,
        inputs,
        allow_unreachable=True,
        accumulate_grad=not inputs,
    )


@contextmanager
def grads_kept(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Whatever a backward adds to `.grad` is gone afterwards, and what was there is back. One thread at a time."""
    with _GRADS:
        before = [(parameter, parameter.grad) for parameter in parameters]
        try:
            for parameter, _ in before:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in before:
                parameter.grad = gradient
