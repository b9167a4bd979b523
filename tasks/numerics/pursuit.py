"""Orthogonal matching pursuit of many targets over columns that come in blocks.

A look at all columns finds the one most aligned with what is left of each target; it is taken into an orthonormal basis (Gram-Schmidt,
twice), from which coefficients follow by back substitution: as accurate as a QR decomposition of the taken columns, and no step is
repeated. Targets that are done take no part in later looks.
"""

import math

import torch
from jaxtyping import Float64, Int64
from scipy.stats import beta
from torch import Tensor

from tasks.numerics.largest_products import Precision, bar, inner, tiles

State = dict[str, Tensor]
DEPENDENT = 1e-10
"""A column with no more than this share of its length outside of what is taken adds nothing."""


def chance_alignment(columns: int, width: int) -> float:
    """The largest |cosine| with a fixed direction that this many random directions stay below in nineteen of twenty cases."""
    if width < 2:
        return 1.0
    above = -math.expm1(math.log(0.95) / max(columns, 1))
    return float(math.sqrt(beta.isf(above, 0.5, (width - 1) / 2)))


def begun(x: Float64[Tensor, "row feature"], entries: int) -> State:
    """Nothing taken yet; targets of length 0 are done."""
    n, width = x.shape
    return {
        "left": x.clone(),
        "basis": x.new_zeros(n, entries, width),
        "triangle": torch.eye(entries, dtype=x.dtype, device=x.device).repeat(n, 1, 1),
        "index": torch.full((n, entries), -1, dtype=torch.int64, device=x.device),
        "count": torch.zeros(n, dtype=torch.int64, device=x.device),
        "open": torch.linalg.vector_norm(x, dim=1) > 0,
        "best": x.new_zeros(n),
        "best.index": torch.full((n,), -1, dtype=torch.int64, device=x.device),
        "candidate": torch.zeros_like(x),
    }


def looked(
    state: State,
    index: Int64[Tensor, " row"],
    y: Float64[Tensor, "column feature"],
    y_index: Int64[Tensor, " column"],
    precision: Precision,
) -> State:
    """The best column after some more, whose indices are ascending and larger than those before; none is its own target, or taken twice.

    Cost: 2 row column feature flops over the rows that are not done.
    """
    rows = torch.nonzero(state["open"]).flatten()
    best, place, candidate = (state[name][rows] for name in ("best", "best.index", "candidate"))
    barred = torch.cat([index[rows, None], state["index"][rows]], 1)
    for tile in tiles(state["left"][rows], y, precision):
        names, size = y_index[tile.columns], tile.size
        bar(size, names, barred[tile.rows])
        column = size.argmax(1)
        value = size.gather(1, column[:, None])[:, 0].double()
        better = torch.nonzero(value > best[tile.rows]).flatten()
        here = better + tile.rows.start
        best[here], place[here] = value[better], names[column[better]]
        candidate[here] = y[tile.columns][column[better]]
    out = dict(state)
    for name, values in (("best", best), ("best.index", place), ("candidate", candidate)):
        out[name] = state[name].index_copy(0, rows, values)
    return out


def taken(state: State, x: Float64[Tensor, "row feature"], tolerance: float, floor: float) -> State:
    """The best column of each target is taken; a target is done when no column helps, little is left, or all places are full.

    Args:
        state: after a look.
        x: the targets.
        tolerance: a target is done with this share of its length left.
        floor: a column with no larger |cosine| to what is left is not taken, and the target done.
    """
    state, entries = {name: values.clone() for name, values in state.items()}, state["index"].shape[1]
    column, left = state["candidate"], state["left"]
    length, rest = torch.linalg.vector_norm(column, dim=1), torch.linalg.vector_norm(left, dim=1)
    across, along = _orthogonal(column, state["basis"])
    new = torch.linalg.vector_norm(across, dim=1)
    add = state["open"] & (state["best"] > floor * length * rest) & (new > DEPENDENT * length)
    rows = torch.nonzero(add).flatten()
    place = state["count"][rows]
    unit = across[rows] / new[rows, None]
    state["basis"][rows, place] = unit
    state["triangle"][rows, :, place] = along[rows]
    state["triangle"][rows, place, place] = new[rows]
    state["index"][rows, place] = state["best.index"][rows]
    left[rows] -= unit * (unit * left[rows]).sum(1, keepdim=True)
    state["count"][rows] += 1
    rest = torch.linalg.vector_norm(left, dim=1)
    enough = rest <= tolerance * torch.linalg.vector_norm(x, dim=1)
    state["open"] = add & ~enough & (state["count"] < entries)
    return state | {"best": torch.zeros_like(rest), "best.index": torch.full_like(state["count"], -1)}


def coefficients(state: State, x: Float64[Tensor, "row feature"]) -> tuple[Tensor, Tensor, Tensor]:
    """index [row, entry] and coefficient [row, entry], largest size first, -1 and 0 in free places; what is left over the length."""
    there = state["index"] >= 0
    right = inner(state["basis"], x)
    solved = torch.linalg.solve_triangular(state["triangle"], right[..., None], upper=True)[..., 0]
    solved = torch.where(there, solved, 0.0)
    order = torch.argsort(solved.abs() + there, dim=1, descending=True, stable=True)
    length = torch.linalg.vector_norm(x, dim=1)
    share = torch.linalg.vector_norm(state["left"], dim=1) / torch.where(length > 0, length, 1.0)
    return state["index"].gather(1, order), solved.gather(1, order), share


def _orthogonal(column: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """What of columns lies outside of bases, and their coordinates inside."""
    along = column.new_zeros(basis.shape[:2])
    for _ in range(2):
        inside = inner(basis, column)
        column = column - (inside[:, None] @ basis)[:, 0]
        along = along + inside
    return column, along
