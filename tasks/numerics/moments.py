"""First, second and part of the fourth moments of rows: one pass, weighted, mergeable, exactly centred.

A state holds sums over rows x with weights w, taken about a shift c, with z = x - c and r = |z|^2:

    n   int64 []            rows                    w   float64 []    sum w
    c   float64 [feature]   the shift               w2  float64 []    sum w^2
    s   float64 [feature]   sum w z                 q4  float64 []    sum w r^2
    t   float64 [feature]   sum w r z
    g   float64 [feature, feature]   sum w z z^T, upper triangle; zeros below the diagonal

Every block picks its own shift, the mean of its rows rounded to float32, so that a large offset never meets
the squares: the relative error of an eigenvalue is about u (lambda_1 + |mean - c|^2) / lambda (u = 1.1e-16),
where sums of raw squares would have |mean|^2. The shift moves by exact identities. With z' = z + e, where
e = old shift - new shift, and E = |e|^2:

    s' = s + w e
    g' = g + s e^T + e s^T + w e e^T
    r' = r + 2 e.z + E,  so with  sum w r = tr g,  sum w r z = t,  sum w (e.z) z = g e:
    t' = sum w (r + 2 e.z + E)(z + e)   = t + 2 g e + E s + (tr g + 2 e.s + w E) e
    q4' = sum w (r + 2 e.z + E)^2       = q4 + 4 e^T g e + w E^2 + 4 e.t + 2 E tr g + 4 E e.s

States form a commutative monoid up to rounding (any chunking and order: 1e-13 relative), and bit for bit when
blocks and tree are fixed. Source of the merge: Chan, Golub, LeVeque 1983, in matrix form.
"""

from typing import Literal, NoReturn

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics.symmetric import add_gram, add_outer, apply, full

State = dict[str, Tensor]
Precision = Literal["float64", "float32"]
Weights = Literal["reliability", "count"]

BLOCK_ROWS = 2048
"""Rows of one matrix product: as fast as 8192 (measured), with less rounding and memory."""
BLOCK_ELEMENTS = 1 << 23
"""Fewer rows where features are many, so that the scratch stays below 64 MB."""


def empty(width: int, device: str | torch.device = "cpu") -> State:
    """The neutral element: the state of no rows of `width` features."""
    shapes: dict[str, tuple[int, ...]] = {"w": (), "w2": (), "q4": (), "c": (width,), "s": (width,)}
    shapes |= {"t": (width,), "g": (width, width)}
    state = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
    return state | {"n": torch.zeros((), dtype=torch.int64, device=device)}


