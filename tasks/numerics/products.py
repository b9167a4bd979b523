"""A covariance that is never formed, times a block of vectors, in one pass over rows: additive, weighted, centred exactly.

With m the weighted mean of rows about a shift that all states share, a state of Q [feature, column] holds n, w, w2, m, m^T Q,
P = sum w (x - m)(x - m)^T Q and energy = sum w |x - m|^2. Two sets of rows together have

    P = P_a + P_b + w_a w_b / (w_a + w_b) d (d^T Q),    d = m_b - m_a

so that no large mean is ever subtracted from a sum (Chan, Golub, LeVeque 1983). With a shift near the mean the last digits of d^T Q are
right too.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tasks.numerics.moments import present, refuse_not_finite

State = dict[str, Tensor]
MAX_BLOCK_ELEMENTS = 1 << 23
"""Centred rows in memory at once: 64 MB."""


def empty(q: Float64[Tensor, "feature column"]) -> State:
    """The state of no rows."""
    width, columns = q.shape
    zero = q.new_zeros(())
    return {
        "n": torch.tensor(0, device=q.device),
        "w": zero,
        "w2": zero,
        "energy": zero,
        "mean": q.new_zeros(width),
        "mean_q": q.new_zeros(columns),
        "p": torch.zeros_like(q),
    }


def partial(
    x: Float[Tensor, "row feature"],
    weight: Float[Tensor, " row"] | None,
    q: Float64[Tensor, "feature column"],
    shift: Float64[Tensor, " feature"],
) -> State:
    """The state of some rows.

    Args:
        x: rows of any floating dtype.
        weight: finite and not negative; None for ones.
        q: the block.
        shift: the mean as far as it is known; `mean` is that of rows less this.

    Raises:
        MethodError: for rows that are not finite, and for wrong weights.

    Cost: 4 rows feature columns flops in float64; 64 MB beside q and P.
    """
    x, weight = present(x.detach(), weight)
    state = empty(q)
    step = max(256, MAX_BLOCK_ELEMENTS // max(1, x.shape[1]))
    for low in range(0, len(x), step):
        part = slice(low, low + step)
        state = merge(state, _block(x[part].double() - shift, None if weight is None else weight[part], q))
    if not bool(state["energy"].isfinite()):
        refuse_not_finite(x)
    return state


def merge(a: State, b: State) -> State:
    """The state of both sets of rows; neither argument is changed."""
    if a["n"] == 0 or b["n"] == 0:
        return dict(b if a["n"] == 0 else a)
    w = a["w"] + b["w"]
    apart, apart_q = b["mean"] - a["mean"], b["mean_q"] - a["mean_q"]
    between, share = a["w"] * b["w"] / w, b["w"] / w
    return {
        "n": a["n"] + b["n"],
        "w": w,
        "w2": a["w2"] + b["w2"],
        "energy": a["energy"] + b["energy"] + between * apart.square().sum(),
        "mean": a["mean"] + apart * share,
        "mean_q": a["mean_q"] + apart_q * share,
        "p": (a["p"] + b["p"]).addr_(apart * between, apart_q),
    }


def _block(z: Tensor, weight: Tensor | None, q: Tensor) -> State:
    w = z.new_ones(len(z)) if weight is None else weight
    mean = (w @ z) / w.sum()
    z = z - mean
    rest = (w @ z) / w.sum()
    weighted = z if weight is None else z * w[:, None]
    return {
        "n": torch.tensor(len(z), device=z.device),
        "w": w.sum(),
        "w2": w.square().sum(),
        "energy": (weighted * z).sum(),
        "mean": mean + rest,
        "mean_q": (mean + rest) @ q,
        "p": weighted.T @ (z @ q),
    }
