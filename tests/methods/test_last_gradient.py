"""anomaly.last_gradient beside autograd."""

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.anomaly import (
    last_gradient,
)
from tasks.methods.spectrum import pca
from tests.methods.strange_rows import LAYER, LAYERS, NEW, NORMAL, WIDTH, Fitted, scores


def layer_gradient(x: np.ndarray, temperature: float) -> torch.Tensor:
    """[output, feature]: by autograd, of the mean over classes of the cross entropy with uniform targets."""
    weight = LAYERS[LAYER[0]].clone().requires_grad_()
    logits = (torch.from_numpy(x) @ weight.T + LAYERS[LAYER[1]]) / temperature
    loss = -logits.log_softmax(0).mean()
    (found,) = torch.autograd.grad(loss, weight)
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradients_of_the_last_layer(temperature: float) -> None:
    fitted = Fitted(pca, NORMAL, components=WIDTH, center=False)
    gradients = [layer_gradient(x, temperature) for x in NEW]
    options = {"temperature": temperature, "energy": 0.9}
    found = scores(last_gradient, "basis", fitted, NEW, score="grad_norm", **options)
    np.testing.assert_allclose(-found, [float(g.abs().sum()) for g in gradients], rtol=1e-9)
    values, vectors = np.linalg.eigh(NORMAL.T @ NORMAL)
    k = int(np.searchsorted(values[::-1].cumsum() / values.sum(), 0.9)) + 1
    kept = torch.from_numpy(vectors[:, ::-1][:, :k].copy())
    found = scores(last_gradient, "basis", fitted, NEW, score="grad_orth", **options)
    np.testing.assert_allclose(-found, [float((g @ kept).norm()) for g in gradients], rtol=1e-9)
    found = scores(last_gradient, "basis", fitted, NEW, score="angle", **options)
    np.testing.assert_allclose(
        -found, np.linalg.norm(NEW @ kept.numpy(), axis=1) / np.linalg.norm(NEW, axis=1), rtol=1e-9
    )
    with pytest.raises(MethodError, match="make it with `center: false`"):
        scores(last_gradient, "basis", Fitted(pca, NORMAL, components=WIDTH), NEW, score="angle")
