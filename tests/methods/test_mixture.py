"""Mixtures of low-rank Gaussians: planted ones, against a loop of SciPy's densities, and what few, equal or overlapping rows do."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.clustering import mixture
from tasks.methods.contract import Block, Inputs
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Case
from tests.methods.test_k_subspaces import clustered, different, union


def case_of(x: np.ndarray, of: np.ndarray | None = None, **options: Any) -> Case:
    index = torch.arange(len(x))
    labels = {} if of is None else {"kind": torch.from_numpy(of)}
    names = {} if of is None else {"kind": tuple(map(str, range(int(of.max()) + 1)))}
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), categories=names)
    config = mixture.Config(label=None if of is None else "kind", **options)
    mixture.check(inputs, config)
    return Case(mixture, config, inputs, Block({"x": torch.from_numpy(x)}, index, 0 * index, index, labels))


def mixed(x: np.ndarray, of: np.ndarray | None = None, pieces: int = 3, **options: Any) -> cases.Answer:
    given = case_of(x, of, **options)
    edges = np.linspace(0, len(x), pieces + 1)[1:-1].astype(int).tolist()
    return cases.run(given, cases.cut(given.block, edges))


def overlapping(
    seed: int, noise: tuple[float, ...], each: int = 1500, width: int = 12
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of random planes, each in noise of its own, and the planes' projectors."""
    rng = np.random.default_rng(seed)
    of = np.arange(len(noise) * each) % len(noise)
    basis = np.linalg.qr(rng.standard_normal((len(noise), width, 2)))[0]
    x = np.einsum("nfd,nd->nf", basis[of], rng.standard_normal((len(of), 2)))
    x += np.array(noise)[of][:, None] * rng.standard_normal(x.shape)
    return x, of, basis @ basis.transpose(0, 2, 1)


def test_one_component_is_probabilistic_pca() -> None:
    """The closed form, and scikit-learn's with covariances divided by rows."""
    x, _ = union(0, 3, 5, 12, 900, noise=0.5, offset=3.0)
    result = mixed(x, clusters=1, dimension=4).result
    pca = PCA(4).fit(x)
    pca.explained_variance_ *= (len(x) - 1) / len(x)
    pca.noise_variance_ *= (len(x) - 1) / len(x)
    assert result.log_likelihood == pytest.approx(pca.score(x), rel=1e-12)
    assert result.one_component == pytest.approx(result.log_likelihood, rel=1e-12)
    assert result.one_component_bic == pytest.approx(result.bic, rel=1e-12)
    assert result.parameters == 4 * 12 - 6 + 1 + 12
    assert result.bic - result.aic == pytest.approx(result.parameters * (np.log(len(x)) - 2))
    assert (result.entropy, result.largest_share, result.converged) == (0, 1, True)
    values = np.linalg.svd(x - x.mean(0))[1] ** 2
    assert result.residual_share == pytest.approx(values[4:].sum() / values.sum(), rel=1e-10)


def covariances(arrays: dict[str, np.ndarray]) -> np.ndarray:
    above = arrays["variance"] - arrays["noise"][:, None]
    whole = np.einsum("kdf,kd,kdg->kfg", arrays["basis"], above, arrays["basis"])
    found: np.ndarray = whole + arrays["noise"][:, None, None] * np.eye(whole.shape[1])
    return found


