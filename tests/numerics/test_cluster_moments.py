"""Moments of clusters about points, against products of differences in NumPy."""

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.numerics import cluster_moments


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_pieces_add_up_to_products_about_means(dtype: torch.dtype, precision: str, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 500)
    label[label == 2] = 3  # a cluster without rows
    rows = torch.from_numpy(rng.standard_normal((500, 7)) + 30 + 3 * label[:, None]).to(dtype)
    x, of = rows.double().numpy(), torch.from_numpy(label)
    point = cluster_moments.shifts(torch.from_numpy(30 + 3 * np.arange(4.0)[:, None] + 0.1 * np.ones(7)))
    states = [
        cluster_moments.partial(rows[cut], of[cut], point, precision)  # type: ignore[arg-type]
        for cut in (slice(0, 130), slice(130, 131), slice(131, 131), slice(131, 500))
    ]
    total = states[0]
    for state in states[1:]:
        total = cluster_moments.merge(total, state)
    assert total["n"].tolist() == np.bincount(label, minlength=4).tolist()
    assert not total["g"].tril(-1).any()
    for k in (0, 1, 3):
        z = x[label == k] - x[label == k].mean(0)
        found = cluster_moments.scatter(total, k, centred=True)
        np.testing.assert_allclose(found, z.T @ z, atol=tolerance * (z**2).sum())
    for centred in (True, False):
        z = x - x.mean(0) if centred else x
        found = cluster_moments.pooled(total, point, centred)
        np.testing.assert_allclose(found, z.T @ z, atol=tolerance * (z**2).sum())
    assert not cluster_moments.scatter(total, 2, centred=True).any()


def test_squares_that_overflow_are_refused() -> None:
    rows, of = torch.full((3, 2), 1e30), torch.zeros(3, dtype=torch.int64)
    point = torch.zeros(1, 2).double()
    assert float(cluster_moments.partial(rows, of, point, "float64")["g"].max()) == pytest.approx(3e60)
    with pytest.raises(MethodError, match="overflow float32: largest value 1e"):
        cluster_moments.partial(rows, of, point, "float32")
