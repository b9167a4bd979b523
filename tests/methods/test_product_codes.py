"""Rows by the numbers of vectors: against plain NumPy, the rate of a Gaussian, rows that do not fit, and a real store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stage
from tasks.methods.compression import codebook, product_codes
from tasks.methods.contract import Inputs
from tasks.readers import open_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.test_klt import case_of, gaussian


def books_of(x: np.ndarray, **options: Any) -> Answer:
    return cases.run(
        case_of(codebook, x, codebook.Config(**({"place": 4, "bits": 4, "rotation": "none"} | options)))
    )


def case(x: np.ndarray, books: Answer) -> Case:
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        artifacts={"codebook": books.arrays},
        results={"codebook": books.result.model_dump(mode="json")},
    )
    return Case(product_codes, product_codes.Config(), inputs, case_of(codebook, x, None).block)


def coded(x: np.ndarray, books: Answer | None = None, **options: Any) -> Answer:
    here = case(x, books_of(x, **options) if books is None else books)
    product_codes.check(here.inputs, here.config)
    return cases.run(here)


def decoded(answer: Answer) -> np.ndarray:
    """Rows from the stored arrays alone, in float64."""
    a = {name: values.double().numpy() for name, values in answer.arrays.items()}
    parts = a["centre"][np.arange(len(a["centre"])), answer.arrays["code"].numpy()]
    beside = parts.reshape(len(parts), -1)[:, : len(a["mean"])]
    shape = (beside @ a["rotation"] if len(a["rotation"]) else beside) + a["mean"]
    rows: np.ndarray = a["bias"][:, None] + a["gain"][:, None] * shape
    return rows


@pytest.mark.parametrize("rotation", ["none", "principal", "opq"])
@pytest.mark.parametrize("scale", ["none", "gain", "gain_bias"])
def test_figures_are_those_of_numpy(rotation: str, scale: str) -> None:
    x = gaussian(2000, 10)
    answer = coded(x, rotation=rotation, scale=scale)
    exact, told, result = x.astype(np.float64), decoded(answer), answer.result
    off = ((exact - told) ** 2).sum(1)
    np.testing.assert_allclose(answer.arrays["error"].double().square(), off, rtol=1e-4)
    assert result.nmse == pytest.approx(off.sum() / ((exact - exact.mean(0)) ** 2).sum(), rel=1e-5)
    cosine = (exact * told).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(told, axis=1)
    assert result.cosine_mean == pytest.approx(cosine.mean(), abs=1e-6)
    assert 1 - result.cosine_p1 == pytest.approx(1 - np.quantile(cosine, 0.01), rel=0.07)
    values = np.linalg.eigvalsh(np.cov(exact.T, bias=True))
    levels = np.linspace(0, values.max(), 200_001)
    level = levels[np.searchsorted(np.minimum(values, levels[:, None]).sum(1), off.mean())]
    bits = 0.5 * np.log2(np.maximum(values / level, 1)).sum() / 10
    assert result.gaussian_bits == pytest.approx(bits, abs=1e-3)
    extra = {"none": 0, "gain": 32, "gain_bias": 64}[scale]
    assert result.bits_per_dimension == (3 * 4 + extra) / 10
    assert result.entropy_per_dimension <= result.bits_per_dimension
    assert result.bytes_coded == 2000 * (3 + extra // 8)
    assert result.bytes_before == x.nbytes


def test_the_codebooks_own_rows_have_the_error_of_its_last_round() -> None:
    x = gaussian(2000, 10)
    for scale in ("none", "gain_bias"):
        books = books_of(x, scale=scale)
        answer = coded(x, books)
        assert answer.result.shape_nmse == pytest.approx(books.result.nmse, rel=1e-2)
        assert torch.equal(answer.arrays["count"], books.arrays["count"])
        assert answer.result.caveats == ()


def test_one_part_of_two_gaussian_features_is_near_its_limit() -> None:
    """The least error of 256 vectors is told by Zador's formula: the moment of a hexagon, 0.0802, times the Gaussian's 8 pi, over 256."""
    x = np.random.default_rng(0).standard_normal((60_000, 2)).astype(np.float32)
    books = books_of(x[:40_000], place=2, bits=8, rounds=40, tolerance=1e-5)
    result = coded(x[40_000:], books).result
    least = 5 / (36 * 3**0.5) * 8 * np.pi / 256
    assert 0.98 * least < result.nmse < 1.15 * least
    assert result.gap_to_gaussian == pytest.approx(4 + 0.5 * np.log2(result.nmse), abs=1e-3)
    assert result.used_share == 1


def test_rows_unlike_those_of_the_codebooks_are_told() -> None:
    x = gaussian(2000, 8)
    result = coded(np.ascontiguousarray(np.flip(x, axis=1)) * 2, books_of(x)).result
    assert any("unlike those" in note for note in result.caveats)


def test_sizes_and_where_they_break_even() -> None:
    x = gaussian(3000, 12)
    result = coded(x, rotation="principal").result
    assert result.bytes_codebook == 4 * (3 * 16 * 4 + 12 * 12 + 12)
    saved = 12 * 4 - 3
    assert (result.break_even_rows - 1) * saved < result.bytes_codebook <= result.break_even_rows * saved
    few = coded(x[:10], books_of(x)).result
    assert any("break" in note for note in few.caveats)


def test_no_rows_and_one_row() -> None:
    x = gaussian(300, 8)
    here = case(x, books_of(x))
    result = cases.run(here, [cases.part(here.block, slice(0, 0))]).result
    assert (result.n_rows, result.nmse, result.gaussian_bits, result.used_share) == (0, None, None, None)
    assert cases.run(here, [cases.part(here.block, slice(0, 1))]).result.nmse is None


def test_codebooks_of_another_width() -> None:
    with pytest.raises(MethodError, match="have 8 features, the site has 5"):
        coded(gaussian(300, 5), books_of(gaussian(300, 8)))


@pytest.mark.parametrize("options", [{"rotation": "none"}, {"scale": "gain_bias"}])
def test_rows_come_back_from_a_store(tmp_path: Path, options: dict[str, Any]) -> None:
    x, sample, root = gaussian(300, 11), np.arange(300) // 3, Location(str(tmp_path))
    spec = make_capture(root, {"a": x}, sample, failed=(2,))
    rows = {"x": rows_ref(spec)}
    books = run_stage(root, stage_of("compression.codebook", rows, place=4, bits=4, **options), serial)
    made = run_stage(root, stage_of("compression.product_codes", rows, {"codebook": books.id}), serial)
    view, good = open_artifact(root, made.id), sample != 2
    again = view.reconstruct().values
    assert again.dtype == np.float32
    assert np.isnan(again[~good]).all()
    off = ((again - x)[good].astype(np.float64) ** 2).sum(1)
    np.testing.assert_allclose(view.arrays["error"].values[good].astype(np.float64) ** 2, off, rtol=1e-3)
    assert view.arrays["code"].dtype == np.uint8
    assert not view.arrays["code"].values[~good].any()