def partial(
    x: Float[Tensor, "row feature"],
    weight: Float[Tensor, " row"] | None = None,
    precision: Precision = "float64",
    out: State | None = None,
) -> State:
    """The state of some rows.

    Args:
        x: rows of any floating dtype; 16-bit rows are widened to float32 first, which is exact.
        weight: finite and not negative; a row of weight zero counts as absent. None for ones.
        precision: of the products of features. float64 upcasts and multiplies in float64. float32 multiplies
            the shifted rows in float32 (TF32 must be off) and adds blocks of 2048 rows in float64: twice as
            fast, with an absolute error of an eigenvalue below 1e-7 of the largest.
        out: the state of no rows, to be filled; None for a new one.

    Raises:
        MethodError: for NaN, infinite or overflowing rows, and for wrong weights.

    Cost: rows * feature * (feature + 1) flops, 8 feature^2 bytes of state and at most 64 MB of scratch.
    """
    x, weight = present(x.detach(), weight)
    state = empty(x.shape[1], x.device) if out is None else out
    if len(x) == 0:
        return state
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    shift = x.mean(0).float()
    step = min(len(x), BLOCK_ROWS, max(256, BLOCK_ELEMENTS // max(1, x.shape[1])))
    scratch = torch.empty((step, x.shape[1]), dtype=getattr(torch, precision), device=x.device)
    state["c"].copy_(shift)
    state["n"] += len(x)
    for first in range(0, len(x), step):
        rows = slice(first, first + step)
        _add_block(state, x[rows], None if weight is None else weight[rows], scratch)
    if x.device.type != "cpu":
        state["g"].triu_()
    if not _finite(state):
        refuse_not_finite(x)
    return state


def merge(a: State, b: State, out: State | None = None) -> State:
    """The state of both sets of rows; neither argument is changed.

    The result keeps a's shift while that lies within one standard deviation (over all features) of the common
    mean, and else moves to the common mean rounded to float32: an outlying first block does no lasting harm.

    Args:
        a, b: states of one width.
        out: a state of that width to be overwritten, whatever it holds, in memory that neither a nor b has; None for a new one.

    Raises:
        MethodError: if the widths differ.
    """
    if a["c"].shape != b["c"].shape:
        raise MethodError(
            f"states of {a['c'].shape[0]} and {b['c'].shape[0]} features cannot be merged; "
            f"all rows must come from sites of one width"
        )
    if a["n"] == 0 or b["n"] == 0:
        only = b if a["n"] == 0 else a
        return dict(only) if out is None else {name: out[name].copy_(only[name]) for name in only}
    out = {name: values.new_empty(values.shape) for name, values in a.items()} if out is None else out
    shift = _common_shift(a, b)
    a, b = move(a, shift), move(b, shift, out["g"])
    return {
        name: out[name].copy_(shift) if name == "c" else torch.add(a[name], b[name], out=out[name])
        for name in a
    }


def move(
    state: State, shift: Float64[Tensor, " feature"], room: Float64[Tensor, "feature feature"] | None = None
) -> State:
    """The same rows about another shift; the products are put into `room` if they change. Cost: O(feature^2)."""
    e = state["c"] - shift
    if not e.any():
        return state
    w, s, g, t = state["w"], state["s"], state["g"], state["t"]
    square, trace, along = e.dot(e), g.trace(), e.dot(s)
    ge = apply(g, e)
    q4 = state["q4"] + 4 * e.dot(ge) + w * square**2 + 4 * e.dot(t) + 2 * square * trace + 4 * square * along
    moved = {"c": shift, "q4": q4, "s": s + w * e, "g": add_outer(g, s + 0.5 * w * e, e, room)}
    return state | moved | {"t": t + 2 * ge + square * s + (trace + 2 * along + w * square) * e}


def mean(state: State) -> Float64[Tensor, " feature"]:
    """The weighted mean row.

    Raises:
        MethodError: for a state of no rows.
    """
    require(state, 1)
    return state["c"] + state["s"] / state["w"]


def n_eff(state: State, weights: Weights = "reliability") -> float:
    """Effective number of rows: (sum w)^2 / sum w^2, which is n for equal weights; sum w if weights count."""
    if state["n"] == 0:
        return 0.0
    return float(state["w"]) if weights == "count" else float(state["w"] ** 2 / state["w2"])


def degrees(state: State, weights: Weights = "reliability", center: bool = True) -> float:
    """What the scatter is divided by: W - W2/W (reliability), W - 1 (weights count rows), W (not centred).

    Raises:
        MethodError: when nothing is left to divide by, as with a single row.
    """
    require(state, 1)
    w = state["w"]
    taken = 0.0 if not center else float(state["w2"] / w) if weights == "reliability" else 1.0
    left = float(w) - taken
    if left <= 1e-12 * float(w):
        raise MethodError(
            f"a covariance needs at least two rows, found {int(state['n'])} of total weight {float(w):g}; "
            f"capture more samples"
        )
    return left


def covariance(
    state: State, weights: Weights = "reliability", center: bool = True
) -> Float64[Tensor, "feature feature"]:
    """The unbiased covariance, symmetric; about the origin when `center` is False.

    Raises:
        MethodError: for less than two rows (one when not centred).
    """
    divisor = degrees(state, weights, center)
    state = state if center else move(state, torch.zeros_like(state["c"]))
    g = full(state["g"])
    if center:
        g.addr_(state["s"], state["s"], alpha=-1 / float(state["w"]))
    return g.div_(divisor)


def trace(state: State, weights: Weights = "reliability", center: bool = True) -> float:
    """The trace of the covariance from the diagonal alone: the exact denominator of every explained share."""
    divisor = degrees(state, weights, center)
    if center:
        return max(0.0, float(_scatter_trace(state)) / divisor)
    return float(move(state, torch.zeros_like(state["c"]))["g"].trace()) / divisor


def offset(state: State) -> float:
    """|mean - shift|^2: the energy that centring takes away again."""
    return float((state["s"] / state["w"]).square().sum())


def fourth(state: State) -> float:
    """Sum over rows of w |x - mean|^4."""
    require(state, 1)
    return max(0.0, float(move(state, mean(state))["q4"]))


def require(state: State, rows: int) -> None:
    """Refuse a state of too few rows.

    Raises:
        MethodError: if the state has less than `rows` rows.
    """
    if int(state["n"]) < rows:
        raise MethodError(f"found {int(state['n'])} rows, expected at least {rows}; capture more samples")


def present(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The rows whose weight is not zero, contiguous so that sums do not depend on memory layout.

    Raises:
        MethodError: for weights that are negative, not finite, or not one for each row.
    """
    if weight is None:
        return x.contiguous(), None
    if len(weight) != len(x):
        raise MethodError(f"found {len(weight)} weights for {len(x)} rows; give one weight per row")
    weight = weight.double()
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        raise MethodError("weights must be finite and not negative; found others")
    keep: Bool[Tensor, " row"] = weight > 0
    return (x.contiguous(), weight) if bool(keep.all()) else (x[keep].contiguous(), weight[keep])


def _add_block(state: State, x: Tensor, weight: Tensor | None, scratch: Tensor) -> None:
    """Add rows to a state in place, multiplied in the dtype of the scratch."""
    z = _shifted(x, state["c"], scratch[: len(x)])
    r = torch.linalg.vector_norm(z, dim=1).square_()
    w = torch.ones_like(r) if weight is None else weight.to(r.dtype)
    sums = (torch.stack([w, w * r]) @ z).double()
    exact_r = r.double()
    exact_w = torch.ones_like(exact_r) if weight is None else weight
    state["w"] += exact_w.sum()
    state["w2"] += exact_w.square().sum()
    state["q4"] += (exact_w * exact_r.square()).sum()
    state["s"] += sums[0]
    state["t"] += sums[1]
    z = z if weight is None else z.mul_(w.sqrt()[:, None])
    if z.dtype == torch.float64:
        add_gram(state["g"], z)
        return
    squares = state["g"].diagonal() + torch.linalg.vector_norm(z, dim=0, dtype=torch.float64).square()
    add_gram(state["g"], z)
    state["g"].diagonal().copy_(squares)  # the trace is the denominator of every share


def _shifted(x: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """x - shift into `out`; the difference is taken in the wider of both dtypes."""
    if x.dtype == torch.float64 and out.dtype == torch.float32:
        return out.copy_(x - shift)
    return out.copy_(x).sub_(shift.to(out.dtype))


def _scatter_trace(state: State) -> Tensor:
    """Sum of w |x - mean|^2."""
    return state["g"].trace() - state["s"].dot(state["s"]) / state["w"]


def _common_shift(a: State, b: State) -> Tensor:
    """a's shift if it serves both sets of rows, else their common mean rounded to float32."""
    w = a["w"] + b["w"]
    share = b["w"] / w
    apart = mean(b) - mean(a)
    offset = mean(a) + share * apart - a["c"]
    spread = _scatter_trace(a) + _scatter_trace(b) + a["w"] * share * apart.dot(apart)
    if w * offset.dot(offset) <= spread:
        return a["c"]
    return (a["c"] + offset).float().double()


def _finite(state: State) -> bool:
    return all(bool(state[name].isfinite().all()) for name in ("c", "s", "q4", "t")) and bool(
        state["g"].diagonal().isfinite().all()
    )


def refuse_not_finite(x: Tensor) -> NoReturn:
    """Say why sums over rows are not finite.

    Raises:
        MethodError: always.
    """
    raise MethodError(_where_not_finite(x))


def _where_not_finite(x: Tensor) -> str:
    """What to say of rows whose sums overflow."""
    bad = (~x.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad) == 0:
        return (
            f"the fourth moment of the rows overflows: largest value {float(x.abs().max()):g}; scale the rows"
        )
    return (
        f"{len(bad)} of {len(x)} rows hold NaN or infinity, first at row {int(bad[0])} of the block; "
        f"rows of failed samples must be dropped before"
    )
