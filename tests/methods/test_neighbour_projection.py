"""spectrum.neighbour_projection: batch loops for the loss, canonical directions, planted outliers, and a Gaussian."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.spatial.distance import cdist
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.spectrum import neighbour_projection as method
from tasks.numerics import redundancy


def run(
    x: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[method.Result, dict[str, np.ndarray]]:
    index = torch.arange(len(x))
    config = method.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    method.check(inputs, config)
    result, arrays = method.solve(
        Block({"x": x}, index if sample is None else sample, index, index), inputs, config
    )
    return result, {name: array.values.numpy() for name, array in arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rogue(seed: int = 0) -> tuple[Tensor, int]:
    """Six features in which rows form clusters, and sixty in which single rows are far out: these have the larger variance."""
    x = torch.zeros(1200, 66, dtype=torch.float64)
    centre = drawn(60, 6, seed)
    x[:, :6] = centre[torch.arange(1200) % 60] + 0.1 * drawn(1200, 6, seed + 1)
    x += 0.02 * drawn(1200, 66, seed + 2)
    out = torch.arange(0, 1200, 20)
    x[out, 6 + torch.arange(60)] += 60
    return x, 6


def test_the_loss_is_that_of_the_rows() -> None:
    """Outputs of both sides of every pair, in both orders, standardised as a batch would be."""
    x, partner = drawn(50, 6) + 3, torch.randint(0, 50, (50, 3), generator=torch.Generator().manual_seed(1))
    weight = drawn(4, 6, 2)
    z = (x @ weight.T).numpy()
    left, right = [], []
    for i in range(50):
        for j in partner[i].tolist():
            left += [z[i], z[j]]
            right += [z[j], z[i]]
    a, b = (np.array(side) for side in (left, right))
    a, b = (a - a.mean(0)) / a.std(0), (b - b.mean(0)) / b.std(0)
    c = a.T @ b / len(a)
    expected = ((1 - np.diag(c)) ** 2).sum() + 0.3 * (c[~np.eye(4, dtype=bool)] ** 2).sum()
    assert redundancy.loss_of(weight, redundancy.of_pairs(x, partner), 0.3) == pytest.approx(
        expected, rel=1e-10
    )


def test_the_start_is_at_canonical_directions_and_the_end_is_a_minimum() -> None:
    """scipy's generalised eigenvectors give the loss at the start; nothing drawn, near or far, is below what was found."""
    x = drawn(400, 8) @ drawn(8, 8, 1)
    partner = torch.argsort(torch.from_numpy(cdist(x, x)), 1)[:, 1:4]
    pairs = redundancy.of_pairs(x, partner)
    found = redundancy.learn(pairs, 3, 1.0, 0.0, 300)
    values = eigh(pairs.cross.numpy(), pairs.variance.numpy(), eigvals_only=True)
    assert found.loss_start == pytest.approx(((1 - values[::-1][:3]) ** 2).sum(), rel=1e-9)
    assert found.loss <= found.loss_start
    assert found.loss == pytest.approx(redundancy.loss_of(found.weight, pairs, 1.0), rel=1e-8)
    scale = found.weight.abs().mean()
    for seed in range(20):
        far, near = drawn(3, 8, seed), found.weight + 1e-3 * scale * drawn(3, 8, seed)
        assert redundancy.loss_of(far, pairs, 1.0) > found.loss + 1e-6
        assert redundancy.loss_of(near, pairs, 1.0) >= found.loss - 1e-12


def test_descent_beats_its_start_where_the_penalty_is_small() -> None:
    x = drawn(400, 8) @ drawn(8, 8, 1)
    pairs = redundancy.of_pairs(x, torch.argsort(torch.from_numpy(cdist(x, x)), 1)[:, 1:4])
    found = redundancy.learn(pairs, 3, 0.01, 0.0, 300)
    assert found.loss < found.loss_start - 1e-4
    assert found.gradient < 1e-5
    assert found.loss == pytest.approx(redundancy.loss_of(found.weight, pairs, 0.01), rel=1e-8)


def test_planted_outliers_mislead_principal_components_only() -> None:
    x, k = rogue()
    result, arrays = run(x, components=k, neighbours=5)
    for found in (result.recall, result.recall_pca, result.gain, result.gain_whitened):
        assert found is not None
    assert result.recall is not None
    assert result.gain is not None
    assert result.gain.low is not None
    assert result.recall.value > 0.8
    assert result.gain.low > 0.3
    inside = np.linalg.norm(arrays["components"][:, :k])
    assert inside**2 == pytest.approx(k, rel=0.05)
    np.testing.assert_allclose(arrays["components"] @ arrays["components"].T, np.eye(k), atol=1e-10)
    assert result.loss < result.loss_pca
    assert result.agreement_test is not None
    assert result.agreement_pca_test is not None
    assert result.agreement_test > result.agreement_pca_test + 0.3


def test_recall_is_that_of_all_distances() -> None:
    x = drawn(300, 10) * torch.linspace(3, 0.3, 10).double()
    result, arrays = run(x, components=4, recall_at=7)
    held = method.held_out(torch.arange(300), 0.25, 0)
    y, train = x[held].numpy(), x[~held].numpy()
    _, _, v = np.linalg.svd(train - train.mean(0))
    for name, weight in (
        ("recall", arrays["components"]),
        ("recall_whitened", arrays["weight"]),
        ("recall_pca", v[:4]),
    ):
        shares = []
        near, again = cdist(y, y), cdist(y @ weight.T, y @ weight.T)
        for i in range(len(y)):
            one, other = np.argsort(near[i])[1:8], np.argsort(again[i])[1:8]
            shares.append(len(set(one) & set(other)) / 7)
        assert getattr(result, name).value == pytest.approx(np.mean(shares), rel=1e-10), name
    assert result.recall_random == pytest.approx(7 / (len(y) - 1))


def test_principal_components_are_not_beaten_on_a_gaussian() -> None:
    """Distances of all directions are what recall is about: there is nothing better than the largest variances."""
    result, _ = run(drawn(1500, 20) * (0.8 ** torch.arange(20)), components=5)
    assert result.gain is not None
    assert result.gain.high is not None
    assert abs(result.gain.value) < 0.03
    assert result.output_rank == pytest.approx(5, rel=0.05)


def test_rows_of_one_sample_can_be_kept_apart() -> None:
    x, sample = drawn(100, 4).repeat_interleave(6, 0), torch.arange(100).repeat_interleave(6)
    near, _ = run(x, sample, components=2)
    apart, _ = run(x, sample, components=2, across_samples=True)
    assert near.agreement == pytest.approx(1, abs=0.01)
    assert apart.agreement < 0.95


def test_bad_input() -> None:
    with pytest.raises(MethodError, match="asked for 5 components"):
        run(drawn(50, 4), components=5)
    with pytest.raises(MethodError, match="are equal"):
        run(torch.ones(60, 4).double(), components=2)
    with pytest.raises(MethodError, match="neighbours need more"):
        run(drawn(5, 4), components=2)
    few, _ = run(drawn(30, 4), components=2)
    assert few.recall is None
    assert "too few to judge" in " ".join(few.caveats)
    flat = torch.cat([drawn(200, 3), torch.zeros(200, 5).double()], 1)
    assert np.isfinite(run(flat, components=5)[1]["weight"]).all()
