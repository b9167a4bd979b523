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

from tasks.numerics.largest_product import Best, improved
from tasks.numerics.largest_products import inner

State = dict[str, Tensor]
BEST = ("best", "best.index", "candidate")
AT_ONCE = 64
"""Targets that take a column together: what is made of their bases stays in the cache."""
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
) -> State:
    """The best column after some more, whose indices are ascending and larger than those before; none is its own target, or taken twice.

    Args:
        state: is changed.
        index: of the targets among the columns.
        y: columns.
        y_index: their indices.

    Cost: that of `largest_product.improved` over the rows that are not done.
    """
    rows = torch.nonzero(state["open"]).flatten()
    every = len(rows) == len(index)
    left, taken_before, *best = (
        state[name] if every else state[name][rows] for name in ("left", "index", *BEST)
    )
    barred = torch.cat([index[rows, None], taken_before], 1)
    improved(Best(*best), left, barred, y, y_index)
    if not every:
        for name, values in zip(BEST, best, strict=True):
            state[name].index_copy_(0, rows, values)
    return state


def taken(state: State, x: Float64[Tensor, "row feature"], tolerance: float, floor: float) -> State:
    """The best column of each target is taken; a target is done when no column helps, little is left, or all places are full.

    Args:
        state: after a look; is changed.
        x: the targets.
        tolerance: a target is done with this share of its length left.
        floor: a column with no larger |cosine| to what is left is not taken, and the target done.
    """
    for rows in torch.split(torch.nonzero(state["open"]).flatten(), AT_ONCE):
        _take(state, rows, x[rows], tolerance, floor)
    state["best"].zero_()
    state["best.index"].fill_(-1)
    return state


def _take(state: State, rows: Tensor, x: Tensor, tolerance: float, floor: float) -> None:
    """Of some open targets."""
    column, left, basis = (state[name][rows] for name in ("candidate", "left", "basis"))
    length, rest = torch.linalg.vector_norm(column, dim=1), torch.linalg.vector_norm(left, dim=1)
    across, along = _orthogonal(column, basis)
    new = torch.linalg.vector_norm(across, dim=1)
    add = (state["best"][rows] > floor * length * rest) & (new > DEPENDENT * length)
    chosen, place = rows[add], state["count"][rows[add]]
    unit = across[add] / new[add, None]
    state["basis"][chosen, place] = unit
    state["triangle"][chosen, :, place] = along[add]
    state["triangle"][chosen, place, place] = new[add]
    state["index"][chosen, place] = state["best.index"][chosen]
    left[add] -= unit * (unit * left[add]).sum(1, keepdim=True)
    state["left"][rows] = left
    state["count"][chosen] += 1
    enough = torch.linalg.vector_norm(left, dim=1) <= tolerance * torch.linalg.vector_norm(x, dim=1)
    state["open"][rows] = add & ~enough & (state["count"][rows] < state["index"].shape[1])


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
