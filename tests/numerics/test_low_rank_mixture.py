"""Mixtures of low-rank Gaussians, against scikit-learn's and SciPy's densities, and against searches for what should be largest."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import entropy, multivariate_normal
from sklearn.mixture import GaussianMixture

from schemas.errors import MethodError
from tasks.numerics import cluster_moments, low_rank_mixture, subspace_starts
from tasks.numerics.k_subspaces import Subspaces
from tasks.numerics.low_rank_mixture import Mixture, Rules, Spectra


def drawn(seed: int, k: int, width: int, held: tuple[int, ...]) -> Mixture:
    """Any mixture, far from the origin."""
    rng = np.random.default_rng(seed)
    most, noise = max(held), rng.uniform(0.2, 2, k)
    inside = np.arange(most) < np.array(held)[:, None]
    basis = np.linalg.qr(rng.standard_normal((k, width, most)))[0].transpose(0, 2, 1) * inside[:, :, None]
    variance = np.where(inside, noise[:, None] + rng.uniform(0, 5, (k, most)), noise[:, None])
    parts = (50 + rng.standard_normal((k, width)), basis, variance, noise, rng.dirichlet(np.ones(k)))
    mean, basis, variance, noise, weight = (torch.from_numpy(part) for part in parts)
    return Mixture(Subspaces(mean, basis), variance, noise, weight)


def covariances(found: Mixture) -> np.ndarray:
    """[cluster, feature, feature]: whole."""
    basis, noise = found.subspaces.basis.numpy(), found.noise.numpy()
    above = np.einsum("kdf,kd,kdg->kfg", basis, found.variance.numpy() - noise[:, None], basis)
    whole: np.ndarray = above + noise[:, None, None] * np.eye(basis.shape[2])
    return whole


def gaussians(found: Mixture) -> GaussianMixture:
    """The same mixture of scikit-learn."""
    made = GaussianMixture(len(found.weight))
    made.weights_, made.means_ = found.weight.numpy(), found.subspaces.mean.numpy()
    made.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances(found)))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_densities_and_chances_are_those_of_whole_covariances(dtype: torch.dtype) -> None:
    found = drawn(0, 3, 9, (2, 4, 1))
    rows = (torch.randn(3000, 9, generator=torch.Generator().manual_seed(0)).double() * 2 + 50).to(dtype)
    made, x = low_rank_mixture.seen(rows, found), rows.double().numpy()
    normal = [
        multivariate_normal(m, c)
        for m, c in zip(found.subspaces.mean.numpy(), covariances(found), strict=True)
    ]
    density = sum(w * n.pdf(x) for w, n in zip(found.weight.tolist(), normal, strict=True))
    np.testing.assert_allclose(made.log_density, np.log(density), rtol=1e-9)
    np.testing.assert_allclose(made.log_density, gaussians(found).score_samples(x), rtol=1e-9)
    np.testing.assert_allclose(made.chance, gaussians(found).predict_proba(x), atol=1e-9)
    np.testing.assert_allclose(
        low_rank_mixture.entropy(made.chance), entropy(made.chance, axis=1), atol=1e-12
    )
    one, two = (low_rank_mixture.seen(rows[cut], found) for cut in (slice(0, 1100), slice(1100, None)))
    np.testing.assert_allclose(torch.cat([one.log_density, two.log_density]), made.log_density, rtol=1e-12)


def test_features_beyond_that_have_noise_alone_are_known_by_their_squares() -> None:
    found = drawn(1, 2, 6, (2, 1))
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)).double() + 50
    beyond = torch.randn(50, 5, generator=torch.Generator().manual_seed(2)).double()
    mean, basis = (torch.nn.functional.pad(part, (0, 5)) for part in found.subspaces)
    whole = low_rank_mixture.seen(
        torch.cat([rows, beyond], 1), found._replace(subspaces=Subspaces(mean, basis))
    )
    short = low_rank_mixture.seen(rows, found, beyond.square().sum(1), 11)
    for a, b in zip(whole, short, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_noise_of_largest_likelihood_is_where_a_search_finds_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    leading, share, rest, degrees = rng.uniform(0.1, 3, 5), rng.uniform(0.2, 3, 5), 8.0, 6.0

    def lost(logs: np.ndarray) -> float:
        s = np.exp(logs[0])
        v = s + np.maximum(np.exp(logs[1:]) - 1e-12, 0)
        return float((share * (np.log(v) + leading / v)).sum() + degrees * np.log(s) + rest / s)

    found = low_rank_mixture.level(torch.from_numpy(leading), torch.from_numpy(share), rest, degrees, 1e-8)
    v = np.maximum(leading, found)
    best = float((share * (np.log(v) + leading / v)).sum() + degrees * np.log(found) + rest / found)
    starts = [np.log(np.r_[found, np.maximum(v - found, 1e-3)]), np.zeros(6)]
    searched = min(minimize(lost, s, method="Nelder-Mead", options={"maxfev": 20000}).fun for s in starts)
    assert best <= searched + 1e-9
    assert best == pytest.approx(searched, abs=1e-3)
    assert low_rank_mixture.level(*torch.zeros(2, 0).double(), 0.0, 3.0, 0.5) == 0.5


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_no_other_mixture_of_its_kind_is_likelier_for_given_chances(affine: bool, shared: bool) -> None:
    """Beside mixtures that are moved a little: expected log likelihoods of the same chances."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((400, 6)) * np.array([3, 2, 1.5, 1, 1, 1]) + 1)
    chance = torch.from_numpy(rng.dirichlet(np.ones(3), 400))
    point = torch.zeros(3, 6).double()
    state = cluster_moments.weighted(x, chance, point, "float64")
    held, rules = torch.tensor([2, 1, 3]), Rules(affine, shared, 1e-8, 6)
    found = low_rank_mixture.fitted(
        low_rank_mixture.spectra(state, point, 3, affine), state["n"], held, rules
    )

    def expected(one: Mixture) -> float:
        normal = zip(one.subspaces.mean.numpy(), covariances(one), one.weight.log().tolist(), strict=True)
        logs = np.stack([w + multivariate_normal(m, c).logpdf(x.numpy()) for m, c, w in normal], 1)
        return float((chance.numpy() * logs).sum())

    best = expected(found)
    inside = found.subspaces.basis.norm(dim=2) > 0.5
    for _ in range(40):
        turned = found.subspaces.basis + 0.05 * torch.from_numpy(rng.standard_normal((3, 3, 6)))
        basis = torch.linalg.qr(turned.mT)[0].mT * inside[:, :, None]
        mean = found.subspaces.mean + 0.05 * affine * torch.from_numpy(rng.standard_normal((3, 6)))
        factor = torch.from_numpy(np.exp(0.05 * rng.standard_normal(1 if shared else 3)))
        noise = found.noise * factor
        variance = torch.where(inside, found.variance * (1 + 0.05 * torch.rand(3, 3)), noise[:, None])
        other = Mixture(Subspaces(mean, basis), torch.maximum(variance, noise[:, None]), noise, found.weight)
        assert expected(other) < best
    if shared:
        assert len(set(found.noise.tolist())) == 1


