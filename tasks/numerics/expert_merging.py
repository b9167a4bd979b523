"""Experts of a mixture made fewer: which give alike outputs, and one weight in the place of several.

Experts are grouped by k-means of their outputs on the same tokens, each scaled to length one, for which their products suffice. The weights
of a group are factored side by side, [W_1 ... W_m] = U S [V_1' ... V_m'], and one expert is made of the shared U S and the mean of the V_j
weighted by how often each is used (Li et al., Sub-MoE, 2025).

With all directions of U kept this is the weighted mean of the W_j themselves: U S (sum f_j V_j)' = sum f_j W_j. The shared factor changes
something only where directions are left out: the mean is then projected on those that hold most of all weights of the group.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from sklearn.cluster import KMeans
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import energy, spectrum

STARTS = 20
"""Of k-means."""


class Merged(NamedTuple):
    """One weight in the place of several."""

    weight: Float64[Tensor, "output input"]
    rank: int
    """Directions of U that were kept."""


def cosines(products: Float64[Tensor, "expert other"]) -> Float64[Tensor, "expert other"]:
    """Of outputs over all tokens, from their products; 0 for an expert without outputs."""
    size = products.diagonal().clamp(min=0).sqrt()
    scale = torch.where(size > 0, 1 / size, 0.0)
    return products * scale * scale[:, None]


def grouped(
    products: Float64[Tensor, "expert other"], clusters: int, seed: int = 0
) -> Int64[Tensor, " expert"]:
    """The group of each expert, numbered in the order of their first experts.

    Args:
        products: of the outputs of all pairs of experts, summed over tokens.
        clusters: at most as many as experts.
        seed: of k-means.

    Raises:
        MethodError: if groups remain empty, as experts with the same outputs leave them.

    Cost: expert^3.
    """
    found = spectrum.eigen(cosines(products))
    points = found.vectors.T * found.values.clamp(min=0).sqrt() @ found.vectors  # the same distances
    distinct = len(torch.unique(points.round(decimals=9), dim=0))
    if distinct < clusters:
        raise MethodError(
            f"{len(points)} experts have {distinct} different directions of outputs, expected at least {clusters} for as many groups; ask "
            "for fewer"
        )
    label = KMeans(clusters, n_init=STARTS, random_state=seed).fit_predict(points.cpu().numpy())
    order = {old: new for new, old in enumerate(dict.fromkeys(label.tolist()))}
    return torch.tensor([order[old] for old in label.tolist()], device=products.device)


def merged(
    weights: Float64[Tensor, "expert output input"], used: Float64[Tensor, " expert"], share: float = 1.0
) -> Merged:
    """The weight of a group.

    Args:
        weights: of its experts.
        used: how often each is, not negative; if none is, all count alike.
        share: of the squares of all weights that the kept directions of U hold; 1 keeps all.

    Raises:
        MethodError: if the decomposition does not converge.

    Cost: output^2 input experts.
    """
    part = used / used.sum() if float(used.sum()) > 0 else torch.full_like(used, 1 / len(used))
    sides = torch.cat(list(weights), 1)
    try:
        u, s, v = torch.linalg.svd(sides, full_matrices=False)
    except RuntimeError as error:
        raise MethodError(
            f"the singular value decomposition of {len(weights)} experts' weights {tuple(sides.shape)} did not converge: {error}"
        ) from error
    rank = len(s) if share == 1 else energy.components(s.square(), share)
    mean = (v.reshape(len(s), *weights.shape[::2]) * part[:, None]).sum(1)
    return Merged(u[:, :rank] * s[:rank] @ mean[:rank], rank)
