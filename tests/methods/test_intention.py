"""probe.intention: scikit-learn's areas, numpy's entropies, a planted label, and labels that say nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy, norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.probe import intention as method
from tasks.numerics import ranking
from tasks.numerics.split import spread
from tests.methods.cases import Case
from tests.methods.cases import run as run_case


def run(
    x: Tensor,
    code: Tensor | None = None,
    sample: Tensor | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> tuple[method.Result, dict[str, np.ndarray]]:
    sample = torch.arange(len(x)) if sample is None else sample
    given = {} if weight is None else {"unembedding": "w"}
    config = method.Config.model_validate(given | options)
    labels = {} if code is None else {"right": code}
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        categories={} if code is None else {"right": ("no", "yes")},
        weights={} if weight is None else {"w": weight},
    )
    method.check(inputs, config)
    blocks = [
        Block({"x": x[p]}, sample[p], p, p, {name: values[p] for name, values in labels.items()})
        for p in torch.arange(len(x)).tensor_split(3)
    ]
    answer = run_case(Case(method, config, inputs, blocks[0]), blocks)
    return answer.result, {name: values.numpy() for name, values in answer.arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(found: Any) -> float:
    assert found is not None
    return float(found.value)


def test_area_is_that_of_scikit_learn() -> None:
    score, code = drawn(500, 1)[:, 0], torch.arange(500) % 2
    score = score + 0.7 * code
    found = ranking.area(ranking.histogram(score, code, 2, -6, 6)[None])
    exact = roc_auc_score(code.numpy(), score.numpy())
    assert found.value == pytest.approx(exact, abs=found.tied / 2 + 1e-12)
    assert found.tied < 1e-3
    same = ranking.area(ranking.histogram(torch.ones(10).double(), torch.arange(10) % 2, 2, 0, 2)[None])
    assert (same.value, same.tied) == (0.5, 1.0)


def test_folds_are_those_of_a_loop() -> None:
    """Fisher's discriminant by scikit-learn, fitted without each group of samples, scored on the pairs in it."""
    code = torch.arange(300) // 2 % 2
    x = drawn(300, 6) @ drawn(6, 6, 1) + 0.5 * code[:, None]
    result, arrays = run(x, code, groups=5, ridge=1e-12)
    wins, pairs = 0.0, 0
    fold = spread(torch.arange(300), 5).numpy()
    for g in range(5):
        fitted = LinearDiscriminantAnalysis().fit(x.numpy()[fold != g], code.numpy()[fold != g])
        here = code.numpy()[fold == g]
        many = here.sum() * (1 - here).sum()
        wins += many * roc_auc_score(here, fitted.decision_function(x.numpy()[fold == g]))
        pairs += many
    assert result.ties is not None
    assert value(result.recoverability) == pytest.approx(wins / pairs, abs=result.ties / 2 + 1e-9)
    along = LinearDiscriminantAnalysis().fit(x.numpy(), code.numpy()).coef_[0]
    np.testing.assert_allclose(arrays["direction"], along / np.linalg.norm(along), atol=1e-7)
    values = np.linalg.eigvalsh(np.cov(x.numpy().T))
    assert value(result.dimension) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)


def test_planted_label_is_recovered_as_far_as_it_can_be() -> None:
    """Two Gaussians at distance 1.5: Phi(1.5 / sqrt 2)."""
    code = torch.arange(4000) % 2
    x = drawn(4000, 10)
    x[:, 3] += 1.5 * code
    result, arrays = run(x, code)  # classes alternate over samples: groups must not take every twentieth
    assert value(result.recoverability) == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.015)
    assert abs(arrays["direction"][3]) > 0.99
    assert value(result.dimension) > 8


def test_labels_that_say_nothing_are_not_recovered_even_by_many_features() -> None:
    """A probe that has seen its rows would tell all of them apart."""
    code = torch.randint(0, 2, (240,), generator=torch.Generator().manual_seed(4))
    found = value(run(drawn(240, 200), code)[0].recoverability)
    assert found == pytest.approx(0.5, abs=0.12)


def test_a_majority_class_is_worth_nothing() -> None:
    code = (torch.arange(2000) * 7 % 19 == 0).long()
    result, _ = run(drawn(2000, 4), code)
    assert result.n_positive < 120
    assert value(result.recoverability) == pytest.approx(0.5, abs=0.09)


def test_entropy_is_that_of_scipy() -> None:
    x, weight = 3 * drawn(150, 8), drawn(50, 8, 1).float()
    code = (torch.arange(150) * 5 % 7 < 3).long()
    result, _ = run(x, code, weight=weight)
    each = entropy(softmax(x.numpy() @ weight.double().numpy().T, axis=1), base=2, axis=1)
    assert value(result.entropy) == pytest.approx(each.mean(), rel=1e-10)
    assert result.entropy_uniform == pytest.approx(np.log2(50))
    assert value(result.entropy_area) == pytest.approx(roc_auc_score(code.numpy(), -each), abs=2e-3)
    assert result.entropy is not None
    assert result.entropy.low is not None
    logits = torch.from_numpy(x.numpy() @ weight.double().numpy().T)
    assert value(run(logits, code, rows="logits")[0].entropy) == pytest.approx(each.mean(), rel=1e-10)


def test_intervals_of_entropy_cover_dependent_rows() -> None:
    truth, hits = value(run(drawn(20_000, 4, 99), rows="logits")[0].entropy), []
    for seed in range(25):
        rows = drawn(100, 4, seed).repeat_interleave(8, 0)
        found = run(rows, None, torch.arange(100).repeat_interleave(8), rows="logits")[0].entropy
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) >= 0.8


def test_what_is_not_there_is_said() -> None:
    result, arrays = run(drawn(60, 4))
    assert (result.label, result.recoverability, result.entropy) == (None, None, None)
    assert np.isnan(arrays["direction"]).all()
    assert "no label" in " ".join(result.caveats)
    code = torch.zeros(60).long()
    single, _ = run(drawn(60, 4), code)
    assert single.recoverability is None
    assert "each class needs rows" in " ".join(single.caveats)
    some = torch.arange(60) % 2
    some[:10] = -1
    assert run(drawn(60, 4), some)[0].n_negative == 25
    with pytest.raises(MethodError, match="expected \\(tokens, 4\\)"):
        run(drawn(60, 4), weight=drawn(9, 5))
    with pytest.raises(MethodError, match="logits and an unembedding"):
        run(drawn(60, 4), weight=drawn(9, 4), rows="logits")
    with pytest.raises(MethodError, match="names no classes"):
        run(drawn(60, 4), some, label="colour")
