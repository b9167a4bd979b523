"""Figures and tables of strange rows: which scores, thresholds and colours, in the page too."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tasks.anomaly_findings import anomaly_findings
from tasks.anomaly_illustrations import ScoreHistogram, anomaly_illustrations
from tasks.drawing import draw
from tasks.example_illustrations import Shown
from tasks.measures import StageArtifact
from tasks.numerics.score_maps import image_scores
from tasks.page import PAGE, render
from tasks.strange_illustrations import (
    MOST_OPAQUE,
    STRANGER,
    Piece,
    Strange,
    StrangeSamples,
    strange_illustrations,
)
from tasks.strange_tables import strange_tables
from tests.pages import artifact, report_data

IMAGE = np.eye(8)
PATCHES = np.arange(16.0).reshape(4, 4)
PIECES = (Piece("… "), Piece("<b>", 3.0), Piece(" and "), Piece("$x$", 1.0), Piece("low", -5.0), Piece("new"))


def histogram(
    site: str = "h.0:out:0", thresholds: tuple[float, ...] = (2.0,), **changes: object
) -> ScoreHistogram:
    made = ScoreHistogram(
        "by-distance", site, "anomaly.mahalanobis", np.array([1.0, 2, 3, 4]), np.array([6, 3, 1]), np.array([4, 0, 0]),
        False, thresholds, 0.05, (0.04, 0.06), 10, 10,
    )  # fmt: skip
    return made._replace(**changes)


def strange(*samples: Strange, **changes: object) -> StrangeSamples:
    return StrangeSamples("guard", "h.1:out:0", samples, "kind", (1.0, 5.0), 100, 100, 1)._replace(**changes)


def test_shares_of_judged_and_normal_rows_and_the_threshold() -> None:
    (made,) = anomaly_illustrations([histogram(), histogram("h.1:out:0", (2.0, 3.5), log=True)], [])
    one, other = made.figure.axes
    judged, normal = (patch.get_data().values for patch in one.patches)
    np.testing.assert_allclose(judged, [0.6, 0.3, 0.1])
    np.testing.assert_allclose(normal, [1.0, np.nan, np.nan])
    assert [line.get_xdata()[0] for line in one.lines] == [2.0]
    assert not other.lines
    assert (one.get_yscale(), one.get_xscale(), other.get_xscale()) == ("log", "linear", "log")
    assert one.get_xlabel() == "score · flagged of normal rows: 4 to 6 %"
    assert "range holds the thresholds of classes" in made.caption
    assert "5 % of normal rows" in made.caption
    assert "h.0: scores from 1.0 to 4.0, threshold 2.0." in made.description
    names = [text.get_text() for text in made.figure.legends[0].get_texts()]
    assert names == ["judged rows", "normal rows of the calibration", "threshold", "thresholds of classes"]
    assert len(draw(made.figure, "png")) > 5000


def test_what_was_drawn_is_said_and_no_threshold_is_none() -> None:
    (made,) = anomaly_illustrations([histogram(thresholds=(), n_rows=5000, n_read=100, rates=None)], [])
    assert "A seeded choice is counted: 100 of 5,000 rows at h.0." in made.caption
    assert "no threshold" in made.description
    assert not made.figure.axes[0].lines
    empty = histogram(scores=np.zeros(3, dtype=np.int64), calibration=np.zeros(3, dtype=np.int64))
    (made,) = anomaly_illustrations([empty], [])
    assert draw(made.figure, "svg")


def test_a_figure_for_each_stage() -> None:
    made = [*anomaly_illustrations([histogram(), histogram(stage="other")], [])]
    assert [each.name for each in made] == ["strange-scores-by-distance", "strange-scores-other"]


def test_colours_over_images_mean_the_same_in_all() -> None:
    """The second one's scores are ten times those of the first: no image has a scale of its own."""
    first, second = (
        Strange(Shown(key, image=IMAGE), 9.0, 0.01, "noise", patches=factor * PATCHES / 15)
        for key, factor in (("a", 2.0), ("b", 20.0))
    )
    (made,) = strange_illustrations([strange(first, second, Strange(Shown("c"), 1.0))])
    grid = np.array(made.figure.axes).reshape(2, 8)
    np.testing.assert_array_equal(grid[0, 0].images[0].get_array(), IMAGE)
    assert [len(axes.images) for axes in grid[1]] == [2, 2] + [0] * 6
    faint, strong = (grid[1, n].images[1].get_array()[..., 3] for n in (0, 1))
    assert 0 < faint.max() <= MOST_OPAQUE * (2 - 1) / (5 - 1)
    assert strong.max() == pytest.approx(MOST_OPAQUE)
    assert faint.min() == 0
    np.testing.assert_allclose(grid[1, 0].images[1].get_array()[0, 0, :3], to_rgb(STRANGER))
    assert grid[0, 0].get_title() == "noise\n9.0\np 0.01"
    assert "kind, score, p" in made.caption
    assert "Colours begin at a score of 1.0" in made.caption
    assert "a: 9.0; b: 9.0" in made.description


