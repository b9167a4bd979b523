"""anomaly.residual beside plain projections, and where one component holds all."""

import numpy as np
from sklearn.metrics import roc_auc_score

from tasks.methods.anomaly import (
    residual,
)
from tasks.methods.contract import Inputs
from tasks.methods.spectrum import pca
from tests.methods.strange_rows import NEW, NORMAL, STRANGE, WIDTH, Fitted, scores


def test_residual() -> None:
    fitted = Fitted(pca, NORMAL, components=WIDTH)
    centred = NORMAL - NORMAL.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    share = values[::-1].cumsum() / values.sum()
    for energy in (0.5, 0.9, 0.99):
        k = int(np.searchsorted(share, energy)) + 1
        v = vectors[:, ::-1][:, :k]
        off = NEW - NORMAL.mean(0)
        np.testing.assert_allclose(
            scores(residual, "basis", fitted, NEW, energy=energy),
            np.square(off - off @ v @ v.T).sum(1),
            rtol=1e-9,
        )
    assert roc_auc_score(STRANGE, scores(residual, "basis", fitted, NEW, energy=0.9)) > 0.99
    whole = scores(residual, "basis", fitted, NEW, components=0)
    np.testing.assert_allclose(whole, np.square(NEW - NORMAL.mean(0)).sum(1), rtol=1e-12)
    turned = Fitted(pca, NORMAL, components=WIDTH)
    turned.arrays["components"] = -turned.arrays["components"]
    assert np.array_equal(scores(residual, "basis", turned, NEW), scores(residual, "basis", fitted, NEW))


def test_one_dominating_component() -> None:
    rows = NORMAL * np.r_[1e3, np.full(WIDTH - 1, 1e-3)]
    fitted = Fitted(pca, rows, components=4)
    config = residual.Config(energy=0.5)
    assert (
        residual._n_components(
            Inputs({}, 0, 0, artifacts={"basis": fitted.arrays}, results={"basis": fitted.result}), config
        )
        == 1
    )
