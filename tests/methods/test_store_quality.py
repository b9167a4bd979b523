"""What codes keep, against NumPy and scikit-learn on decoded rows, for codes that keep all and codes that keep little."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stage
from tasks.methods.compression import klt, store_quality
from tasks.numerics import row_sample
from tasks.readers import open_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.test_klt import basis_of, case_of, coded, decoded, gaussian
from tests.methods.test_product_codes import coded as vector_coded
from tests.methods.test_product_codes import decoded as vector_decoded

OF_ROWS = ("code", "high", "length", "gain", "bias", "error")


def case(x: np.ndarray, codes: Answer, labels: np.ndarray | None = None, **options: Any) -> Case:
    fixed = {name: values for name, values in codes.arrays.items() if name not in OF_ROWS}
    here = case_of(store_quality, x, store_quality.Config(**options))
    inputs = replace(
        here.inputs,
        artifacts={"codes": fixed},
        results={"codes": codes.result.model_dump(mode="json")},
        categories={} if labels is None else {"kind": tuple("abc")},
    )
    aligned = {"codes": {name: codes.arrays[name] for name in OF_ROWS if name in codes.arrays}}
    of = {} if labels is None else {"kind": torch.from_numpy(labels)}
    return here._replace(inputs=inputs, block=replace(here.block, aligned=aligned, labels=of))


def compared(x: np.ndarray, codes: Answer, labels: np.ndarray | None = None, **options: Any) -> Answer:
    here = case(x, codes, labels, **options)
    store_quality.check(here.inputs, here.config)
    return cases.run(here)


@pytest.mark.parametrize("kind", ["klt", "gain_shape", "vectors"])
def test_figures_are_those_of_decoded_rows(kind: str) -> None:
    x, labels = gaussian(1200, 10), np.random.default_rng(1).integers(-1, 3, 1200)
    if kind == "vectors":
        codes = vector_coded(x, rotation="principal", scale="gain_bias")
        told = vector_decoded(codes)
    else:
        codes = coded(x, nmse=0.03, gain_shape=kind == "gain_shape")
        told = decoded(codes)
    answer = compared(x, codes, labels, components=4, sample_rows=5000, label="kind")
    exact, result = x.astype(np.float64), answer.result
    assert result.nmse == pytest.approx(((exact - told) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum())
    (old, before), (new, after) = (np.linalg.eigh(np.cov(rows.T)) for rows in (exact, told))
    np.testing.assert_allclose(answer.arrays["eigenvalue"], old[::-1][:4], rtol=1e-8)
    np.testing.assert_allclose(answer.arrays["decoded_eigenvalue"], new[::-1][:4], rtol=1e-8)
    assert result.eigenvalue_change == pytest.approx(np.abs(new / old - 1)[::-1][:4].max(), rel=1e-6)
    assert result.trace_ratio == pytest.approx(new.sum() / old.sum(), rel=1e-8)
    for k in range(1, 5):
        share = ((before[:, -k:].T @ after[:, -k:]) ** 2).sum() / k
        assert float(answer.arrays["overlap"][k - 1]) == pytest.approx(share, abs=1e-8)
    means = np.stack([exact[labels == c].mean(0) for c in range(3)])
    moved = [np.linalg.norm((exact - told)[labels == c].mean(0)) for c in range(3)]
    apart = np.sqrt(((means - means.mean(0)) ** 2).sum(1).mean())
    np.testing.assert_allclose(answer.arrays["class_shift"], moved / apart, rtol=1e-6)
    assert result.class_shift == pytest.approx(max(moved) / apart)


def test_neighbours_are_those_of_all_cosines() -> None:
    x = gaussian(400, 8)
    codes = coded(x, nmse=0.1)
    result = compared(x, codes, neighbours=5, clusters=4).result
    sides = [rows - x.mean(0, dtype=np.float64) for rows in (x.astype(np.float64), decoded(codes))]
    unit = [rows / np.linalg.norm(rows, axis=1)[:, None] for rows in sides]
    near = [np.argsort(-(u @ u.T - 9 * np.eye(400)), axis=1)[:, :5] for u in unit]
    shares = [len(set(a) & set(b)) / 5 for a, b in zip(*near, strict=True)]
    assert result.recall.value == pytest.approx(np.mean(shares), abs=5e-3)
    off = 1.96 * np.std(shares, ddof=1) / 20
    assert result.recall.low == pytest.approx(np.mean(shares) - off, abs=5e-3)
    assert result.caveats == ()


def test_clusters_that_are_planted_stay() -> None:
    """Digits at an NMSE of a thousandth keep clusters and neighbours, at a half they lose both. Restarts move clusters more."""
    x = load_digits().data.astype(np.float32)
    basis = basis_of(x)
    fine, rough = (compared(x, coded(x, basis, nmse=nmse)).result for nmse in (1e-3, 0.5))
    assert fine.recall.low > 0.96
    assert fine.adjusted_rand.value > 0.97
    assert fine.restart_adjusted_rand < fine.adjusted_rand.value
    assert fine.overlap > 0.9999
    assert rough.recall.value < fine.recall.low - 0.1
    assert rough.adjusted_rand.value < fine.adjusted_rand.value
    assert rough.eigenvalue_change > 0.3 > fine.eigenvalue_change
    assert fine.adjusted_rand.low <= fine.adjusted_rand.value <= fine.adjusted_rand.high + 1e-9


def test_agreement_is_that_of_scikit_learn() -> None:
    x = gaussian(600, 6)
    codes = coded(x, nmse=0.2)
    here = case(x, codes, clusters=5)
    result = cases.run(here).result
    pairs = row_sample.values(
        row_sample.of_rows(
            torch.arange(600), torch.from_numpy(np.concatenate([x, decoded(codes)], 1)).double(), 2000
        )
    )
    mean = pairs[:, :6].mean(0)
    labels = [store_quality._clusters(rows - mean, here.config, 0) for rows in pairs.chunk(2, 1)]
    assert result.adjusted_rand.value == pytest.approx(adjusted_rand_score(*labels), abs=1e-6)


def test_repeated_rows_count_as_found() -> None:
    x = np.repeat(gaussian(60, 6), 4, axis=0)
    assert compared(x, coded(x, nmse=1e-4), neighbours=2, clusters=3).result.recall.value == 1


def test_a_sample_is_told() -> None:
    x = gaussian(900, 6)
    result = compared(x, coded(x, nmse=1e-3), sample_rows=200).result
    assert (result.n_rows, result.sample_rows) == (900, 200)
    assert "200 of 900 rows" in result.caveats[0]
    assert result.recall.low < result.recall.value


def test_directions_of_equal_variance_are_told() -> None:
    x = np.random.default_rng(0).standard_normal((20_000, 4)).astype(np.float32)
    result = compared(x, coded(x, nmse=0.01), components=2, sample_rows=100).result
    assert any("chance" in note for note in result.caveats)


def test_refusals() -> None:
    x = gaussian(40, 6)
    codes = coded(x)
    with pytest.raises(MethodError, match=r"found 40 rows to sample, 50 neighbours"):
        compared(x, codes, neighbours=50)
    with pytest.raises(MethodError, match="names no classes"):
        compared(x, codes, label="kind")
    here = case(x, codes)
    with pytest.raises(MethodError, match="found 5 rows to sample"):
        cases.run(here, [cases.part(here.block, slice(0, 5))])


@pytest.mark.parametrize("method", ["klt", "product_codes"])
def test_from_a_store(tmp_path: Path, method: str) -> None:
    """Codes come with their rows, shard by shard; failed samples are left out of both."""
    x, sample, root = gaussian(300, 12), np.arange(300) // 3, Location(str(tmp_path))
    spec = make_capture(root, {"a": x}, sample, failed=(2,), shard_rows=64, chunk_rows=16)
    rows = {"x": rows_ref(spec)}
    maker, port, options = (
        ("spectrum.pca", "basis", {"components": 12})
        if method == "klt"
        else ("compression.codebook", "codebook", {"bits": 4, "rotation": "principal"})
    )
    made = run_stage(root, stage_of(maker, rows, **options), serial)
    codes = run_stage(root, stage_of(f"compression.{method}", rows, {port: made.id}), serial)
    found = run_stage(root, stage_of("compression.store_quality", rows, {"codes": codes.id}), serial)
    good = sample != 2
    exact = x[good].astype(np.float64)
    told = open_artifact(root, codes.id).reconstruct().values[good]
    expected = ((exact - told) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum()
    assert found.result["nmse"] == pytest.approx(expected, rel=1e-4)
    assert found.result["n_rows"] == 297


def test_codes_of_klt_are_read_as_its_module_names_them() -> None:
    assert {"code", "high", "length", "error"} == {
        name for name, dims in klt.ARRAYS.items() if dims[0:1] == ("row",)
    }
