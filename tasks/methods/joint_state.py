"""The one reduction behind every method about two joined sites: they share one state, one read.

A method takes part by `from tasks.methods.joint_state import merge, partial, start, state_config`. The state holds the joint moments of
rows in groups of samples, so that numbers can be computed again without each group, and maps tried on rows that they were not fitted to.
"""

from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Block, Inputs, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import joint_moments
from tasks.numerics.split import spread

VERSION = 1
MOST_BYTES = 1 << 30
"""Of a state. Wide sites get fewer groups."""
WIDEST = 8192
"""Features of a site whose covariances are decomposed."""


@runtime_checkable
class HasGroups(Protocol):
    """Options of a method that reads this state."""

    @property
    def groups(self) -> int: ...


def n_groups(width: int, asked: int) -> int:
    """How many groups of that many joined features fit: as many as asked for, or fewer, but one."""
    return max(1, min(asked, MOST_BYTES // (8 * max(1, width) ** 2)))


def check_widths(inputs: Inputs, widest: int = WIDEST) -> None:
    """Refuse before reading what needs a decomposition of each side.

    Raises:
        MethodError: if a site has more features than a method can take.
    """
    for port, width in inputs.widths.items():
        if width > widest:
            needed = 8 * sum(inputs.widths.values()) ** 2
            raise MethodError(
                f"port {port!r}: the site has {width} features, at most {widest} are taken; one state of both sites would take "
                f"{needed:,} bytes: capture a projection of it"
            )


def state_config(config: HasGroups) -> dict[str, object]:
    """What the state depends on."""
    return {"groups": config.groups}


def start(inputs: Inputs, config: HasGroups) -> State:
    """Nothing is carried from round to round."""
    return {}


def partial(block: Block, carry: State, config: HasGroups) -> State:
    """The joint moments of a block's rows at ports x and y, group by group."""
    x, y = block["x"], block["y"]
    groups = n_groups(x.shape[1] + y.shape[1], config.groups)
    group = spread(block.sample, groups)
    there = set(group.tolist())
    return _stacked(
        [
            joint_moments.partial(x[chosen], y[chosen])
            for g in range(groups)
            for chosen in [group == g if g in there else slice(0, 0)]
        ]
    )


def merge(a: State, b: State) -> State:
    """The moments of both, group by group."""
    return _stacked([joint_moments.merge(x, y) for x, y in zip(_each(a), _each(b), strict=True)])


def groups_of(state: State) -> list[State]:
    """The moments of each group that holds rows.

    Raises:
        MethodError: if no row has a partner.
    """
    found = [group for group in _each(state) if int(group["n"])]
    if not found:
        raise MethodError(
            "no row of x has a partner in y: sample keys or positions differ; connect captures of the same data"
        )
    return found


def total(groups: list[State]) -> State:
    """Of all rows."""
    return reduce(joint_moments.merge, groups)


def leaving_out(groups: list[State]) -> list[State]:
    """Of all rows but each group's; none for a single group."""
    if len(groups) < 2:
        return []
    return [total(groups[:g] + groups[g + 1 :]) for g in range(len(groups))]


def interval(value: float, without: list[float], confidence: float) -> Interval | None:
    """Of a number that is at most 1. None where the value is no number."""
    return grouped_moments.interval(value, without, confidence, 1.0)


def caveats(groups: int, asked: int) -> tuple[str, ...]:
    """What a reader of intervals must know."""
    if groups == 1:
        return (
            "all samples are in one group, so there are no intervals and no held-out values: capture more samples, or narrower sites",
        )
    return (f"samples fill {groups} of {asked} groups: intervals rest on these",) if groups < asked else ()


def _stacked(states: list[dict[str, Tensor]]) -> State:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _each(state: State) -> list[State]:
    return [{name: values[g] for name, values in state.items()} for g in range(len(state["n"]))]
