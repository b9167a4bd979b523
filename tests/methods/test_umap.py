"""geometry.umap: umap-learn itself on the same neighbours, planted clusters, and how far a map is believed against scikit-learn."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pipelines.plan import make_plan
from schemas.errors import MethodError
from schemas.run import RunSpec
from tasks.drive import serial
from tasks.engine import run_stage
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import umap
from tasks.numerics import map_quality, umap_layout
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.pipelines.runs import vectors_run

needs_umap = pytest.mark.skipif(
    importlib.util.find_spec("umap") is None, reason="needs umap-learn: pip install umap-learn"
)


def run(x: Tensor, sample: Tensor | None = None, **options: Any) -> tuple[umap.Result, dict[str, Tensor]]:
    config, index = umap.Config.model_validate(options), torch.arange(len(x))
    sample = index if sample is None else sample
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1)
    umap.check(inputs, config)
    result, arrays = umap.solve(Block({"x": x}, sample, index, index), inputs, config)
    return result, {name: array.values for name, array in arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def clusters() -> tuple[Tensor, np.ndarray]:
    """Three in 20 features, each of three dimensions and a little noise, in mixed order."""
    label = torch.arange(150) % 3
    inside = torch.stack([drawn(3, 20, seed) for seed in range(3)])[label]
    x = 8 * torch.eye(20).double()[label] + 0.3 * torch.einsum("na,nad->nd", drawn(150, 3, 5), inside)
    return x + 0.05 * drawn(150, 20, 6), label.numpy()


@needs_umap
def test_umap_learn_gives_the_same_coordinates() -> None:
    """Its class, with neighbours from SciPy's distances, and the start that is documented."""
    x, k = drawn(120, 6), 10
    _, arrays = run(x, neighbours=k, min_dist=0.3, seed=3)
    from umap.umap_ import UMAP  # now, as the first import of the package warns of what it lacks

    framed = (x - x.mean(0)).numpy() / 4
    assert 0.5 <= np.abs(framed).max() < 1
    distance = cdist(framed, framed)
    index = np.argsort(distance, axis=1)[:, :k]
    near = index, np.take_along_axis(distance, index, axis=1).astype(np.float32)
    pca = arrays["pca"].numpy()
    noise = np.random.Generator(np.random.Philox(np.random.SeedSequence([3, 1]))).standard_normal((120, 2))
    start = (pca / np.abs(pca).max() + 1e-5 * noise).astype(np.float32)
    made = UMAP(
        n_neighbors=k, min_dist=0.3, init=start, random_state=3, n_jobs=1, precomputed_knn=(*near, None)
    )
    with pytest.warns(UserWarning, match="transforming new data"):
        expected = made.fit_transform(framed)
    np.testing.assert_array_equal(arrays["coordinates"].numpy(), expected)


@needs_umap
def test_planted_clusters_stay_apart_and_are_told_so() -> None:
    x, label = clusters()
    result, arrays = run(x)
    near = map_quality.neighbours(arrays["coordinates"], 5)[0].numpy()
    assert (label[near] == label[:, None]).all()
    assert result.trustworthiness > 0.97
    assert result.kept > 1.1 * result.kept_pca
    assert result.kept_pca > 4 * result.kept_chance
    assert (result.parts, result.n_points, result.others, result.n_duplicates) == (3, 150, 14, 0)
    assert "no measure" in result.caveats[0]
    assert "3 parts" in result.caveats[1]


@needs_umap
def test_the_numbers_are_those_of_scikit_learn() -> None:
    x, _ = clusters()
    result, arrays = run(x.float(), neighbours=8)
    rows = x.float().double().numpy()
    expected = PCA(2, svd_solver="full").fit(rows)
    np.testing.assert_allclose(
        cdist(arrays["pca"], arrays["pca"]) * 16, cdist(*2 * [expected.transform(rows)]), rtol=1e-9, atol=1e-9
    )
    assert result.explained_pca == pytest.approx(expected.explained_variance_ratio_.sum(), rel=1e-10)
    for shown, trust, kept, far in (
        (arrays["coordinates"], result.trustworthiness, result.kept, result.distances),
        (arrays["pca"], result.trustworthiness_pca, result.kept_pca, result.distances_pca),
    ):
        assert trust == pytest.approx(trustworthiness(rows, shown.numpy(), n_neighbors=7), rel=1e-12)
        here, there = (
            NearestNeighbors(n_neighbors=7).fit(v).kneighbors(return_distance=False) for v in (rows, shown)
        )
        both = [len(set(a) & set(b)) for a, b in zip(here, there, strict=True)]
        assert kept == pytest.approx(np.mean(both) / 7, rel=1e-12)
        pairs = np.tril_indices(150, -1)
        every = spearmanr(cdist(rows, rows)[pairs], cdist(shown, shown)[pairs]).statistic
        assert far == pytest.approx(every, abs=0.02)  # of a draw of pairs


def test_random_places_have_what_chance_gives() -> None:
    x, k = drawn(400, 5), 6
    near = map_quality.neighbours(x, k)[0]
    found = [map_quality.judge(x, near, drawn(400, 2, seed), 0) for seed in range(1, 13)]
    trust, kept = map_quality.by_chance(400, k)
    assert np.mean([q.trustworthiness for q in found]) == pytest.approx(trust, abs=0.01)
    assert np.mean([q.kept for q in found]) == pytest.approx(kept, abs=0.004)
    assert np.mean([q.distances for q in found]) == pytest.approx(0, abs=0.03)


