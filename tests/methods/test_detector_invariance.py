"""What no detector's scores depend on: cuts and order of rows, signs, batches, dtypes and scales; and rows at the edge of rank."""

from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from schemas.errors import MethodError
from tasks.methods.anomaly import (
    head_subspace,
    last_gradient,
    mahalanobis,
    neco,
    neighbours,
    normal_rows,
    reference,
    residual,
    spikes,
    standard_components,
    vim,
)
from tasks.methods.spectrum import pca
from tests.methods import detectors

WIDTH = 12
RNG = np.random.default_rng(0)
LAYERS = {
    "{module}.weight": torch.from_numpy(RNG.standard_normal((5, WIDTH))),
    "{module}.bias": torch.from_numpy(RNG.standard_normal(5)),
}
SPREAD = np.geomspace(3, 0.05, WIDTH)
NORMAL = RNG.standard_normal((400, WIDTH)) * SPREAD + 2
NEW = np.concatenate(
    [RNG.standard_normal((150, WIDTH)) * SPREAD + 2, 5 + 3 * RNG.standard_normal((50, WIDTH))]
)
STRANGE = np.arange(200) >= 150
Fitted, scores = (partial(made, weights=LAYERS) for made in (detectors.Fitted, detectors.scores))


class Detector(NamedTuple):
    """A method, its port, and what makes the artifact there."""

    module: ModuleType
    port: str
    fit: ModuleType
    options: dict[str, Any]
    own: dict[str, Any]

    def fitted(self, x: Any, **more: Any) -> detectors.Fitted:
        return Fitted(self.fit, x, **self.options | more)

    def scores(self, fitted: detectors.Fitted, x: Any, **more: Any) -> np.ndarray:
        found: np.ndarray = scores(self.module, self.port, fitted, x, **self.own | more)
        return found


DETECTORS = {
    "residual": Detector(residual, "basis", pca, {"components": WIDTH}, {"energy": 0.9}),
    "mahalanobis": Detector(mahalanobis, "reference", reference, {}, {}),
    "neighbours": Detector(neighbours, "normal", normal_rows, {}, {"k": 9}),
    "vim": Detector(vim, "normal", head_subspace, {}, {}),
    "last_gradient": Detector(last_gradient, "basis", pca, {"components": WIDTH, "center": False}, {}),
    "neco": Detector(neco, "normal", standard_components, {}, {}),
    "spikes": Detector(spikes, "basis", pca, {"components": WIDTH}, {}),
}
every = pytest.mark.parametrize("name", DETECTORS)


@every
@settings(max_examples=10, deadline=None)
@given(parts=st.integers(1, 64), seed=st.integers(0, 99))
def test_neither_the_cut_nor_the_order_of_normal_rows(name: str, parts: int, seed: int) -> None:
    """To 1e-9 of the scores; not a single pair of rows changes its order between normal and strange."""
    detector = DETECTORS[name]
    once = detector.scores(detector.fitted(NORMAL, parts=1), NEW)
    order = np.random.default_rng(seed).permutation(len(NORMAL))
    again = detector.scores(detector.fitted(NORMAL[order], parts=parts), NEW)
    np.testing.assert_allclose(again, once, rtol=1e-9, atol=1e-9 * np.abs(once).max())
    assert roc_auc_score(STRANGE, again) == roc_auc_score(STRANGE, once)


@every
def test_bits_do_not_depend_on_the_order_of_new_rows(name: str) -> None:
    detector = DETECTORS[name]
    fitted, order = detector.fitted(NORMAL), RNG.permutation(len(NEW))
    assert np.array_equal(detector.scores(fitted, NEW[order]), detector.scores(fitted, NEW)[order])


