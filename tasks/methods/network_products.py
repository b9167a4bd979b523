"""What methods about the curvature of a loss share: which matrix of which parameters, and its products over samples.

The loss is the mean over samples. A state is the sum of products over samples, so that any partition of them gives the same.
"""

import re
from collections.abc import Mapping
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from schemas.errors import MethodError, nearest
from tasks.methods.contract import Block, State
from tasks.numerics import curvature, lanczos

T = TypeVar("T")
Matrix = Literal["hessian", "gauss-newton", "fisher"]


@runtime_checkable
class HasMatrix(Protocol):
    """Options of a method that multiplies a matrix of a network."""

    @property
    def matrix(self) -> Matrix: ...

    @property
    def parameters(self) -> tuple[str, ...]: ...


def chosen(parameters: Mapping[str, T], patterns: tuple[str, ...]) -> dict[str, T]:
    """Parameters that globs mean, in the order of the network.

    Raises:
        MethodError: if a glob matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        expression = _glob(pattern)
        here = {name for name in parameters if expression.fullmatch(name)}
        if not here:
            raise MethodError(
                f"parameters: {pattern!r} matches none that can be trained; nearest: {nearest(pattern, parameters)}"
            )
        found |= here
    return {name: value for name, value in parameters.items() if name in found}


def size(shapes: dict[str, tuple[int, ...]]) -> int:
    """Entries of all together."""
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def products(block: Block, carry: State, config: HasMatrix) -> State:
    """The matrix times the vectors of a Lanczos run, summed over the samples of a block, with their losses.

    Cost: for each batch a forward and a backward, and a backward through it for each vector.
    """
    vectors = lanczos.vectors(carry)
    total, loss = torch.zeros_like(vectors), torch.zeros((), dtype=torch.float64)
    network = block.network
    if network is not None and len(block):
        parameters = list(chosen(network.parameters, config.parameters).values())
        for view in network.batches():
            if config.matrix == "gauss-newton":
                output = view.output()
                found = curvature.gauss_newton_products(output, view.loss_of, parameters, vectors)
                loss += view.loss_of(output.detach()).detach().double().sum().cpu()
            else:
                losses = view.losses()
                multiply = (
                    curvature.hessian_products if config.matrix == "hessian" else curvature.fisher_products
                )
                found = multiply(losses, parameters, vectors)
                loss += losses.detach().double().sum().cpu()
            total += found.to(total.device)
    return {"products": total, "loss": loss, "samples": torch.tensor(len(block))}


def merge(a: State, b: State) -> State:
    """The sums of both."""
    return {name: a[name] + b[name] for name in a}


def advanced(state: State, carry: State) -> State:
    """The carry one step further.

    Raises:
        MethodError: if no sample was good, or a product is not finite.
    """
    samples = int(state["samples"])
    if samples == 0:
        raise MethodError("found no samples; at least one is needed")
    mean: Tensor = state["products"] / samples
    if not bool(mean.isfinite().all()):
        raise MethodError(
            "a product with the network's curvature is NaN or infinite: the loss or its derivatives overflow; use float32 or wider"
        )
    return lanczos.advance(carry, mean)


def _glob(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*\.|\*\*|\*)", pattern)
    meaning = {"**.": r"(?:.*\.)?", "**": ".*", "*": r"[^.]*"}
    return re.compile("".join(meaning.get(piece, re.escape(piece)) for piece in pieces))