def test_images_without_maps_and_maps_without_images() -> None:
    (only,) = strange_illustrations([strange(Strange(Shown("a", image=np.ones((5, 6, 3))), 2.0))])
    assert len(only.figure.axes) == 8
    assert "Colours" not in only.caption
    holes = np.where(PATCHES == 5, np.nan, PATCHES)
    (mapped,) = strange_illustrations([strange(Strange(Shown("a"), 2.0, patches=holes))])
    assert mapped.figure.axes[0].images[0].get_array().shape == (64, 64, 4)
    wide = Strange(Shown("a", image=np.ones((9, 6))), 2.0, patches=np.arange(14.0).reshape(2, 7))
    (larger,) = strange_illustrations([strange(wide)])
    assert larger.figure.axes[8].images[1].get_array().shape == (9, 7, 4)
    (thin,) = strange_illustrations([strange(Strange(Shown("a", image=IMAGE), 2.0, patches=np.ones((1, 1))))])
    assert draw(thin.figure, "png")
    assert not [*strange_illustrations([strange(Strange(Shown("a", "text"), 2.0))])]


def test_tokens_have_backgrounds_and_the_strangest_are_written() -> None:
    samples = (Strange(Shown("k", "<b> and"), 3.0, 1 / 400, "odd", PIECES), Strange(Shown("gone"), 2.0))
    (table,) = strange_tables([strange(*samples, n_rows=900, n_sites=3)])
    assert [heading for heading, _ in table.headings] == [
        "Sample",
        "kind",
        "Score",
        "p",
        "Text",
        "Strangest tokens",
    ]
    marks = table.rows[0][4].marks
    assert [mark.weight for mark in marks] == [None, 0.5, None, 0.0, 0.0, None]
    assert "".join(mark.text for mark in marks) == table.rows[0][4].text == "… <b> and $x$lownew"
    assert table.rows[0][5].text == "<b> 3.0, $x$ 1.0, low -5.0"
    assert [cell.text for cell in table.rows[0][:4]] == ["k", "odd", "3.0", "0.0025"]
    assert [cell.text for cell in table.rows[1]] == ["gone", "–", "2.0", "–", "–", "–"]
    assert "the median of all rows" in table.notes[0]
    assert table.notes[1:] == (
        "Sought among 100 of 900 rows, a seeded choice.",
        "One of 3 sites: the one with most discoveries, of equals with most flagged rows, else the last.",
    )


def test_an_image_has_the_score_of_its_map() -> None:
    import torch

    (table,) = strange_tables([strange(Strange(Shown("a", image=IMAGE), 15.0, patches=PATCHES), label="")])
    assert [heading for heading, _ in table.headings] == ["Sample", "Score", "Image"]
    assert float(table.rows[0][2].text) <= 15
    assert float(image_scores(torch.from_numpy(PATCHES)[None])[0]) == 15


def judged(discovered: int, site: str = "h.0:out:0", caveats: tuple[str, ...] = ()) -> StageArtifact:
    result = {
        "detector": "anomaly.residual",
        "n_rows": 1200,
        "discovered": discovered,
        "flagged": 0.25,
        "caveats": list(caveats),
    }
    return artifact("by-residual", "anomaly.calibrated", site, result, config={"alpha": 0.05, "q": 0.1})


def test_discoveries_are_told_at_the_site_with_most() -> None:
    made = [judged(3), judged(40, "h.1:out:0"), judged(7, "h.2:out:0")]
    (found,) = anomaly_findings(made)
    assert found == (
        "40",
        "40 of 1,200 rows at h.1 are strange at a false discovery rate of 10 %, the most of 3 sites; 25 % exceed the threshold, 5 % of "
        "normal rows would (residual, by-residual).",
    )
    (none,) = anomaly_findings([judged(0, caveats=("rows are alike",)), judged(0)])
    assert none.sentence.startswith(
        "None of 1,200 rows at h.0 is strange at a false discovery rate of 10 %, nor at any other site"
    )
    assert none.sentence.endswith("The stage says where this may not hold.")
    pooled = judged(40)
    of_samples = pooled.artifact.model_copy(update={"result": {**pooled.artifact.result, "of": "sample"}})
    (texts,) = anomaly_findings([pooled._replace(artifact=of_samples)])
    assert texts.sentence.startswith("40 of 1,200 samples at h.0 are strange")
    assert "5 % of normal samples would" in texts.sentence
    empty = judged(0)
    without = empty.artifact.model_copy(
        update={"result": {**empty.artifact.result, "n_rows": 0, "flagged": None}}
    )
    assert not [*anomaly_findings([empty._replace(artifact=without)])]


def test_the_page_has_a_section_and_escapes_texts() -> None:
    data = report_data()
    assert b'id="strange"' not in render(data)[PAGE]
    samples = strange(Strange(Shown("<i>k</i>", "t"), 3.0, 0.5, "odd", PIECES))
    made = (*data.artifacts, judged(3))
    files = render(data._replace(artifacts=made, histograms=(histogram(),), strange=(samples,)))
    page = files[PAGE].decode()
    assert 'href="#strange"' in page
    assert 'id="figure-strange-scores-by-distance"' in page
    assert '<span style="--s:0.50" title="score 3.0">&lt;b&gt;</span> and ' in page
    assert "&lt;i&gt;k" in page
    assert "<i>k" not in page
    assert "3 of 1,200 rows at h.0 are strange" in page
    assert "figures/strange-scores-by-distance.svg" in files
