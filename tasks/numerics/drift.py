"""Whether two samples of rows come from one law: several differences, each beside what dealing the rows anew gives.

Where both samples come from one law, every deal of their units to two sides is as likely as the one that was drawn. So with B random deals
p = (1 + deals whose difference is as large) / (B + 1) is a p-value whatever the law, the sizes and the number of features are (Fisher;
Phipson, Smyth, Statistical Applications in Genetics and Molecular Biology 9 (2010) 39). Units are rows, or whole samples of several rows:
tokens of one text are alike, and dealing them one by one would take that for drift. Whatever is chosen by the rows (their frame, the width
of the kernel) is chosen by all of them together, so that all deals are treated alike.

Gretton, Borgwardt, Rasch, Scholkopf, Smola, A kernel two-sample test, JMLR 13 (2012) 723, eq. 3: the unbiased squared maximum mean
discrepancy, and the median of distances as the kernel's width. Holm, Scandinavian Journal of Statistics 6 (1979) 65.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

STATISTICS = ("mean", "variance", "covariance", "geodesic", "chordal", "mmd")
"""Distance of means over the standard deviation inside samples (of all features together); log ratio of total variances; Frobenius distance
of covariances over that of all rows; distances of leading subspaces; unbiased squared discrepancy of a Gaussian kernel."""
FRAME = 32
"""Leading principal directions of all rows in which covariances and subspaces are compared."""
TINY = 1e-12
"""Share of the variance, or of a difference, that is taken for rounding."""


class Compared(NamedTuple):
    """Two samples of rows, by `STATISTICS`."""

    effect: Float64[Tensor, " statistic"]
    """As it is; the log ratio of variances with its sign, positive where the second varies more."""
    p: Float64[Tensor, " statistic"]
    chance: Float64[Tensor, " statistic"]
    """Mean over deals, of the log ratio without sign."""
    high: Float64[Tensor, " statistic"]
    """What the wanted share of deals stays below."""
    width: float
    """Of the kernel: the median distance of rows of different units."""


def compared(
    x: Float64[Tensor, "row feature"],
    y: Float64[Tensor, "other feature"],
    units: tuple[Int64[Tensor, " row"], Int64[Tensor, " other"]],
    components: int,
    deals: int,
    alpha: float,
    seed: int,
) -> Compared:
    """All differences.

    Args:
        x: one sample.
        y: the other.
        units: of the rows of each; two or more on each side, with numbers of their own.
        components: of the subspaces; of fewer directions in which rows vary, all.
        deals: B.
        alpha: 1 - the share of `high`.
        seed: of the deals.

    Cost: for n rows together, d features and f = min(32, d): n min(n, d) max(n, d) + B n (n + d + f^2) flops and 2 B decompositions of
    f x f; at most 24 n^2 + 32 B (n + d + f^2) bytes.
    """
    rows = torch.cat([x, y])
    _, unit = torch.unique(torch.cat([units[0], units[1] + units[0].max() + 1]), return_inverse=True)
    sides = dealt(unit, len(x), deals, seed)
    rows = rows - rows.mean(0)
    distances = torch.cdist(rows, rows)
    apart = unit[:, None] != unit
    width = float(distances[apart].median())
    mean, variance = _moments(rows, sides)
    found = torch.stack(
        [mean, variance, *_shapes(rows, sides, components), _mmd(distances, apart, width, sides)]
    )
    size = torch.stack([mean, variance.abs(), *found[2:]])
    as_large = size >= size[:, :1] - TINY * size.abs().amax(1, keepdim=True)
    p = as_large.sum(1).double() / (deals + 1)
    return Compared(found[:, 0], p, size[:, 1:].mean(1), size[:, 1:].quantile(1 - alpha, dim=1), width)


def dealt(unit: Int64[Tensor, " row"], first: int, deals: int, seed: int) -> Float64[Tensor, "deal row"]:
    """1 for rows of the first side: as they are, then for each deal of as many units.

    Args:
        unit: of each row, from 0.
        first: rows of the first side, which come first.
        deals: how many.
        seed: of a generator of their own.
    """
    sides = np.zeros((deals + 1, int(unit.max()) + 1))
    sides[:, torch.unique(unit[:first]).cpu().numpy()] = 1
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    generator.permuted(sides[1:], axis=1, out=sides[1:])
    return torch.from_numpy(sides).to(unit.device)[:, unit]


def _moments(rows: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Of each deal: distance of means, log ratio of variances. Rows are centred."""
    n, m = sides.sum(1), (1 - sides).sum(1)
    square, total = rows.square().sum(1), rows.square().sum()
    least = TINY * total / len(rows) + torch.finfo(torch.float64).tiny
    pull = (sides @ rows).square().sum(1)
    inside = (total - pull * (1 / n + 1 / m)) / (len(rows) - 2)
    mean = pull.sqrt() * (1 / n + 1 / m) / inside.clamp(min=least).sqrt()
    one = ((sides @ square - pull / n) / (n - 1)).clamp(min=least)
    other = (((1 - sides) @ square - pull / m) / (m - 1)).clamp(min=least)
    return mean, (other / one).log()


