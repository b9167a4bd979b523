"""Dimensions of clusters: the criterion against densities of SciPy, and dimensions that were planted."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from tasks.numerics.subspace_dimensions import criterion, held_by


def variances(z: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.linalg.svd(z, compute_uv=False) ** 2 / len(z))


@pytest.mark.parametrize("affine", [False, True])
def test_the_criterion_is_that_of_the_gaussians(affine: bool) -> None:
    """But for what is the same for all dimensions: rows (features log 2 pi + features)."""
    rng, held = np.random.default_rng(0), [2, 3]
    parts = [rng.standard_normal((n, 8)) * [5, 3, 2, 1, 1, 1, 1, 1] + affine for n in (40, 60)]
    logs, values, free = 0.0, [], 0
    for part, d in zip(parts, held, strict=True):
        mean = part.mean(0) if affine else np.zeros(8)
        z = part - mean
        value, columns = np.linalg.eigh(z.T @ z / len(z))
        value, columns = value[::-1].copy(), columns[:, ::-1]
        value[d:] = value[d:].mean()
        density = multivariate_normal(mean, columns * value @ columns.T)
        logs += density.logpdf(part).sum() + len(part) * np.log(len(part) / 100)
        values.append(variances(z))
        free += (
            sum(8 - j for j in range(d)) + 1 + 8 * affine + 1
        )  # directions with variances, noise, mean, weight
    found = criterion(torch.stack(values), torch.tensor([40, 60]), torch.tensor(held), affine)
    assert found == pytest.approx(free * np.log(100) - 2 * logs - 100 * 8 * (np.log(2 * np.pi) + 1))


def test_planted_dimensions() -> None:
    rng = np.random.default_rng(1)
    noisy = rng.standard_normal((500, 20)) + 6 * np.pad(rng.standard_normal((500, 4)), ((0, 0), (0, 16)))
    clean = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 20))
    noise = rng.standard_normal((500, 20))
    values = torch.stack([variances(z) for z in (noisy, clean, noise, 0 * noise)])
    rows = torch.tensor([500, 500, 500, 0])
    assert held_by(values, rows, 16).tolist() == [4, 3, 1, 1]
    assert held_by(values, rows, 2).tolist() == [2, 2, 1, 1]
