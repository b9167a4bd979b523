"""anomaly.mahalanobis beside NumPy and scikit-learn: about one mean, of classes, relative."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf, oas

from tasks.methods.anomaly import (
    mahalanobis,
    reference,
)
from tests.methods.strange_rows import (
    CLASSES,
    CODE,
    NEW,
    NORMAL,
    WIDTH,
    Fitted,
    scores,
)


@pytest.mark.parametrize("how", ["ledoit_wolf", "oracle", "none"])
def test_mahalanobis_about_one_mean(how: str) -> None:
    fitted = Fitted(reference, NORMAL, shrinkage=how)
    covariance = {
        "ledoit_wolf": ledoit_wolf(NORMAL)[0],
        "oracle": oas(NORMAL)[0],
        "none": np.cov(NORMAL.T, bias=True),
    }[how]
    off = NEW - NORMAL.mean(0)
    expected = np.einsum("ij,jk,ik->i", off, np.linalg.inv(covariance), off)
    np.testing.assert_allclose(scores(mahalanobis, "reference", fitted, NEW), expected, rtol=1e-8)
    if how == "none":
        turn = np.random.default_rng(1).standard_normal((WIDTH, WIDTH))
        turned = Fitted(reference, NORMAL @ turn + 7, shrinkage=how)
        np.testing.assert_allclose(
            scores(mahalanobis, "reference", turned, NEW @ turn + 7), expected, rtol=1e-6
        )


@pytest.mark.parametrize("relative", [False, True])
def test_mahalanobis_of_classes(relative: bool) -> None:
    fitted = Fitted(reference, NORMAL, CODE, label="class", shrinkage="none")
    means = np.stack([NORMAL[c == CODE].mean(0) for c in range(CLASSES)])
    inside = np.linalg.inv(np.cov((NORMAL - means[CODE]).T, bias=True))
    expected = np.min([np.einsum("ij,jk,ik->i", NEW - m, inside, NEW - m) for m in means], axis=0)
    if relative:
        off, around = NEW - NORMAL.mean(0), np.linalg.inv(np.cov(NORMAL.T, bias=True))
        expected = expected - np.einsum("ij,jk,ik->i", off, around, off)
    np.testing.assert_allclose(
        scores(mahalanobis, "reference", fitted, NEW, relative=relative), expected, rtol=1e-8, atol=1e-8
    )
    shrunk = Fitted(reference, NORMAL, CODE, label="class")
    np.testing.assert_allclose(
        shrunk.result["intensity"], oas(NORMAL - means[CODE], assume_centered=True)[1], rtol=1e-9
    )
