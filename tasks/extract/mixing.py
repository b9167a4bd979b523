"""Whether samples of a batch have a part in each other's loss, so that none has a gradient of its own."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from schemas.errors import ModelError, SubspanError
from tasks.extract.backward import activations_only, losses_of
from tasks.extract.batches import Batch
from tasks.extract.gradients.expressions import in_transform
from tasks.extract.gradients.gradient_plan import computed_in
from tasks.extract.gradients.graph import DifferentiatesItself, gradients_at, graph_of
from tasks.extract.gradients.keepers import make_keeper
from tasks.extract.gradients.loop import checked
from tasks.extract.gradients.standing import Standing
from tasks.extract.gradients.uses import DIFFERENTIATES, Uses
from tasks.extract.losses import Objective
from tasks.extract.models import Network

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
COARSE = 0.1
"""How far the loss of a sample in a batch may lie from its loss alone, relative to the largest, by dtype; and in half precision."""
CURE = (
    "no sample has a gradient of its own; give a loss that sees each sample alone, such as one against fixed prototypes "
    "(kind: similarity)"
)


def refuse_mixed(network: Network, batches: Sequence[Batch], objective: Objective) -> bool:
    """Refuse losses in which other samples of the batch have a part; and whether the network differentiates itself in its forward.

    A loss's value must be that of the sample alone, and what the network makes of one sample's inputs must have no part in the loss of
    another. Values tell nothing where the network draws random numbers: others in a batch than alone. What comes before any parameter, or
    passes a reentrant checkpoint or a function of the user's own, is judged by values alone; so is a network that differentiates itself.

    Args:
        network: under `running`, with gradients on.
        batches: a batch, and a smaller one of some of its samples.
        objective: the loss.

    Raises:
        ModelError: if samples meet.

    Cost: a forward of each sample, four of the batch, and a backward of the batch for each sample.
    """
    losses, n = losses_of(network, batches[0], objective), batches[0].n_samples
    with _Draws() as draws, _Differentiates() as asks:  # type: ignore[no-untyped-call]
        together, again = (losses(None).detach().double() for _ in range(2))
        alone = torch.cat([losses(sample).detach() for sample in range(n)]).double()
    if not draws.seen and torch.equal(together.nan_to_num(), again.nan_to_num()):
        _refuse_values(network, together, alone)
    if asks.seen or batches[1].n_samples >= n:
        return bool(asks.seen)
    return _refuse_meetings(network, batches, objective)


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


def _refuse_meetings(network: Network, batches: Sequence[Batch], objective: Objective) -> bool:
    """By gradients with respect to where the graph begins: numbers that two losses depend on are those of no one sample.

    Whether it turned out that the network differentiates itself.
    """
    n, m = (batch.n_samples for batch in batches)
    standing = Standing(network.module, network.module.parameters())
    with _opening(network, n) as uses:
        try:
            losses, begins = _begun(network, batches[0], objective)
            _, fewer = _begun(network, batches[1], objective)
        except (SubspanError, MemoryError, OSError, torch.OutOfMemoryError):
            raise
        except (Exception, DifferentiatesItself) as error:  # noqa: BLE001  it cannot run so, and its values were looked at
            standing.restore(f"{type(error).__name__}: {error}", uses.is_written_through_data)
            return bool(uses.differentiates)
        uses.in_backward = True
        own = _of_samples(begins, fewer, n, m)
        if not own or graph_of(losses).reentrant:
            return False
        owner = [torch.full(tensor.shape, -1, device=tensor.device) for tensor in own]
        for k, loss in enumerate(losses):
            for whose, gradient in zip(owner, gradients_at(loss, own), strict=True):
                if gradient is not None:
                    touched = gradient.nan_to_num() != 0
                    _refuse_shared(whose[touched], k)
                    whose[touched] = k
    return False


def _of_samples(begins: list[Tensor], fewer: list[Tensor], n: int, m: int) -> list[Tensor]:
    """Those of which one axis counts samples in both batches; where samples are taken one by one, those that are more in the larger."""
    if len(begins) == len(fewer):
        return [big for big, small in zip(begins, fewer, strict=True) if _grows(big.shape, small.shape, n, m)]
    here, there = (Counter(tensor.shape for tensor in tensors) for tensors in (begins, fewer))
    return [tensor for tensor in begins if here[tensor.shape] > there[tensor.shape]]


def _grows(big: torch.Size, small: torch.Size, n: int, m: int) -> bool:
    return len(big) == len(small) and [(a, b) for a, b in zip(big, small, strict=True) if a != b] == [(n, m)]


def _refuse_shared(before: Tensor, k: int) -> None:
    others = before[before >= 0]
    if len(others):
        raise ModelError(
            f"samples {int(others[0])} and {k} of a batch meet: what the network makes of one has a part in the loss of the other; the "
            f"loss compares its samples, or the network does, so that {CURE}"
        )


def _opening(network: Network, n: int) -> Uses:
    """Under which graphs begin at the first use of any parameter."""
    keeper = make_keeper(activations_only(network).plan, n)
    return Uses({}, (), map(id, network.module.parameters()), n, keeper, open_all=True)


def _begun(network: Network, batch: Batch, objective: Objective) -> tuple[Tensor, list[Tensor]]:
    """Losses, and the tensors at which their graph begins: the first that parameters make of the inputs."""
    losses = checked(losses_of(network, batch, objective)(None), batch.n_samples)
    return losses, [leaf for leaf in graph_of(losses).leaves if not isinstance(leaf, nn.Parameter)]


class _Differentiates(TorchFunctionMode):
    """Sees whether a network asks for gradients."""

    seen: bool = False

    def __enter__(self) -> Any:
        self._backward = torch.autograd.backward
        torch.autograd.backward = self._heard
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        torch.autograd.backward = self._backward
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _heard(self, *args: Any, **kwargs: Any) -> None:
        """No operation of torch that a mode would see."""
        self.seen = True
        self._backward(*args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= func in DIFFERENTIATES and not in_transform()
        return func(*args, **(kwargs or {}))


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether torch draws random numbers, from whichever generator."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
