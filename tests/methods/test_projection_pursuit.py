"""spectrum.projection_pursuit: planted heaps that variance hides, densities of scikit-learn, Gaussian rows, and rows with no plane."""

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.spectrum import projection_pursuit
from tasks.numerics import negentropy
from tasks.numerics.negentropy import Mixture
from tests.methods import cases
from tests.methods.cases import Answer, Case

QUICK = {"starts": 4, "halves": 4, "draws": 2, "parts": 4, "sample_rows": None}


def solved(x: Tensor, sample: Tensor | None = None, **options: object) -> Answer:
    index = torch.arange(len(x))
    sample = index if sample is None else sample
    inputs = Inputs({"x": x.shape[1]}, len(x), int(sample.max()) + 1)
    config = projection_pursuit.Config.model_validate(QUICK | options)
    projection_pursuit.check(inputs, config)
    return cases.run(Case(projection_pursuit, config, inputs, Block({"x": x}, sample, index * 0, index)))


def heaps(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three heaps in a plane of little variance, beside four Gaussian directions of much; and the heap of each row."""
    rng = np.random.default_rng(seed)
    which = rng.integers(3, size=n)
    corners = np.array([[0.0, 2.0], [-1.7, -1.0], [1.7, -1.0]])
    plane = corners[which] + 0.3 * rng.standard_normal((n, 2))
    x = np.concatenate([20 * rng.standard_normal((n, 4)), plane], 1)
    turn = np.linalg.qr(np.random.default_rng(9).standard_normal((6, 6)))[0]
    return torch.from_numpy(x @ turn + 50), torch.from_numpy(which)


def test_heaps_are_found_that_principal_components_do_not_show() -> None:
    x, which = heaps(500)
    answer = solved(x, axes=6)
    result = answer.result
    assert (result.parts, result.axes, result.n_rows) == (3, 6, 500)
    assert result.exceeds_null
    assert result.negentropy > 0.5
    assert result.negentropy > 5 * result.negentropy_null
    assert result.negentropy > 10 * abs(result.first_components)
    assert result.held_out.value == pytest.approx(result.negentropy, abs=0.2)
    assert result.overlap > 0.95
    found = answer.arrays["part"]
    pairs = torch.stack([which, found]).unique(dim=1, return_counts=True)[1]
    assert int(pairs.sort(descending=True).values[:3].sum()) > 490
    projection = answer.arrays["projection"]
    torch.testing.assert_close(projection.T @ projection / 500, torch.eye(2).double(), rtol=0, atol=1e-9)
    along = (x - x.mean(0)) @ answer.arrays["direction"].T
    cosine = torch.nn.functional.cosine_similarity(along.T, projection.T)
    torch.testing.assert_close(cosine, torch.ones(2).double(), rtol=0, atol=1e-9)
    assert answer.arrays["direction"].norm(dim=1).tolist() == pytest.approx([1, 1])


def test_negentropy_is_that_of_scikit_learn() -> None:
    """The density of a projected mixture, by another implementation, and the entropy of a Gaussian by its formula."""
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((80, 3)) + np.arange(3.0))
    mixture, _ = negentropy.fitted(z, 2, 0)
    basis = torch.linalg.qr(
        torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).Q
    b = basis.numpy()
    model = GaussianMixture(2)
    model.weights_ = mixture.weight.numpy()
    model.means_ = mixture.mean.numpy() @ b
    covariances = np.stack([b.T @ c @ b for c in mixture.covariance.numpy()])
    model.precisions_cholesky_ = np.stack([np.linalg.cholesky(np.linalg.inv(c)) for c in covariances])
    y = z.numpy() @ b
    gaussian = 0.5 * np.linalg.slogdet(2 * math.pi * math.e * np.cov(y.T, bias=True))[1]
    expected = gaussian + model.score(y)
    assert float(negentropy.negentropy(z, mixture, basis[None])[0]) == pytest.approx(expected, rel=1e-10)


def test_two_far_heaps_have_known_negentropy() -> None:
    """Two Gaussians of variance s^2 at +-a: entropy ln 2 + ln s + c, that of a Gaussian ln sqrt(a^2 + s^2) + c."""
    a, s = 1.0, 0.1
    weight = torch.full((2,), 0.5).double()
    mean, covariance = torch.tensor([[a], [-a]]).double(), torch.full((2, 1, 1), s * s).double()
    rng = np.random.default_rng(0)
    rows = torch.from_numpy((np.repeat([a, -a], 100_000) + s * rng.standard_normal(200_000))[:, None])
    found = negentropy.negentropy(rows, Mixture(weight, mean, covariance), torch.ones(1, 1, 1).double())
    assert float(found[0]) == pytest.approx(0.5 * math.log(a * a + s * s) - math.log(2 * s), abs=5e-3)


def test_gaussian_rows_do_not_exceed_their_null() -> None:
    for seed in range(3):
        x = torch.randn(300, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        result = solved(x).result
        assert not result.exceeds_null
        assert result.negentropy < 0.1


def test_bad_rows() -> None:
    x, _ = heaps(60)
    few: dict[str, object] = {"starts": 2, "halves": 2, "draws": 1, "parts": 2}
    with pytest.raises(MethodError, match="found 12 good rows, expected 20"):
        solved(x[:12])
    with pytest.raises(MethodError, match="vary in 1 directions"):
        solved(x[:, :1] @ torch.ones(1, 5).double())
    with pytest.raises(MethodError, match="asked for 3 components among 2 axes"):
        solved(x[:, :2], components=3)
    repeated = solved(x[:20].repeat(5, 1), **few).result
    assert repeated.n_duplicates == 80
    assert math.isfinite(repeated.negentropy)
    one = solved(x, torch.zeros(60, dtype=torch.int64), **few).result
    assert one.held_out is None
    assert not one.exceeds_null
    assert solved(x, axes=6, **few).result.axes == 6
    assert solved(x[:40], axes=6, **few).result.axes == 4
