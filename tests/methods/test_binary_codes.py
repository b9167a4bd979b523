"""Signs after a rotation against a plain loop and NumPy's packing; planted corners; calibration on pairs that it did not see."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from schemas.errors import MethodError
from tasks.methods.compression import binary_codes, binary_rotation
from tasks.methods.contract import Inputs
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.test_klt import basis_of, case_of, gaussian


def turned(x: np.ndarray, basis: Answer | None = None, **options: Any) -> Answer:
    options = {"bits": 8} | options
    here = case_of(
        binary_rotation, x, binary_rotation.Config(**options), basis_of(x) if basis is None else basis
    )
    binary_rotation.check(here.inputs, here.config)
    return cases.run(here)


def signs_of(x: np.ndarray, rotation: Answer) -> Answer:
    inputs = Inputs(
        {"x": x.shape[1]}, len(x), len(x),
        artifacts={"rotation": rotation.arrays},
        results={"rotation": rotation.result.model_dump(mode="json")},
    )  # fmt: skip
    here = Case(binary_codes, binary_codes.Config(), inputs, case_of(binary_codes, x, None).block)
    binary_codes.check(here.inputs, here.config)
    return cases.run(here)


def test_rounds_are_those_of_a_plain_loop() -> None:
    x = gaussian(900, 12, power=0.4)
    basis = basis_of(x)
    answer = turned(x, basis, rounds=6, tolerance=0)
    a = {name: values.double().numpy() for name, values in basis.arrays.items()}
    v = (x.astype(np.float64) - a["mean"]) @ a["components"][:8].T
    rng = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=rng, dtype=torch.float64))[0].numpy()
    aligned = []
    for _ in range(6):
        last, told = turn, np.where(v @ turn.T >= 0, 1, -1)
        aligned.append((told * (v @ turn.T)).sum() / np.sqrt((v**2).sum() * told.size))
        u, _, w = np.linalg.svd(told.T @ v)
        turn = u @ w
    np.testing.assert_allclose(answer.arrays["aligned"], aligned, rtol=1e-10)
    assert (np.diff(aligned) >= 0).all()
    np.testing.assert_allclose(answer.arrays["rotation"], last, atol=1e-9)
    np.testing.assert_allclose(last @ last.T, np.eye(8), atol=1e-12)


def test_planted_corners_are_found() -> None:
    """Rows at corners of a turned cube: after the rotation signs are the corners, up to order and sign of bits."""
    rng = np.random.default_rng(0)
    corner = rng.choice([-1.0, 1.0], (3000, 8))
    turn = np.linalg.qr(rng.standard_normal((10, 10)))[0][:8]
    x = (corner @ turn + 0.02 * rng.standard_normal((3000, 10))).astype(np.float32)
    rotation = turned(x, bits=8, rounds=100, tolerance=0)
    assert rotation.result.aligned > 0.99
    assert rotation.result.rank_correlation > 0.95
    assert rotation.result.recall > rotation.result.plain_recall
    bits = np.unpackbits(signs_of(x, rotation).arrays["code"].numpy(), axis=1) * 2.0 - 1
    np.testing.assert_allclose(np.abs(bits.T @ corner / 3000).max(1), 1, atol=1e-2)


def test_codes_are_packed_signs() -> None:
    x = gaussian(500, 20, power=0.3)
    rotation = turned(x, bits=16)
    answer = signs_of(x, rotation)
    a = {name: values.double().numpy() for name, values in rotation.arrays.items()}
    positive = (x.astype(np.float64) - a["mean"]) @ a["direction"].T >= 0
    np.testing.assert_array_equal(answer.arrays["code"], np.packbits(positive, axis=1))
    np.testing.assert_allclose(answer.arrays["ones"], positive.mean(0))
    result = answer.result
    assert (result.bytes_coded, result.bytes_before, result.bits_per_dimension) == (1000, x.nbytes, 16 / 20)
    assert result.bytes_rotation == 4 * (16 * 20 + 20)
    assert result.caveats == ()


def test_calibration_spreads_similarities_as_cosines_are() -> None:
    """On rows that it was not fitted to; the order of pairs stays."""
    x = gaussian(3000, 32, power=0.6)
    few = turned(x, bits=8).result
    assert few.calibrated_distance < 0.6 * few.distance
    answer = turned(x, bits=24)
    result = answer.result
    assert result.calibrated_distance < result.distance
    assert result.recall > 2 * result.plain_recall
    assert result.rank_correlation > few.rank_correlation
    assert abs(result.calibrated_spread - result.cosine_spread) < 0.05 * result.cosine_spread
    assert result.spread < result.cosine_spread
    assert (np.diff(answer.arrays["similarity"].numpy()) <= 0).all()
    assert len(answer.arrays["similarity"]) == 25


def test_ranks_are_those_of_scipy() -> None:
    x = gaussian(80, 10, power=0.3)
    answer = turned(x, sample_rows=80, pairs=10_000, neighbours=3)
    a = {name: values.double().numpy() for name, values in answer.arrays.items()}
    order = torch.argsort(binary_rotation.row_sample.numbers(torch.arange(80))).numpy()
    rows = (x.astype(np.float64) - a["mean"])[order][1::2]
    unit, told = rows / np.linalg.norm(rows, axis=1)[:, None], rows @ a["direction"].T >= 0
    first, second = np.triu_indices(40, 1)
    cosine = (unit[first] * unit[second]).sum(1)
    expected = stats.spearmanr(cosine, (told[first] == told[second]).sum(1)).statistic
    assert answer.result.rank_correlation == pytest.approx(expected, abs=1e-6)
    assert answer.result.cosine_spread == pytest.approx(cosine.std(ddof=1), rel=1e-5)


def test_rows_unlike_those_of_the_rotation_are_told() -> None:
    x = gaussian(600, 10, power=0.3)
    result = signs_of(x + 50, turned(x)).result
    assert result.uneven_bits > 0
    assert "unlike" in result.caveats[0]


def test_refusals() -> None:
    x = gaussian(300, 10)
    with pytest.raises(MethodError, match="has 5 components, 8 bits"):
        turned(x, basis_of(x, components=5))
    with pytest.raises(MethodError, match="has 10 features, the site has 9"):
        turned(gaussian(300, 9), basis_of(x))
    with pytest.raises(MethodError, match="found 20 rows to sample, 10 neighbours"):
        turned(x, sample_rows=20)
    with pytest.raises(MethodError, match="have 10 features, the site has 9"):
        signs_of(gaussian(300, 9), turned(x))
