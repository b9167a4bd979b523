"""Sparse subspace clustering by orthogonal matching pursuit: recovery, its failures, and what is told of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.drive import serial
from tasks.engine import run_stages
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods.expressed import dense, expressed, parted
from tests.methods.test_k_subspaces import union
from tests.numerics.test_pursuit import loop


def test_the_coefficients_of_a_loop() -> None:
    x, _ = union(0, 3, 4, 20, 50, noise=0.2)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = loop(unit, 6, 1e-3)
    for pieces in (1, 4):
        np.testing.assert_allclose(dense(expressed("ssc_omp", x, pieces, entries=6)), expected, atol=1e-9)


@pytest.mark.parametrize("dim", [5, 10])
def test_rows_of_few_dimensions_are_expressed_by_their_subspace_alone(dim: int) -> None:
    """Five subspaces in 50 features, 50 rows each, three seeds."""
    for seed in range(3):
        x, of = union(seed, 5, dim, 50, 50)
        result = parted(expressed("ssc_omp", x, entries=dim), of, clusters=5).result
        assert result.wrong_share < 1e-6
        assert result.accuracy == 1 or dim == 10  # a subspace may fall into two parts


@pytest.mark.parametrize("k", [2, 3, 5, 8, 10])
def test_the_number_of_subspaces_is_found(k: int) -> None:
    for seed in range(3):
        x, of = union(seed, k, 4, 50, 60)
        result = parted(expressed("ssc_omp", x, entries=4), of, starts=5).result
        assert (result.clusters, result.candidates[0], result.accuracy) == (k, k, 1)


def test_noise_is_not_expressed_when_asked() -> None:
    """Rows with noise in more rows than noise needs to look like structure: five entries of which three are noise."""
    x, of = union(0, 5, 5, 50, 400, noise=0.14)
    fixed, aware = (expressed("ssc_omp", x, entries=5, noise=noise) for noise in (False, True))
    assert fixed.result.mean_entries > 4.9
    assert aware.result.mean_entries < 3.5
    shares = [parted(graph, of, clusters=5, starts=5).result.wrong_share for graph in (fixed, aware)]
    assert shares[1] < 0.2 * shares[0]


def test_through_the_engine(tmp_path: Path) -> None:
    """Shards of a store, read in several looks, give what blocks in memory give; also rows that go through in small groups."""
    x, of = union(3, 3, 3, 12, 60, noise=0.02)
    rows, root = x.astype(np.float32), Location(str(tmp_path))
    spec = make_capture(root, {"a": rows}, None, {"kind": [str(c) for c in of]}, shard_rows=32, chunk_rows=16)
    ref = rows_ref(spec)
    made = stage_of("clustering.preparation", {"x": ref}, center=False)
    graph = stage_of("clustering.ssc_omp", {"x": ref}, {"preparation": made.id}, entries=3)
    parts = stage_of("clustering.partition", {"x": ref}, {"graph": graph.id}, clusters=3, label="kind")
    done = run_stages(root, [made, graph, parts], serial)
    arrays = artifact_arrays(root, done[graph.id].id)
    expected = expressed("ssc_omp", rows, entries=3)
    np.testing.assert_array_equal(arrays["index"], expected.arrays["index"])
    np.testing.assert_allclose(arrays["coefficient"], expected.arrays["coefficient"], atol=1e-12)
    assert done[parts.id].result["accuracy"] > 0.97
    assert torch.equal(
        torch.from_numpy(artifact_arrays(root, done[parts.id].id)["cluster"]),
        parted(expected, of, clusters=3).arrays["cluster"],
    )


def test_noise_is_told_by_the_directions_that_rows_span() -> None:
    """The same rows with features that add nothing: none is expressed."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((400, 8))
    wide = noise @ np.linalg.qr(rng.standard_normal((128, 128)))[0][:8]
    few, many = (expressed("ssc_omp", x, entries=5, noise=True).result.mean_entries for x in (noise, wide))
    assert few == many < 0.5
