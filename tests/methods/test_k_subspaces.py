"""K subspaces: planted unions, against a loop of NumPy from the same start, and what few, equal or missing rows do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.clustering import k_subspaces
from tasks.methods.contract import Block, Inputs
from tasks.numerics import k_subspaces as numerics
from tasks.numerics import subspace_starts
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Case


def union(
    seed: int, k: int, dim: int, width: int, each: int, noise: float = 0.0, offset: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of random subspaces, through points `offset` from the origin."""
    rng = np.random.default_rng(seed)
    of = np.arange(k * each) % k
    basis = np.linalg.qr(rng.standard_normal((k, width, dim)))[0]
    points = offset * rng.standard_normal((k, width)) / np.sqrt(width)
    rows = np.einsum("nfd,nd->nf", basis[of], rng.standard_normal((len(of), dim))) + points[of]
    return rows + noise * rng.standard_normal(rows.shape) / np.sqrt(width), of


def clustered(x: np.ndarray, of: np.ndarray | None = None, pieces: int = 3, **options: Any) -> cases.Answer:
    index = torch.arange(len(x))
    labels = {} if of is None else {"kind": torch.from_numpy(of)}
    names = {} if of is None else {"kind": tuple(map(str, range(int(of.max()) + 1)))}
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), categories=names)
    config = k_subspaces.Config(label=None if of is None else "kind", **options)
    k_subspaces.check(inputs, config)
    block = Block({"x": torch.from_numpy(x)}, index, 0 * index, index, labels)
    edges = np.linspace(0, len(x), pieces + 1)[1:-1].astype(int).tolist()
    return cases.run(Case(k_subspaces, config, inputs, block), cases.cut(block, edges))


@pytest.mark.parametrize("kind", ["linear", "affine"])
@pytest.mark.parametrize(("k", "dim"), [(2, 1), (3, 4), (6, 2)])
def test_planted_subspaces_are_found_to_the_last_digit(k: int, dim: int, kind: str) -> None:
    x, of = union(k, k, dim, 30, 200, offset=0.0 if kind == "linear" else 5.0)
    answer = clustered(x, of, clusters=k, dimension=dim, kind=kind, starts=5)
    result = answer.result
    assert (result.accuracy, result.adjusted_rand, result.purity) == (1, 1, 1)
    assert result.normalised_mutual_information == pytest.approx(1)
    assert result.residual_share < 1e-14 < 0.01 < result.one_subspace
    assert result.converged
    assert result.caveats == ()
    basis, mean = answer.arrays["basis"].numpy(), answer.arrays["mean"].numpy()
    np.testing.assert_allclose(basis @ basis.transpose(0, 2, 1), np.eye(dim)[None].repeat(k, 0), atol=1e-12)
    if kind == "linear":
        assert not mean.any()
    for cluster in range(k):  # every planted subspace is one that was found
        rows = x[of == cluster]
        left = rows[None] - mean[:, None]
        left = left - (left @ basis.transpose(0, 2, 1)) @ basis
        assert np.linalg.norm(left, axis=2).max(1).min() < 1e-10


def lloyd(x: np.ndarray, mean: np.ndarray, basis: np.ndarray, rounds: int) -> list[float]:
    """Sums of squared residuals of K affine subspaces, by differences and full decompositions."""
    found = []
    for _ in range(rounds):
        left = x[None] - mean[:, None]
        left = left - (left @ basis.transpose(0, 2, 1)) @ basis
        square = (left**2).sum(2)
        label = square.argmin(0)
        found.append(square.min(0).sum())
        mean = np.stack([x[label == k].mean(0) for k in range(len(mean))])
        basis = np.stack(
            [np.linalg.svd(x[label == k] - mean[k])[2][: basis.shape[1]] for k in range(len(mean))]
        )
    return found


def test_rounds_are_those_of_a_plain_loop() -> None:
    """From the same start, on rows far off and noisy; the residuals never rise."""
    x, of = union(1, 4, 3, 20, 300, noise=0.8, offset=2.0)
    x = x + 100
    options = {"clusters": 4, "dimension": 3, "start_rows": 200, "starts": 3, "tolerance": 0.0, "rounds": 8}
    answer = clustered(x, of, **options)
    sample = k_subspaces.row_sample.of_rows(torch.arange(len(x)), torch.from_numpy(x), 200)
    begun = subspace_starts.begun(
        k_subspaces.row_sample.values(sample), 4, 3, True, 3, True, torch.Generator().manual_seed(0)
    )[0].subspaces
    expected = np.array(lloyd(x, begun.mean.numpy(), begun.basis.numpy(), answer.result.rounds))
    np.testing.assert_allclose(answer.arrays["cost"].numpy() * len(x), expected, rtol=1e-9)
    assert (np.diff(expected) <= 1e-9 * expected[0]).all()
    last = lloyd(x, begun.mean.numpy(), begun.basis.numpy(), answer.result.rounds + 1)[-1]
    total = ((x - x.mean(0)) ** 2).sum()
    assert answer.result.residual_share * total >= last * (1 - 1e-9)


