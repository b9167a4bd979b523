"""Leave the network and the process as they were: training flags and random generators."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.extract.turns import TakeTurns


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


@contextmanager
def undrawn() -> Iterator[None]:
    """Nothing is drawn from the generators of the CPU inside; where something is, they get their states back.

    Raises:
        TakeTurns: on the way out, if any thread drew from a generator meanwhile.
    """
    python, own = random.getstate(), torch.default_generator.get_state()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    yield
    same = python == random.getstate() and _same(numpy, np.random.get_state(legacy=False))  # noqa: NPY002
    if not (same and torch.equal(own, torch.default_generator.get_state())):
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.default_generator.set_state(
            own
        )  # else a network that seeds itself would leave no trace from now on
        raise TakeTurns("the network draws random numbers")


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    inner, other = a["state"], b["state"]
    return (
        bool((inner["key"] == other["key"]).all())
        and inner["pos"] == other["pos"]
        and (a["has_gauss"], a["gauss"]) == (b["has_gauss"], b["gauss"])
    )


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
