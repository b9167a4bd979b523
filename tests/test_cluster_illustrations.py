"""Figures of clusters: which numbers, for which stages, in the page too."""

import numpy as np
import pytest

from tasks.cluster_illustrations import cluster_illustrations
from tasks.drawing import draw
from tasks.measures import StageArtifact
from tasks.page import PAGE, render
from tests.pages import artifact, report_data

BETWEEN = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])


def parts(site: str = "h.0:out:0", values: np.ndarray = BETWEEN) -> StageArtifact:
    made = artifact("parts", "clustering.partition", site, {"clusters": len(values)})
    return made._replace(arrays={"between": values, "eigenvalue": np.linspace(0, 1, 7)})


def subspaces() -> StageArtifact:
    made = artifact("flats", "clustering.k_subspaces", "h.0:out:0", {"clusters": 3})
    spectra = np.array([[4.0, 2.0, 0.5], [3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    return made._replace(arrays={"affinity": np.eye(3), "eigenvalue": spectra})


def test_edges_between_clusters_and_the_number_that_was_chosen() -> None:
    (made,) = cluster_illustrations([parts()])
    heat, spectrum, _ = made.figure.axes
    np.testing.assert_array_equal(heat.collections[0].get_array().reshape(3, 3), BETWEEN)
    assert spectrum.lines[1].get_xdata()[0] == pytest.approx(3.5)
    assert "3 clusters, share of edges between two from 0.00 to 0.20" in made.description


def test_edges_in_the_order_of_clusters_and_agreement_of_parts() -> None:
    made = parts()
    more = {
        "ordered": np.eye(10),
        "size": np.array([5, 3, 2]),
        "agreement": np.array([0.5, 0.9, 0.7]),
        "error": np.full(3, 0.1),
    }
    (shown,) = cluster_illustrations([made._replace(arrays={**made.arrays, **more})])
    titles = {axes.get_title(loc="left"): axes for axes in shown.figure.axes}
    picture = titles["edges, rows in the order of clusters"]
    np.testing.assert_array_equal(picture.images[0].get_array(), np.eye(10))
    assert [line.get_ydata()[0] for line in picture.lines[::2]] == [4.5, 7.5]
    stable = titles["agreement of parts"]
    assert stable.lines[0].get_xdata().tolist() == [2, 3, 4]
    assert "Agreement of clusterings of parts" in shown.caption


def test_eigenvalues_that_fall_are_told_as_such() -> None:
    rising, falling = parts(), parts()
    falling = falling._replace(arrays={"between": BETWEEN, "eigenvalue": np.linspace(1, 0, 7)})
    (one,), (other,) = cluster_illustrations([rising]), cluster_illustrations([falling])
    assert "Smallest eigenvalues of the graph's Laplacian" in one.caption
    assert "Leading eigenvalues of what the objective splits: a fall after" in other.caption


def test_clusters_of_equal_rows_have_no_spectra_to_draw() -> None:
    """Duplicates of few rows: all variances are 0, which no logarithmic axis takes."""
    made = subspaces()
    (shown,) = cluster_illustrations(
        [made._replace(arrays={"affinity": np.eye(3), "eigenvalue": np.zeros((3, 3))})]
    )
    assert draw(shown.figure, "svg")


def test_spectra_of_clusters_leave_out_zeros() -> None:
    (made,) = cluster_illustrations([subspaces()])
    assert [len(line.get_xdata()) for line in made.figure.axes[1].lines] == [3, 2, 0]


def test_a_figure_for_each_stage_and_the_first_sites() -> None:
    found = [*cluster_illustrations([parts(f"h.{k}:out:0") for k in range(5)] + [subspaces()])]
    assert [made.name for made in found] == ["clusters-parts", "clusters-flats"]
    assert "first 3 of 5 sites" in found[0].caption
    assert not [*cluster_illustrations([parts(values=np.ones((1, 1)))])]


def test_the_page_shows_them() -> None:
    data = report_data()
    files = render(data._replace(artifacts=(*data.artifacts, parts(), subspaces())))
    page = files[PAGE].decode()
    assert 'href="#clusters"' in page
    assert 'id="figure-clusters-parts"' in page
    assert "figures/clusters-flats.svg" in files
    assert 'href="#clusters"' not in render(data)[PAGE].decode()
