"""Two captures side by side: which places are the same, and what differs."""

import numpy as np
import pytest

from tasks.comparison import compared_with, comparisons
from tasks.illustrations import illustrations
from tasks.measures import site_rows
from tasks.tables import comparison_table, measure_notes, measure_tables
from tests.pages import artifact, interval, story

A, B, C = "a" * 20, "b" * 20, "c" * 20
NAMES = {A: "before", B: "after", C: "later"}
LAYERS = [f"h.{n}:out:0" for n in range(3)]


def test_one_capture_is_compared_with_nothing() -> None:
    rows = site_rows(story(LAYERS, A), NAMES)
    assert comparisons(rows) == []
    assert not any("≠" in note for note in measure_notes(rows))


def test_sites_of_one_name_are_pairs() -> None:
    (found,) = comparisons(site_rows([*story(LAYERS, A), *story(LAYERS[1:], B, 2.0)], NAMES))
    assert (found.first, found.second) == ("before", "after")
    assert [(p.first.site, p.second.site) for p in found.pairs] == [(site, site) for site in LAYERS[1:]]


def test_layers_of_two_networks_are_pairs() -> None:
    other = [f"encoder.layer.{n}:out:0" for n in range(3)]
    (found,) = comparisons(site_rows([*story(LAYERS, A), *story(other, B)], NAMES))
    assert [(p.first.site, p.second.site) for p in found.pairs] == list(zip(LAYERS, other, strict=True))


def test_a_difference_needs_both_intervals() -> None:
    def one(capture: str, value: object) -> object:
        return artifact("d", "geometry.dimension", LAYERS[0], {"twonn": value}, capture=capture)

    for other, expected in ((interval(12.0), False), (interval(13.0), True), (13.0, None)):
        (found,) = comparisons(site_rows([one(A, interval(10.0)), one(B, other)], NAMES))
        assert found.pairs[0].differs("twonn") is expected
        assert found.measures[0].n_known == (expected is not None)
        assert len(found.measures[0].apart) == bool(expected)


def test_others_are_compared_with_the_first() -> None:
    rows = site_rows([*story(LAYERS, A), *story(LAYERS, B), *story(LAYERS, C)], NAMES)
    assert [(found.first, found.second) for found in comparisons(rows)] == [
        ("before", "after"),
        ("before", "later"),
    ]
    assert len(compared_with(rows)) == 6


def test_captures_without_a_measure_in_common_are_not_compared() -> None:
    pair = artifact("cka", "geometry.cka", LAYERS[0], {"cka": 0.9}, capture=A, other=B)
    assert comparisons(site_rows([*story(LAYERS, A), pair], NAMES)) == []


def test_layers_of_one_capture_are_not_compared_with_those_of_two() -> None:
    def cka(other: str) -> object:
        return artifact(
            "cka", "geometry.cka", LAYERS[0], {"cka": 0.9}, capture=A, other=other, beside=LAYERS[1]
        )

    rows = site_rows([cka(A), cka(B)], NAMES)
    assert len(rows) == 2
    assert comparisons(rows) == []


def test_the_table_counts_what_is_apart_and_shows_the_largest() -> None:
    (found,) = comparisons(site_rows([*story(LAYERS, A), *story(LAYERS, B, 2.0)], NAMES))
    table = comparison_table(found)
    rows = {row[0].text: row for row in table.rows}
    assert [cell.text for cell in rows["Participation ratio"]] == [
        "Participation ratio",
        "3",
        "3 of 3",
        "h.0",
        "20.0",
        "40",
    ]
    assert rows["Participation ratio"][5].note == "[36, 44]"
    assert rows["TwoNN"][2].text == "0 of 3"
    assert rows["For 90 %"][2].text == "no intervals"
    assert [heading for heading, _ in table.headings][-2:] == ["before", "after"]


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_what_differs_is_marked_in_the_tables_of_sites(factor: float) -> None:
    rows = site_rows([*story(LAYERS, A), *story(LAYERS, B, factor)], NAMES)
    table = measure_tables(rows)[0]
    assert [heading for heading, _ in table.headings][:3] == ["Site", "Capture", "Participation ratio"]
    marks = [(row[1].text, row[2].apart) for row in table.rows]
    assert marks == [("before", ""), ("after", "before" if factor == 2 else "")] * 3
    assert any("≠" in note for note in measure_notes(rows))


def test_the_scree_plot_says_whose_it_is() -> None:
    def title(*captures: str) -> str:
        made = [a for capture in captures for a in story(LAYERS, capture)]
        rows = [
            row._replace(spectrum=np.array([3.0, 1.0]), total=4.0)
            for row in site_rows(made, {A: "base", B: "tuned"})
        ]
        drawn = illustrations(rows, None)
        return next(one.title for one in drawn if one.name == "scree")

    assert not title(A).endswith("base")
    assert title(A, B).endswith((", base", ", tuned"))
