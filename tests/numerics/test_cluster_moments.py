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


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
def test_weighted_rows_count_by_their_weights(precision: str, tolerance: float) -> None:
    rng = np.random.default_rng(1)
    rows, weight = torch.from_numpy(rng.standard_normal((300, 6)) + 4).float(), rng.dirichlet(np.ones(3), 300)
    weight[:, 1] = 0
    weight[weight < 0.1] = 0
    point, shares = cluster_moments.shifts(torch.full((3, 6), 3.9).double()), torch.from_numpy(weight)
    total = cluster_moments.merge(
        *(
            cluster_moments.weighted(rows[c], shares[c], point, precision)
            for c in (slice(0, 70), slice(70, 300))
        )  # type: ignore[arg-type]
    )
    np.testing.assert_allclose(total["n"], weight.sum(0), rtol=1e-12)
    x = rows.double().numpy()
    for k in (0, 2):
        z = x - np.average(x, 0, weight[:, k])
        products = (z.T * weight[:, k]) @ z
        found = cluster_moments.scatter(total, k, centred=True)
        np.testing.assert_allclose(found, products, atol=tolerance * np.trace(products))
    assert not cluster_moments.scatter(total, 1, centred=True).any()
    z = x - np.average(x, 0, weight.sum(1))
    pooled = (z.T * weight.sum(1)) @ z
    np.testing.assert_allclose(
        cluster_moments.pooled(total, point, True), pooled, atol=tolerance * np.trace(pooled)
    )
    label = torch.from_numpy(rng.integers(0, 3, 300))
    hard = cluster_moments.partial(rows, label, point, "float64")
    soft = cluster_moments.weighted(rows, torch.nn.functional.one_hot(label, 3).double(), point, "float64")
    for name, values in hard.items():
        np.testing.assert_allclose(soft[name], values, rtol=1e-12, atol=1e-12)


def test_squares_that_overflow_are_refused() -> None:
    rows, of = torch.full((3, 2), 1e30), torch.zeros(3, dtype=torch.int64)
    point = torch.zeros(1, 2).double()
    assert float(cluster_moments.partial(rows, of, point, "float64")["g"].max()) == pytest.approx(3e60)
    with pytest.raises(MethodError, match="overflow float32: largest value 1e"):
        cluster_moments.partial(rows, of, point, "float32")
