"""Maps and examples of clusters: which rows, in which colours, as which samples; read from stores without clustering."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from schemas.capture import CaptureSpec
from tasks.cluster_examples import cluster_examples
from tasks.cluster_map_illustrations import cluster_map_illustrations
from tasks.cluster_maps import MOST_DOTS, cluster_maps, principal_plane
from tasks.cluster_rows import image_of, samples_of_rows, shown_samples, some_rows
from tasks.example_illustrations import (
    ClusterExamples,
    Shown,
    StageExamples,
    example_illustrations,
    example_tables,
)
from tasks.gather import capture_data
from tasks.measures import StageArtifact
from tasks.page import PAGE, CaptureData, render
from tasks.store.artifacts import write_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.pages import artifact, report_data

ROWS = np.random.default_rng(0).normal(size=(40, 5)) * [9, 3, 1, 1, 1]
KIND = np.repeat(["a", "b", "c", "d"], 10)


def capture(root: Location, name: str = "network", n: int = 40) -> CaptureSpec:
    return make_capture(root, {"h": ROWS[:n]}, labels={"kind": [*KIND[:n]]}, name=name)


def stored(
    root: Location,
    specs: list[CaptureSpec],
    method: str,
    arrays: dict,
    stage: str = "parts",
    **options: object,
) -> StageArtifact:
    """An artifact with the arrays that a method would give."""
    resolved = stage_of(method, {"x": [rows_ref(spec, "h") for spec in specs]}, **options)
    planned = artifact(stage, method, "h:out:0", {"clusters": 2}).artifact
    changes = {"id": resolved.id, "stage": resolved, "arrays": {}}
    made = write_artifact(root, planned.model_copy(update=changes), arrays, {})
    return StageArtifact(stage, made, {name: values for name, (values, _) in arrays.items()})


def clustered(cluster: np.ndarray, row: np.ndarray) -> dict:
    return {"cluster": (cluster, ("sampled",)), "row": (row, ("sampled",))}


def known(root: Location, *specs: CaptureSpec) -> list[CaptureData]:
    return [capture_data(root, "docs", spec.id) for spec in specs]


def test_rows_have_the_colours_of_their_clusters_and_classes(tmp_path: Path) -> None:
    """Clusters 0 and 1 hold a and b, c and d; rows come in any order, some are not clustered."""
    root = Location(str(tmp_path))
    spec = capture(root)
    row = np.random.default_rng(1).permutation(40)[:30]
    cluster = (row >= 20).astype(np.int64)
    made = stored(root, [spec], "clustering.partition", clustered(cluster, row), clusters=2)
    (found,) = cluster_maps(root, [made], known(root, spec), None)
    rows = np.sort(row)
    np.testing.assert_array_equal(found.clusters.codes, (rows >= 20) != (np.mean(cluster) > 0.5))
    expected, _ = principal_plane(ROWS[rows].astype(np.float32))
    np.testing.assert_allclose(np.abs(found.clusters.xy), np.abs(expected), atol=1e-5)
    assert (found.n_rows, found.label, found.site) == (30, "kind", "h:out:0")
    matched = {name.split(": ")[1] for name in found.clusters.names}
    assert found.classes is not None
    for code, kind in zip(found.classes.codes, KIND[rows], strict=True):
        assert (code >= 0) == (kind in matched)
        assert code < 0 or found.clusters.names[code].endswith(kind)


def test_principal_plane_is_that_of_the_covariance() -> None:
    xy, shares = principal_plane(ROWS)
    values, vectors = np.linalg.eigh(np.cov(ROWS.T))
    np.testing.assert_allclose(np.abs(xy), np.abs((ROWS - ROWS.mean(0)) @ vectors[:, ::-1][:, :2]), atol=1e-9)
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum())
    assert principal_plane(np.ones((4, 1)))[0].tolist() == [[0, 0]] * 4


def test_rows_of_several_captures(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    specs = [capture(root, "one"), capture(root, "two", 20)]
    rows = np.array([0, 5, 39, 40, 59])
    found = some_rows(root, known(root, *specs), "h:out:0", rows, 10)
    assert found is not None
    assert found.member.tolist() == [0, 0, 0, 1, 1]
    assert found.sample.tolist() == [0, 5, 39, 0, 19]
    np.testing.assert_allclose(found.values, ROWS[found.sample], atol=1e-5)
    some = some_rows(root, known(root, *specs), "h:out:0", np.arange(60), 7)
    assert some is not None
    assert len(some.place) == 7
    np.testing.assert_allclose(some.values, ROWS[some.place % 40], atol=1e-5)


def test_labels_of_new_rows_are_a_map_too(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    spec = capture(root)
    cluster = np.where(np.arange(40) % 5 == 0, -1, np.arange(40) % 3)
    made = stored(root, [spec], "clustering.assign", {"cluster": (cluster, ("row",))}, "nearest")
    (found,) = cluster_maps(root, [made], known(root, spec), None)
    assert found.n_rows == 32
    names = [int(found.clusters.names[code].split(":")[0]) for code in found.clusters.codes]
    assert names == cluster[cluster >= 0].tolist()


def test_sampled_rows_without_a_cluster_have_no_dot(tmp_path: Path) -> None:
    """As those of zeros in `clustering.sine_medoids`."""
    root = Location(str(tmp_path))
    spec = capture(root)
    cluster = np.where(np.arange(40) % 5 == 0, -1, np.arange(40) % 3)
    made = stored(root, [spec], "clustering.partition", clustered(cluster, np.arange(40)), clusters=3)
    (found,) = cluster_maps(root, [made], known(root, spec), None)
    assert found.n_rows == len(found.clusters.xy) == 32
    names = [int(found.clusters.names[code].split(":")[0]) for code in found.clusters.codes]
    assert names == cluster[cluster >= 0].tolist()


def test_what_has_no_map(tmp_path: Path) -> None:
    """Rows that were not kept, captures of other runs, and methods that find no clusters."""
    root = Location(str(tmp_path))
    spec = capture(root)
    made = stored(root, [spec], "clustering.partition", clustered(np.zeros(2, dtype=np.int64), np.arange(2)))
    assert not [*cluster_maps(root, [made], [], None)]
    assert not [*cluster_maps(root, [made], known(root, spec), None)]
    other = stored(root, [spec], "spectrum.pca", clustered(np.arange(4), np.arange(4)))
    assert not [*cluster_maps(root, [other], known(root, spec), None)]


def test_the_figure_says_how_many_rows_are_shown(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    spec = capture(root)
    made = stored(root, [spec], "clustering.partition", clustered(np.arange(40) % 2, np.arange(40)))
    (shown,) = cluster_map_illustrations([*cluster_maps(root, [made], known(root, spec), None)])
    assert "40 of 40 rows" in shown.caption
    assert [axes.get_title(loc="left") for axes in shown.figure.axes] == ["clusters", "kind"]
    assert MOST_DOTS > 40


def quality(root: Location, spec: CaptureSpec) -> StageArtifact:
    arrays = {
        "clustered": (np.array([10, 30, 0]), ("cluster_number",)),
        "cluster_silhouette": (np.array([0.5, 0.25, np.nan]), ("cluster_number",)),
        "misplaced": (np.array([0.0, 0.125, np.nan]), ("cluster_number",)),
        "example": (np.array([[3, 4, -1], [20, 21, 22], [-1, -1, -1]]), ("cluster_number", "place")),
        "doubtful": (np.array([[5, 3, -1], [30, 31, 32], [-1, -1, -1]]), ("cluster_number", "place")),
    }
    return stored(root, [spec], "clustering.quality", arrays, "quality")


def test_examples_are_named_largest_cluster_first(tmp_path: Path) -> None:
    """The data of these captures cannot be read: samples have their names."""
    root = Location(str(tmp_path))
    spec = capture(root)
    (found,) = cluster_examples(root, [quality(root, spec)], known(root, spec))
    assert [(c.number, c.rows, c.silhouette, c.misplaced) for c in found.clusters] == [
        (1, 30, 0.25, 0.125),
        (0, 10, 0.5, 0.0),
    ]
    names = [shown.key for shown in shown_samples(root, known(root, spec)[0], [3, 4, 20]).values()]
    assert [shown.key for shown in found.clusters[1].examples] == names[:2]
    assert found.clusters[0].examples[0] == Shown(names[2])
    (table,) = example_tables([found])
    assert [cell.text for cell in table.rows[1]][:5] == ["0", "10", "0.50", "0.0%", names[0]]
    assert not [*example_illustrations([found])]


def test_samples_that_can_be_read_are_shown(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    keys = [*(f"digit-{n:04d}" for n in range(3)), "another"]
    spec = make_capture(root, {"h": ROWS[:4]}, keys=keys)
    found = [*shown_samples(root, known(root, spec)[0], [1, 3]).values()]
    assert [shown.key for shown in found] == ["digit-0001", "another"]
    assert found[0].image is not None
    np.testing.assert_allclose(found[0].image, load_digits().images[1] / 16)
    assert found[1].image is None  # the data hold another sample there


def test_images_are_drawn_and_texts_are_escaped() -> None:
    image = np.eye(4)
    pictures = ClusterExamples(0, 4, 0.5, 0.0, (Shown("a", image=image),) * 3, (Shown("b", image=image),))
    texts = ClusterExamples(1, 4, 0.5, 0.0, (Shown("<i>k</i>", "<b>text</b>"),), ())
    (shown,) = example_illustrations([StageExamples("quality", "h:out:0", (pictures,), 3)])
    drawn = [axes.images[0].get_array() for axes in shown.figure.axes if axes.images]
    assert len(drawn) == 4
    np.testing.assert_array_equal(drawn[0], image)
    assert "2 smaller clusters" in shown.caption
    data = report_data()._replace(examples=(StageExamples("quality", "h:out:0", (texts,), 1),))
    page = render(data)[PAGE].decode()
    assert "&lt;b&gt;text" in page
    assert "<b>text" not in page
    assert 'href="#clusters"' in page


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (np.zeros((1, 8, 8)), (8, 8)),
        (np.ones((3, 5, 6)), (5, 6, 3)),
        (np.ones((4, 4)), (4, 4)),
        (np.ones(64), None),
        (np.full((8, 8), np.nan), None),
        ({"ids": np.ones(3)}, None),
    ],
)
def test_what_is_an_image(value: object, shape: tuple[int, ...] | None) -> None:
    found = image_of(value)
    assert (None if found is None else found.shape) == shape


def test_the_label_that_a_stage_compares_with_comes_first(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    labels = {"kind": [*KIND], "other": ["x", "y"] * 20}
    spec = make_capture(root, {"h": ROWS}, labels=labels)
    arrays = clustered(np.arange(40) % 2, np.arange(40))
    made = stored(root, [spec], "clustering.partition", arrays, label="other")
    (found,) = cluster_maps(root, [made], known(root, spec), "kind")
    assert found.label == "other"
    assert found.clusters.names == ("0: x", "1: y")


def test_examples_of_one_of_several_captures(tmp_path: Path) -> None:
    """All in the second, and several rows of one sample."""
    root = Location(str(tmp_path))
    specs = [
        make_capture(
            root, {"h": ROWS[:10]}, np.arange(10) // 2, name=name, keys=[f"{name}-{n}" for n in range(5)]
        )
        for name in ("one", "two")
    ]
    places = samples_of_rows(root, known(root, *specs), "h:out:0", np.array([13, 12, 10, -1, 20]))
    assert places == [(1, 1), (1, 1), (1, 0), None, None]
    assert shown_samples(root, known(root, *specs)[0], []) == {}
    assert [s.key for s in shown_samples(root, known(root, *specs)[1], [1, 0, 1]).values()] == [
        "two-0",
        "two-1",
    ]
