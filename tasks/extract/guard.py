"""Leave the network and the process as they were: training flags and random generators."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode (dropout off, stored batch statistics), then as it was.

    Flags are set one by one: `eval()` may be overridden to do more, and `train()` would lose a mixture.
    """
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def seeded(seed: int, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Generators of torch (CPU and the given CUDA devices), numpy and random seeded, then as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global state is what is guarded)
    generators = [
        torch.default_generator,
        *(torch.cuda.default_generators[_index(device)] for device in devices),
    ]
    states = [generator.get_state() for generator in generators]
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
