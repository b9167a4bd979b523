"""anomaly.normal_rows and neighbours beside scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from tasks.methods.anomaly import (
    neighbours,
    normal_rows,
)
from tests.methods.strange_rows import (
    NEW,
    NORMAL,
    Fitted,
    scores,
)


@pytest.mark.parametrize("unit", [False, True])
def test_neighbours(unit: bool) -> None:
    fitted = Fitted(normal_rows, NORMAL, unit_length=unit)
    rows, new = (x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x for x in (NORMAL, NEW))
    expected = NearestNeighbors(n_neighbors=20, algorithm="brute").fit(rows).kneighbors(new)[0][:, -1]
    np.testing.assert_allclose(scores(neighbours, "normal", fitted, NEW, k=20), expected, rtol=1e-7)
    few = Fitted(normal_rows, NORMAL, most=100, unit_length=unit)
    assert few.result["n_rows"] == 100
    assert "100 of 600 rows" in few.result["caveats"][0]
    kept = few.arrays["rows"].numpy()
    assert cdist(kept, rows).min(1).max() < 1e-12
    assert (scores(neighbours, "normal", few, NEW, k=20) >= expected - 1e-12).all()
    again = Fitted(normal_rows, NORMAL, most=100, unit_length=unit, parts=7)
    assert torch.equal(again.arrays["rows"], few.arrays["rows"])
