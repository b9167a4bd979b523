"""Truncated streaming SVD and Frequent Directions: a few rows that stand for all rows seen, with a bound on what they miss.

A state (`centred`, and `rank`, `shrink`, `lost`) holds rows B. With A the centred rows, each times the root of its weight,

    0 <= A^T A - B^T B <= lost I       and       trace(A^T A - B^T B) = energy - |B|^2

Rows are added until there are `capacity(rank)`; then they are cut to their `rank` largest singular triples. That drops an orthogonal
part whose square is at most s^2, the largest square left out, and adds s^2 to `lost`. Frequent Directions also takes s^2 from every
square that is kept, which bounds `lost` by |A - A_k|_F^2 / (rank - k) for every k < rank before anything is seen. The products of rows
that give the triples hide directions below 1e-8 of the largest.

Liberty, KDD (2013). Ghashami, Liberty, Phillips, Woodruff, SIAM Journal on Computing 45 (2016) 1762.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tasks.numerics import centred
from tasks.numerics.centred import State
from tasks.numerics.moments import present, refuse_not_finite
from tasks.numerics.symmetric import row_products

EPS = torch.finfo(torch.float64).eps
MOST_ELEMENTS = 1 << 26
"""Rows that are taken to float64 at once: 512 MB."""
FEWEST = 200
"""Rows that are added between two cuts, at least: fewer cuts lose less."""


def capacity(rank: int) -> int:
    """Rows that a state holds at most."""
    return rank + max(rank, FEWEST)


def empty(width: int, rank: int, shrink: bool, device: str | torch.device = "cpu") -> State:
    """The state of no rows."""
    return centred.empty(width, device) | _options(rank, shrink, torch.device(device))


def partial(
    x: Float[Tensor, "row feature"], weight: Float[Tensor, " row"] | None, rank: int, shrink: bool
) -> State:
    """The state of some rows.

    Args:
        x: rows of any floating dtype.
        weight: finite and not negative; None for ones.
        rank: rows that a cut leaves.
        shrink: Frequent Directions; else the largest singular values are kept as they are.

    Raises:
        MethodError: for rows that are not finite, and for wrong weights.

    Cost: 6 rows rank feature flops in float64 (rank 200 and more); 4 rank x feature numbers.
    """
    x, weight = present(x.detach(), weight)
    state = empty(x.shape[1], rank, shrink, x.device)
    step = max(1, min(capacity(rank) - rank, MOST_ELEMENTS // max(1, x.shape[1])))
    for low in range(0, len(x), step):
        part = slice(low, low + step)
        exact = centred.centred(x[part], None if weight is None else weight[part])
        state = merge(state, exact | _options(rank, shrink, x.device))
    if not bool(state["energy"].isfinite()):
        refuse_not_finite(x)
    return state


def merge(a: State, b: State) -> State:
    """The state of both sets of rows; neither argument is changed."""
    if a["n"] == 0 or b["n"] == 0:
        return dict(b if a["n"] == 0 else a)
    both = centred.join(a, b) | {"lost": a["lost"] + b["lost"]}
    return cut(both) if len(both["rows"]) > capacity(int(a["rank"])) else both


def cut(state: State) -> State:
    """The same with at most `rank` rows, orthogonal and falling in length."""
    rank = int(state["rank"])
    squares, turn = _eigen(state["rows"])
    kept, left = squares[:rank], squares[rank : rank + 1].clamp(min=0).sum()
    rows = turn[:, :rank].T @ state["rows"]
    if bool(state["shrink"]):
        rows = rows * ((kept - left).clamp(min=0) / kept.clamp(min=EPS * float(squares[0]))).sqrt()[:, None]
    rounding = len(squares) * EPS * squares[:1].clamp(min=0).sum()
    return state | {"rows": rows, "lost": state["lost"] + left + rounding}


def missed(state: State) -> float:
    """A bound on |A^T A - B^T B|, the largest eigenvalue of what was left out, as far as float64 tells."""
    left = float(state["energy"] - state["rows"].square().sum())
    return min(float(state["lost"]), max(0.0, left)) + 8 * EPS * float(state["energy"])


def decompose(state: State) -> tuple[Float64[Tensor, " component"], Float64[Tensor, "component feature"]]:
    """Squared singular values of B, falling, and its right singular vectors as orthonormal rows; none below the rounding floor.

    Cost: that of a cut, and an orthogonalisation.
    """
    squares, turn = _eigen(state["rows"])
    floor = max(64, len(squares)) * EPS * (float(squares[0]) if len(squares) else 0.0)
    rank = min(int((squares > floor).sum()), state["rows"].shape[1])
    basis = turn[:, :rank].T @ state["rows"]
    for _ in range(2):  # the products of rows lose half of the digits of small directions
        basis = torch.linalg.qr(basis.T).Q.T
    return squares[:rank], basis


def _options(rank: int, shrink: bool, device: torch.device) -> State:
    return {
        "rank": torch.tensor(rank, device=device),
        "shrink": torch.tensor(shrink, device=device),
        "lost": torch.zeros((), dtype=torch.float64, device=device),
    }


def _eigen(rows: Tensor) -> tuple[Tensor, Tensor]:
    values, turn = torch.linalg.eigh(row_products(rows))
    return values.flip(0), turn.flip(1)