def test_all_rows_in_one_subspace_are_principal_components() -> None:
    x, _ = union(0, 3, 5, 12, 100, noise=0.5, offset=3.0)
    answer = clustered(x, clusters=1, dimension=4)
    values = np.linalg.svd(x - x.mean(0))[1] ** 2
    assert answer.result.residual_share == pytest.approx(values[4:].sum() / values.sum(), rel=1e-10)
    assert answer.result.one_subspace == pytest.approx(answer.result.residual_share, rel=1e-12)
    np.testing.assert_allclose(answer.arrays["eigenvalue"][0], values / len(x), rtol=1e-9)
    np.testing.assert_allclose(answer.arrays["mean"][0], x.mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_rows_determine_subspaces_from_some_number_on(seed: int) -> None:
    """Two subspaces of dimension 6 in 48 features: with 9 rows and more in each they are found."""
    for each in (9, 12, 30):
        x, of = union(seed, 2, 6, 48, each)
        answer = clustered(
            x, of, clusters=2, dimension=6, kind="linear", starts=40, start="seeding", tolerance=0.0
        )
        assert answer.result.accuracy >= 0.95


def test_labels_are_read_for_the_comparison_alone() -> None:
    x, of = union(2, 3, 2, 15, 80, noise=0.3)
    with_labels = clustered(x, of, clusters=3, dimension=2)
    without = clustered(x, clusters=3, dimension=2)
    missing = clustered(x, np.where(np.arange(len(of)) % 5 == 0, -1, of), clusters=3, dimension=2)
    shuffled = clustered(x, np.random.default_rng(0).permutation(of), clusters=3, dimension=2)
    for answer in (without, missing, shuffled):
        for name, values in with_labels.arrays.items():
            assert torch.equal(values, answer.arrays[name])
    assert without.result.accuracy is None
    assert missing.result.accuracy == pytest.approx(with_labels.result.accuracy, abs=0.03)
    assert abs(shuffled.result.adjusted_rand) < 0.05


def test_long_rows_count_no_more_than_short_ones_when_scaled() -> None:
    x, of = union(3, 3, 2, 15, 100, noise=0.2)
    longer = x * np.random.default_rng(0).lognormal(0, 3, (len(x), 1))
    plain, scaled = (
        clustered(rows, of, clusters=3, dimension=2, kind="linear", unit_length=True) for rows in (x, longer)
    )
    assert scaled.result.accuracy == plain.result.accuracy
    np.testing.assert_allclose(scaled.arrays["cost"], plain.arrays["cost"], rtol=1e-9)


def test_equal_rows_and_zeros_leave_empty_subspaces_that_are_told() -> None:
    x = np.zeros((60, 5))
    x[:30, 0] = 1.0
    answer = clustered(x, clusters=4, dimension=1)
    assert all(values.isfinite().all() for values in answer.arrays.values() if values.is_floating_point())
    assert answer.result.residual_share < 1e-14
    assert answer.result.clusters < 4
    assert any("have no rows" in note for note in answer.result.caveats)
    nothing = clustered(np.zeros((60, 5)), clusters=2, dimension=1, kind="linear", unit_length=True)
    assert (nothing.result.residual_share, nothing.result.one_subspace) == (0, 0)


def test_a_subspace_without_rows_is_put_through_the_furthest() -> None:
    found = numerics.Subspaces(torch.zeros(3, 4).double(), torch.eye(4).double()[:3, None])
    far = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 5]]).double()
    affine = numerics.repaired(found, torch.tensor([2, 0]), far, True)
    assert torch.equal(affine.mean[2], far[0])
    assert torch.equal(affine.mean[0], far[1])
    assert torch.equal(affine.basis[1], found.basis[1])
    linear = numerics.repaired(found, torch.tensor([1]), far, False)
    torch.testing.assert_close(linear.basis[1, 0], far[0] / far[0].norm())
    assert not linear.mean.any()
    rows = far[:1]
    assert float(numerics.residuals(rows, affine).min()) < 1e-12
    assert float(numerics.residuals(rows, linear).min()) < 1e-12


def test_residuals_far_from_the_origin_keep_their_digits() -> None:
    x, of = union(4, 3, 2, 10, 50, noise=0.1, offset=1.0)
    for offset in (0.0, 1e6):
        rows = x + offset
        mean = np.stack([rows[of == k].mean(0) for k in range(3)])
        basis = np.stack([np.linalg.svd(rows[of == k] - mean[k])[2][:2] for k in range(3)])
        found = numerics.residuals(
            torch.from_numpy(rows), numerics.Subspaces(torch.from_numpy(mean), torch.from_numpy(basis))
        )
        left = rows[:, None] - mean
        along = np.einsum("nkf,kdf->nkd", left, basis)
        left = left - np.einsum("nkd,kdf->nkf", along, basis)
        np.testing.assert_allclose(found, (left**2).sum(2), rtol=1e-6, atol=1e-8)


