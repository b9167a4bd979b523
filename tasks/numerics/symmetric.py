"""Symmetric matrices kept as their upper triangle with zeros below: half of the flops where BLAS is at hand.

On a CPU the updates call BLAS on the tensors' memory, as torch has no SYRK; elsewhere torch multiplies whole
matrices.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tasks.numerics import blas


def add_gram(g: Float64[Tensor, "feature feature"], z: Float[Tensor, "row feature"]) -> None:
    """g += z^T z in place, multiplied in z's dtype (float32 or float64) and added in float64.

    g must be contiguous. Off the CPU the lower triangle is filled too: apply `torch.triu` at the end.
    Cost: row * feature * (feature + 1) flops on a CPU, twice that elsewhere.
    """
    if z.device.type != "cpu":
        g += z.T @ z
        return
    if z.dtype == torch.float64:
        blas.add_product(g, z.contiguous())
        return
    block = torch.zeros_like(g, dtype=torch.float32)
    blas.add_product(block, z.contiguous())
    g += block


def row_products(x: Float64[Tensor, "row feature"]) -> Float64[Tensor, "row row"]:
    """x x^T, whole.

    Cost: row * (row + 1) * feature flops on a CPU, twice that elsewhere.
    """
    if x.device.type != "cpu":
        return x @ x.T
    upper = x.new_zeros((len(x), len(x)))
    blas.add_product(upper, x.contiguous(), rows=True)
    return full(upper)


def add_outer(
    g: Float64[Tensor, "feature feature"],
    a: Float64[Tensor, " feature"],
    b: Float64[Tensor, " feature"],
    out: Float64[Tensor, "feature feature"] | None = None,
) -> Float64[Tensor, "feature feature"]:
    """g + a b^T + b a^T as a new triangle, or in `out`, contiguous."""
    out = torch.empty_like(g, memory_format=torch.contiguous_format) if out is None else out
    if g.device.type != "cpu":
        return torch.add(g, torch.triu(torch.outer(a, b) + torch.outer(b, a)), out=out)
    blas.add_outer(out.copy_(g), a.contiguous(), b.contiguous())
    return out


def apply(
    g: Float64[Tensor, "feature feature"], v: Float64[Tensor, " feature"]
) -> Float64[Tensor, " feature"]:
    """The symmetric matrix times a vector."""
    return g @ v + g.T @ v - g.diagonal() * v


def full(g: Float64[Tensor, "feature feature"]) -> Float64[Tensor, "feature feature"]:
    """Both triangles, as a new matrix."""
    out = g + g.T
    out.diagonal().mul_(0.5)
    return out
