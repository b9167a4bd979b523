"""Whether a forward draws random numbers, also where it seeds the generators itself and leaves them as they were."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NO_DROPOUT = "aten::_scaled_dot_product_flash_attention_for_cpu"
"""Tagged as random for its dropout, which it does not take: attention with dropout goes another way."""


def draws(forward: Callable[[], object]) -> bool:
    """Whether any operation of torch inside is random.

    Args:
        forward: runs the network once; what it raises is raised.

    Cost: one forward, slower by some microseconds per operation.
    """
    watch = _Watch()
    with watch:
        forward()
    return watch.seen


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation, those inside composite ones too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            with self:  # dropout in evaluation mode is tagged too: what it consists of tells
                result = func.decompose(*args, **given)
            if result is not NotImplemented:
                return result
            self.seen = self.seen or func._schema.name != NO_DROPOUT
        return func(*args, **given)
