"""Sums of rows by group and by unit inside it, such as a sample: means of units, and what all rows of a group weigh; one pass, mergeable.

A state holds, for groups 0, 1, ... of some units each:

    sum     float64 [group, unit, feature]   sum of a unit's rows         rows      float64 [group, unit]   how many
    square  float64 [group, feature]         sum of squares               left_out  int64 []                rows of no group
    gram    float64 [2, feature, feature]    sum of x x^T over rows of group 0, and of all others; upper triangle

Sums are about the origin: means lose digits where these are far larger than what rows vary by.
"""

import torch
from jaxtyping import Int64, Real
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import class_moments, moments
from tasks.numerics.symmetric import add_gram

State = dict[str, Tensor]
BLOCK_ROWS = 2048
"""Rows in float64 at once."""


def state_bytes(width: int, groups: int, units: int) -> int:
    """Of a state, the little ones left out."""
    return 8 * width * (groups * units + 2 * width)


def partial(
    x: Real[Tensor, "row feature"],
    group: Int64[Tensor, " row"],
    unit: Int64[Tensor, " row"],
    groups: int,
    units: int,
) -> State:
    """The state of some rows.

    Args:
        x: finite rows of any real dtype.
        group: of each; negative: none, the row is left out.
        unit: of each, below `units`.
        groups: how many.
        units: of each group.

    Raises:
        MethodError: for rows that are not finite, or whose squares overflow.

    Cost: rows * feature * (feature + 1) flops on a CPU.
    """
    if not bool(x.isfinite().all()):
        moments.refuse_not_finite(x)
    state = _empty(groups, units, x.shape[1], x.device)
    state["left_out"] += (group < 0).sum()
    for some in torch.split(torch.nonzero(group >= 0).flatten(), BLOCK_ROWS):
        _add(state, x[some].double(), group[some], unit[some])
    if x.device.type != "cpu":
        state["gram"].triu_()
    if not bool(state["square"].isfinite().all()):
        raise MethodError("squares of the rows overflow; scale the rows")
    return state


def merge(a: State, b: State) -> State:
    """The state of both sets of rows."""
    return {name: a[name] + b[name] for name in a}


def _empty(groups: int, units: int, width: int, device: torch.device) -> State:
    shapes = {
        "sum": (groups, units, width),
        "rows": (groups, units),
        "square": (groups, width),
        "gram": (2, width, width),
    }
    state = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
    return state | {"left_out": torch.zeros((), dtype=torch.int64, device=device)}


def _add(state: State, z: Tensor, group: Tensor, unit: Tensor) -> None:
    place = group * state["sum"].shape[1] + unit
    _add_at(state["sum"].flatten(0, 1), place, z)
    _add_at(state["rows"].view(-1, 1), place, torch.ones_like(z[:, :1]))
    _add_at(state["square"], group, z.square())
    for side, those in enumerate((group == 0, group > 0)):
        add_gram(state["gram"][side], z[those])


def _add_at(total: Tensor, place: Tensor, values: Tensor) -> None:
    """Add rows in their places; the same bits every time on a GPU too."""
    there, order = torch.sort(place, stable=True)
    there, which, n = torch.unique_consecutive(there, return_inverse=True, return_counts=True)
    total[there] += class_moments.sums(values[order], which, n)
