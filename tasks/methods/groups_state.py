"""The one reduction behind every method whose numbers come with intervals by leaving samples out: they share one state, one read.

A method takes part by `from tasks.methods.groups_state import merge, partial, start, state_config`.
"""

from tasks.methods import grouped_moments
from tasks.methods.contract import Block, Inputs, State
from tasks.methods.grouped_moments import HasGroups, merge, state_config

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 2


def start(inputs: Inputs, config: HasGroups) -> State:
    """Nothing is carried from round to round."""
    return {}


def partial(block: Block, carry: State, config: HasGroups) -> State:
    """The moments of each group's rows at port x, stacked.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    return grouped_moments.partial(block["x"], block, config)
