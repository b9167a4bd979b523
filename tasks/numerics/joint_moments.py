"""Second and part of the fourth moments of paired rows (x, y), for measures of similarity: one pass,
mergeable.

A state holds sums over paired rows, with z = (x, y) - c the joined row about a shift c, and r = (|z_x|^2,
|z_y|^2):

    n    int64 []                        rows
    left int64 []                        how many features are x's
    c    float64 [feature]               the shift, the rows' mean rounded to float32
    s    float64 [feature]               sum z
    g    float64 [feature, feature]      sum z z^T
    t    float64 [side, feature]         sum r_i z
    f    float64 [side, side]            sum r_i r_j

`feature` counts those of x, then those of y; `side` is 2. Every block has a shift of its own, so that a large
offset never meets a product. The shift moves by exact identities: with e = old - new shift, E_i its part on
side i (zero on the other), E = |E_i|^2 and a_i = E_i.s, z' = z + e and r_i' = r_i + 2 E_i.z + |E_i|^2 are
multiplied out.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from schemas.errors import MethodError

State = dict[str, Tensor]


def partial(x: Float[Tensor, "row left"], y: Float[Tensor, "row right"]) -> State:
    """The state of some paired rows of any floating dtype.

    Cost: 2 rows (left + right)^2 flops in float64.
    """
    z = torch.cat([x.double(), y.double()], dim=1)
    c = z.mean(0).float().double() if len(z) else z.new_zeros(z.shape[1])
    z -= c
    r = torch.stack([z[:, : x.shape[1]].square().sum(1), z[:, x.shape[1] :].square().sum(1)])
    n = torch.tensor(len(x), dtype=torch.int64, device=x.device)
    left = torch.tensor(x.shape[1], dtype=torch.int64, device=x.device)
    return {"n": n, "left": left, "c": c, "s": z.sum(0), "g": z.T @ z, "t": r @ z, "f": r @ r.T}


def merge(a: State, b: State) -> State:
    """The state of both sets of rows, about the shift of the first that has rows.

    Raises:
        MethodError: if the widths differ.
    """
    if a["c"].shape != b["c"].shape or int(a["left"]) != int(b["left"]):
        raise MethodError(
            "states of different widths cannot be merged; all rows must come from sites of one width"
        )
    if int(a["n"]) == 0:
        return dict(b)
    moved = move(b, a["c"])
    return {name: a[name] if name in ("c", "left") else a[name] + moved[name] for name in a}


def move(state: State, shift: Float64[Tensor, " feature"]) -> State:
    """The same rows about another shift. Cost: O(feature^2)."""
    left = int(state["left"])
    n, s, g, t = state["n"], state["s"], state["g"], state["t"]
    e = state["c"] - shift
    sides = torch.zeros_like(t)
    sides[0, :left], sides[1, left:] = e[:left], e[left:]
    square, along, trace = sides.square().sum(1), sides @ s, _traces(g, left)
    ge, te = sides @ g, t @ sides.T
    coefficient = trace + 2 * along + n * square
    f = state["f"] + 2 * (te + te.T) + 4 * ge @ sides.T + n * torch.outer(square, square)
    half = torch.outer(trace + 2 * along, square)
    outer = torch.outer(s, e)
    return {
        "n": n,
        "left": state["left"],
        "c": shift,
        "s": s + n * e,
        "g": g + outer + outer.T + n * torch.outer(e, e),
        "t": t + 2 * ge + torch.outer(square, s) + torch.outer(coefficient, e),
        "f": f + half + half.T,
    }


def centred(state: State) -> State:
    """The same rows about their mean.

    Raises:
        MethodError: for a state of no rows.
    """
    if int(state["n"]) == 0:
        raise MethodError(
            "found no paired rows; connect two sites whose rows share sample keys and positions"
        )
    return move(state, state["c"] + state["s"] / state["n"])


def _traces(g: Tensor, left: int) -> Tensor:
    diagonal = g.diagonal()
    return torch.stack([diagonal[:left].sum(), diagonal[left:].sum()])
