"""What modules of a network give in a forward, and how far from it is what those of another network give."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float64
from torch import Tensor, nn

Hear = Callable[[str, Tensor], None]
"""Takes the path of a module and what it gave."""


@contextmanager
def listening(network: nn.Module, watched: Sequence[str], mask: Tensor | None, hear: Hear) -> Iterator[None]:
    """What modules give while the network runs inside, call by call; nothing of modules that are not there or give no single tensor.

    Args:
        network: that runs.
        watched: paths of modules.
        mask: bool [sample, token], False where a text is padded: such rows are left out.
        hear: is called at once, as what follows may write into the tensor.
    """
    found = dict(network.named_modules())
    there = [path for path in watched if path in found]
    handles = [found[path].register_forward_hook(_hook(path, mask, hear)) for path in there]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(path: str, mask: Tensor | None, hear: Hear) -> Callable[[nn.Module, object, object], None]:
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            padded = mask is not None and output.shape[:2] == mask.shape
            hear(path, output.detach()[mask] if padded else output.detach())

    return hook


class Kept:
    """Outputs of a network's modules, in memory."""

    def __init__(self) -> None:
        self.of: dict[str, list[Tensor]] = {}

    def hear(self, path: str, output: Tensor) -> None:
        """Keep a copy."""
        self.of.setdefault(path, []).append(output.clone())

    def squares(self, watched: Sequence[str]) -> Float64[Tensor, "module side"]:
        """Those of `Changed` of the same outputs."""
        changed = Changed(self)
        for path, outputs in self.of.items():
            for output in outputs:
                changed.hear(path, output)
        return changed.squares(watched)


class Changed:
    """By how much outputs are others than what was kept."""

    def __init__(self, kept: Kept) -> None:
        self._kept, self._sums, self._calls = kept.of, dict[str, Tensor](), dict[str, int]()

    def hear(self, path: str, output: Tensor) -> None:
        """Compare with the same call."""
        number = self._calls.get(path, 0)
        self._calls[path] = number + 1
        before = self._kept.get(path, [])
        if number >= len(before) or before[number].shape != output.shape:
            self._sums[path] = torch.full((2,), math.nan, dtype=torch.float64)
            return
        dtype = torch.promote_types(output.dtype, torch.float32)
        x, y = before[number].to(dtype), output.to(dtype)
        squares = [(y - x).square().sum(dtype=torch.float64), x.square().sum(dtype=torch.float64)]
        self._sums[path] = self._sums.get(path, 0.0) + torch.stack(squares).cpu()

    def squares(self, watched: Sequence[str]) -> Float64[Tensor, "module side"]:
        """Sums of squares of what changed, and of what was before; NaN where outputs cannot be compared."""
        nothing = torch.full((2,), math.nan, dtype=torch.float64)
        same = [self._calls.get(path) == len(self._kept.get(path, ())) for path in watched]
        found = [self._sums[path] if there else nothing for path, there in zip(watched, same, strict=True)]
        return torch.stack(found) if found else torch.zeros(0, 2, dtype=torch.float64)