@pytest.mark.parametrize("name", ["residual", "vim", "last_gradient", "neco", "spikes"])
def test_bits_do_not_depend_on_the_signs_of_components(name: str) -> None:
    detector = DETECTORS[name]
    fitted = detector.fitted(NORMAL)
    once = detector.scores(fitted, NEW)
    sign = torch.from_numpy(RNG.choice([-1.0, 1.0], len(fitted.arrays["components"])))
    fitted.arrays["components"] = fitted.arrays["components"] * sign[:, None].to(
        fitted.arrays["components"].dtype
    )
    assert np.array_equal(detector.scores(fitted, NEW), once)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_is_its_float64_cast(name: str, dtype: torch.dtype) -> None:
    detector = DETECTORS[name]
    normal, new = (torch.from_numpy(x).to(dtype) for x in (NORMAL, NEW))
    fitted = detector.fitted(normal)
    found = detector.scores(fitted, new)
    assert np.array_equal(found, detector.scores(fitted, new.double()))
    whole = detector.scores(detector.fitted(normal.double()), new.double())
    np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-9 * np.abs(whole).max())


@pytest.mark.parametrize("relative", [False, True])
def test_distances_do_not_depend_on_the_frame(relative: bool) -> None:
    """Any invertible map of the features, with and without classes."""
    code, turn = np.arange(400) % 3, RNG.standard_normal((WIDTH, WIDTH))
    options = {"label": "class", "shrinkage": "none"}
    found = [
        scores(mahalanobis, "reference", Fitted(reference, x, code, **options), y, relative=relative)
        for x, y in ((NORMAL, NEW), (NORMAL @ turn - 5, NEW @ turn - 5))
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 3.7, 1e6])
def test_positive_factors(factor: float) -> None:
    """Directions, and energy over energy, have no unit; lengths have that of the rows."""
    for name, power in (("neighbours", 0), ("mahalanobis", 0), ("residual", 2), ("spikes", 0)):
        detector = DETECTORS[name]
        once = detector.scores(detector.fitted(NORMAL), NEW)
        scaled = detector.scores(detector.fitted(NORMAL * factor), NEW * factor)
        np.testing.assert_allclose(scaled, once * factor**power, rtol=1e-6)
    free = DETECTORS["neco"]._replace(own={"logit": False})
    np.testing.assert_allclose(
        free.scores(free.fitted(NORMAL * factor), NEW * factor),
        free.scores(free.fitted(NORMAL), NEW),
        rtol=1e-8,
    )


@every
def test_constant_columns_and_repeated_rows(name: str) -> None:
    detector = DETECTORS[name]
    normal, new = NORMAL.copy(), NEW.copy()
    normal[:, 4] = new[:, 4] = 2.5
    repeated = np.repeat(normal, 3, axis=0)
    assert np.isfinite(detector.scores(detector.fitted(normal), new)).all()
    found = detector.scores(detector.fitted(repeated), new)
    assert np.isfinite(found).all()
    if name not in ("neco", "last_gradient"):  # which take long rows for normal ones
        assert roc_auc_score(STRANGE, found) > 0.9


@pytest.mark.parametrize("name", ["residual", "mahalanobis", "vim", "last_gradient", "neco"])
def test_fewer_rows_than_features(name: str) -> None:
    detector = DETECTORS[name]
    own = detector.own | ({"energy": 0.8} if name == "residual" else {})
    found = detector._replace(own=own).scores(detector.fitted(NORMAL[:7]), NEW)
    assert np.isfinite(found).all()


def test_no_and_all_components() -> None:
    fitted = DETECTORS["residual"].fitted(NORMAL)
    none = scores(residual, "basis", fitted, NEW, components=0)
    np.testing.assert_allclose(none, np.square(NEW - NORMAL.mean(0)).sum(1), rtol=1e-12)
    every_one = scores(residual, "basis", fitted, NEW, components=WIDTH)
    assert every_one.max() < 1e-24 * none.max()
    with pytest.raises(MethodError, match="has 12 components, asked for 13"):
        scores(residual, "basis", fitted, NEW, components=WIDTH + 1)


@every
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(name: str, wrong: float) -> None:
    detector = DETECTORS[name]
    normal, new = NORMAL.copy(), NEW.copy()
    normal[11, 3] = new[17, 0] = wrong
    with pytest.raises(MethodError, match=r"finite|NaN|infinit"):
        detector.fitted(normal)
    with pytest.raises(MethodError, match=r"row 17|17"):
        detector.scores(detector.fitted(NORMAL), new)


@every
def test_no_normal_rows_are_refused(name: str) -> None:
    with pytest.raises(MethodError, match=r"rows"):
        DETECTORS[name].fitted(NORMAL[:0], parts=1)
