"""Figures of results over several sites: which numbers, under which names."""

import numpy as np
import pytest

from tasks import series_figures
from tasks.measures import StageArtifact
from tasks.series_illustrations import series_illustrations
from tests.pages import artifact, series

A, B = "a" * 20, "b" * 20
NAMES = {A: "before", B: "after"}
LAYERS = [f"h.{n}:out:0" for n in range(3)]
OVERLAP = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.6], [0.2, 0.6, 1.0]])


def distances(members: list[tuple[str, str]], values: np.ndarray = OVERLAP) -> StageArtifact:
    arrays = {"geodesic": 1 - values, "overlap": values, "overlap_null": np.full_like(values, 0.05)}
    return series("dist", "geometry.subspace_distances", members, {}, arrays)


def steps(members: list[tuple[str, str]], first: list[int]) -> StageArtifact:
    size = np.arange(1.0, len(first) + 1)
    arrays = {
        "magnitude": size,
        "magnitude_null": 10 * size,
        "magnitude_noise": 0.1 * size,
        "first": np.array(first),
    }
    return series("moves", "geometry.difference_subspace", members, {}, arrays)


def ticks(figure: object) -> list[str]:
    return [tick.get_text() for tick in figure.axes[0].get_xticklabels()]  # type: ignore[attr-defined]


def test_the_known_matrix_is_drawn_with_depths() -> None:
    (made,) = series_illustrations([distances([(A, site) for site in LAYERS])], NAMES)
    assert made.name == "between-dist"
    assert ticks(made.figure) == ["0", "1", "2"]
    assert [text.get_text() for text in made.figure.axes[0].texts][:3] == ["1.0", "0.50", "0.20"]
    assert "Random subspaces of these dimensions have 0.05." in made.caption
    assert "from 0.20 to 0.60" in made.description
    axes, bar = made.figure.axes
    assert axes.get_title("left") == made.title == "Overlap of subspaces (dist)"
    assert (bar.get_ylabel(), bar.get_ylim()) == ("overlap", (0.0, 1.0))


def test_a_gap_is_told() -> None:
    values = OVERLAP.copy()
    values[0, 2] = values[2, 0] = np.nan
    (made,) = series_illustrations([distances([(A, site) for site in LAYERS], values)])
    assert "A gap" in made.caption


def test_subspaces_of_all_directions_are_not_drawn() -> None:
    assert not [*series_illustrations([distances([(A, site) for site in LAYERS], np.ones((3, 3)))])]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([(A, LAYERS[0]), (B, LAYERS[0])], ["before", "after"]),
        ([(A, LAYERS[0]), (B, LAYERS[0]), (A, LAYERS[1])], ["before 0", "after 0", "before 1"]),
        ([(A, "h.0:out:0"), (A, "conv:out:0")], ["h.0", "conv"]),
    ],
)
def test_members_have_the_names_of_the_run(members: list[tuple[str, str]], expected: list[str]) -> None:
    n = len(members)
    (made,) = series_illustrations([distances(members, OVERLAP[:n, :n])], NAMES)
    assert ticks(made.figure) == expected


def test_a_method_it_does_not_know_gets_its_first_matrix() -> None:
    found = series(
        "odd", "mine.odd", [(A, site) for site in LAYERS], {}, {"some_number": OVERLAP, "few": np.ones(2)}
    )
    (made,) = series_illustrations([found])
    assert made.title == "Some number (odd)"


def test_steps_run_along_sites_of_each_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = spy(monkeypatch)
    members = [(capture, site) for capture in (A, B) for site in LAYERS]
    (made,) = series_illustrations([steps(members, [0, 1, 3, 4])], NAMES)
    assert made.figure.axes[0].get_title("left") == made.title
    assert [(s.name, s.ticks, s.values.tolist()) for s in drawn] == [
        ("before", ("0 → 1", "1 → 2"), [1.0, 2.0]),
        ("after", ("0 → 1", "1 → 2"), [3.0, 4.0]),
    ]
    assert (
        "The largest step is from after 1 to after 2: 4.0, where random subspaces move 40.0." in made.caption
    )


def test_steps_run_along_captures_at_each_site(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = spy(monkeypatch)
    members = [(capture, site) for site in LAYERS[:2] for capture in (A, B)]
    assert len([*series_illustrations([steps(members, [0, 2])], NAMES)]) == 1
    assert [(s.name, s.ticks) for s in drawn] == [("before → after", ("h.0", "h.1"))]


def test_other_artifacts_and_series_of_one_are_passed_over() -> None:
    one = distances([(A, LAYERS[0])], OVERLAP[:1, :1])
    assert not [*series_illustrations([artifact("p", "spectrum.pca", LAYERS[0], {}), one])]


def spy(monkeypatch: pytest.MonkeyPatch) -> list[series_figures.Stretch]:
    drawn: list[series_figures.Stretch] = []
    draw = series_figures.steps

    def noted(stretches: list[series_figures.Stretch], title: str) -> object:
        drawn.extend(stretches)
        return draw(stretches, title)

    monkeypatch.setattr(series_figures, "steps", noted)
    return drawn
