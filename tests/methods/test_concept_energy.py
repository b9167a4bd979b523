"""Share of a row's energy in a concept's subspace: beside plain NumPy, of planted rows, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from schemas.errors import MethodError
from tasks.methods.anomaly import concept_energy
from tasks.methods.anomaly_scores import SCORES
from tasks.methods.contract import Block, Inputs
from tasks.methods.spectrum import pca
from tests.methods.detectors import Fitted, scores

RNG = np.random.default_rng(3)
BASIS = np.linalg.qr(RNG.standard_normal((20, 3)))[0].T
CONCEPT = RNG.standard_normal((300, 3)) * [3, 2, 2] @ BASIS + 0.2 * RNG.standard_normal((300, 20)) + 1
OTHERS = RNG.standard_normal((100, 20)) + 1


def located(*neurons: int, width: int = 20) -> Fitted:
    """What `anomaly.shared_neurons` gives, as far as it is read."""
    found = Fitted.__new__(Fitted)
    found.arrays = {"located": torch.zeros(width, dtype=torch.uint8)}
    found.arrays["located"][list(neurons)] = 1
    found.result, found.width = {"located": len(neurons)}, width
    return found


@pytest.mark.parametrize("center", [True, False])
def test_it_is_the_share_of_plain_projections(center: bool) -> None:
    fitted = Fitted(pca, CONCEPT, components=10, center=center)
    origin = CONCEPT.mean(0) if center else np.zeros(20)
    off = np.concatenate([CONCEPT[:50], OTHERS]) - origin
    vectors = np.linalg.eigh((CONCEPT - origin).T @ (CONCEPT - origin))[1][:, ::-1][:, :3]
    found = scores(concept_energy, "basis", fitted, off + origin, components=3)
    expected = np.square(off @ vectors).sum(1) / np.square(off).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    by_energy = scores(concept_energy, "basis", fitted, off + origin, energy=0.9)
    assert (by_energy >= 0).all()
    assert (by_energy <= 1).all()
    assert roc_auc_score(np.arange(150) < 50, found) > 0.9


def test_neurons_are_a_basis_about_the_origin() -> None:
    found = scores(concept_energy, "basis", located(2, 7), OTHERS)
    expected = np.square(OTHERS[:, [2, 7]]).sum(1) / np.square(OTHERS).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    rows = np.zeros((4, 20))
    rows[1, 2], rows[2, 3], rows[3] = 1e-200, 5, 1e200 * rows[3]
    assert scores(concept_energy, "basis", located(2, 7), rows).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("fitted", [Fitted(pca, CONCEPT, components=5), located(1, 5, 6)])
def test_bits_depend_on_no_other_rows(fitted: Fitted) -> None:
    whole = scores(concept_energy, "basis", fitted, OTHERS)
    for parts in (7, len(OTHERS)):
        assert np.array_equal(scores(concept_energy, "basis", fitted, OTHERS, parts), whole)
    turned = Fitted.__new__(Fitted)
    turned.arrays = {k: -v if k == "components" else v for k, v in fitted.arrays.items()}
    turned.result, turned.width = fitted.result, fitted.width
    assert np.array_equal(scores(concept_energy, "basis", turned, OTHERS), whole)
    bad = OTHERS.copy()
    bad[3, 2] = np.nan
    with pytest.raises(MethodError, match=r"finite|NaN"):
        scores(concept_energy, "basis", fitted, bad)


def test_what_is_refused_and_told() -> None:
    assert "anomaly.concept_energy" in SCORES
    with pytest.raises(MethodError, match="found no located neurons"):
        scores(concept_energy, "basis", located(), OTHERS)
    with pytest.raises(MethodError, match="asked for 3; keep more"):
        scores(concept_energy, "basis", Fitted(pca, CONCEPT, components=2), OTHERS, components=3)
    with pytest.raises(MethodError, match=r"asked for 0\.9 of it; keep more"):
        scores(concept_energy, "basis", Fitted(pca, CONCEPT, components=1), OTHERS)
    with pytest.raises(MethodError, match="do not vary"):
        scores(concept_energy, "basis", Fitted(pca, np.ones((9, 20)), components=2), OTHERS)
    whole = told(located(*range(20)))
    assert whole.caveats
    assert (whole.by_chance, whole.about_mean, whole.mean) == (1, False, None)


def told(fitted: Fitted) -> Any:
    """Of no rows."""
    inputs = Inputs({"x": 20}, 0, 0, artifacts={"basis": fitted.arrays}, results={"basis": fitted.result})
    config, none = concept_energy.Config(), torch.zeros(0, dtype=torch.int64)
    concept_energy.check(inputs, config)
    carry, block = concept_energy.start(inputs, config), Block({"x": torch.zeros(0, 20)}, none, none, none)
    outputs = concept_energy.apply(block, carry, config)
    return concept_energy.finish(
        concept_energy.partial(block, outputs, carry, config), carry, inputs, config
    )[0]
