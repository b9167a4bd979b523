"""What all detectors share: bits whatever the cut, what is refused, rows at the edge, and their summary."""

from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods import anomaly_scores
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
from tests.methods.strange_rows import (
    CODE,
    NEW,
    NORMAL,
    WIDTH,
    Fitted,
    scores,
)


@pytest.mark.parametrize(
    ("module", "port", "fit", "options"),
    [(residual, "basis", pca, {"components": WIDTH}), (mahalanobis, "reference", reference, {}),
     (neighbours, "normal", normal_rows, {}), (vim, "normal", head_subspace, {}),
     (last_gradient, "basis", pca, {"components": WIDTH, "center": False}), (neco, "normal", standard_components, {})],
)  # fmt: skip
def test_bits_do_not_depend_on_the_cut_nor_on_other_rows(
    module: Any, port: str, fit: Any, options: dict[str, Any]
) -> None:
    """One row at a time, all at once, and in float16, which is its float64 cast."""
    fitted = Fitted(fit, NORMAL, **options)
    whole = scores(module, port, fitted, NEW)
    for parts in (7, len(NEW)):
        cut = scores(module, port, fitted, NEW, parts)
        assert np.array_equal(cut, whole)
    half = NEW.astype(np.float16)
    assert np.array_equal(
        scores(module, port, fitted, half), scores(module, port, fitted, half.astype(np.float64))
    )
    bad = NEW.copy()
    bad[3, 2] = np.nan
    with pytest.raises(MethodError, match=r"finite|NaN"):
        scores(module, port, fitted, bad)


def test_what_is_refused() -> None:
    with pytest.raises(MethodError, match=r"holds? 0\.\d+ of the variance, asked for 0\.99 of it; keep more"):
        scores(residual, "basis", Fitted(pca, NORMAL, components=2), NEW)
    with pytest.raises(MethodError, match="about the origin"):
        scores(residual, "basis", Fitted(pca, NORMAL, components=2, center=False), NEW)
    with pytest.raises(MethodError, match="make it with a label"):
        scores(mahalanobis, "reference", Fitted(reference, NORMAL), NEW, relative=True)
    with pytest.raises(MethodError, match="take `oracle`"):
        Fitted(reference, NORMAL, CODE, label="class", shrinkage="ledoit_wolf")
    with pytest.raises(MethodError, match="50-th nearest of 30"):
        scores(neighbours, "normal", Fitted(normal_rows, NORMAL[:30]), NEW)
    with pytest.raises(MethodError, match="tell noise from signal"):
        scores(spikes, "basis", Fitted(pca, NORMAL[:9], components=4), NEW)
    with pytest.raises(MethodError, match="nothing would lie outside"):
        Fitted(head_subspace, NORMAL, components=WIDTH)
    with pytest.raises(MethodError, match="connect the input of the last linear layer"):
        Fitted(head_subspace, NORMAL[:, :5])


def test_constant_features_and_few_rows() -> None:
    """Fewer rows than features, a feature that never varies: distances are finite where they are shrunk, and told of where not."""
    few = np.concatenate([NORMAL[:8], np.full((8, 2), 3.0)], 1)
    new = np.concatenate([NEW, np.full((260, 2), 3.0)], 1)
    shrunk, plain = Fitted(reference, few), Fitted(reference, few, shrinkage="none")
    assert shrunk.result["rank"] == plain.result["rank"] == 7
    assert np.isfinite(scores(mahalanobis, "reference", shrunk, new)).all()
    assert any("vary along 7 of 14" in note for note in plain.result["caveats"])
    off = new - few.mean(0)
    expected = np.einsum(
        "ij,jk,ik->i", off, np.linalg.pinv(np.cov(few.T, bias=True), hermitian=True, rcond=1e-12), off
    )
    np.testing.assert_allclose(scores(mahalanobis, "reference", plain, new), expected, rtol=1e-6)


def test_a_spread_far_from_zero_keeps_its_digits() -> None:
    score = 1e8 + torch.from_numpy(np.random.default_rng(0).standard_normal(5000))
    parts = [anomaly_scores.partial(some) for some in torch.split(score, 700)]
    state = reduce(anomaly_scores.merge, [anomaly_scores.partial(score[:0]), *parts])
    found = anomaly_scores.summary(state)
    assert found["n_rows"] == 5000
    assert found["mean"] == pytest.approx(float(score.mean()), rel=1e-15)
    assert found["spread"] == pytest.approx(float(score.std(correction=0)), rel=1e-9)
