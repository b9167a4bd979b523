"""Detectors against plain NumPy and scikit-learn: fitted on some rows, asked of others, whatever the cut, and what is refused."""

from functools import partial, reduce
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf, oas
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from schemas.errors import MethodError
from tasks.methods import anomaly_scores
from tasks.methods.anomaly import (
    direction,
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
from tasks.methods.contract import Inputs
from tasks.methods.spectrum import pca
from tests.methods import detectors

WIDTH, CLASSES = 12, 3
LAYER = "{module}.weight", "{module}.bias"


RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((WIDTH, WIDTH)) * np.geomspace(3, 0.05, WIDTH)[:, None]
CENTRES = 4 * RNG.standard_normal((CLASSES, WIDTH))
CODE = np.arange(600) % CLASSES
NORMAL = CENTRES[CODE] + RNG.standard_normal((600, WIDTH)) @ MIX
NEW = np.concatenate(
    [CENTRES[CODE[:200]] + RNG.standard_normal((200, WIDTH)) @ MIX, 5 + 3 * RNG.standard_normal((60, WIDTH))]
)
STRANGE = np.arange(260) >= 200
LAYERS = {
    LAYER[0]: torch.from_numpy(RNG.standard_normal((5, WIDTH))),
    LAYER[1]: torch.from_numpy(RNG.standard_normal(5)),
}
Fitted, scores = (partial(made, weights=LAYERS) for made in (detectors.Fitted, detectors.scores))


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
        turn = RNG.standard_normal((WIDTH, WIDTH))
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


def test_a_concepts_direction() -> None:
    fitted = Fitted(reference, NORMAL, CODE, label="class")
    means = np.stack([NORMAL[c == CODE].mean(0) for c in range(CLASSES)])
    assert fitted.result["classes"] == ["a", "b", "c"]
    ends = means[1] - means[0]
    expected = 2 * (NEW - (means[0] + means[1]) / 2) @ ends / (ends @ ends)
    np.testing.assert_allclose(
        scores(direction, "reference", fitted, NEW, towards="b", away="a"), expected, rtol=1e-9, atol=1e-9
    )
    at_ends = scores(
        direction,
        "reference",
        fitted,
        np.stack([means[0], means[1], (means[0] + means[1]) / 2]),
        towards="b",
        away="a",
    )
    np.testing.assert_allclose(at_ends, [-1, 1, 0], atol=1e-12)
    last = scores(direction, "reference", fitted, np.stack([means[2], means[:2].mean(0)]))
    np.testing.assert_allclose(last, [1, -1], atol=1e-12)
    for options, told in (({"towards": "x"}, "no class 'x'"), ({"away": "c"}, "both ends are the class 'c'")):
        with pytest.raises(MethodError, match=told):
            scores(direction, "reference", fitted, NEW, **options)
    with pytest.raises(MethodError, match="make it with a label"):
        scores(direction, "reference", Fitted(reference, NORMAL), NEW)


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


@pytest.mark.parametrize(
    ("rows", "told"),
    [(np.full((20, 3), 3.3), "do not vary"), (np.eye(2, 3), "vary along 1 of 3"), (NORMAL[:20, :3], None)],
    ids=["constant", "two", "plain"],
)
def test_directions_that_are_not_seen_are_told_whatever_the_shrinkage(
    rows: np.ndarray, told: str | None
) -> None:
    """Two rows have no spread of squared lengths, so that nothing is shrunk."""
    found = Fitted(reference, rows)
    assert found.result["shrinkage"] == "ledoit_wolf"
    assert (found.result["intensity"] == 0) == (told is not None)
    assert any("vary" in note for note in found.result["caveats"]) == (told is not None)
    assert told is None or told in found.result["caveats"][0]


def test_a_spread_far_from_zero_keeps_its_digits() -> None:
    score = 1e8 + torch.from_numpy(np.random.default_rng(0).standard_normal(5000))
    parts = [anomaly_scores.partial(some) for some in torch.split(score, 700)]
    state = reduce(anomaly_scores.merge, [anomaly_scores.partial(score[:0]), *parts])
    found = anomaly_scores.summary(state)
    assert found["n_rows"] == 5000
    assert found["mean"] == pytest.approx(float(score.mean()), rel=1e-15)
    assert found["spread"] == pytest.approx(float(score.std(correction=0)), rel=1e-9)
