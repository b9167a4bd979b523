"""Means and scatter of rows inside their classes: one pass, weighted, mergeable, without any cancellation.

A state holds the classes that occurred, in the order of their codes:

    code   int64 [class]              which                     w     float64 [class]   sum of weights w
    n      int64 [class]              rows                      w2    float64 [class]   sum of w^2
    mean   float64 [class, feature]   weighted mean             q     float64 [class]   sum of w |x - mean|^2
    g      float64 [feature, feature] sum over all rows of w (x - mean of its class)(x - mean of its class)^T; upper triangle

Rows are centred at the means of their classes in the block, and a merge adds what lies between both means of a class,

    mean = mean_a + w_b / w e,   g = g_a + g_b + sum over classes of w_a w_b / w e e^T,   e = mean_b - mean_a

(Chan, Golub, LeVeque 1983, class by class). Every term is a square, so that scatter inside classes keeps all its digits however far the
classes lie apart or from the origin; the scatter between them follows from the means, and the total is the sum of both. Classes that did
not occur take no memory: 8 feature bytes for each that did.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics.symmetric import add_gram, full

State = dict[str, Tensor]
PER_CLASS = ("code", "n", "w", "w2", "q", "mean")
BLOCK_ROWS = 2048
"""Rows of one matrix product."""


def empty(width: int, device: str | torch.device = "cpu") -> State:
    """The neutral element: no class of `width` features."""
    number = {"dtype": torch.float64, "device": device}
    state = {name: torch.zeros(0, **number) for name in ("w", "w2", "q")}  # type: ignore[call-overload]
    state |= {name: torch.zeros(0, dtype=torch.int64, device=device) for name in ("code", "n")}
    state["mean"] = torch.zeros((0, width), dtype=torch.float64, device=device)
    return state | {"g": torch.zeros((width, width), dtype=torch.float64, device=device)}


def partial(
    x: Float[Tensor, "row feature"], code: Int64[Tensor, " row"], weight: Float[Tensor, " row"] | None = None
) -> State:
    """The state of some rows.

    Args:
        x: finite rows of any floating dtype.
        code: the class of each, not negative; rows with a negative one are left out.
        weight: finite and not negative; a row of weight zero counts as absent. None for ones.

    Raises:
        MethodError: for wrong weights, or rows whose squares overflow.

    Cost: rows * feature * (feature + 1) flops on a CPU.
    """
    x, code, weight = _present(x.detach(), code, weight)
    state = empty(x.shape[1], x.device)
    if len(x) == 0:
        return state
    code, order = torch.sort(code, stable=True)
    z = x[order].double()
    codes, place, n = torch.unique_consecutive(code, return_inverse=True, return_counts=True)
    shift = z.mean(0)
    z -= shift
    w = None if weight is None else weight[order]
    w_class = n.double() if w is None else sums(w[:, None], place, n)[:, 0]
    w2 = w_class if w is None else sums(w[:, None].square(), place, n)[:, 0]
    mean = sums(z if w is None else z * w[:, None], place, n) / w_class[:, None]
    z -= mean[place]
    r = torch.linalg.vector_norm(z, dim=1).square()
    q = sums((r if w is None else w * r)[:, None], place, n)[:, 0]
    if w is not None:
        z *= w.sqrt()[:, None]
    for some in torch.split(z, BLOCK_ROWS):
        add_gram(state["g"], some)
    mean += shift
    if z.device.type != "cpu":
        state["g"].triu_()
    if not bool(q.isfinite().all() & state["g"].diagonal().isfinite().all()):
        raise MethodError("squares of the rows overflow, or rows hold NaN or infinity; scale the rows")
    return state | {"code": codes, "n": n, "w": w_class, "w2": w2, "q": q, "mean": mean}


def merge(a: State, b: State) -> State:
    """The state of both sets of rows; neither argument is changed.

    Cost: classes * feature bytes, and common classes * feature^2 flops.

    Raises:
        MethodError: if the widths differ.
    """
    if a["mean"].shape[1] != b["mean"].shape[1]:
        raise MethodError(
            f"states of {a['mean'].shape[1]} and {b['mean'].shape[1]} features cannot be merged; all rows must come from sites of one width"
        )
    if len(a["code"]) == 0 or len(b["code"]) == 0:
        return dict(b if len(a["code"]) == 0 else a)
    code = torch.unique(torch.cat([a["code"], b["code"]]))
    here, there = torch.searchsorted(code, a["code"]), torch.searchsorted(code, b["code"])
    out = {name: _spread(a[name], here, len(code)) for name in PER_CLASS if name != "code"}
    mine = out["w"][there]
    both = mine > 0
    share = b["w"] / (mine + b["w"])
    e = (b["mean"] - out["mean"][there]).masked_fill(~both[:, None], 0)
    between = mine * share
    old = torch.where(both[:, None], out["mean"][there], b["mean"])
    out["mean"][there] = old + share[:, None] * e
    out["q"][there] += b["q"] + between * e.square().sum(1)
    for name in ("n", "w", "w2"):
        out[name][there] += b[name]
    g = a["g"] + b["g"]
    root = (e * between.sqrt()[:, None])[both].contiguous()
    if len(root):
        add_gram(g, root)
    return out | {"code": code, "g": g if g.device.type == "cpu" else g.triu_()}


def scatter(state: State) -> Float64[Tensor, "feature feature"]:
    """Sum over rows of w z z^T with z the row minus its class's mean, symmetric."""
    return full(state["g"])


def degrees(state: State) -> Float64[Tensor, " class"]:
    """Degrees of freedom of each class: n - 1 for equal weights; 0 for a class of one row."""
    left = state["w"] - state["w2"] / state["w"]
    return left.masked_fill((state["n"] < 2) | (left <= 1e-12 * state["w"]), 0.0)


def nearest(
    x: Float[Tensor, "row feature"], mean: Float64[Tensor, "class feature"], rows: int = 1024
) -> Int64[Tensor, " row"]:
    """Which mean each row is nearest to, the first of equal ones.

    Cost: 2 row class feature flops and 8 rows class bytes.
    """
    shift = mean.mean(0)
    centred = mean - shift
    square = centred.square().sum(1)
    found = [(square - 2 * (some.double() - shift) @ centred.T).argmin(1) for some in torch.split(x, rows)]
    return torch.cat(found) if found else x.new_zeros(0, dtype=torch.int64)


def _present(x: Tensor, code: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The rows that have a class and weight, with their weights."""
    keep = code >= 0
    if weight is not None:
        weight = weight.double()
        if not bool((weight.isfinite() & (weight >= 0)).all()):
            raise MethodError("weights must be finite and not negative; found others")
        keep = keep & (weight > 0)
    if bool(keep.all()):
        return x, code, weight
    return x[keep], code[keep], None if weight is None else weight[keep]


def sums(values: Tensor, place: Tensor, n: Tensor) -> Tensor:
    """[class, ...]: sums of sorted rows, the same bits every time on a GPU too.

    Args:
        values: [row, ...], those of one class together.
        place: [row], the number of its class.
        n: [class], rows.
    """
    if values.device.type == "cpu":
        return values.new_zeros((len(n), *values.shape[1:])).index_add_(0, place, values)
    found: Tensor = torch.segment_reduce(values, "sum", lengths=n, axis=0, unsafe=True)
    return found


def _spread(values: Tensor, place: Tensor, n: int) -> Tensor:
    out = values.new_zeros((n, *values.shape[1:]))
    out[place] = values
    return out
