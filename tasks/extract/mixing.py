"""Whether samples of a batch have a part in each other's loss, so that none has a gradient of its own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from schemas.errors import ModelError
from tasks.extract.batches import Batch
from tasks.extract.collect import forward
from tasks.extract.gradients.agreement import computed_in
from tasks.extract.gradients.graph import opened
from tasks.extract.hooks import tensors
from tasks.extract.losses import Objective
from tasks.extract.models import Network

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
COARSE = 0.1
"""How far the loss of a sample in a batch may lie from its loss alone, relative to the largest, by dtype; and in half precision."""
CURE = (
    "no sample has a gradient of its own; give a loss that sees each sample alone, such as one against fixed prototypes "
    "(kind: similarity)"
)


class _Passed(NamedTuple):
    output: Any
    """What the network returned."""
    losses: Tensor


def refuse_mixed(network: Network, batches: Sequence[Batch], objective: Objective) -> None:
    """Refuse losses in which other samples of the batch have a part.

    A loss's value must be that of the sample alone, and the network's output for one sample must have no part in the loss of another.
    Values tell nothing where the network draws random numbers: others in a batch than alone. A loss that differentiates the network
    itself is judged by its values alone.

    Args:
        network: under `running`, with gradients on.
        batches: a batch, and a smaller one of its first samples.
        objective: the loss.

    Raises:
        ModelError: if samples meet.

    Cost: a forward for each sample and three more; no backward through the network.
    """
    with _Draws() as draws:  # type: ignore[no-untyped-call]
        whole, smaller = (_passed(network, batch, objective) for batch in batches)
        again = _passed(network, batches[0], objective).losses
        singles = [batches[0].take(torch.tensor([k])) for k in range(batches[0].n_samples)]
        alone = (
            torch.cat([_passed(network, single, objective).losses for single in singles]).detach().double()
        )
    together = whole.losses.detach().double()
    if not draws.seen and torch.equal(together.nan_to_num(), again.detach().double().nan_to_num()):
        _refuse_values(network, together, alone)
    _refuse_meetings(whole.output, _samples_first(whole, smaller, batches), objective, batches[0])


def _passed(network: Network, batch: Batch, objective: Objective) -> _Passed:
    output = forward(network, batch)
    return _Passed(output, objective(output, batch))


def _refuse_values(network: Network, together: Tensor, alone: Tensor) -> None:
    floating = [p for p in network.module.parameters() if p.is_floating_point() or p.is_complex()]
    dtype = computed_in(floating) if floating else network.input_dtype
    apart = (together - alone).abs().nan_to_num()
    worst = int(apart.argmax())
    allowed = TOLERANCE.get(dtype, COARSE) * float(alone.abs().nan_to_num().max()) + torch.finfo(dtype).eps
    if float(apart[worst]) > allowed:
        raise ModelError(
            f"the loss of a sample is {float(together[worst]):.6g} in a batch of {len(together)} and {float(alone[worst]):.6g} alone: the "
            f"loss divides by the size of the batch or compares its samples, or the network lets samples meet, so that {CURE}"
        )


def _samples_first(whole: _Passed, smaller: _Passed, batches: Sequence[Batch]) -> set[str]:
    """Paths of outputs whose first axis counts samples, in both batches."""
    counted = [
        {path for path, tensor in tensors(passed.output) if tensor.ndim and len(tensor) == batch.n_samples}
        for passed, batch in zip((whole, smaller), batches, strict=True)
    ]
    return counted[0] & counted[1] if batches[0].n_samples != batches[1].n_samples else set()


def _refuse_meetings(output: Any, first: set[str], objective: Objective, batch: Batch) -> None:
    # What the network makes of one of its outputs for another is no matter of the loss.
    given = tree_map_only(Tensor, lambda t: opened(t) if t.is_floating_point() else t, output)
    outputs = [tensor for path, tensor in tensors(given) if path in first and tensor.requires_grad]
    try:
        losses = objective(given, batch)
    except ModelError:
        return
    if not outputs or not losses.requires_grad:
        return
    for k, loss in enumerate(losses):
        for gradient in torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True):
            others = None if gradient is None else gradient.abs().reshape(len(gradient), -1).sum(1)
            if others is not None and bool((others[_all_but(k, others)] > 0).any()):
                raise ModelError(
                    f"what the network gives for other samples has a part in the loss of sample {k} of a batch: the loss compares its "
                    f"samples, so that {CURE}"
                )


def _all_but(k: int, values: Tensor) -> Tensor:
    return torch.arange(len(values), device=values.device) != k


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether torch draws random numbers, from whichever generator."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
