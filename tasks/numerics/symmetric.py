"""Symmetric matrices kept as their upper triangle with zeros below: half of the flops where BLAS is at hand.

On a CPU the updates call BLAS on views of the tensors' memory, as torch has no SYRK; elsewhere torch
multiplies whole matrices.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.linalg import blas
from torch import Tensor


def add_gram(g: Float64[Tensor, "feature feature"], z: Float[Tensor, "row feature"]) -> None:
    """g += z^T z in place, multiplied in z's dtype (float32 or float64) and added in float64.

    g must be contiguous. Off the CPU the lower triangle is filled too: apply `torch.triu` at the end.
    Cost: row * feature * (feature + 1) flops on a CPU, twice that elsewhere.
    """
    if z.device.type != "cpu":
        g += z.T @ z
        return
    columns = z.numpy().T
    if z.dtype == torch.float64:
        blas.dsyrk(1.0, columns, beta=1.0, c=g.numpy().T, lower=1, overwrite_c=1)
        return
    block = np.zeros(g.shape, dtype=np.float32)
    blas.ssyrk(1.0, columns, beta=0.0, c=block.T, lower=1, overwrite_c=1)
    g += torch.from_numpy(block)


def row_products(x: Float64[Tensor, "row feature"]) -> Float64[Tensor, "row row"]:
    """x x^T, whole.

    Cost: row * (row + 1) * feature flops on a CPU, twice that elsewhere.
    """
    if x.device.type != "cpu" or 0 in x.shape:
        return x @ x.T
    upper = blas.dsyrk(1.0, x.contiguous().numpy().T, trans=1)
    return full(torch.from_numpy(np.ascontiguousarray(upper)).triu())


def add_outer(
    g: Float64[Tensor, "feature feature"], a: Float64[Tensor, " feature"], b: Float64[Tensor, " feature"]
) -> Float64[Tensor, "feature feature"]:
    """g + a b^T + b a^T as a new triangle."""
    if g.device.type != "cpu":
        return g + torch.triu(torch.outer(a, b) + torch.outer(b, a))
    out = g.clone(memory_format=torch.contiguous_format)
    blas.dsyr2(1.0, a.numpy(), b.numpy(), lower=1, a=out.numpy().T, overwrite_a=1)
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
