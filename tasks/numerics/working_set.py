"""Elastic nets of rows over all other rows, of which each row works with a few at a time; the answer is that of all.

A row begins with the columns of largest product. In turn its problem is solved on these, exactly (`elastic_net`), and all columns are
looked at: those whose product with the scaled residual exceeds tau would lower the objective, and come in, while columns without a
coefficient leave. Where none exceeds it, the conditions of the minimum over all columns hold: that is the certificate (You, Li, Robinson,
Vidal, CVPR (2016) 3928, theorem 3).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tasks.numerics.elastic_net import gamma_for, solve
from tasks.numerics.largest_products import Largest, Precision, inner, largest, none_yet

State = dict[str, Tensor]
SEARCH, COLLECT, CHECK = 0, 1, 2
"""What the next look at all columns is for."""
FLOOR = {"float64": 1e-8, "float32": 1e-5}
"""Violations up to this, relative to tau, are rounding of products in that precision."""
MOST_LOOKS = 100
"""At all columns; what is not at its minimum then shows in the violation."""


class Problem(NamedTuple):
    """What is minimised over the coefficients of each row, and with how many columns at a time."""

    tau: float
    gamma: float
    affine: bool
    first: int
    """Columns that a row begins with."""
    most: int
    """Columns that it works with."""
    precision: Precision


def begun(x: Float64[Tensor, "row feature"], problem: Problem) -> State:
    """Nothing known yet."""
    n, width = x.shape
    found = none_yet(n, problem.first, x.device)
    return {
        "aim": torch.tensor(SEARCH),
        "product": found.product,
        "column": found.column,
        "total": found.total,
        "member": torch.full((n, problem.most), -1, dtype=torch.int64, device=x.device),
        "have": torch.zeros(n, problem.most, dtype=torch.bool, device=x.device),
        "values": x.new_zeros(n, problem.most, width),
        "c": x.new_zeros(n, problem.most),
        "gamma": x.new_zeros(n),
        "violation": x.new_zeros(n),
        "open": torch.linalg.vector_norm(x, dim=1) > 0,
        "looks": torch.tensor(0),
    }


def looked(
    state: State,
    x: Float64[Tensor, "row feature"],
    index: Int64[Tensor, " row"],
    y: Float64[Tensor, "column feature"],
    y_index: Int64[Tensor, " column"],
    problem: Problem,
) -> State:
    """After some more columns, whose indices are ascending and larger than those before."""
    if int(state["aim"]) == COLLECT:
        return _collected(state, y, y_index)
    rows = torch.nonzero(state["open"]).flatten()
    left, right, barred = x[rows], y, None
    if int(state["aim"]) == CHECK:
        left, right = _gradient(state, x, rows, problem), y
        barred = state["member"][rows]
        if problem.affine:
            right = torch.cat([y, torch.ones_like(y[:, :1])], 1)
    found = Largest(state["product"][rows], state["column"][rows], state["total"][rows])
    found = largest(found, left, index[rows], right, y_index, problem.precision, barred)
    return _with(state, rows, found)


def moved(state: State, x: Float64[Tensor, "row feature"], problem: Problem) -> tuple[State, bool]:
    """After a look at all columns: the state for the next, and whether there is one."""
    state = state | {"looks": state["looks"] + 1}
    aim = int(state["aim"])
    if aim == SEARCH:
        return _first(state, problem), bool(state["open"].any())
    if aim == COLLECT:
        return _solved(state, x, problem), bool(state["open"].any())
    state = _checked(state, problem)
    return state, bool(state["open"].any()) and int(state["looks"]) < MOST_LOOKS


def residual(state: State, x: Float64[Tensor, "row feature"]) -> Float64[Tensor, "row feature"]:
    """What the coefficients leave of each row."""
    return x - (state["c"][:, None] @ state["values"])[:, 0]


def _first(state: State, problem: Problem) -> State:
    """The columns of largest product come in; without any, nothing can be said of a row."""
    count = state["column"].shape[1]
    member = state["member"].clone()
    member[:, :count] = state["column"]
    gamma = gamma_for(state["product"][:, 0].abs(), problem.gamma, problem.tau)
    aim = torch.tensor(COLLECT)
    return state | {
        "aim": aim,
        "member": member,
        "gamma": gamma,
        "open": state["open"] & (state["column"][:, 0] >= 0),
    }


def _collected(state: State, y: Tensor, y_index: Tensor) -> State:
    """With the values of members that are among some columns."""
    member = state["member"]
    place = torch.searchsorted(y_index, member).clamp(max=len(y_index) - 1)
    row, slot = torch.nonzero((y_index[place] == member) & ~state["have"]).unbind(1)
    values, have = state["values"], state["have"].clone()
    values[row, slot] = y[place[row, slot]]
    have[row, slot] = True
    return state | {"values": values, "have": have}


def _solved(state: State, x: Tensor, problem: Problem) -> State:
    """The minimum over each open row's members; then all columns are looked at, for as many as a row has room for."""
    rows = torch.nonzero(state["open"]).flatten()
    values, valid = state["values"][rows], state["member"][rows] >= 0
    found = solve(
        values @ values.mT,
        inner(values, x[rows]),
        state["gamma"][rows],
        problem.tau,
        state["c"][rows],
        valid,
        problem.affine,
    )
    look = none_yet(len(x), max(1, problem.most - problem.first), x.device)
    return state | {
        "aim": torch.tensor(CHECK),
        "c": state["c"].index_copy(0, rows, found.c),
        "violation": state["violation"].index_copy(0, rows, found.violation),
        "product": look.product,
        "column": look.column,
        "total": look.total,
    }


