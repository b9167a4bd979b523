"""anomaly.spikes: what stands out is what random matrix theory says."""

import numpy as np
import pytest

from tasks.methods.anomaly import (
    spikes,
)
from tasks.methods.contract import Inputs
from tasks.methods.spectrum import pca
from tests.methods.strange_rows import Fitted, scores


def spiked(size: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """2000 rows of 500 features: noise of variance 1, along one direction `size`; the direction too."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(500)
    direction /= np.linalg.norm(direction)
    rows = rng.standard_normal((2000, 500))
    return rows + (np.sqrt(size) - 1) * np.outer(rows @ direction, direction), direction


def test_spikes_are_those_of_random_matrix_theory() -> None:
    """A spike of 3 among features / rows = 1/4 shows at 3.375 and its direction at a squared cosine of .833; one of 1.3 is lost."""
    rows, direction = spiked(3.0)
    fitted = Fitted(pca, rows, components=20)
    inputs = Inputs({"x": 500}, 1, 1, artifacts={"basis": fitted.arrays}, results={"basis": fitted.result})
    law = spikes._law(inputs, spikes.Config())
    assert law.spikes == 1
    assert float(fitted.arrays["eigenvalue"][0]) == pytest.approx(3.375, abs=0.28)
    assert float(fitted.arrays["eigenvalue"][1]) < 2.35
    assert law.noise == pytest.approx(1, abs=0.02)
    assert float(law.values[0]) == pytest.approx(3, abs=0.3)
    assert float(law.alignments[0]) == pytest.approx(0.833, abs=0.03)
    assert float(fitted.arrays["components"][0].numpy() @ direction) ** 2 == pytest.approx(0.833, abs=0.03)
    lost = Fitted(pca, spiked(1.3)[0], components=20)
    given = Inputs({"x": 500}, 1, 1, artifacts={"basis": lost.arrays}, results={"basis": lost.result})
    assert spikes._law(given, spikes.Config()).spikes == 0
    new = spiked(3.0, 1)[0][:300]
    v, off = fitted.arrays["components"][:1].numpy(), new - rows.mean(0)
    outside = np.square(off - off @ v.T @ v).sum(1) / law.noise
    np.testing.assert_allclose(scores(spikes, "basis", fitted, new), outside, rtol=1e-9)
    both = outside + (off @ v.T)[:, 0] ** 2 / float(law.values[0])
    np.testing.assert_allclose(scores(spikes, "basis", fitted, new, score="distance"), both, rtol=1e-9)
    assert abs(both.mean() - 500) < 20
