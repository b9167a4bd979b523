"""How much of what a network says of its inputs is left after a change: neighbours, similarities and distributions, before and after."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

TIE = 1e-6
"""Cosines that differ by less are equal: texts that come twice have the same neighbours."""
AT_ONCE = 512
"""Rows whose cosines with all others are in memory together."""
LOGITS_AT_ONCE = 64
"""Rows of logits in float64: vocabularies are long."""

Rows = Float[Tensor, "row feature"]


def drawn_pairs(n: int, pairs: int, seed: int) -> Int64[Tensor, "pair 2"]:
    """Different pairs of different rows: all where there are no more, else a seeded draw with replacement."""
    if n * (n - 1) // 2 <= pairs:
        return torch.triu_indices(n, n, 1).T
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    first = rng.integers(0, n, pairs)
    return torch.from_numpy(np.stack([first, (first + rng.integers(1, n, pairs)) % n], 1))


def cosines(rows: Rows, pairs: Int64[Tensor, "pair 2"]) -> Float64[Tensor, " pair"]:
    """Of pairs of rows."""
    unit = F.normalize(rows.double(), dim=1)
    return (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1)


def rank_correlation(a: Float64[Tensor, " pair"], b: Float64[Tensor, " pair"]) -> float:
    """Spearman's, ties with their mean rank; NaN where one side is constant."""
    ranks = [torch.from_numpy(rankdata(values.cpu().numpy())) for values in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    size = float(x.norm() * y.norm())
    return max(-1.0, min(1.0, float(x @ y) / size)) if size > 0 else float("nan")


def recall(before: Rows, after: Float[Tensor, "row told"], k: int) -> Float64[Tensor, " row"]:
    """Of each row's k nearest others by cosine afterwards, the share that was among the k nearest before, or as near as the last of these;
    NaN where cosines are no numbers.

    Args:
        before, after: the same rows of the same order; widths may differ.
        k: fewer than there are rows.

    Cost: 2 row^2 (features of both) flops.
    """
    a, b = (F.normalize(rows.double(), dim=1) for rows in (before, after))
    shares = []
    for first in range(0, len(a), AT_ONCE):
        here = torch.arange(first, min(first + AT_ONCE, len(a)), device=a.device)
        was, now = a[here] @ a.T, b[here] @ b.T
        own: Bool[Tensor, "row other"] = here[:, None] == torch.arange(len(a), device=a.device)
        was, now = was.masked_fill(own, -torch.inf), now.masked_fill(own, -torch.inf)
        last = was.topk(k, dim=1).values[:, -1:]
        share = (was.gather(1, now.topk(k, dim=1).indices) >= last - TIE).double().mean(1)
        shares.append(share.masked_fill((was + now).isnan().any(1), torch.nan))
    return torch.cat(shares)


def divergence(
    before: Float[Tensor, "row class"], after: Float[Tensor, "row class"]
) -> Float64[Tensor, " row"]:
    """Kullback and Leibler's, in nats, of the distribution that logits were from the one that they are."""
    found = []
    for rows in zip(torch.split(before, LOGITS_AT_ONCE), torch.split(after, LOGITS_AT_ONCE), strict=True):
        p, q = (F.log_softmax(logits.double(), dim=1) for logits in rows)
        found.append((p.exp() * (p - q)).sum(1).clamp(min=0))
    return torch.cat(found)