def _gradient(state: State, x: Tensor, rows: Tensor, problem: Problem) -> Tensor:
    """What the product of a column with exceeds tau where the column would come in."""
    c, values = state["c"][rows], state["values"][rows]
    delta = state["gamma"][rows, None] * (x[rows] - (c[:, None] @ values)[:, 0])
    if not problem.affine:
        return delta
    wanted = problem.tau * c.sign() + (1 - problem.tau) * c - inner(values, delta)
    there = c != 0
    multiplier = (wanted * there).sum(1) / there.sum(1).clamp(min=1)
    return torch.cat([delta, multiplier[:, None]], 1)


def _checked(state: State, problem: Problem) -> State:
    """Columns that exceed tau come in, in the places of those without a coefficient; a row without any, or without a place, is done."""
    size = state["product"].abs()
    over = (size / problem.tau - 1).clamp(min=0)
    worst = torch.maximum(over[:, 0], state["violation"])
    violation = torch.where(state["open"], worst, state["violation"])
    order = torch.argsort(state["c"].abs(), dim=1, descending=True, stable=True)
    used = (state["c"] != 0).sum(1)
    room = problem.most - used
    wanted = (over > FLOOR[problem.precision]).sum(1)
    state = state | {"violation": violation, "open": state["open"] & (wanted > 0) & (room > 0)}
    rows = torch.nonzero(state["open"]).flatten()
    return _admitted(state, rows, order[rows], used[rows], torch.minimum(wanted, room)[rows])


def _admitted(state: State, rows: Tensor, order: Tensor, used: Tensor, new: Tensor) -> State:
    """Members with coefficients first, then the new ones."""
    slots = torch.arange(order.shape[1], device=order.device)
    kept = slots < used[:, None]
    place = (slots - used[:, None]).clamp(min=0)
    fresh = ~kept & (place < new[:, None])
    added = state["column"][rows].gather(1, place.clamp(max=state["column"].shape[1] - 1))
    member = torch.where(kept, state["member"][rows].gather(1, order), torch.where(fresh, added, -1))
    values = state["values"][rows].gather(1, order[..., None].expand_as(state["values"][rows]))
    values *= kept[..., None]
    out = {
        "member": member,
        "have": kept,
        "values": values,
        "c": torch.where(kept, state["c"][rows].gather(1, order), 0.0),
    }
    return (
        state
        | {name: state[name].index_copy(0, rows, part) for name, part in out.items()}
        | {"aim": torch.tensor(COLLECT)}
    )


def _with(state: State, rows: Tensor, found: Largest) -> State:
    return state | {
        name: state[name].index_copy(0, rows, values)
        for name, values in zip(("product", "column", "total"), found, strict=True)
    }
