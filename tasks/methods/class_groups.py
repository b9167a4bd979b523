"""Class moments in groups of samples, so that measures of classes have intervals where memory allows that."""

from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs, State
from tasks.numerics import class_moments
from tasks.numerics.split import runs, spread

MOST_GROUPED_BYTES = 1 << 30
"""Of states in groups; beyond there is one group, and no interval."""
MOST_BYTES = 1 << 32
"""Of a state at all."""


def n_groups(inputs: Inputs, classes: int | None, groups: int, width: int) -> int:
    """Groups that fit into memory: the wanted ones, or 1.

    Leaving groups out holds as many states as there are groups, each with up to all classes; if nobody knows how many these are, as with
    tokens, up to as many as rows.
    """
    most = inputs.n_rows if classes is None else min(classes, inputs.n_rows)
    return groups if 8 * width * groups * (most + width) <= MOST_GROUPED_BYTES else 1


def check(inputs: Inputs, classes: int | None, width: int) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the classes take more than 4 GiB; where nobody knows how many there are, `merge` refuses instead.
    """
    _refuse(0 if classes is None else 8 * width * min(classes, inputs.n_rows))


def partial(x: Tensor, code: Tensor, block: Block, groups: int) -> State:
    """The class moments of each group's rows.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    order, places = runs(spread(block.sample, groups), groups)
    x, code, weight = x[order], code[order], None if block.weight is None else block.weight[order]
    found: State = {}
    for g, rows in enumerate(places):
        state = class_moments.partial(x[rows], code[rows], None if weight is None else weight[rows])
        found |= {f"{g}.{name}": values for name, values in state.items()}
    return found


def merge(a: State, b: State) -> State:
    """The moments of both, group by group.

    Raises:
        MethodError: if the classes take more than 4 GiB.
    """
    found: State = {}
    held = 0
    for g, (one, other) in enumerate(zip(_each(a), _each(b), strict=True)):
        state = class_moments.merge(one, other)
        held += 8 * state["mean"].numel()
        found |= {f"{g}.{name}": values for name, values in state.items()}
    _refuse(held)
    return found


def groups_of(state: State) -> list[State]:
    """The moments of each group that holds rows."""
    return [group for group in _each(state) if len(group["code"])]


def _each(state: State) -> list[State]:
    groups = 1 + max(int(name.partition(".")[0]) for name in state)
    names = [*class_moments.PER_CLASS, "g"]
    return [{name: state[f"{g}.{name}"] for name in names} for g in range(groups)]


def _refuse(needed: int) -> None:
    if needed > MOST_BYTES:
        raise MethodError(
            f"means of classes take {needed:,} bytes, at most {MOST_BYTES:,} are used; project the site first, or choose a label with "
            "fewer classes"
        )
