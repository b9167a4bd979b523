"""Counts of scores: exact while they fit, the same for any parts and order, in bins that hold the scores that are said to be theirs."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.numerics import detection, score_bins

FLOATS = st.floats(allow_nan=False)


@given(scores=st.lists(FLOATS, max_size=20))
def test_keys_are_in_the_order_of_scores_and_give_them_back(scores: list[float]) -> None:
    score = torch.tensor(scores, dtype=torch.float64)
    key = score_bins._keys(score)
    assert torch.equal(score_bins._scores(key), score)
    assert torch.equal(key[:, None] < key, score[:, None] < score)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(FLOATS | st.integers(-3, 3).map(float), st.booleans()), max_size=60),
    edges=st.lists(st.integers(0, 60), max_size=4),
    size=st.sampled_from([2, 5, 16, 64]),
    order=st.booleans(),
)
def test_parts_and_their_order_do_not_matter(
    rows: list[tuple[float, bool]], edges: list[int], size: int, order: bool
) -> None:
    score = torch.tensor([s for s, _ in rows], dtype=torch.float64)
    anomalous = torch.tensor([a for _, a in rows], dtype=torch.bool)
    whole = score_bins.of_rows(score, anomalous, size)
    parts = list(torch.tensor_split(torch.arange(len(rows)), sorted(edges)))
    parts = parts[::-1] if order else parts
    found = score_bins.of_rows(score[parts[0]], anomalous[parts[0]], size)
    for part in parts[1:]:
        found = score_bins.merge(score_bins.of_rows(score[part], anomalous[part], size), found)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    exact, counts = detection.counted(score + 0.0, anomalous), score_bins.counts(whole)
    assert int(counts.anomalous.sum()) == int(anomalous.sum())
    assert int(counts.normal.sum()) == int((~anomalous).sum())
    if len(exact.score) <= size:
        assert int(whole["dropped"]) == 0
        assert all(torch.equal(a, b) for a, b in zip(exact, counts, strict=True))
    for value in counts.score.tolist():  # a bin holds what lies between its least score and the next bin's
        above = (score >= value).sum(), (counts.anomalous + counts.normal)[counts.score >= value].sum()
        assert int(above[0]) == int(above[1])


def test_bins_are_as_fine_as_said_and_their_bound_holds() -> None:
    rng = np.random.default_rng(0)
    anomalous = torch.from_numpy(rng.random(50_000) < 0.1)
    score = torch.from_numpy(rng.gamma(2.0, size=50_000)) + anomalous
    bins = score_bins.of_rows(score, anomalous, 4096)
    counts, dropped = score_bins.counts(bins), int(bins["dropped"])
    place = torch.searchsorted(counts.score, score, right=True) - 1
    off = (score - counts.score[place]) / score
    assert float(off.min()) >= 0
    assert float(off.max()) <= math.ldexp(1, dropped - 52)
    assert 2048 < len(counts.score) <= 4096
    exact = detection.auroc(detection.counted(score, anomalous))
    assert 0 < abs(exact - detection.auroc(counts)) <= detection.rounding(counts) < 1e-3
