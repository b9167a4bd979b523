"""How a network stands before a pass, so that one that was broken off can be begun again."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from schemas.errors import ModelError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Standing:
    """Of parameters: where they lie, how often they were written into, whether they want gradients; of modules: their mode and hooks."""

    def __init__(self, module: nn.Module, parameters: Iterable[Tensor]) -> None:
        self._flags = [(parameter, parameter.requires_grad) for parameter in parameters]
        self._modes = [(part, part.training) for part in module.modules()]
        self._places, self._hooks = self._written(), self._hooked()

    def restore(self, why: str, is_written: bool = False) -> None:
        """Put back what a pass had changed and changes again; `why` it was broken off, `is_written`: it is known to have written.

        Raises:
            ModelError: if nobody knows what it would have put back: values of parameters, or hooks.
        """
        for parameter, wants in self._flags:
            if parameter.requires_grad != wants:
                parameter.requires_grad_(wants)
        for part, training in self._modes:
            part.training = training
        hooked = self._hooked() != self._hooks
        if is_written or hooked or self._written() != self._places:
            done = "registers or removes hooks" if hooked else "writes into its parameters"
            raise ModelError(
                f"the network {done} in its forward, which cannot be begun again then ({why}); give it "
                f"{'hooks that stay' if hooked else 'copies of them to write into'}"
            )

    def _written(self) -> list[tuple[int, int]]:
        """Of parameters that want gradients, as far as torch tells."""
        return [
            (
                parameter.data_ptr() if parameter.layout == torch.strided else 0,
                0 if parameter.is_inference() else parameter._version,
            )
            for parameter, wants in self._flags
            if wants
        ]

    def _hooked(self) -> list[Any]:
        return [tuple(getattr(part, name)) for part, _ in self._modes for name in HOOKS]
