"""Rows in steps of one size: against plain NumPy, against the rate of a Gaussian, and against rows that do not fit."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from schemas.errors import MethodError
from tasks.methods.compression import klt
from tasks.methods.contract import Inputs
from tasks.methods.spectrum import pca
from tests.methods import cases
from tests.methods.cases import Answer, Case


def case_of(module: Any, x: np.ndarray, config: Any, basis: Answer | None = None) -> Case:
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        artifacts={} if basis is None else {"basis": basis.arrays},
        results={} if basis is None else {"basis": basis.result.model_dump(mode="json")},
    )
    return Case(module, config, inputs, cases._block({"x": torch.from_numpy(x)}, len(x), False))


def basis_of(x: np.ndarray, **options: Any) -> Answer:
    config = pca.Config(**({"components": x.shape[1]} | options))
    return cases.run(case_of(pca, x, config))


def coded(x: np.ndarray, basis: Answer | None = None, **options: Any) -> Answer:
    """Codes of rows in their own basis, or in another."""
    here = case_of(klt, x, klt.Config(**options), basis_of(x) if basis is None else basis)
    klt.check(here.inputs, here.config)
    return cases.run(here)


def decoded(answer: Answer) -> np.ndarray:
    """Rows from the stored arrays alone, in float64."""
    a = {name: values.double().numpy() for name, values in answer.arrays.items()}
    codes = a["code"] + 256 * a["high"]
    rows: np.ndarray = ((codes * a["step"]) @ a["components"] + a["mean"]) * a["length"][:, None]
    return rows


def gaussian(n: int, width: int, seed: int = 0, power: float = 0.9, mean: float = 3.0) -> np.ndarray:
    """Rows whose variances fall along turned axes."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    spread = np.arange(1, width + 1) ** -power
    return (rng.standard_normal((n, width)) * spread @ turn + mean).astype(np.float32)


def test_codes_and_figures_are_those_of_numpy() -> None:
    x = gaussian(3000, 12)
    answer = coded(x, nmse=0.01)
    a = {name: values.double().numpy() for name, values in answer.arrays.items()}
    exact = x.astype(np.float64)
    coordinates = (exact - a["mean"]) @ a["components"].T
    np.testing.assert_array_equal(a["code"], np.rint(coordinates / a["step"]))
    off = ((exact - decoded(answer)) ** 2).sum(1)
    np.testing.assert_allclose(a["error"] ** 2, off, rtol=1e-5)
    result = answer.result
    assert result.nmse == pytest.approx(off.sum() / ((exact - a["mean"]) ** 2).sum(), rel=1e-6)
    bits = [stats.entropy(np.unique(c, return_counts=True)[1], base=2) for c in a["code"].T]
    np.testing.assert_allclose(a["bits"], bits, atol=1e-12)
    assert result.bits_per_dimension == pytest.approx(np.mean(bits))
    cosine = (exact * decoded(answer)).sum(1) / (
        np.linalg.norm(exact, axis=1) * np.linalg.norm(decoded(answer), axis=1)
    )
    assert result.cosine_mean == pytest.approx(cosine.mean(), abs=1e-8)
    assert 1 - result.cosine_p1 == pytest.approx(1 - np.quantile(cosine, 0.01), rel=0.05)
    assert result.cosine_p1 <= np.quantile(cosine, 0.01, method="inverted_cdf") + 1e-9
    assert result.caveats == ()


def test_the_level_is_that_of_water_filling() -> None:
    x = gaussian(4000, 20, power=1.3)
    values = np.linalg.eigvalsh(np.cov(x.astype(np.float64).T))
    answer = coded(x, nmse=0.02)
    level = answer.result.step**2 / 12
    assert np.minimum(values, level).sum() == pytest.approx(0.02 * values.sum(), rel=1e-6)
    assert values.min() < level < values.max()


@pytest.mark.parametrize(
    ("nmse", "low", "high", "bits"),
    [(1e-5, 0.23, 0.31, 7), (1e-3, 0.23, 0.31, 4), (3e-3, 0.23, 0.31, 3), (0.03, 0.2, 0.37, 1.5)],
)
def test_a_gaussian_takes_a_quarter_of_a_bit_beyond_its_limit(
    nmse: float, low: float, high: float, bits: float
) -> None:
    """Less than 0.2 above three bits would take vector quantisation: an estimator that shows it is wrong."""
    result = coded(gaussian(20_000, 32, power=0.5), nmse=nmse).result
    assert low <= result.gap_to_gaussian <= high
    assert result.bits_per_dimension > bits
    assert 0.8 * nmse < result.nmse <= 1.01 * nmse
    assert result.promised_nmse == pytest.approx(nmse)


@settings(max_examples=10, deadline=None)
@example(nmse=0.125, power=0.09375, seed=0)
@given(nmse=st.floats(1e-6, 0.3), power=st.floats(0, 2), seed=st.integers(0, 9))
def test_the_promise_holds_for_rows_like_those_of_the_basis(nmse: float, power: float, seed: int) -> None:
    x = gaussian(
        21_000, 10, seed, power
    )  # so many that chance moves an error by 0.3 %: of 2,000 rows by up to 2.1 %
    basis = basis_of(x[:20_000])
    assert coded(x[:20_000], basis, nmse=nmse).result.nmse <= 1.02 * nmse
    assert coded(x[20_000:], basis, nmse=nmse).result.nmse <= 1.1 * nmse


