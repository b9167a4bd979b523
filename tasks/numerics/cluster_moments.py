"""Moments of the rows of clusters about points that are known before: states that are merged by adding.

A state holds, for each cluster with the point c of it and z = x - c for its rows x,

    n   int64 [cluster]                         rows; of `weighted` rows float64, the sum of their weights
    s   float64 [cluster, feature]              sum z
    g   float64 [cluster, feature, feature]     sum z z^T, upper triangles; zeros below the diagonals

where sums are weighted if rows are.

Digits are kept where points lie no further from their rows' means than rows spread, as they do when clusters are those that the points
were found for.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics.moments import BLOCK_ELEMENTS, BLOCK_ROWS, Precision
from tasks.numerics.symmetric import add_gram, full

State = dict[str, Tensor]
Points = Float64[Tensor, "cluster feature"]


def shifts(point: Points) -> Points:
    """Points that rows can be taken from in float32 too."""
    return point.float().double()


def partial(
    x: Float[Tensor, "row feature"], label: Int64[Tensor, " row"], point: Points, precision: Precision
) -> State:
    """The state of some rows, sorted by cluster first.

    Args:
        x: finite rows.
        label: cluster of each.
        point: of each cluster, from `shifts`.
        precision: of the products, as in `moments.partial`.

    Raises:
        MethodError: where squares overflow.

    Cost: row feature (feature + 1) flops, 8 cluster feature^2 bytes of state and at most 128 MB beside it.
    """
    n = torch.bincount(label, minlength=len(point))
    order = torch.argsort(label, stable=True)
    return {"n": n} | _sums(x, [(rows, None) for rows in torch.split(order, n.tolist())], point, precision)


def weighted(
    x: Float[Tensor, "row feature"],
    weight: Float64[Tensor, "row cluster"],
    point: Points,
    precision: Precision,
) -> State:
    """The state of rows that belong to several clusters, to each with a weight.

    Args:
        x: finite rows.
        weight: none negative; rows without weight cost nothing.
        point: of each cluster, from `shifts`.
        precision: of the products, as in `moments.partial`.

    Raises:
        MethodError: where squares overflow.

    Cost: feature (feature + 1) flops for each weight that is not 0, and memory as in `partial`.
    """
    parts = [(torch.nonzero(column).flatten(), column) for column in weight.T]
    return {"n": weight.sum(0)} | _sums(x, parts, point, precision)


def merge(a: State, b: State) -> State:
    """The state of both sets of rows."""
    return {name: a[name] + b[name] for name in ("n", "s", "g")}


def scatter(state: State, k: int, centred: bool) -> Float64[Tensor, "feature feature"]:
    """Products of a cluster's rows about their mean, or about its point; whole."""
    g, n = full(state["g"][k]), float(state["n"][k])
    return g.addr_(state["s"][k], state["s"][k], alpha=-1 / n) if centred and n > 0 else g


def pooled(state: State, point: Points, centred: bool) -> Float64[Tensor, "feature feature"]:
    """Products of all rows about their mean, or about the origin.

    Cost: O(cluster feature^2).
    """
    n = state["n"].double()
    middle = torch.zeros_like(point[0])
    if centred:
        middle = (n @ point + state["s"].sum(0)) / n.sum()
    apart = point - middle
    across = apart.T @ state["s"]
    return full(state["g"].sum(0)) + across + across.T + (apart.T * n) @ apart


def _sums(x: Tensor, parts: list[tuple[Tensor, Tensor | None]], point: Tensor, precision: Precision) -> State:
    """`s` and `g` of each cluster's rows, some at a time, with the weights of all rows or none."""
    clusters, width = point.shape
    state = {"s": torch.zeros_like(point), "g": point.new_zeros(clusters, width, width)}
    step = min(BLOCK_ROWS, max(256, BLOCK_ELEMENTS // max(1, width)))
    taken = torch.empty((min(step, len(x)), width), dtype=x.dtype, device=x.device)
    room = torch.empty_like(taken, dtype=getattr(torch, precision))
    for k, (rows, weight) in enumerate(parts):
        for some in torch.split(rows, step) if len(rows) else ():
            share = None if weight is None else weight[some]
            _add(state["g"][k], state["s"][k], _taken(x, some, point[k], taken, room), share)
    if x.device.type != "cpu":
        state["g"].triu_()
    largest = state["g"].diagonal(dim1=1, dim2=2).max()  # of float64, and none of the products is larger
    if not float(largest) <= torch.finfo(getattr(torch, precision)).max:
        raise MethodError(
            f"squares of the rows overflow {precision}: largest value {float(x.abs().max()):g}; scale the rows"
        )
    return state


def _taken(x: Tensor, rows: Tensor, point: Tensor, taken: Tensor, room: Tensor) -> Tensor:
    """Some rows less a point, in the dtype of the products and in memory that is used again."""
    taken, z = taken[: len(rows)], room[: len(rows)]
    torch.index_select(x, 0, rows, out=taken)
    if x.dtype == torch.float64:
        return z.copy_(taken.sub_(point))
    return z.copy_(taken).sub_(point.to(z.dtype))


def _add(g: Tensor, s: Tensor, z: Tensor, weight: Tensor | None) -> None:
    if weight is None:
        s += z.sum(0, dtype=torch.float64)
    else:
        s += (weight.to(z.dtype) @ z).double()
        z *= weight.to(z.dtype).sqrt()[:, None]
    if z.dtype == torch.float64:
        add_gram(g, z)
        return
    squares = g.diagonal() + torch.linalg.vector_norm(z, dim=0, dtype=torch.float64).square()
    add_gram(g, z)
    g.diagonal().copy_(squares)  # the trace is the denominator of every share
