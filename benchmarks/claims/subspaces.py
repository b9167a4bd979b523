"""Angles between subspaces: small ones, right ones, and what chance shares."""

import math
from importlib.metadata import version

import numpy as np
import scipy.linalg
import torch
from sklearn.decomposition import IncrementalPCA

from benchmarks.claims.components import SKLEARN
from benchmarks.claims.figure import Figure, Finding
from benchmarks.claims.methods import answer, normal, turned
from tasks.methods.spectrum import pca
from tasks.numerics import angles


def small_angles(theta: float = 1e-9) -> list[Figure]:
    """arccos loses angles below 1e-8; sines do not.

    geomstats 2.8.0 is reported to give distance 0 between orthogonal lines by its users; it is not run here.
    """
    a = torch.linalg.qr(torch.from_numpy(normal(50, 4))).Q.T
    b = torch.stack([a[0], math.cos(theta) * a[1] + math.sin(theta) * a[2]])
    naive = np.arccos(np.clip(np.linalg.svd((a[:2] @ b.T).numpy(), compute_uv=False), -1, 1)).max()
    scipy_angle = scipy.linalg.subspace_angles(a[:2].T.numpy(), b.T.numpy()).max()
    ours = angles.principal_angles(a[:2].contiguous(), b)
    right = angles.distances(a[:2].contiguous(), a[2:].contiguous())
    what = f"relative error of an angle of {theta:g}"
    orthogonal = right.geodesic / (math.pi / math.sqrt(2)) - 1
    return [
        Figure("formula arccos of singular values", what, float(abs(naive / theta - 1)), 0.5, np.inf),
        Figure(f"scipy {version('scipy')} subspace_angles", what, float(abs(scipy_angle / theta - 1)), 0, 1e-6),
        Figure("subspan numerics.angles", what, float(abs(ours.max() / theta - 1)), 0, 1e-6),
        Figure("subspan numerics.angles", "relative error of the distance (pi / 2) sqrt 2 of orthogonal planes", abs(orthogonal), 0, 1e-12),
    ]  # fmt: skip


def chance(pairs: int = 60, width: int = 200) -> list[Figure]:
    """Random subspaces of k among d dimensions share k / d: an overlap says nothing without that beside it."""
    figures = []
    for k in (1, 10, 50):
        bases = [
            torch.linalg.qr(torch.from_numpy(normal(width, k, seed=s))).Q.T.contiguous()
            for s in range(2 * pairs)
        ]
        found = [angles.distances(a, b) for a, b in zip(bases[::2], bases[1::2], strict=True)]
        what = f"overlap of random subspaces of {k} among {width} dimensions"
        mean = float(np.mean([f.overlap for f in found]))
        error = 4 * (1 - k / width) * math.sqrt(2 / pairs / (width - 1) / (width + 2))
        figures.append(
            Figure(
                "formula |A B^T|^2 / k",
                f"{what}, mean of {pairs} pairs",
                mean,
                k / width - error,
                k / width + error,
            )
        )
        figures.append(
            Figure(
                "subspan numerics.angles `overlap_null`", what, found[0].overlap_null, k / width, k / width
            )
        )
    return figures


def order(rows: int = 4000, width: int = 60) -> list[Figure]:
    """An update that truncates depends on the order of blocks; moments are the same in any order, and merge."""
    x = turned(np.arange(1, width + 1) ** -0.5, rows)
    blocks = np.split(x, 20)
    two = [np.concatenate(blocks), np.concatenate(blocks[::-1])]
    peer = [IncrementalPCA(8, batch_size=rows // 20).fit(rows_).explained_variance_ for rows_ in two]
    ours = [
        answer(pca, torch.from_numpy(rows_), pieces=20, components=8).arrays["eigenvalue"][:8].numpy()
        for rows_ in two
    ]
    what = "largest relative difference of an eigenvalue when blocks come in the reverse order"
    return [
        Figure(f"{SKLEARN} IncrementalPCA", what, float(np.abs(peer[1] / peer[0] - 1).max()), 1e-4),
        Figure("subspan spectrum.pca", what, float(np.abs(ours[1] / ours[0] - 1).max()), 0, 1e-12),
    ]


FINDINGS = tuple(Finding(measure) for measure in (order, small_angles, chance))