def test_rows_that_are_easier_than_gaussian_lie_below_its_limit() -> None:
    """Two values along each axis: a bit each tells all, far fewer than a Gaussian of that variance needs."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (4000, 8)).astype(np.float32)
    result = coded(signs * np.geomspace(4, 1, 8).astype(np.float32), nmse=1e-3).result
    assert result.gap_to_gaussian < -1


def test_a_given_step_is_taken() -> None:
    x = gaussian(500, 6)
    answer = coded(x, step=0.25)
    assert answer.result.step == 0.25
    values = np.linalg.eigvalsh(np.cov(x.astype(np.float64).T))
    assert answer.result.promised_nmse == pytest.approx(np.minimum(values, 0.25**2 / 12).sum() / values.sum())


def test_outliers_take_sixteen_bits_and_never_wrap() -> None:
    x = gaussian(2000, 8)
    basis = basis_of(x)
    along = basis.arrays["components"][0].numpy()
    step = coded(x, basis).result.step
    x[5] += (1000.4 * step * along).astype(np.float32)
    x[9] += (1e6 * step * along).astype(np.float32)
    answer = coded(x, basis)
    code = answer.arrays["code"].long() + 256 * answer.arrays["high"].long()
    assert 900 < int(code[5, 0]) < 1100
    assert int(code[9, 0]) == 32639
    assert answer.result.clipped == 1
    assert answer.result.wide_share == pytest.approx(2 / code.numel())
    off = ((x.astype(np.float64) - decoded(answer)) ** 2).sum(1)
    np.testing.assert_allclose(answer.arrays["error"].double().square(), off, rtol=1e-4)
    assert off[5] <= 8 * step**2 / 4
    assert len(answer.arrays["block_nmse"]) == 1
    assert answer.result.flagged_rows == 2000
    assert answer.result.alarmed_blocks == 1
    assert any("clamped" in note for note in answer.result.caveats)


class TestDrift:
    def test_rows_of_another_spread_raise_an_alarm(self) -> None:
        x = gaussian(4096, 16)
        basis = basis_of(x)
        same = coded(x, basis).result
        assert (same.alarmed_blocks, same.flagged_rows) == (0, 0)
        assert same.worst_surprise == pytest.approx(1, abs=0.1)
        turned = np.concatenate([x[:2048], np.flip(x[2048:] - 3, axis=1) * 2 + 3])
        found = coded(np.ascontiguousarray(turned), basis)
        assert found.result.alarmed_blocks == 2
        assert (found.arrays["block_surprise"] > 3).tolist() == [False, False, True, True]
        assert "drifted" in found.result.caveats[0]

    def test_rows_with_less_energy_keep_less_of_it(self) -> None:
        """A step that is fine for the basis's rows is coarse for rows of a quarter of their spread."""
        x = gaussian(4096, 16)
        basis = basis_of(x)
        x[3072:] = (x[3072:] - 3) / 4 + 3
        found = coded(x, basis).result
        assert found.alarmed_blocks == 1
        assert found.flagged_rows == 1024
        assert found.worst_nmse > 3 * found.promised_nmse

    def test_what_lies_outside_of_a_basis_is_error(self) -> None:
        x = gaussian(600, 8, mean=0)
        basis = basis_of(x @ np.diag([1, 1, 1, 1, 1, 1, 0, 0]).astype(np.float32))
        assert len(basis.arrays["components"]) == 6
        answer = coded(x, basis)
        off = ((x.astype(np.float64) - decoded(answer)) ** 2).sum(1)
        np.testing.assert_allclose(answer.arrays["error"].double().square(), off, rtol=1e-5)
        assert answer.result.alarmed_blocks == 1


class TestGainShape:
    def rows(self) -> np.ndarray:
        """Lengths over five orders of magnitude, as gradients have them."""
        rng = np.random.default_rng(0)
        return (gaussian(4000, 24, mean=0, power=0.3) * rng.lognormal(-6, 2.5, (4000, 1))).astype(np.float32)

    def test_short_rows_keep_their_direction(self) -> None:
        x = self.rows()
        plain, shaped = coded(x, nmse=1e-3).result, coded(x, nmse=1e-3, gain_shape=True).result
        assert plain.cosine_p1 < 0.5
        assert any("gain_shape" in note for note in plain.caveats)
        assert shaped.cosine_p1 > 0.999
        assert shaped.nmse == pytest.approx(1e-3, rel=0.01)
        assert shaped.worst_surprise == pytest.approx(1, abs=1e-3)
        assert shaped.caveats == ()

    def test_each_row_keeps_the_same_share(self) -> None:
        x = self.rows()
        answer = coded(x, nmse=1e-3, gain_shape=True)
        exact = x.astype(np.float64)
        share = ((exact - decoded(answer)) ** 2).sum(1) / (exact**2).sum(1)
        assert answer.result.nmse == pytest.approx(share.mean(), rel=1e-5)
        assert share.max() < 3e-3
        np.testing.assert_allclose(answer.arrays["length"], np.linalg.norm(exact, axis=1), rtol=1e-6)
        lengths = 32 / 24
        assert answer.result.bits_per_dimension == pytest.approx(
            float(answer.arrays["bits"].mean()) + lengths
        )

    def test_rows_about_a_mean_keep_the_promise(self) -> None:
        result = coded(gaussian(2000, 12, mean=3), gain_shape=True).result
        assert result.nmse <= 3e-3
        assert result.worst_surprise == pytest.approx(1, abs=0.1)

    def test_rows_of_zeros_stay_zeros(self) -> None:
        x = self.rows()
        x[7] = 0
        answer = coded(x, gain_shape=True)
        assert (decoded(answer)[7] == 0).all()
        assert float(answer.arrays["error"][7]) == 0
        assert np.isfinite(answer.result.nmse)


