"""First weights of a sparse autoencoder whose features lie in the subspace where activations vary.

A feature that starts outside that subspace sees little of any row and loses against others for as long as it is trained: it is dead.
Directions drawn inside are all seen. To start one from an artifact of `spectrum.attention_subspace`:

    found = subspan.open_artifact(root, artifact).arrays
    basis, mean = (torch.from_numpy(found[name].to_numpy()) for name in ("basis", "mean"))
    first = sae_init.initial(basis, mean, n=16384, seed=0)
    # features = relu(first.encoder @ (x - first.offset)), or the largest few of them; x' = first.decoder.T @ features + first.offset
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

PIECE = 4096
"""Directions drawn, and rows looked at, at a time."""


class Initial(NamedTuple):
    """Weights before the first step; encoder and decoder are tensors of their own."""

    encoder: Float[Tensor, "direction feature"]
    encoder_bias: Float[Tensor, " direction"]
    decoder: Float[Tensor, "direction feature"]
    """Rows of length 1."""
    offset: Float[Tensor, " feature"]
    """What is subtracted before and added after."""


def directions(
    basis: Float[Tensor, "component feature"], n: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "direction feature"]:
    """Uniform random directions inside a subspace, the same on every device.

    Args:
        basis: orthonormal rows; the identity for directions of the whole space.
        n: how many.
        seed: of the draw.
        dtype: of the result.

    Cost: n component feature, and a piece of memory beside the result.
    """
    rng, k = torch.Generator().manual_seed(seed), len(basis)
    found = torch.empty((n, basis.shape[1]), dtype=dtype, device=basis.device)
    for first in range(0, n, PIECE):
        drawn = torch.randn(min(PIECE, n - first), k, generator=rng, dtype=torch.float64)
        drawn /= torch.linalg.vector_norm(drawn, dim=1, keepdim=True).clamp(min=torch.finfo(drawn.dtype).tiny)
        found[first : first + PIECE] = (drawn.to(basis.device) @ basis.double()).to(dtype)
    return found


def initial(
    basis: Float[Tensor, "component feature"],
    mean: Float[Tensor, " feature"],
    n: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Initial:
    """Weights whose n features lie in the subspace, encoder and decoder alike, about the mean."""
    decoder = directions(basis, n, seed, dtype)
    return Initial(decoder.clone(), decoder.new_zeros(n), decoder, mean.to(dtype))


def activity(
    rows: Float[Tensor, "row feature"], encoder: Float[Tensor, "direction feature"], most: int
) -> Int64[Tensor, " direction"]:
    """How many rows each feature is active in: positive, and among the `most` largest of the row.

    Args:
        rows: with the offset taken off.
        encoder: a direction for each feature.
        most: active features of a row.

    Cost: row direction feature; memory for some thousand rows by all directions.
    """
    counts = torch.zeros(len(encoder), dtype=torch.int64, device=rows.device)
    step = max(1, (PIECE * PIECE) // max(1, len(encoder)))
    for piece in torch.split(rows, step) if len(rows) else ():
        top = (piece.double() @ encoder.double().T).topk(min(most, len(encoder)), dim=1)
        counts += torch.bincount(top.indices[top.values > 0], minlength=len(encoder))
    return counts
