"""anomaly.standard_components and neco beside scikit-learn."""

import numpy as np
import pytest

from tasks.methods.anomaly import (
    neco,
    standard_components,
)
from tests.methods.strange_rows import (
    LAYER,
    LAYERS,
    NEW,
    NORMAL,
    Fitted,
    scores,
)


@pytest.mark.parametrize("logit", [False, True])
def test_neco(logit: bool) -> None:
    fitted = Fitted(standard_components, NORMAL)
    z, new = ((x - NORMAL.mean(0)) / NORMAL.std(0) for x in (NORMAL, NEW))
    _, vectors = np.linalg.eigh(z.T @ z)
    ratio = np.linalg.norm(new @ vectors[:, ::-1][:, :4], axis=1) / np.linalg.norm(
        new, axis=1
    )  # five outputs
    if logit:
        ratio = ratio * (NEW @ LAYERS[LAYER[0]].numpy().T + LAYERS[LAYER[1]].numpy()).max(1)
    np.testing.assert_allclose(-scores(neco, "normal", fitted, NEW, logit=logit), ratio, rtol=1e-8)
    scaled = Fitted(standard_components, NORMAL * 7 + 1)
    np.testing.assert_allclose(
        scores(neco, "normal", scaled, NEW * 7 + 1, logit=False),
        scores(neco, "normal", fitted, NEW, logit=False),
        rtol=1e-9,
    )
    still = Fitted(standard_components, np.c_[NORMAL[:, :-1], np.full(600, 2.0)])
    assert still.result["constant"] == 1
    assert np.isfinite(scores(neco, "normal", still, NEW)).all()
