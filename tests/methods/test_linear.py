"""The linear probe: against scikit-learn and closed forms, planted labels, and labels that mean nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from schemas.errors import MethodError, UnknownNameError
from tasks.methods.contract import Block, Inputs
from tasks.methods.probe import linear
from tasks.numerics.proportions import grouped, wilson
from tasks.numerics.split import held_out
from tests.methods import cases
from tests.methods.cases import Case


def probed(
    x: np.ndarray, labels: dict[str, np.ndarray], names: int, per_sample: int = 1, **options: Any
) -> cases.Answer:
    """Probe rows whose labels are given per row."""
    n = len(x)
    index = torch.arange(n)
    sample = index // per_sample
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=n,
        n_samples=int(sample[-1]) + 1,
        categories={"kind": tuple(f"k{c}" for c in range(names))} if names else {},
    )
    given_labels = {name: torch.from_numpy(values) for name, values in labels.items()}
    block = Block({"x": torch.from_numpy(x)}, sample, index % per_sample, index, given_labels)
    config = linear.Config(**options)
    linear.check(inputs, config)
    batches = cases.cut(block, range(config.batch_rows, n, config.batch_rows))
    return cases.run(Case(linear, config, inputs, block), batches)


def classes_of(seed: int, n: int, width: int, k: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, k, n)
    x = rng.standard_normal((n, width)) + apart * rng.standard_normal((k, width))[target]
    return (x * np.logspace(-2, 2, width) + 100).astype(np.float32), target


def test_it_is_as_good_as_scikit_learn() -> None:
    x, target = classes_of(0, 3000, 10, 4, 0.8)
    answer = probed(x, {"kind": target}, 4, epochs=30, batch_rows=64, l2=1e-3)
    test = held_out(torch.arange(3000), 0.25, 0).numpy()
    scale = StandardScaler().fit(x[~test])
    model = LogisticRegression(C=1 / (1e-3 * (~test).sum()), max_iter=500).fit(
        scale.transform(x[~test]), target[~test]
    )
    theirs = model.score(scale.transform(x[test]), target[test])
    assert answer.result.accuracy == pytest.approx(theirs, abs=0.02)
    ours = answer.arrays["weight"].numpy() * scale.scale_
    ours, expected = ours - ours.mean(0), model.coef_ - model.coef_.mean(0)
    assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.99
    logits = x @ answer.arrays["weight"].numpy().T + answer.arrays["bias"].numpy()
    assert (logits.argmax(1) == target)[test].mean() == pytest.approx(answer.result.accuracy, abs=1e-3)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_ridge_reaches_its_closed_form(optimiser: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 6)).astype(np.float32)
    y = x @ np.array([1.0, -2, 0, 0.5, 3, 0]) + 7 + 0.1 * rng.standard_normal(2000)
    options = {"label": "size", "epochs": 40, "batch_rows": 100, "l2": 0.05, "optimiser": optimiser}
    answer = probed(x, {"size": y}, 0, **options)
    test = held_out(torch.arange(2000), 0.25, 0).numpy()
    mean, scale = x[~test].mean(0), x[~test].std(0)
    ridge = Ridge(alpha=0.05 * (~test).sum()).fit((x[~test] - mean) / scale, y[~test])
    np.testing.assert_allclose(answer.arrays["weight"][0].numpy() * scale, ridge.coef_, atol=0.02)
    assert answer.result.task == "regress"
    assert answer.result.accuracy is None
    assert answer.result.r2 == pytest.approx(ridge.score((x[test] - mean) / scale, y[test]), abs=0.01)


def test_a_label_that_means_nothing_is_not_found() -> None:
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((4000, 8)), (rng.random(4000) < 0.3).astype(np.int64)
    result = probed(x, {"kind": target}, 2, l2=0.1).result
    assert result.accuracy_low <= 0.7 + 0.02
    assert abs(result.accuracy - result.baseline) < 0.03
    assert result.baseline == pytest.approx(0.7, abs=0.03)


def test_rows_of_a_sample_never_meet_in_both_parts() -> None:
    """Samples that can be told apart by name, with labels by chance: memory must not help."""
    rng = np.random.default_rng(0)
    names = rng.integers(0, 2, 200)
    x = np.repeat(rng.standard_normal((200, 300)) * 5, 10, axis=0) + 0.01 * rng.standard_normal((2000, 300))
    result = probed(x, {"kind": np.repeat(names, 10)}, 2, per_sample=10, epochs=20, l2=0.0).result
    assert result.train_accuracy > 0.95
    assert result.accuracy < 0.75
    assert result.n_test_samples * 10 == result.n_test_rows


def test_the_interval_knows_that_rows_depend_on_each_other() -> None:
    x, target = classes_of(0, 400, 5, 2, 0.7)
    once = probed(x, {"kind": target}, 2).result
    repeated = probed(np.repeat(x, 25, axis=0), {"kind": np.repeat(target, 25)}, 2, per_sample=25).result
    width_once, width = (r.accuracy_high - r.accuracy_low for r in (once, repeated))
    assert width == pytest.approx(width_once, rel=0.1)
    assert repeated.n_test_rows == 25 * once.n_test_rows


def test_rows_without_a_label_are_left_out() -> None:
    x, target = classes_of(0, 500, 4, 2, 2.0)
    target[::5] = -1
    result = probed(x, {"kind": target}, 2).result
    assert result.n_train_rows + result.n_test_rows == 400


def test_recall_is_counted_per_class() -> None:
    x, target = classes_of(0, 2000, 6, 3, 3.0)
    answer = probed(x, {"kind": target}, 3)
    test = held_out(torch.arange(2000), 0.25, 0).numpy()
    assert answer.arrays["test_rows"].tolist() == np.bincount(target[test]).tolist()
    assert answer.arrays["train_rows"].tolist() == np.bincount(target[~test]).tolist()
    share = float((answer.arrays["recall"] * answer.arrays["test_rows"]).sum()) / test.sum()
    assert share == pytest.approx(answer.result.accuracy)


def test_wrong_labels_are_refused() -> None:
    x, target = classes_of(0, 50, 4, 2, 2.0)
    with pytest.raises(MethodError, match="found 0 labels with classes"):
        probed(x, {}, 0)
    with pytest.raises(MethodError, match="1 class"):
        probed(x, {"kind": 0 * target}, 1)
    with pytest.raises(UnknownNameError, match="nearest: kind"):
        probed(x, {"kind": target}, 2, label="kint")
    with pytest.raises(MethodError, match="to train on and 0 to test with"):
        probed(x, {"kind": target}, 2, test_share=1e-9)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 2**31))
def test_the_split_has_its_share(share: float, seed: int) -> None:
    sample = torch.arange(20_000)
    found = held_out(sample, share, seed)
    assert abs(float(found.double().mean()) - share) < 5 * np.sqrt(share * (1 - share) / 20_000)
    assert torch.equal(held_out(sample[5:50], share, seed), found[5:50])


def test_the_hash_is_splitmix() -> None:
    """Against plain integers."""

    def mix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    expected = [(mix(mix(9) ^ s) & (2**53 - 1)) < 0.3 * 2**53 for s in range(500)]
    assert held_out(torch.arange(500), 0.3, 9).tolist() == expected


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (470, 500)])
def test_wilson_equals_scipy(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.9, method="wilson")
    assert wilson(hits / n, n, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_without_variance_counts_what_is_independent() -> None:
    """All right: groups alone, or the samples that they were dealt from, but never more than the rows."""
    rows = torch.full((20,), 60)
    groups, samples, more = (grouped(rows, rows, 0.95, n) for n in (0, 400, 10**6))
    assert (groups.effective, samples.effective, more.effective) == (20, 400, 1200)
    assert samples.low == wilson(1.0, 400, 0.95)[0]
    some = rows.clone()
    some[0] = 0
    assert grouped(some, rows, 0.95, 400) == grouped(some, rows, 0.95)


def test_intervals_over_groups_cover() -> None:
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(400):
        truth = rng.beta(4, 2, 80)
        rows = rng.integers(5, 40, 80)
        hits = rng.binomial(rows, truth)
        found = grouped(torch.from_numpy(hits), torch.from_numpy(rows), 0.95)
        covered += found.low <= 4 / 6 <= found.high
        low, high = wilson(hits.sum() / rows.sum(), float(rows.sum()), 0.95)
        naive += low <= 4 / 6 <= high
    assert covered / 400 > 0.91
    assert naive / 400 < 0.8


def test_no_variance_counts_groups() -> None:
    rows = torch.full((20,), 100)
    found = grouped(rows, rows, 0.95)
    assert found.effective == 20
    assert found.high == 1.0
    assert found.low == pytest.approx(wilson(1.0, 20, 0.95)[0])
    assert np.isnan(grouped(rows[:0], rows[:0], 0.95).value)
