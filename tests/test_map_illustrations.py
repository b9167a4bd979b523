"""Figures of maps: which points, in which colours, with which numbers; read from stores without making a map."""

from pathlib import Path

import numpy as np
import pytest

from schemas.capture import CaptureSpec
from schemas.run import RunSpec
from tasks.drawing import draw
from tasks.gather import capture_data
from tasks.map_illustrations import PointMap, StageMaps, map_illustrations
from tasks.measures import StageArtifact
from tasks.page import PAGE, render
from tasks.point_maps import MOST_DOTS, point_maps
from tasks.scatter import Dots
from tasks.store.artifacts import write_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.pages import RUN, artifact, report_data

RESULT = {
    "n_points": 40, "points": "samples", "trustworthiness": 0.9712, "trustworthiness_pca": 0.8, "trustworthiness_chance": 0.5, "kept": 0.5,
    "kept_pca": 0.25, "kept_chance": 0.1,
}  # fmt: skip
LABELS = {"kind": [*"ab" * 20], "other": [*"xyyy" * 10]}


def stored(
    root: Location, specs: list[CaptureSpec], site: str, sample: np.ndarray, result: dict = RESULT
) -> StageArtifact:
    """An artifact whose map has the sample's number on its first axis, and its negative on that of the components."""
    stage = stage_of("geometry.umap", {"x": [rows_ref(spec, site) for spec in specs]})
    planned = artifact("map", "geometry.umap", site, result).artifact
    xy = np.stack([sample, np.zeros(len(sample))], axis=1).astype(np.float32)
    made = write_artifact(
        root,
        planned.model_copy(update={"id": stage.id, "stage": stage, "arrays": {}}),
        {
            "coordinates": (xy, ("point", "axis")),
            "pca": (-xy.astype(np.float64), ("point", "axis")),
            "sample": (sample, ("point",)),
        },
        {},
    )
    return StageArtifact("map", made, {})


def capture(root: Location, sites: int = 1, name: str = "network") -> CaptureSpec:
    rows = np.random.default_rng(0).normal(size=(40, 3))
    return make_capture(root, {f"h.{n}": rows for n in range(sites)}, labels=LABELS, name=name)


@pytest.mark.parametrize(("color_by", "label"), [(None, "kind"), ("other", "other")])
def test_points_have_the_label_of_their_sample(tmp_path: Path, color_by: str | None, label: str) -> None:
    root, sample = Location(str(tmp_path)), np.arange(3, 33)
    spec = capture(root)
    found = stored(root, [spec], "h.0", sample)
    (made,) = point_maps(root, [found], [capture_data(root, "docs", spec.id)], color_by)
    (only,) = made.maps
    assert (made.stage, made.label, made.n_sites) == ("map", label, 1)
    assert (only.site, only.capture) == ("h.0:out:0", "docs")
    for dots, sign in ((only.dots, 1), (only.pca, -1)):
        named = [dots.names[code] for code in dots.codes]
        assert named == [LABELS[label][int(sign * x)] for x in dots.xy[:, 0]]


def test_points_of_several_captures_are_coloured_by_capture(tmp_path: Path) -> None:
    root, sample = Location(str(tmp_path)), np.array([0, 39, 40, 79])
    specs = [capture(root, name=name) for name in "ab"]
    captures = [capture_data(root, name, spec.id) for name, spec in zip("ab", specs, strict=True)]
    (made,) = point_maps(root, [stored(root, specs, "h.0", sample)], captures, None)
    assert made.label == "capture"
    assert made.maps[0].dots.names == ("a", "b")
    assert made.maps[0].dots.codes.tolist() == [0, 0, 1, 1]


def test_of_many_sites_and_points_some_are_drawn(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    spec, many = capture(root, 12), np.arange(2 * MOST_DOTS) % 40
    of_sites = [stored(root, [spec], f"h.{n}", many if n == 11 else np.arange(40)) for n in range(12)]
    (made,) = point_maps(root, of_sites[::-1], [capture_data(root, "docs", spec.id)], None)
    assert [each.site for each in made.maps] == [f"h.{n}:out:0" for n in (0, 4, 7, 11)]
    assert [len(each.dots.xy) for each in made.maps] == [40, 40, 40, MOST_DOTS]
    (shown,) = map_illustrations([made])
    assert "8 further sites" in shown.caption
    assert shown.figure.axes[0].get_xlabel() == "trustworthiness 0.971\n50% of neighbours kept"
    assert shown.figure.axes[4].get_xlabel() == "trustworthiness 0.800\n25% of neighbours kept"
    assert [axes.get_ylabel() for axes in shown.figure.axes[::4]] == ["UMAP", "two principal components"]


def test_one_class_has_one_colour_at_all_sites(tmp_path: Path) -> None:
    """Where classes come in another order of size, and where one is not among the first site's."""
    root = Location(str(tmp_path))
    spec = capture(root, 2)
    chosen = [np.array([0, 2, 4, 1]), np.array([1, 3, 5, 0])]
    stages = [stored(root, [spec], f"h.{n}", sample) for n, sample in enumerate(chosen)]
    (made,) = point_maps(root, stages, [capture_data(root, "docs", spec.id)], None)
    for each in made.maps:
        assert each.dots.names == ("a", "b")
        assert [each.dots.names[c] for c in each.dots.codes] == ["ab"[int(x) % 2] for x in each.dots.xy[:, 0]]
    alone = stored(root, [spec], "h.0", np.array([0, 2]), {**RESULT, "n_points": 2})
    assert alone.artifact.id == stages[0].artifact.id  # what is finished stays


def shown_map(n: int, names: tuple[str, ...] = ("left", "right")) -> StageMaps:
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, len(names), 40) if names else np.full(40, -1)
    maps = [
        PointMap(f"h.{k}:out:0", "docs", *(Dots(rng.normal(size=(40, 2)), names, codes),) * 2, RESULT)
        for k in range(n)
    ]
    return StageMaps("map", tuple(maps), "kind" if names else None, n)


def test_a_single_site_has_both_maps_beside_each_other_and_a_key() -> None:
    (made,) = map_illustrations([shown_map(1)])
    assert [axes.get_ylabel() for axes in made.figure.axes] == ["UMAP", "two principal components"]
    assert [text.get_text() for text in made.figure.legends[0].get_texts()] == ["left", "right"]
    assert "40 mean rows of samples, coloured by kind." in made.caption
    assert "0.50 and 10% of neighbours" in made.caption
    (bare,) = map_illustrations([shown_map(1, ())])
    assert not bare.figure.legends
    assert "coloured" not in bare.caption
    assert draw(bare.figure, "svg") == draw(next(map_illustrations([shown_map(1, ())])).figure, "svg")


def test_the_page_shows_maps_with_or_without_its_own() -> None:
    only_svg = RunSpec.model_validate({**RUN, "report": {"figures": ["svg"]}})
    for sample_map in (report_data().sample_map, None):
        files = render(report_data(maps=(shown_map(2),), sample_map=sample_map, artifacts=(), run=only_svg))
        page = files[PAGE].decode()
        assert "figures/map-map.svg" in files
        assert 'id="figure-map-map"' in page
        assert '<a href="#samples">' in page
    assert "#samples" not in render(report_data(sample_map=None, artifacts=(), run=only_svg))[PAGE].decode()
