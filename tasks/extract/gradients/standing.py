"""How a network stands before a pass, so that one that was broken off leaves nothing behind."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Standing:
    """Of parameters: where they lie, how often they were written into, whether they want gradients; of modules: their hooks."""

    def __init__(self, module: nn.Module, parameters: Iterable[Tensor]) -> None:
        self._flags = [(parameter, parameter.requires_grad) for parameter in parameters]
        self._places = self._now()
        self._hooks: list[tuple[dict[int, Any], int]] = [
            (hooks, len(hooks))
            for part in module.modules()
            for name in HOOKS
            for hooks in [getattr(part, name)]
        ]

    @property
    def is_written(self) -> bool:
        """Whether a parameter that wants gradients holds other values now, as far as torch tells."""
        return self._now() != self._places

    def restore(self) -> None:
        """What a pass had changed and would have put back."""
        for parameter, wants in self._flags:
            if parameter.requires_grad != wants:
                parameter.requires_grad_(wants)
        for hooks, before in self._hooks:
            for key in list(hooks)[before:]:
                del hooks[key]

    def _now(self) -> list[tuple[int, int]]:
        return [
            (
                parameter.data_ptr() if parameter.layout == torch.strided else 0,
                0 if parameter.is_inference() else parameter._version,
            )
            for parameter, wants in self._flags
            if wants
        ]