def test_the_plane_of_few_wide_points_is_that_of_many() -> None:
    x = drawn(12, 30) * torch.linspace(3, 1, 30)
    x -= x.mean(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    for plane, scores in ((map_quality.plane(x), u * s), (map_quality.plane(u * s), u * s)):
        torch.testing.assert_close(plane.scores.abs(), scores[:, :2].abs(), rtol=1e-9, atol=1e-9)
        assert plane.share == pytest.approx(float(s[:2].square().sum() / s.square().sum()))
    assert not map_quality.plane(drawn(9, 1))[0][:, 1].any()


@needs_umap
def test_a_map_depends_on_its_seed_and_on_neither_scale_nor_threads() -> None:
    x = drawn(60, 5)
    first = run(x, neighbours=6)[1]["coordinates"]
    assert not torch.equal(first, run(x, neighbours=6, seed=1)[1]["coordinates"])
    for factor in (2.0**-900, 2.0**400):
        assert torch.equal(first, run(x * factor, neighbours=6)[1]["coordinates"])
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: run(x, neighbours=6)[1]["coordinates"], range(3)))
    assert all(torch.equal(first, each) for each in found)


@needs_umap
def test_the_threads_of_pytorch_are_those_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where numba starts its own, which it does once in a process."""
    before, real = torch.get_num_threads(), umap_layout._layout

    def starting(*given: Any) -> umap_layout.Layout:
        torch.set_num_threads(before + 1)
        return real(*given)

    monkeypatch.setattr(umap_layout, "_layout", starting)
    run(drawn(40, 5), neighbours=6)
    assert torch.get_num_threads() == before


@needs_umap
def test_points_are_the_mean_rows_of_samples_or_rows() -> None:
    means = drawn(40, 6).float()
    away = drawn(40, 6, 1)
    x = torch.cat([means.double() + away, means.double() - away, means.double()])
    sample = torch.arange(40).repeat(3)
    result, arrays = run(x, sample, neighbours=5)
    assert (result.n_rows, result.points, result.n_points) == (120, "samples", 40)
    assert arrays["sample"].tolist() == arrays["row"].tolist() == list(range(40))
    plane = PCA(2, svd_solver="full").fit_transform(x.reshape(3, 40, 6).mean(0).numpy())
    ratio = cdist(plane, plane)[1:, 0] / cdist(arrays["pca"], arrays["pca"])[1:, 0]
    np.testing.assert_allclose(ratio, 2.0 ** np.round(np.log2(ratio[0])), rtol=1e-9)
    result, arrays = run(x, sample, neighbours=5, sample_rows=120)
    assert (result.points, result.n_points) == ("rows", 120)
    assert torch.equal(arrays["sample"], sample)
    assert torch.equal(arrays["row"], torch.arange(120))
    with pytest.raises(ValueError, match="both samples and sample_rows"):
        run(x, sample, samples=40, sample_rows=120)


@needs_umap
def test_directions_alone_count_where_asked() -> None:
    x = drawn(50, 6)
    longer = torch.cat([x * 2.0 ** (torch.arange(50) % 7 - 3)[:, None], torch.zeros(3, 6)])
    first, second = run(x, neighbours=6, metric="cosine"), run(longer, neighbours=6, metric="cosine")
    assert torch.equal(first[1]["coordinates"], second[1]["coordinates"])
    assert (second[0].n_zero, second[0].n_points) == (3, 50)
    assert second[1]["row"].tolist() == list(range(50))


@needs_umap
@pytest.mark.parametrize("x", [drawn(30, 4).repeat(3, 1), drawn(90, 1)], ids=["duplicates", "one feature"])
def test_points_that_lie_badly(x: Tensor) -> None:
    result, arrays = run(x, neighbours=8)
    assert arrays["coordinates"].isfinite().all()
    assert result.n_duplicates == (0 if x.shape[1] == 1 else 90)
    assert result.trustworthiness > 0.9


def test_what_cannot_be_mapped_is_refused() -> None:
    with pytest.raises(MethodError, match="found 20 samples, 15 neighbours need 30"):
        run(drawn(20, 5))
    with pytest.raises(MethodError, match="found 40 samples, a map takes up to 30 points; set samples"):
        run(drawn(40, 5), most_points=30, samples=None)
    with pytest.raises(MethodError, match=r"found 40 rows, a map .* set sample_rows"):
        run(drawn(40, 5), most_points=30, sample_rows=50)
    with pytest.raises(MethodError, match="found 10 good points"):
        run(torch.cat([drawn(10, 5), torch.zeros(30, 5)]), metric="cosine")
    with pytest.raises(MethodError, match="all 40 points are equal"):
        run(torch.ones(40, 5))


def without_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "umap" else find(name))


def test_without_umap_learn_the_plan_and_the_stage_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_umap(monkeypatch)
    root = Location(str(tmp_path))
    stage = stage_of("geometry.umap", {"x": rows_ref(make_capture(root, {"a": drawn(40, 3).numpy()}))})
    with pytest.raises(MethodError, match=r"geometry.umap needs umap-learn.* pip install umap-learn"):
        run_stage(root, stage, serial)
    spec = {**vectors_run(tmp_path).model_dump(mode="json"), "stages": {"map": {"method": "geometry.umap"}}}
    with pytest.raises(MethodError, match="pip install umap-learn"):
        make_plan(RunSpec.model_validate(spec))