@pytest.mark.parametrize("gain_shape", [False, True])
def test_constant_and_repeated_features(gain_shape: bool) -> None:
    x = gaussian(800, 6)
    x = np.concatenate([x, np.full((800, 1), 7, np.float32), x[:, :2]], axis=1)
    answer = coded(x, basis_of(x, center=not gain_shape), gain_shape=gain_shape, nmse=1e-4)
    assert answer.result.components == 6 + gain_shape
    assert answer.result.nmse <= 1.02e-4
    np.testing.assert_allclose(decoded(answer)[:, 6], 7, atol=0.3)
    assert answer.result.caveats == ()


def test_rows_of_sixteen_bits() -> None:
    x = gaussian(700, 8).astype(np.float16)
    result = coded(x).result
    assert result.bytes_before == 700 * 8 * 2
    assert result.nmse <= 3.1e-3


def test_sizes_and_where_they_break_even() -> None:
    x = gaussian(5000, 16)
    result = coded(x).result
    assert result.bytes_before == x.nbytes
    assert result.bytes_basis == 4 * (16 * 16 + 16) + 8
    assert result.bytes_coded == pytest.approx(5000 * 16 * result.bits_per_dimension / 8, abs=1)
    saved = (result.bytes_before - result.bytes_coded) / 5000
    assert (result.break_even_rows - 1) * saved < result.bytes_basis <= result.break_even_rows * saved


def test_no_rows() -> None:
    x = gaussian(300, 5)
    here = case_of(klt, x, klt.Config(), basis_of(x))
    result = cases.run(here, [cases.part(here.block, slice(0, 0))]).result
    assert result.n_rows == 0
    assert (result.nmse, result.cosine_p1, result.gaussian_bits, result.wide_share) == (None,) * 4


class TestRefusals:
    def test_a_basis_with_fewer_components(self) -> None:
        x = gaussian(300, 8)
        with pytest.raises(MethodError, match=r"has 5 components for 8 features.*`components: 8`"):
            coded(x, basis_of(x, components=5))

    def test_a_basis_that_was_truncated(self) -> None:
        x = gaussian(300, 8)
        with pytest.raises(MethodError, match="not streaming or sketch"):
            coded(x, basis_of(x, components=4, rank=4, engine="streaming"))

    def test_a_basis_of_another_width(self) -> None:
        with pytest.raises(MethodError, match="has 8 features, the site has 5"):
            coded(gaussian(300, 5), basis_of(gaussian(300, 8)))

    def test_a_basis_of_equal_rows(self) -> None:
        x = np.ones((20, 4), np.float32)
        with pytest.raises(MethodError, match="rows of the pca stage are all equal"):
            coded(x)

    def test_a_mean_that_rows_of_length_one_vary_along(self) -> None:
        x = np.concatenate([gaussian(300, 6), np.full((300, 1), 7, np.float32)], axis=1)
        coded(x)
        with pytest.raises(MethodError, match="`center: false`"):
            coded(x, gain_shape=True)

    @pytest.mark.parametrize("gain_shape", [False, True])
    def test_a_step_that_sixteen_bits_do_not_hold(self, gain_shape: bool) -> None:
        x = gaussian(300, 8)
        with pytest.raises(MethodError, match="more than 16 bits") as caught:
            coded(x, nmse=1e-10, gain_shape=gain_shape)
        fits = float(str(caught.value).partition("nmse of ")[2].partition(" ")[0])
        coded(x, nmse=1.2 * fits, gain_shape=gain_shape)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("gain_shape", [False, True])
def test_errors_of_very_small_and_very_large_rows(scale: float, gain_shape: bool) -> None:
    """Squares of both lie outside of what float32 holds."""
    x = gaussian(600, 8)
    plain, scaled = (
        coded((x * s).astype(np.float32), nmse=0.01, gain_shape=gain_shape) for s in (1.0, scale)
    )
    assert scaled.result.nmse == pytest.approx(plain.result.nmse, rel=0.05)
    assert scaled.result.cosine_p1 == pytest.approx(plain.result.cosine_p1, rel=1e-3)
