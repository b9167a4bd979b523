"""geometry.function_distance: scipy row by row, a linear network and its perturbation, networks that agree in nothing, and intervals."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import function_distance as method
from tests.methods.cases import Case
from tests.methods.cases import run as run_case


def run(
    x: Tensor, y: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[method.Result, dict[str, np.ndarray]]:
    sample = torch.arange(len(x)) if sample is None else sample
    config = method.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1], "y": y.shape[1]}, n_rows=len(x), n_samples=len(x))
    method.check(inputs, config)
    blocks = [Block({"x": x[p], "y": y[p]}, sample[p], p, p) for p in torch.arange(len(x)).tensor_split(4)]
    answer = run_case(Case(method, config, inputs, blocks[0]), blocks)
    return answer.result, {name: values.numpy() for name, values in answer.arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(found: Any) -> float:
    assert found is not None
    return float(found.value)


def test_numbers_are_those_of_scipy_row_by_row() -> None:
    x = 2 * drawn(90, 7) + 40
    y = x + drawn(90, 7, 1) + 5
    y[3] = x[3]
    result, arrays = run(x, y, outputs="logits")
    a, b = x.numpy(), y.numpy()
    p, q = softmax(a, axis=1), softmax(b, axis=1)
    middle = (p + q) / 2
    assert value(result.divergence_xy) == pytest.approx(np.mean(entropy(p, q, axis=1)), rel=1e-10)
    assert value(result.divergence_yx) == pytest.approx(np.mean(entropy(q, p, axis=1)), rel=1e-10)
    half = (entropy(p, middle, axis=1) + entropy(q, middle, axis=1)) / 2
    assert value(result.divergence) == pytest.approx(half.mean(), rel=1e-10)
    assert value(result.distance) == pytest.approx(((a - b) ** 2).sum(1).mean(), rel=1e-12)
    centred = (a - a.mean(1, keepdims=True)) - (b - b.mean(1, keepdims=True))
    assert value(result.distance_centred) == pytest.approx((centred**2).sum(1).mean(), rel=1e-10)
    assert result.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())
    assert result.shift == pytest.approx(((b - a).mean(0) ** 2).sum(), rel=1e-10)
    apart = a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() + ((b - a).mean(0) ** 2).sum()
    assert value(result.distance_apart) == pytest.approx(apart, rel=1e-10)
    np.testing.assert_allclose(arrays["square"], ((b - a) ** 2).mean(0), rtol=1e-11)
    np.testing.assert_allclose(arrays["difference"], (b - a).mean(0), rtol=1e-11)
    assert result.n_equal == 1


def test_a_linear_network_and_its_perturbation() -> None:
    """|(W - V) x|^2 over standard normal inputs is |W - V|^2: a number of the parameters alone."""
    given, w, change = drawn(60_000, 12), drawn(12, 5, 1), 0.01 * drawn(12, 5, 2)
    result, _ = run(given @ w, given @ (w + change))
    assert value(result.distance) == pytest.approx(float(change.square().sum()), rel=0.02)
    assert value(result.relative) == pytest.approx(
        float(change.square().sum() / 2 / w.square().sum()), rel=0.05
    )
    assert result.divergence is None


def test_small_changes_of_logits_cost_half_their_variance_under_the_softmax() -> None:
    """Both divergences are the Fisher metric to second order, Jensen and Shannon's a quarter of it."""
    x, change = drawn(400, 6), 1e-3 * drawn(400, 6, 1)
    result, _ = run(x, x + change, outputs="logits")
    p = softmax(x.numpy(), axis=1)
    c = change.numpy()
    metric = ((p * c**2).sum(1) - (p * c).sum(1) ** 2).mean() / 2
    assert value(result.divergence_xy) == pytest.approx(metric, rel=5e-3)
    assert value(result.divergence_yx) == pytest.approx(metric, rel=5e-3)
    assert value(result.divergence) == pytest.approx(metric / 4, rel=5e-3)


def test_networks_that_agree_in_nothing_and_in_all() -> None:
    x = drawn(3000, 6) + 100
    none, _ = run(x, drawn(3000, 6, 9) + 100)
    assert value(none.relative) == pytest.approx(1, abs=0.04)
    same, _ = run(x, x.clone(), outputs="logits")
    assert (value(same.distance), same.agreement, same.n_equal) == (0, 1, 3000)
    assert value(same.divergence) == pytest.approx(0, abs=1e-15)
    moved, _ = run(x, x + 7, outputs="logits")
    assert value(moved.distance) == pytest.approx(6 * 49)
    assert value(moved.distance_centred) == pytest.approx(0, abs=1e-20)
    assert value(moved.divergence) == pytest.approx(0, abs=1e-14)


def test_certain_networks_and_bad_input() -> None:
    """Probabilities that underflow have a finite divergence by their logarithms; both certain of different classes: ln 2."""
    x = torch.eye(4).double().repeat(10, 1) * 2000
    result, _ = run(x, x.roll(1, 1), outputs="logits")
    assert value(result.divergence_xy) == pytest.approx(2000)
    assert value(result.divergence) == pytest.approx(np.log(2))
    assert result.agreement == 0
    with pytest.raises(MethodError, match="features, a distance takes equal ones"):
        run(drawn(9, 3), drawn(9, 4))
    with pytest.raises(MethodError, match="no row of x"):
        run(drawn(0, 3), drawn(0, 3))
    with pytest.raises(MethodError, match="overflow"):
        run(drawn(9, 3) * 1e200, drawn(9, 3, 1) * 1e200)
    flat, _ = run(torch.ones(30, 2).double(), torch.ones(30, 2).double())
    assert flat.relative is None


def test_intervals_cover_dependent_rows() -> None:
    hits = []
    for seed in range(40):
        given = drawn(120, 3, seed).repeat_interleave(8, 0)
        other = given + 0.5 * drawn(120, 3, 500 + seed).repeat_interleave(8, 0)
        found = run(given, other, torch.arange(120).repeat_interleave(8))[0].distance
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= 0.75 <= found.high)
    assert np.mean(hits) >= 0.87