def _shapes(rows: Tensor, sides: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each deal: distance of covariances, geodesic and chordal distance of leading subspaces."""
    z = rows @ frame(rows).T
    f = z.shape[1]
    i, j = torch.triu_indices(f, f, device=rows.device)
    products = z[:, i] * z[:, j]
    covariances = [_covariances(side, z, products, i, j) for side in (sides, 1 - sides)]
    scale = torch.linalg.matrix_norm(z.T @ z / len(z)).clamp(min=torch.finfo(torch.float64).tiny)
    apart = torch.linalg.matrix_norm(covariances[0] - covariances[1]) / scale
    k = min(components, f)
    theta = _angles(*(torch.linalg.eigh(c).eigenvectors[..., f - k :] for c in covariances))
    return apart, torch.linalg.vector_norm(theta, dim=1), torch.linalg.vector_norm(theta.sin(), dim=1)


def frame(centred: Float64[Tensor, "row feature"]) -> Float64[Tensor, "direction feature"]:
    """At most `FRAME` leading principal directions of centred rows, those in which they vary."""
    wide = centred.shape[1] > len(centred)
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    kept = values > TINY * values[-1].clamp(min=torch.finfo(torch.float64).tiny)
    kept[: max(0, len(values) - FRAME)] = False
    found: Tensor = vectors[:, kept].flip(1)
    if wide:
        found = torch.linalg.qr(centred.T @ found).Q
    return found.T.contiguous()


def _covariances(side: Tensor, z: Tensor, products: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """[deal, direction, direction]"""
    n = side.sum(1, keepdim=True)
    mean = side @ z / n
    upper = (side @ products - n * mean[:, i] * mean[:, j]) / (n - 1)
    found = z.new_zeros(len(side), z.shape[1], z.shape[1])
    found[:, i, j] = found[:, j, i] = upper
    return found


def _angles(a: Tensor, b: Tensor) -> Tensor:
    """[deal, angle] between spaces of orthonormal columns; small ones from sines."""
    cross = a.mT @ b
    cosine = torch.linalg.svdvals(cross).clamp(max=1)
    sine = torch.linalg.svdvals(b - a @ cross).flip(-1).clamp(max=1)
    return torch.where(cosine.square() < 0.5, torch.arccos(cosine), torch.arcsin(sine))


def _mmd(distances: Tensor, apart: Tensor, width: float, sides: Tensor) -> Tensor:
    """Of each deal, over pairs of different units."""
    kernel = (-0.5 * (distances / max(width, torch.finfo(torch.float64).tiny)).square()).exp() * apart
    alike = (~apart).sum(1).double()
    n, inside, row = sides.sum(1), ((sides @ kernel) * sides).sum(1), kernel.sum(1)
    m, across = len(row) - n, sides @ row - inside
    other = row.sum() - inside - 2 * across
    pairs = (n.square() - sides @ alike, m.square() - (1 - sides) @ alike)
    found: Tensor = inside / pairs[0] + other / pairs[1] - 2 * across / (n * m)
    return found
