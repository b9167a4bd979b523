"""Draws: deterministic, in data order, every class with its share."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.data import Subset
from schemas.errors import DataError, UnknownNameError
from tasks.extract.subset import choose, shares

CLASSES = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=200)
SEEDS = st.integers(0, 5)


def largest_remainder(sizes, total):
    """The rule by exact fractions: whole parts, then one more in order of the remainders."""
    quotas = [Fraction(size * total, max(1, sum(sizes))) for size in sizes]
    counts = [int(quota) for quota in quotas]
    order = sorted(range(len(sizes)), key=lambda k: (-(quotas[k] - counts[k]), k))
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    return counts


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.data())
def test_shares_are_those_of_the_largest_remainder(sizes, data):
    total = data.draw(st.integers(0, sum(sizes)))
    found = shares(np.array(sizes), total)
    assert found.tolist() == largest_remainder(sizes, total)
    assert int(found.sum()) == total
    assert (found <= sizes).all()


@given(CLASSES, st.integers(1, 250), SEEDS)
def test_classes_keep_their_share_and_samples_their_order(labels, most, seed):
    subset = Subset(max_samples=most, stratify_by="c", seed=seed)
    found = choose({"c": labels}, None, subset)
    size = min(most, len(labels))
    assert found.dtype == np.int64
    assert len(found) == size
    assert (np.diff(found) > 0).all()
    drawn, whole = Counter(labels[i] for i in found), Counter(labels)
    for name, count in whole.items():
        assert abs(drawn[name] - count * size / len(labels)) < 1
    np.testing.assert_array_equal(found, choose({"c": labels}, None, subset))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=120), st.integers(1, 4000), SEEDS)
def test_tokens_come_within_one_sample_of_what_is_asked(lengths, tokens, seed):
    counts = np.array(lengths)
    found = choose(None, counts, Subset(max_tokens=tokens, seed=seed))
    held, total = int(counts[found].sum()), int(counts.sum())
    assert len(found) >= 1
    if tokens >= total:
        assert len(found) == len(counts)
    elif tokens >= counts.max():
        assert abs(held - tokens) <= counts.max() / 2


@given(CLASSES, SEEDS, st.integers(20, 500))
def test_tokens_and_classes_together(labels, seed, tokens):
    counts = np.random.default_rng(0).integers(1, 20, len(labels))
    found = choose({"c": labels}, counts, Subset(max_tokens=tokens, stratify_by="c", seed=seed))
    drawn, whole = Counter(labels[i] for i in found), Counter(labels)
    for name, count in whole.items():
        assert abs(drawn[name] - count * len(found) / len(labels)) < 1
    assert abs(int(counts[found].sum()) - min(tokens, int(counts.sum()))) <= 20 * (1 + len(whole))


def test_both_limits_hold():
    counts = np.full(100, 10)
    assert len(choose(None, counts, Subset(max_tokens=500, max_samples=20))) == 20
    assert len(choose(None, counts, Subset(max_tokens=200, max_samples=50))) == 20


def test_a_stratified_draw_of_many_singletons_favours_none():
    labels = [f"c{n:03d}" for n in range(100)]
    drawn = Counter(
        i
        for seed in range(200)
        for i in choose({"c": labels}, None, Subset(max_samples=30, stratify_by="c", seed=seed))
    )
    assert min(drawn[i] for i in range(100)) > 30
    assert max(drawn[i] for i in range(100)) < 95


def test_seeds_differ_and_no_limit_means_all():
    assert choose(None, None, Subset(), n_samples=5).tolist() == [0, 1, 2, 3, 4]
    draws = {tuple(choose(None, None, Subset(max_samples=10, seed=s), n_samples=100)) for s in range(5)}
    assert len(draws) == 5
    assert choose(None, None, Subset(max_samples=3, seed=-1), n_samples=9).shape == (3,)


def test_a_frozen_draw():
    """The draw is part of a capture's identity: it may not change between versions."""
    found = choose({"c": list("aabbbbcccccc") * 2}, None, Subset(max_samples=8, stratify_by="c", seed=3))
    assert found.tolist() == FROZEN


FROZEN = [0, 4, 5, 7, 9, 16, 19, 20]


def test_what_is_wrong_is_named():
    labels = {"package": ["a", "b"], "kind": ["x", "y"]}
    with pytest.raises(
        UnknownNameError, match=r"stratify_by is 'pakage', no label of the data; nearest: package"
    ):
        choose(labels, None, Subset(max_samples=1, stratify_by="pakage"))
    with pytest.raises(UnknownNameError, match="none exist"):
        choose({}, None, Subset(stratify_by="x"), n_samples=3)
    with pytest.raises(
        DataError, match=r"max_tokens was asked of samples that have no tokens; use max_samples"
    ):
        choose(labels, None, Subset(max_tokens=5))
    with pytest.raises(DataError, match=r"holds measurements such as 0\.5; expected classes"):
        choose({"score": [0.5, 1.5]}, None, Subset(max_samples=1, stratify_by="score"))
    with pytest.raises(DataError, match=r"tell \[2, 3\] about the number of samples; expected one number"):
        choose(labels, np.ones(3), Subset())
    with pytest.raises(DataError, match="tell nothing about the number"):
        choose(None, None, Subset())


@given(CLASSES, st.integers(1, 100), st.integers(1, 100), SEEDS)
def test_a_draw_that_skips_another_shares_none_with_it(labels, first, second, seed):
    labels = [*labels, "a", "b"]
    first = min(first, len(labels) - 1)
    a = choose({"c": labels}, None, Subset(max_samples=first, stratify_by="c", seed=seed))
    skipping = Subset(max_samples=second, skip_samples=first, stratify_by="c", seed=seed)
    b = choose({"c": labels}, None, skipping)
    assert not set(a) & set(b)
    assert len(b) == min(second, len(labels) - first)
    rest = choose({"c": labels}, None, Subset(skip_samples=first, stratify_by="c", seed=seed))
    assert sorted([*a, *rest]) == list(range(len(labels)))


def test_skipping_all_is_refused_and_skipping_none_is_no_option():
    with pytest.raises(DataError, match=r"skip_samples is 3, and there are 3"):
        choose(None, None, Subset(skip_samples=3), n_samples=3)
    assert "skip_samples" not in Subset().model_dump()
    assert Subset(skip_samples=2).model_dump()["skip_samples"] == 2
