"""Triangular factors of rows, merged in a tree: singular values that products of features lose in rounding.

A state (`centred`) holds R with R^T R = A^T A for the centred rows A, each times the root of its weight. It comes from Householder
reflections, so that a singular value is right to about 1e-16 of the largest, where products of features end at 1e-8.

Demmel, Grigori, Hoemmen, Langou, SIAM Journal on Scientific Computing 34 (2012) A206.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tasks.numerics.centred import State, centred, empty, join
from tasks.numerics.moments import present, refuse_not_finite

BLOCK_ELEMENTS = 1 << 24
"""Rows that are factored at once: 128 MB, but at least as many rows as features."""


def partial(x: Float[Tensor, "row feature"], weight: Float[Tensor, " row"] | None) -> State:
    """The state of some rows.

    Args:
        x: rows of any floating dtype.
        weight: finite and not negative; None for ones.

    Raises:
        MethodError: for rows that are not finite, and for wrong weights.

    Cost: 2 to 4 rows feature^2 flops in float64; at most 3 feature^2 numbers, or 256 MB.
    """
    x, weight = present(x.detach(), weight)
    state = empty(x.shape[1], x.device)
    step = max(1, x.shape[1], BLOCK_ELEMENTS // max(1, x.shape[1]))
    for low in range(0, len(x), step):
        part = slice(low, low + step)
        state = merge(state, _factored(centred(x[part], None if weight is None else weight[part])))
    if not bool(state["energy"].isfinite()):
        refuse_not_finite(x)
    return state


def merge(a: State, b: State) -> State:
    """The state of both sets of rows; neither argument is changed."""
    if a["n"] == 0 or b["n"] == 0:
        return dict(b if a["n"] == 0 else a)
    return _factored(join(a, b))


def _factored(state: State) -> State:
    """R in the place of more rows than features."""
    rows = state["rows"]
    if len(rows) <= rows.shape[1]:
        return state
    return state | {"rows": torch.linalg.qr(rows, mode="r").R}