def test_free_numbers() -> None:
    held = torch.tensor([2, 3])
    lines = 2 * 10 - 3 + 2 + 3 * 10 - 6 + 3  # directions, orthonormal, and variances
    assert low_rank_mixture.parameters(held, 10, affine=True, shared=False) == lines + 20 + 2 + 1
    assert low_rank_mixture.parameters(held, 10, affine=False, shared=True) == lines + 1 + 1


def test_clusters_imply_gaussians_of_one_noise() -> None:
    value = torch.tensor([[5.0, 2, 1, 1], [4, 3, 2, 0]]).double()
    basis = torch.eye(4).double()[None, :2].repeat(2, 1, 1)
    spectra = Spectra(torch.zeros(2, 4).double(), value, basis * torch.tensor([1, 0, 1, 1]).view(2, 2, 1))
    found = low_rank_mixture.implied(spectra, torch.tensor([30, 10]), torch.tensor([1, 2]))
    noise = (30 * 4 + 10 * 2) / (30 * 3 + 10 * 2)
    np.testing.assert_allclose(found.noise, [noise, noise])
    np.testing.assert_allclose(found.variance, [[5, noise], [4, 3]])
    assert found.weight.tolist() == [0.75, 0.25]
    nothing = low_rank_mixture.implied(spectra._replace(value=0 * value), *[torch.tensor([1, 1])] * 2)
    at = low_rank_mixture.seen(torch.ones(3, 4), nothing)
    assert all(bool(values.isfinite().all()) for values in at)


