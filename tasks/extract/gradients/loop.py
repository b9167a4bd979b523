"""Plain autograd, sample by sample: for what has no rule, and to see whether the rules are right."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from schemas.errors import ModelError
from tasks.extract.gradients.graph import grads_kept, graph_of, refuse_kept
from tasks.extract.gradients.keepers import make_keeper
from tasks.extract.gradients.plan import Plan
from tasks.extract.gradients.terms import Values

Losses = Callable[[int | None], Tensor]
"""Runs the forward over the batch (None), [sample] losses, or over one sample alone, [1]."""


def looped_gradients(
    parameters: Mapping[str, nn.Parameter],
    losses: Losses,
    n: int,
    plan: Plan,
    beside: Sequence[nn.Parameter] = (),
) -> dict[str, Tensor]:
    """Name to [sample, feature] in the form of the plan, of the given parameters alone; zeros elsewhere.

    `beside` are the network's other parameters, whose `.grad` a part that runs its own backward would change.

    Cost: a forward and a backward for each sample, with the gradients of these weights formed one sample at a time.
    """
    return _stacked([_one(parameters, checked(losses(sample), 1), plan, beside) for sample in range(n)])


def split_gradients(
    parameters: Mapping[str, nn.Parameter],
    losses: Losses,
    n: int,
    plan: Plan,
    beside: Sequence[nn.Parameter],
) -> dict[str, Tensor]:
    """As `looped_gradients`, from one forward over the batch: the same numbers, rounded another way, where samples do not meet.

    Cost: a forward over the batch, and a backward of it for each sample.
    """
    found = checked(losses(None), n)
    return _stacked([_one(parameters, found[k : k + 1], plan, beside, again=True) for k in range(n)])


def batch_gradients(
    parameters: Mapping[str, nn.Parameter],
    losses: Losses,
    n: int,
    plan: Plan,
    beside: Sequence[nn.Parameter],
) -> dict[str, Tensor]:
    """Name to [1, feature] in the form of the plan: the gradient of the sum of all losses.

    Cost: a forward and a backward over the batch, with the gradients of these weights.
    """
    return _one(parameters, checked(losses(None), n).sum()[None], plan, beside)


def checked(found: Tensor, n: int) -> Tensor:
    """The losses, if there is one for each sample.

    Raises:
        ModelError: if they are of another shape or kind.
    """
    if tuple(found.shape) != (n,) or not found.is_floating_point():
        raise ModelError(
            f"the loss is {found.dtype} of shape {tuple(found.shape)} for {n} samples; expected one number for each, shape ({n},)"
        )
    return found


def _stacked(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _one(
    parameters: Mapping[str, nn.Parameter],
    loss: Tensor,
    plan: Plan,
    beside: Sequence[nn.Parameter],
    again: bool = False,
) -> dict[str, Tensor]:
    """`again`: the graph is kept for others."""
    keeper = make_keeper(plan, 1)
    gradients = (
        _gradients(list(parameters.values()), loss, beside, again)
        if loss.requires_grad
        else [None] * len(parameters)
    )
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            whole = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
            keeper.add(name, Values(whole[None]))
    return keeper.finish()


def _gradients(
    parameters: Sequence[nn.Parameter], loss: Tensor, beside: Sequence[nn.Parameter], again: bool
) -> Sequence[Tensor | None]:
    graph = graph_of(loss)
    refuse_kept(graph)
    if not graph.reentrant:
        return torch.autograd.grad(loss.sum(), parameters, allow_unused=True, retain_graph=again)
    everything = {
        id(leaf): leaf for leaf in (*graph.leaves, *parameters, *beside) if isinstance(leaf, nn.Parameter)
    }
    with grads_kept(everything.values()):
        torch.autograd.backward(loss.sum(), retain_graph=again)
        return [parameter.grad for parameter in parameters]
