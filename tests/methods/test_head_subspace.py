"""anomaly.head_subspace and vim beside plain algebra."""

import numpy as np
from scipy.special import logsumexp

from tasks.methods.anomaly import (
    head_subspace,
    vim,
)
from tests.methods.strange_rows import (
    LAYER,
    LAYERS,
    NEW,
    NORMAL,
    WIDTH,
    Fitted,
    scores,
)


def test_vim() -> None:
    weight, bias = (LAYERS[name].numpy() for name in LAYER)
    fitted = Fitted(head_subspace, NORMAL, components=5)
    origin = -np.linalg.pinv(weight) @ bias
    _, vectors = np.linalg.eigh((NORMAL - origin).T @ (NORMAL - origin))
    outside = vectors[:, : WIDTH - 5]
    lengths = [np.linalg.norm((x - origin) @ outside, axis=1) for x in (NORMAL, NEW)]
    alpha = (NORMAL @ weight.T + bias).max(1).mean() / lengths[0].mean()
    energy = -logsumexp(NEW @ weight.T + bias, axis=1)
    np.testing.assert_allclose(scores(vim, "normal", fitted, NEW), alpha * lengths[1] + energy, rtol=1e-8)
    np.testing.assert_allclose(scores(vim, "normal", fitted, NEW, score="residual"), lengths[1], rtol=1e-8)
    np.testing.assert_allclose(scores(vim, "normal", fitted, NEW, score="energy"), energy, rtol=1e-10)
    assert head_subspace.components_of(512, head_subspace.Config()) == 256
    assert fitted.result["caveats"] == []
    alike = Fitted(head_subspace, np.full((300, WIDTH), 3.3), components=5)  # what lies outside is rounding
    assert "scores mean little" in alike.result["caveats"][0]
