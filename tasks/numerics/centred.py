"""Rows about their own mean, and how two sets of them become one: exact centring in one pass, in any order.

A state holds

    n       int64 []      rows             mean    float64 [feature]        weighted
    w, w2   float64 []    sums of weights  rows    float64 [any, feature]   A with A^T A = sum w (x - mean)(x - mean)^T
    energy  float64 []    sum w |x - mean|^2

Two sets together have the rows of both and one more, (w_a w_b / (w_a + w_b))^(1/2) (mean_a - mean_b): no large number is ever taken
from another (Chan, Golub, LeVeque, The American Statistician 37 (1983) 242, in matrix form). What is done to make rows fewer is up to
the caller.
"""

import torch
from jaxtyping import Float
from torch import Tensor

State = dict[str, Tensor]


def empty(width: int, device: str | torch.device = "cpu") -> State:
    """The state of no rows."""
    numbers = {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("w", "w2", "energy")}
    return numbers | {
        "n": torch.tensor(0, device=device),
        "mean": torch.zeros(width, dtype=torch.float64, device=device),
        "rows": torch.zeros(0, width, dtype=torch.float64, device=device),
    }


def centred(x: Float[Tensor, "row feature"], weight: Float[Tensor, " row"] | None) -> State:
    """The state of some rows, at least one; weights are positive."""
    z = x.double()
    w = z.new_ones(len(z)) if weight is None else weight
    mean = torch.zeros_like(z[0])
    for _ in range(2):  # the second removes what rounding left in the first
        step = (w @ z) / w.sum()
        mean, z = mean + step, z - step
    z = z if weight is None else z * w.sqrt()[:, None]
    sums = {"w": w.sum(), "w2": w.square().sum(), "energy": z.square().sum()}
    return sums | {"n": torch.tensor(len(z), device=z.device), "mean": mean, "rows": z}


def join(a: State, b: State) -> State:
    """Both sets of rows, neither empty; neither argument is changed. What else a holds is kept."""
    w = a["w"] + b["w"]
    apart = b["mean"] - a["mean"]
    between = apart * (a["w"] * b["w"] / w).sqrt()
    sums = {name: a[name] + b[name] for name in ("n", "w", "w2", "energy")}
    sums["energy"] = sums["energy"] + between.square().sum()
    rows = torch.cat([a["rows"], b["rows"], between[None]])
    return a | sums | {"mean": a["mean"] + apart * (b["w"] / w), "rows": rows}
