"""Leave the network and the process as they were: training flags and random generators."""

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

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
    generators = _generators(devices)
    states = [generator.get_state() for generator in generators]
    try:
        seed_all(seed, devices)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def seed_all(seed: int, devices: Sequence[torch.device] = ()) -> None:
    """Generators of torch (CPU and the given CUDA devices), numpy and random seeded."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    for generator in _generators(devices):
        generator.manual_seed(seed)


def _generators(devices: Sequence[torch.device]) -> list[torch.Generator]:
    return [torch.default_generator, *(torch.cuda.default_generators[_index(device)] for device in devices)]


class _States(NamedTuple):
    """Of the generators of the CPU, and when they were looked at."""

    moment: int
    python: tuple[Any, ...]
    numpy: dict[str, Any]
    torch: Tensor


_moments = itertools.count()
_drawn: list[_States] = []
"""Before forwards during which something was drawn; while there is any, no forward beside others stands."""


@contextmanager
def undrawn() -> Iterator[None]:
    """Nothing is drawn from the generators of the CPU inside, by any thread.

    Raises:
        TakeTurns: on the way out, if something was; until `settle`, every other thread gets it too.
    """
    before = _states()
    try:
        yield
    finally:
        if not _equal(before, _states()):
            _drawn.append(before)
    if _drawn:
        raise TakeTurns("the network draws random numbers")


def settle() -> None:
    """Give the generators back what they had before something was drawn; to be called while no forward is under way.

    Earlier, a forward that drew would find them as they were, and stand. Never, one that seeds them itself would leave no trace.
    """
    if _drawn:
        first = min(_drawn, key=lambda states: states.moment)  # to begin; another may have ended before it
        random.setstate(first.python)
        np.random.set_state(first.numpy)  # noqa: NPY002
        torch.default_generator.set_state(first.torch)
        _drawn.clear()


def _states() -> _States:
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    return _States(next(_moments), random.getstate(), numpy, torch.default_generator.get_state())


def _equal(a: _States, b: _States) -> bool:
    return a.python == b.python and _same(a.numpy, b.numpy) and torch.equal(a.torch, b.torch)


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    inner, other = a["state"], b["state"]
    return (
        bool((inner["key"] == other["key"]).all())
        and inner["pos"] == other["pos"]
        and (a["has_gauss"], a["gauss"]) == (b["has_gauss"], b["gauss"])
    )


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
