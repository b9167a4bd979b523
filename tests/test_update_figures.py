"""What figures of updates show: ranks beside those of shuffled entries, module by module, and beside activations."""

import numpy as np
import pytest

from tasks.training_illustrations import training_illustrations
from tests.training_pages import X, across, activations, drawn, early, legend_of, lines, modules, updates


def test_ranks_lie_beside_those_of_shuffled_entries() -> None:
    figure, caption, description = drawn(updates(), updates("b.weight:update", side=64))
    first, second = figure.axes
    found = lines(first)
    names = ["full rank", "rank", "rank, by chance", "effective rank", "effective rank, by chance"]
    assert list(found) == legend_of(figure) == names
    assert [set(lines(axes)["full rank"]) for axes in figure.axes] == [{10}, {64}]
    np.testing.assert_allclose(found["effective rank"][[0, -1]], [3, 3 + X[-1]], atol=0.02)
    assert set(found["effective rank, by chance"]) == {8.0}
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylim() == pytest.approx((0.9, 1.15 * 64))  # the larger one is not cut
    assert "shuffled places" in caption
    assert "3.5 of 10 on average" in description


def test_ranks_of_earlier_versions_have_no_null() -> None:
    old = updates()
    for name in ("rank_null", "effective_rank_null"):
        del old.arrays[name]
    assert set(lines(drawn(old)[0].axes[0])) == {"full rank", "rank", "effective rank"}


def test_updates_of_zero_are_gaps() -> None:
    still = updates()
    still.arrays["rank"][3] = still.arrays["effective_rank"][3] = 0
    axes = drawn(still)[0].axes[0]
    assert all(np.nanmin(np.asarray(line.get_ydata())) > 0 for line in axes.get_lines())


def test_many_modules_are_drawn_at_once() -> None:
    figure, caption, description = drawn(*modules(60), updates("layer.0.weight:update", 99), name="modules")
    found = across(figure.axes[0])
    np.testing.assert_allclose(found["updates"], np.arange(1, 49))
    assert set(found["chance"]) == {8.0}
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert (names[0], names[-1], len(names)) == ("layer.0.weight:update", "layer.47.weight:update", 48)
    low, high = figure.axes[0].get_ylim()
    assert low > high  # the first is on top
    assert legend_of(figure) == ["chance", "updates"]
    assert "13 further results are in the tables" in caption
    assert "least is 1.0 at layer.0.weight:update, the most 48.0 at layer.47.weight:update" in description
    assert all(made.name != "modules" for made in training_illustrations(modules(4)))


def test_modules_that_never_moved_are_left_out() -> None:
    some = modules(6)
    some[2].artifact.result["effective_rank"] = None
    del some[3].artifact.result["effective_rank_null"]
    found = across(drawn(*some, name="modules")[0].axes[0])
    assert found["updates"].tolist() == [1, 2, 4, 5, 6]
    assert np.isnan(found["chance"]).tolist() == [False, False, True, False, False]


def test_updates_beside_the_activations() -> None:
    still = activations()
    still.arrays["energy"][0] = np.nan
    figure, _, description = drawn(still)
    found = lines(figure.axes[0])
    assert set(found) == {"overlap", "overlap, by chance", "share of energy", "share of energy, by chance"}
    assert (found["overlap"][5], found["overlap, by chance"][5]) == (0.6, 0.3)
    assert (found["share of energy"][5], found["share of energy, by chance"][5]) == (0.9, 0.25)
    assert np.isnan(found["overlap"][0])  # it moved nothing
    assert "0.60 on average, 0.30 by chance" in description


def test_when_the_end_is_found() -> None:
    figure, _, description = drawn(early())
    found = lines(figure.axes[0])
    assert set(found["chance"]) == {0.25}
    assert np.isnan(found["overlap with the end"][0])  # nothing has moved yet
    assert "0.10 after a tenth of the steps, 0.25 by chance" in description