def loop(
    x: np.ndarray, arrays: dict[str, np.ndarray], dim: int, rounds: int, affine: bool, shared: bool
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Mean log likelihoods, and the mixture after all rounds but the last: whole covariances, each row by itself."""
    found: list[float] = []
    for number in range(rounds):
        each = zip(arrays["mean"], covariances(arrays), arrays["weight"], strict=True)
        logs = np.stack([np.log(w) + multivariate_normal(m, c).logpdf(x) for m, c, w in each], 1)
        found.append(float(logsumexp(logs, 1).mean()))
        if number == rounds - 1:
            break
        chance = np.exp(logs - logsumexp(logs, 1, keepdims=True))
        n = chance.sum(0)
        mean = (chance.T @ x) / n[:, None] if affine else np.zeros_like(arrays["mean"])
        z = x[None] - mean[:, None]
        values, vectors = np.linalg.eigh(np.einsum("nk,knf,kng->kfg", chance, z, z) / n[:, None, None])
        noise = values[:, :-dim].mean(1)
        noise = np.full_like(noise, (n * noise).sum() / n.sum()) if shared else noise
        variance, basis = values[:, ::-1][:, :dim], vectors[:, :, ::-1].transpose(0, 2, 1)[:, :dim]
        arrays = {"mean": mean, "basis": basis, "variance": variance, "noise": noise, "weight": n / n.sum()}
    return found, arrays


@pytest.mark.parametrize("noise", ["own", "shared"])
@pytest.mark.parametrize("kind", ["affine", "linear"])
def test_rounds_are_those_of_a_plain_loop(kind: str, noise: str) -> None:
    """From the mixture of the sample, on rows that overlap; the likelihood never falls."""
    x, _, _ = overlapping(0, (0.3, 0.5, 0.7), each=250, width=8)
    x = x + 100 * (kind == "affine")
    given = case_of(
        x, clusters=3, dimension=2, kind=kind, noise=noise, start_rows=60, tolerance=0.0, rounds=12
    )
    answer = cases.run(given, cases.cut(given.block, [200, 201, 500]))
    carry = cases.start(given)
    begun = mixture.update(
        mixture.partial(given.block, carry, given.config), carry, given.inputs, given.config
    )
    begun = {name: values.numpy() for name, values in begun.items()}
    expected, last = loop(x, begun, 2, answer.result.rounds, kind == "affine", noise == "shared")
    assert answer.result.rounds > 5
    assert (np.diff(expected) >= -1e-12).all()
    np.testing.assert_allclose(answer.arrays["log_likelihood"], expected, rtol=1e-10)
    assert answer.result.log_likelihood == pytest.approx(expected[-1], rel=1e-10)
    order = np.argsort(-last["weight"], kind="stable")
    for name in ("mean", "variance", "noise", "weight"):
        np.testing.assert_allclose(answer.arrays[name], last[name][order], rtol=1e-7, atol=1e-9)
    arrays = {name: values.numpy() for name, values in answer.arrays.items()}
    np.testing.assert_allclose(covariances(arrays), covariances(last)[order], rtol=1e-7, atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["affine", "linear"]),
    noise=st.sampled_from(["own", "shared"]),
    clusters=st.integers(1, 5),
    dimension=st.integers(1, 4),
)
def test_the_likelihood_never_falls(seed: int, kind: str, noise: str, clusters: int, dimension: int) -> None:
    """Also where components are more than there are, and dimensions more than rows have."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((150, 6)) @ rng.standard_normal((6, 6)) * rng.integers(0, 2, (150, 1))
    answer = mixed(
        x,
        clusters=clusters,
        dimension=dimension,
        kind=kind,
        noise=noise,
        start_rows=40,
        starts=1,
        tolerance=0.0,
        rounds=8,
    )
    likelihood = answer.arrays["log_likelihood"].numpy()
    assert (np.diff(likelihood) >= -1e-9 * np.abs(likelihood).max()).all()
    assert all(bool(values.isfinite().all()) for values in answer.arrays.values())


@pytest.mark.parametrize("seed", range(5))
def test_rows_determine_low_rank_gaussians_from_some_number_on(seed: int) -> None:
    """Two without noise of dimension 6 in 48 features: with 9 rows and more in each they are found; 6 are said to be too few."""
    for each in (9, 12, 30):
        x, of = union(seed, 2, 6, 48, each)
        answer = mixed(x, of, clusters=2, dimension=6, kind="linear", starts=8, tolerance=0.0)
        assert answer.result.accuracy >= 0.95
        assert any("least noise variance" in note for note in answer.result.caveats)
    x, of = union(seed, 2, 6, 48, 6)
    few = mixed(x, of, clusters=2, dimension=6, kind="linear", starts=8)
    assert any("no more rows than span them" in note for note in few.result.caveats)


@pytest.mark.parametrize("seed", range(3))
def test_components_of_different_noise_are_told_apart_where_nearness_errs(seed: int) -> None:
    """Planes through the origin, one in six times the noise of the other: many of its rows lie nearer to the other plane."""
    x, of, planes = overlapping(seed, (0.1, 0.6))
    soft = mixed(x, of, clusters=2, dimension=2, kind="linear")
    hard = clustered(x, of, clusters=2, dimension=2, kind="linear")
    assert soft.result.accuracy > 0.995 > 0.9 > hard.result.accuracy
    order = torch.argsort(soft.arrays["noise"])
    np.testing.assert_allclose(soft.arrays["noise"][order].sqrt(), [0.1, 0.6], rtol=0.02)
    np.testing.assert_allclose(soft.arrays["weight"], 0.5, atol=0.01)
    assert soft.result.caveats == ()

    def apart(answer: cases.Answer) -> float:
        basis = answer.arrays["basis"].numpy()
        found = basis.transpose(0, 2, 1) @ basis
        return float(min(np.linalg.norm(planes - found[list(o)]) for o in permutations(range(2))))

    assert apart(soft) < apart(hard)
    one_noise = mixed(x, of, clusters=2, dimension=2, kind="linear", noise="shared")
    assert one_noise.result.bic > soft.result.bic
    assert len(set(one_noise.arrays["noise"].tolist())) == 1


def test_the_criterion_chooses_the_planted_number_and_dimension() -> None:
    x, _ = union(0, 3, 2, 10, 400, noise=0.8, offset=1.5)
    found = {
        (clusters, dimension): mixed(x, clusters=clusters, dimension=dimension, starts=3).result.bic
        for clusters in (1, 2, 3, 4)
        for dimension in (1, 2, 3)
    }
    assert min(found, key=lambda tried: found[tried]) == (3, 2)


def test_each_component_gets_its_own_dimension() -> None:
    x, of = different(0, (2, 4, 7), noise=0.3)
    options: dict[str, Any] = {"clusters": 3, "dimension": None, "kind": "linear", "starts": 3}
    answer = mixed(x, of, max_dimension=8, **options)
    held = answer.arrays["dimension"]
    assert sorted(held.tolist()) == [2, 4, 7]
    assert answer.result.accuracy > 0.99
    inside = torch.arange(7) < held[:, None]
    assert torch.equal(answer.arrays["basis"].norm(dim=2) > 0.5, inside)
    noise = answer.arrays["noise"][:, None].expand(3, 7)
    assert torch.equal(answer.arrays["variance"][~inside], noise[~inside])
    few = mixed(x, max_dimension=2, **options)
    assert any("raise `max_dimension`" in note for note in few.result.caveats)


def test_chances_say_how_far_components_overlap() -> None:
    far, _ = union(0, 2, 2, 10, 300, noise=0.3, offset=20.0)
    assert mixed(far, clusters=2, dimension=2, starts=3).result.entropy < 1e-6
    rng = np.random.default_rng(0)
    one = rng.standard_normal((600, 10))
    same = mixed(one, clusters=2, dimension=2, starts=3)
    assert same.result.entropy > 0.05
    assert same.result.bic > same.result.one_component_bic


def test_labels_are_read_for_the_comparison_alone() -> None:
    x, of = union(2, 3, 2, 15, 80, noise=0.3)
    with_labels, without = (mixed(x, labels, clusters=3, dimension=2) for labels in (of, None))
    for name, values in with_labels.arrays.items():
        assert torch.equal(values, without.arrays[name])
    assert with_labels.result.accuracy > 0.9
    assert without.result.accuracy is None


def test_equal_rows_and_more_components_than_there_are() -> None:
    x = np.zeros((60, 5))
    x[:30, 0] = 1.0
    answer = mixed(x, clusters=4, dimension=1)
    assert all(bool(values.isfinite().all()) for values in answer.arrays.values())
    assert answer.result.clusters < 4
    assert any("have no rows" in note for note in answer.result.caveats)
    assert any("least noise variance" in note for note in answer.result.caveats)
    for rows, kind, words in (
        (x * 0 + 3, "affine", "rows of the sample are equal"),
        (x * 0, "linear", "are 0"),
    ):
        with pytest.raises(MethodError, match=words):
            mixed(rows, clusters=2, dimension=1, kind=kind)


def test_refusals() -> None:
    x, _ = union(0, 2, 2, 8, 20)
    with pytest.raises(MethodError, match=r"found 40 rows, 20 components of 2 dimensions need at least 60"):
        mixed(x, clusters=20, dimension=2)
    with pytest.raises(MethodError, match="8 dimensions leave no noise in 8 features"):
        mixed(x, clusters=2, dimension=8)
    with pytest.raises(MethodError, match="start on at least 12 rows"):
        mixed(x, clusters=4, dimension=2, start_rows=10)
    with pytest.raises(MethodError, match="names no classes"):
        mixture.check(Inputs({"x": 8}, n_rows=400, n_samples=400), mixture.Config(label="kind", clusters=2))
    with pytest.raises(MethodError, match="bytes, at most"):
        mixture.check(Inputs({"x": 65536}, n_rows=10**6, n_samples=10**6), mixture.Config())
    x[3, 2] = np.nan
    with pytest.raises(MethodError, match="NaN"):
        mixed(x, clusters=2, dimension=2)


def test_through_the_engine(tmp_path: Path) -> None:
    """Shards, rounds and states of a real store give what one block gives."""
    x, _, _ = overlapping(1, (0.3, 0.6), each=150, width=8)
    rows, root = x.astype(np.float32), Location(str(tmp_path))
    spec = make_capture(root, {"a": rows}, shard_rows=32, chunk_rows=16)
    options: dict[str, Any] = {"clusters": 2, "dimension": 2, "start_rows": 100}
    stage = stage_of("clustering.mixture", {"x": rows_ref(spec)}, **options)
    ((_, made),) = run_stages(root, [stage], serial).items()
    expected = mixed(rows, pieces=1, **options)
    arrays = artifact_arrays(root, made.id)
    assert made.result["bic"] == pytest.approx(expected.result.bic, rel=1e-9)
    assert made.result["rounds"] == expected.result.rounds > 1
    for name in ("weight", "noise", "variance", "mean"):
        np.testing.assert_allclose(arrays[name], expected.arrays[name], rtol=1e-7, atol=1e-9)