def test_components_without_rows_have_no_weight_and_no_part() -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double()
    chance = torch.zeros(30, 2).double()
    chance[:, 1] = 1
    point = torch.zeros(2, 4).double()
    state = cluster_moments.weighted(x, chance, point, "float64")
    spectra = low_rank_mixture.spectra(state, point, 1, True)
    found = low_rank_mixture.fitted(spectra, state["n"], torch.tensor([1, 1]), Rules(True, False, 1e-8, 4))
    assert found.weight.tolist() == [0, 1]
    at = low_rank_mixture.seen(x, found)
    assert not at.chance[:, 0].any()
    assert bool(at.log_density.isfinite().all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_rows_without_a_density_are_refused(bad: float) -> None:
    rows = torch.full((3, 9), 50.0).double()
    rows[1, 2] = bad
    with pytest.raises(MethodError, match="overflow" if math.isfinite(bad) else "NaN or infinity"):
        low_rank_mixture.seen(rows, drawn(0, 3, 9, (2, 4, 1)))


def test_a_component_that_its_rows_span_is_taken_where_there_is_no_other() -> None:
    """Three rows far off, alone in a plane: the likeliest mixture, bounded by the floor alone."""
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.standard_normal((200, 6)) + 8 * (np.arange(200) % 2)[:, None], 90 * np.eye(6)[:3]]
    )
    rows, held = torch.from_numpy(x), torch.tensor([2, 2])

    def through(*parts: np.ndarray) -> Subspaces:
        basis = [np.linalg.svd(part - part.mean(0))[2][:2] for part in parts]
        return Subspaces(
            torch.from_numpy(np.stack([p.mean(0) for p in parts])), torch.from_numpy(np.stack(basis))
        )

    halves, alone = through(x[:200:2], x[1:200:2]), through(x[:200], x[200:])
    rules = Rules(True, False, 1e-8 * float(rows.var(0).mean()), 6)
    (first, spanned, both) = (
        low_rank_mixture.settled(rows, begun, held, rules, 1e-6)
        for begun in ([halves], [alone], [alone, halves])
    )
    assert float(spanned.noise.min()) == rules.floor < float(first.noise.min())
    likelihood = [float(low_rank_mixture.seen(rows, one).log_density.sum()) for one in (first, spanned)]
    assert likelihood[1] > likelihood[0]
    assert torch.equal(both.noise, first.noise)


@pytest.mark.parametrize("each", [3, 6])
def test_rows_that_do_not_fill_subspaces_tell_little(each: int) -> None:
    """Two subspaces of dimension 6 in 48 features: halves of 6 rows agree by chance, 0.66, those of 12 little more."""
    right = []
    for seed in range(10):
        rng, of = np.random.default_rng(seed), np.arange(2 * each) % 2
        basis = np.linalg.qr(rng.standard_normal((2, 48, 6)))[0]
        x = torch.from_numpy(np.einsum("nfd,nd->nf", basis[of], rng.standard_normal((2 * each, 6))))
        begun = subspace_starts.begun(x, 2, 6, False, 4, True, torch.Generator().manual_seed(0))
        rules = Rules(False, False, 1e-8 * float(x.square().mean()), 48)
        held = torch.tensor([6, 6])
        found = low_rank_mixture.settled(x, [run.subspaces for run in begun], held, rules, 1e-4)
        same = (low_rank_mixture.seen(x, found).chance.argmax(1).numpy() == of).mean()
        right.append(max(same, 1 - same))
    assert 0.5 <= np.mean(right) < 0.85
