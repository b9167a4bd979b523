"""Moments of rows in groups of samples, so that every number can be computed again without each group."""

import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Block, State
from tasks.numerics import jackknife, moments
from tasks.numerics.moments import Precision
from tasks.numerics.split import runs, spread

MOST_BYTES = 1 << 31
"""Of a state, groups x features x features numbers."""


@runtime_checkable
class HasGroups(Protocol):
    """Options of a method that reads this state."""

    @property
    def groups(self) -> int: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def weight_label(self) -> str | None: ...


class Interval(Frozen):
    """A number of all rows with its uncertainty; None where the groups do not determine it."""

    value: float
    corrected: float | None
    """Without the first order of its bias."""
    low: float | None
    high: float | None


def check(width: int, groups: int) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the groups' covariances take more than 2 GiB.
    """
    needed = 8 * groups * width**2
    if needed > MOST_BYTES:
        raise MethodError(
            f"{groups} groups of {width} features take {needed:,} bytes, at most {MOST_BYTES:,} are used; ask for at most "
            f"{MOST_BYTES // (8 * width**2)} groups, or project the site first"
        )


def state_config(config: HasGroups) -> dict[str, object]:
    """What the state depends on."""
    return {"groups": config.groups, "precision": config.precision, "weight_label": config.weight_label}


def partial(x: Tensor, block: Block, config: HasGroups) -> State:
    """The moments of each group's rows, stacked.

    Args:
        x: [row, feature], of the block or made of it.
        block: whose samples and weights they have.
        config: options.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    order, groups = runs(spread(block.sample, config.groups), config.groups)
    x, weight = x[order], None if block.weight is None else block.weight[order]
    state = _empty(config.groups, x.shape[1], x.device)
    for rows, group in zip(groups, each(state), strict=True):
        moments.partial(x[rows], None if weight is None else weight[rows], config.precision, group)
    return state


def merge(a: State, b: State) -> State:
    """The moments of both, group by group."""
    out = {name: torch.empty_like(values) for name, values in a.items()}
    for group in zip(each(a), each(b), each(out), strict=True):
        moments.merge(*group)
    return out


def groups_of(state: State) -> list[State]:
    """The moments of each group that holds rows.

    Raises:
        MethodError: if less than two do.
    """
    groups = [group for group in each(state) if int(group["n"])]
    if len(groups) < 2:
        raise MethodError(
            f"samples fall into {len(groups)} groups, expected at least 2; capture more samples"
        )
    return groups


def total(groups: list[State]) -> State:
    """Of all rows."""
    return reduce(moments.merge, groups)


def leaving_out(
    groups: list[State], merge: Callable[[State, State], State] = moments.merge
) -> Iterator[State]:
    """Of all rows but each group's, from sums of those before and after."""
    after: list[State | None] = [None]
    for group in reversed(groups[1:]):
        later = after[-1]
        after.append(group if later is None else merge(group, later))
    before: State | None = None
    for group in groups:
        later = after.pop()
        both = before if later is None else later if before is None else merge(before, later)
        assert both is not None
        yield both
        before = group if before is None else merge(before, group)


def interval(
    value: float, without: list[float], confidence: float, most: float = math.inf
) -> Interval | None:
    """None where the value is no number; `most` is what it cannot exceed, nor its interval."""
    if not math.isfinite(value):
        return None
    found = jackknife.estimate(value, without, confidence, most)
    bounds = {name: _known(getattr(found, name)) for name in ("corrected", "low", "high")}
    return Interval(value=value, **bounds)


def cosine_interval(value: float, without: list[float], confidence: float) -> Interval | None:
    """Of a number between -1 and 1, with an interval that ends there; None where the value is no number."""
    found = interval((1 + value) / 2, [(1 + v) / 2 for v in without], confidence, 1.0)
    if found is None:
        return None
    bounds = {name: None if v is None else 2 * v - 1 for name, v in found.model_dump().items()}
    return Interval.model_validate(bounds | {"value": value})


def caveats(groups: int, asked: int) -> tuple[str, ...]:
    """What a reader of intervals must know."""
    return (f"samples fill {groups} of {asked} groups: intervals rest on these",) if groups < asked else ()


def _empty(groups: int, width: int, device: torch.device) -> State:
    one = moments.empty(width, device)
    return {name: values.new_zeros((groups, *values.shape)) for name, values in one.items()}


def each(state: State) -> list[State]:
    """The state of every group, empty ones too."""
    return [{name: values[g] for name, values in state.items()} for g in range(len(state["n"]))]


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None
