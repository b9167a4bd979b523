"""Codebooks against scikit-learn, planted vectors, dead codes, scales, refusals, and a real store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import kmeans_plusplus

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.compression import codebook
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Answer
from tests.methods.test_klt import case_of, gaussian


def made(x: np.ndarray, **options: Any) -> Answer:
    here = case_of(codebook, x, codebook.Config(**({"rotation": "none"} | options)))
    codebook.check(here.inputs, here.config)
    return cases.run(here)


def planted(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 6 features in 3 parts, each part at one of 4 points with little noise."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((3, 4, 2)) * 5
    code = rng.integers(0, 4, (n, 3))
    x = points[np.arange(3), code].reshape(n, 6) + 0.01 * rng.standard_normal((n, 6))
    return x.astype(np.float32), points


def test_planted_vectors_are_found() -> None:
    """Of the starts some fall together; what they leave without rows, or far from theirs, is mended by more vectors than points."""
    x, points = planted()
    answer = made(x, place=2, bits=4)
    told = answer.arrays["centre"].double().numpy() + answer.arrays["mean"].double().numpy().reshape(3, 1, 2)
    for part in range(3):
        apart = np.linalg.norm(points[part][:, None] - told[part][None], axis=2).min(1)
        assert apart.max() < 0.02
    assert answer.result.nmse < 1e-4


def test_arrays_are_those_of_the_last_round() -> None:
    x = gaussian(3000, 10)
    answer = made(x, place=4, bits=4, rotation="principal")
    a = {name: values.double().numpy() for name, values in answer.arrays.items()}
    turned = (x.astype(np.float64) - a["mean"]) @ a["rotation"].T
    parts = np.pad(turned, ((0, 0), (0, 2))).reshape(-1, 3, 4)
    square = ((parts[:, :, None] - a["centre"]) ** 2).sum(3)
    np.testing.assert_allclose(a["error"], square.min(2).mean(0), rtol=1e-9)
    np.testing.assert_allclose(a["cost"][-1], a["error"].sum(), rtol=1e-12)
    assert (np.diff(a["cost"]) <= 1e-6 * a["cost"][0]).all()
    counts = [np.bincount(square[:, m].argmin(1), minlength=16) for m in range(3)]
    np.testing.assert_array_equal(a["count"], counts)
    spread = ((x - x.mean(0, dtype=np.float64)) ** 2).sum(1).mean()
    assert answer.result.nmse == pytest.approx(a["cost"][-1] / spread, rel=1e-6)
    assert answer.result.bits_per_dimension == 3 * 4 / 10
    assert answer.result.bytes_codebook == 4 * (3 * 16 * 4 + 10 * 10 + 10)


def test_vectors_settle_at_the_means_of_their_rows() -> None:
    x = gaussian(1500, 6)
    answer = made(x, place=3, bits=2, rounds=200, tolerance=0)
    assert answer.result.converged
    a = {name: values.double().numpy() for name, values in answer.arrays.items()}
    parts = (x.astype(np.float64) - a["mean"]).reshape(-1, 2, 3)
    for m in range(2):
        label = ((parts[:, m, None] - a["centre"][m]) ** 2).sum(2).argmin(1)
        means = np.stack([parts[label == k, m].mean(0) for k in range(4)])
        np.testing.assert_allclose(a["centre"][m], means, rtol=1e-4, atol=1e-5)


def test_no_worse_than_a_start_by_distance_alone() -> None:
    """scikit-learn's k-means++ without rounds, and a bound from below: twice as many vectors cannot err more."""
    x = gaussian(2000, 4)
    found = made(x, place=4, bits=4).arrays["cost"][-1]
    centre, _ = kmeans_plusplus(x, 16, random_state=0)
    plain = ((x[:, None] - centre) ** 2).sum(2).min(1).mean()
    assert made(x, place=4, bits=5).arrays["cost"][-1] < found < plain


def test_dead_codes_are_revived() -> None:
    """Nine tenths of the rows are equal: vectors that start at them are dead but one, and go to the others."""
    x = gaussian(2000, 4)
    x[:1800] = x[0]
    x = x[np.random.default_rng(0).permutation(2000)]
    result = made(x, place=4, bits=6, tolerance=0, rounds=20).result
    assert result.dead == 0
    assert result.nmse < 0.1


def test_equal_rows_leave_dead_codes_that_are_told() -> None:
    x = np.ones((40, 5), np.float32)
    result = made(x, place=2, bits=3).result
    assert (result.nmse, result.dead, result.least_perplexity) == (None, 3 * 7, 1)
    assert any("nearest to no row" in note for note in result.caveats)


@pytest.mark.parametrize("scale", ["gain", "gain_bias"])
def test_rows_of_any_length_have_one_shape(scale: str) -> None:
    x = gaussian(1500, 8, mean=0)
    scaled = x * 2.0 ** np.random.default_rng(0).integers(-20, 20, (1500, 1))
    a, b = (made(rows.astype(np.float32), place=4, bits=4, scale=scale) for rows in (x, scaled))
    assert torch.equal(a.arrays["count"], b.arrays["count"])
    assert a.result.nmse == b.result.nmse


def test_an_offset_of_all_features_is_no_shape() -> None:
    x = gaussian(1500, 8, mean=0)
    moved = x + np.random.default_rng(0).standard_normal((1500, 1)).astype(np.float32) * 4
    plain, without = (made(rows, place=4, bits=4, scale="gain_bias") for rows in (x, moved))
    np.testing.assert_allclose(without.result.nmse, plain.result.nmse, rtol=1e-3)


def test_caveats() -> None:
    result = made(gaussian(300, 40), place=8, bits=3, rotation="opq", rounds=1).result
    assert len(result.caveats) == 3
    assert "fewer than 39" in result.caveats[0]
    assert "fewer than ten" in result.caveats[1]
    assert "raise `rounds`" in result.caveats[2]


class TestRefusals:
    def test_more_vectors_than_rows(self) -> None:
        with pytest.raises(MethodError, match=r"256 vectors start at as many rows, found 100 rows"):
            made(gaussian(100, 4))
        with pytest.raises(MethodError, match=r"`start_rows` 10"):
            made(gaussian(100, 4), bits=4, start_rows=10)

    def test_rows_that_are_not_finite(self) -> None:
        x = gaussian(100, 4)
        x[7, 2] = np.inf
        with pytest.raises(MethodError, match="1 of 100 rows hold NaN or infinity"):
            made(x, bits=2)

    def test_one_row(self) -> None:
        with pytest.raises(MethodError, match="found 1 rows"):
            made(gaussian(1, 4), bits=1)


def test_through_the_engine(tmp_path: Path) -> None:
    """Shards, rounds and states of a real store give what one block gives."""
    x, root = gaussian(400, 12), Location(str(tmp_path))
    spec = make_capture(root, {"a": x}, shard_rows=64, chunk_rows=16)
    options: dict[str, Any] = {"place": 4, "bits": 3, "rotation": "principal"}
    stage = stage_of("compression.codebook", {"x": rows_ref(spec)}, **options)
    ((_, done),) = run_stages(root, [stage], serial).items()
    expected = made(x, **options)
    arrays = artifact_arrays(root, done.id)
    assert done.result["nmse"] == pytest.approx(expected.result.nmse, rel=1e-9)
    np.testing.assert_array_equal(arrays["count"], expected.arrays["count"])