def different(seed: int, dimensions: tuple[int, ...], noise: float) -> tuple[np.ndarray, np.ndarray]:
    """200 rows of each of some linear subspaces."""
    parts = [union(100 * seed + k, 1, d, 30, 200, noise)[0] for k, d in enumerate(dimensions)]
    return np.concatenate(parts), np.repeat(np.arange(len(dimensions)), 200)


@pytest.mark.slow
def test_each_subspace_gets_its_own_dimension() -> None:
    """Planted ones in noise are found in nine of ten unions at least."""
    right = 0
    for seed in range(10):
        x, of = different(seed, (2, 4, 7), noise=0.3)
        answer = clustered(
            x,
            of,
            clusters=3,
            dimension=None,
            max_dimension=8,
            kind="linear",
            starts=3,
            seed=seed,
        )
        held = answer.arrays["dimension"].tolist()
        basis = answer.arrays["basis"]
        assert [int(n) for n in (basis.square().sum(2) > 0.5).sum(1)] == held
        assert answer.result.dimension == max(held) == basis.shape[1]
        right += sorted(held) == [2, 4, 7] and answer.result.accuracy > 0.97
    assert right >= 9


def test_dimensions_without_noise() -> None:
    x, of = different(0, (1, 3, 9), noise=0.0)
    answer = clustered(x, of, clusters=3, dimension=None, kind="linear", starts=3, start="seeding")
    assert sorted(answer.arrays["dimension"].tolist()) == [1, 3, 9]
    assert answer.result.accuracy == 1
    few = clustered(x, clusters=3, dimension=None, max_dimension=2, kind="linear", starts=3, start="seeding")
    assert int(few.arrays["dimension"].max()) == 2
    assert any("raise `max_dimension`" in note for note in few.result.caveats)


def test_an_ensemble_finds_digits_that_draws_miss() -> None:
    """Handwritten digits: fewer residuals, and clusters that are nearer to the labels."""
    x, of = load_digits(return_X_y=True)
    found = {start: clustered(x, of, clusters=10, start=start).result for start in ("ensemble", "seeding")}
    assert found["ensemble"].residual_share < found["seeding"].residual_share
    assert found["ensemble"].adjusted_rand > 0.7
    assert found["ensemble"].adjusted_rand > found["seeding"].adjusted_rand + 0.05


def test_refusals() -> None:
    x, _ = union(0, 2, 2, 8, 20)
    with pytest.raises(MethodError, match=r"found 40 rows, 20 subspaces of 2 dimensions need at least 60"):
        clustered(x, clusters=20, dimension=2)
    with pytest.raises(MethodError, match="8 dimensions hold all rows of 8 features"):
        clustered(x, clusters=2, dimension=8)
    with pytest.raises(MethodError, match="start on at least 12 rows"):
        clustered(x, clusters=4, dimension=2, start_rows=10)
    with pytest.raises(MethodError, match="names no classes"):
        k_subspaces.check(
            Inputs({"x": 8}, n_rows=400, n_samples=400), k_subspaces.Config(label="kind", clusters=2)
        )
    wide = Inputs({"x": 65536}, n_rows=10**6, n_samples=10**6)
    with pytest.raises(MethodError, match="bytes, at most"):
        k_subspaces.check(wide, k_subspaces.Config())
    x[3, 2] = np.nan
    with pytest.raises(MethodError, match="NaN"):
        clustered(x, clusters=2, dimension=2)


def test_through_the_engine(tmp_path: Path) -> None:
    """Shards, rounds and states of a real store give what one block gives."""
    x, of = union(5, 3, 2, 12, 100, noise=0.2, offset=2.0)
    rows, root = x.astype(np.float32), Location(str(tmp_path))
    spec = make_capture(root, {"a": rows}, shard_rows=32, chunk_rows=16)
    stage = stage_of("clustering.k_subspaces", {"x": rows_ref(spec)}, clusters=3, dimension=2)
    ((_, made),) = run_stages(root, [stage], serial).items()
    expected = clustered(rows, clusters=3, dimension=2)
    arrays = artifact_arrays(root, made.id)
    assert made.result["residual_share"] == pytest.approx(expected.result.residual_share, rel=1e-9)
    np.testing.assert_array_equal(arrays["size"], expected.arrays["size"])
    np.testing.assert_allclose(arrays["cost"], expected.arrays["cost"], rtol=1e-9)
    label = numerics.residuals(
        torch.from_numpy(rows),
        numerics.Subspaces(torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["basis"])),
    ).argmin(1)
    assert adjusted_rand_score(of, label) > 0.95
