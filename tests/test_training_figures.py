"""What figures of a training show: the numbers of the artifacts, and chance beside them."""

from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.gather import stage_artifact
from tasks.measures import StageArtifact, site_rows
from tasks.page import PAGE, render
from tasks.store.location import Location
from tasks.training_figures import smoothed
from tasks.training_illustrations import NAMES, training_illustrations
from tests.helpers import make_capture, rows_ref, stage_of
from tests.pages import artifact, artifacts, bert, report_data

STEPS = 40
X = np.arange(STEPS) / STEPS


def trajectory(site: str = "a.weight:weight") -> StageArtifact:
    null = 0.5 ** np.arange(1.0, 6)
    arrays = {
        "share": 0.4 ** np.arange(1.0, 6), "null_share": null, "null_low": 0.8 * null, "null_high": 1.2 * null,
        "projection": np.stack([np.cos(np.pi * X), -np.cos(2 * np.pi * X)], 1),
    }  # fmt: skip
    return artifact("path", "gradients.trajectory", site, {}, arrays)


def overlap(stage: str, share: float, site: str = "a.weight:grad") -> StageArtifact:
    result = {"null": 0.01, "share": share}
    return artifact(stage, "gradients.hessian_overlap", site, result, {"share": np.full(STEPS, share)})


def dominant() -> StageArtifact:
    arrays = {"adjacent": np.full(STEPS - 1, 0.9), "to_first": 1 - X, "to_last": X}
    result = {"null": 0.2, "null_std": 0.05}
    return artifact("frozen", "gradients.dominant_overlap", "a.weight:grad", result, arrays)


def updates() -> StageArtifact:
    arrays = {"rank": np.full(STEPS, 10.0), "effective_rank": 3 + X}
    return artifact(
        "rank", "gradients.update_structure", "a.weight:update", {"rows": 10, "columns": 30}, arrays
    )


def early() -> StageArtifact:
    arrays = {"overlap": X, "concentration": 1 - X / 2, "norm": np.arange(STEPS, dtype=float)}
    return artifact("final", "gradients.early_final", "a.weight:weight", {"overlap_null": 0.25}, arrays)


def hessian(stage: str = "curvature") -> StageArtifact:
    arrays = {"eigenvalue": np.array([5.0, -2.0, 1.0]), "residual": np.array([0.01, 0.02, 0.03])}
    return artifact(stage, "gradients.hessian", "network", {"largest": 5.0}, arrays)


def density() -> StageArtifact:
    grid = np.linspace(-1, 1, 50)
    arrays = {"grid": grid, "density": np.exp(-(grid**2)), "density_error": np.full(50, 0.01)}
    return artifact(
        "bulk", "gradients.spectral_density", "network", {"trace": 3.0, "trace_error": 0.1}, arrays
    )


def dimension(**changes: Any) -> StageArtifact:
    result = {
        "start": 0.1, "full": 0.95, "target": 0.85, "dimension": 30, "n_parameters": 5000, "dimension_above": 3,
        "dimension_most": 100, "measure": "accuracy",
    }  # fmt: skip
    arrays = {
        "dimension": np.array([3, 30, 100]), "performance": np.array([0.3, 0.87, 0.93]),
        "performance_error": np.full(3, 0.02),
    }  # fmt: skip
    return artifact("size", "gradients.intrinsic_dimension", "network", result | changes, arrays)


EVERY = (
    trajectory(),
    overlap("begin", 0.3),
    overlap("end", 0.8),
    dominant(),
    updates(),
    early(),
    hessian(),
    density(),
    dimension(),
)


def drawn(*some: StageArtifact) -> tuple[Figure, str, str]:
    """The only figure of some artifacts, its caption and description."""
    (made,) = training_illustrations(some)
    return made.figure, made.caption, made.description


def lines(axes: Axes) -> dict[str, np.ndarray]:
    """Label to what is drawn, unnamed lines left out."""
    return {
        str(line.get_label()): np.asarray(line.get_ydata(), dtype=np.float64)
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def test_every_method_has_its_figure() -> None:
    assert [made.name for made in training_illustrations(EVERY)] == list(NAMES)
    assert [made.name for made in training_illustrations(EVERY[::-1])] == list(NAMES)
    assert list(training_illustrations(artifacts(bert()))) == []


def test_what_lacks_arrays_is_left_to_the_tables() -> None:
    bare = [a._replace(arrays={}) for a in EVERY]
    assert list(training_illustrations(bare)) == []
    empty = dominant()._replace(arrays=dominant().arrays | {"adjacent": np.zeros(0)})
    assert list(training_illustrations([empty])) == []


def test_a_trajectory_lies_beside_the_walk() -> None:
    figure, _, description = drawn(trajectory(), trajectory("b.weight:weight"))
    shares, components, *others = figure.axes
    assert len(others) == 2
    found = lines(shares)
    np.testing.assert_allclose(found["this training"], 0.4 ** np.arange(1.0, 6))
    np.testing.assert_allclose(found["random walk"], 0.5 ** np.arange(1.0, 6))
    path = lines(components)
    assert path["component 2"][0] == pytest.approx(-1, abs=0.01)  # as it is, and the cosine is turned to it
    walk = [np.asarray(line.get_ydata()) for line in components.get_lines()][2]
    assert np.corrcoef(walk, path["component 2"])[0, 1] > 0.99
    assert "holds 40 %, 50 % of a random walk" in description


def test_shares_over_time_have_a_line_for_each_moment() -> None:
    figure, _, description = drawn(
        overlap("begin", 0.3), overlap("end", 0.8), overlap("end", 0.5, "b.weight:grad")
    )
    first, second = figure.axes
    found = lines(first)
    assert set(found) == {"begin", "end", "chance"}
    assert set(found["end"]) == {0.8}
    assert set(found["chance"]) == {0.01}
    assert set(lines(second)) == {"end", "chance"}
    assert "80 % on average, 1.0 % by chance" in description


def test_overlaps_of_subspaces() -> None:
    figure, _, description = drawn(dominant())
    found = lines(figure.axes[0])
    assert set(found) == {"with the step before", "with the first step", "with the last step", "chance"}
    assert set(found["chance"]) == {0.2}
    assert [len(found[name]) for name in ("with the step before", "with the first step")] == [39, 40]
    assert figure.axes[0].get_ylim()[1] == pytest.approx(1.04)
    assert "0.90 between neighbours, 0.20 by chance" in description


def test_ranks_end_at_full_rank() -> None:
    figure, _, description = drawn(updates())
    assert figure.axes[0].get_ylim()[1] == pytest.approx(10.4)
    assert set(lines(figure.axes[0])) == {"rank", "effective rank"}
    assert "3.5 of 10 on average" in description


def test_when_the_end_is_found() -> None:
    figure, _, description = drawn(early())
    found = lines(figure.axes[0])
    assert set(found["chance"]) == {0.25}
    assert np.isnan(found["overlap with the end"][0])  # nothing has moved yet
    assert "0.10 after a tenth of the steps, 0.25 by chance" in description


def test_eigenvalues_have_their_residuals() -> None:
    figure, _, _ = drawn(hessian("begin"), hessian("end"))
    bars = [c.get_label() for c in figure.axes[0].containers]
    assert bars == ["begin", "end"]
    (low, high), *_ = figure.axes[0].containers[0].lines[2][0].get_segments()  # type: ignore[attr-defined]
    assert (low[1], high[1]) == pytest.approx((4.99, 5.01))


def test_density_is_logarithmic() -> None:
    figure, _, description = drawn(density())
    assert figure.axes[0].get_yscale() == "log"
    assert "trace 3.0 ± 0.10" in description


def test_dimensions_say_what_is_sure() -> None:
    figure, caption, _ = drawn(dimension())
    found = lines(figure.axes[0])
    assert found["full training"][0] == 0.95
    assert found["to be reached"][0] == 0.85
    assert "30 of 5,000 directions reach the target (95 %: more than 3 and at most 100)" in caption
    _, caption, _ = drawn(dimension(dimension=None, dimension_most=None))
    assert "no tested subspace reaches" in caption
    _, caption, _ = drawn(dimension(dimension_above=None, dimension_most=None))
    assert "reach the target." in caption


def test_captions_say_what_was_measured() -> None:
    _, caption, _ = drawn(dimension())
    assert "on samples that were not trained on" in caption
    seen = artifact(
        "size",
        "gradients.intrinsic_dimension",
        "network",
        dimension().artifact.result,
        dimension().arrays,
        config={"holdout": 0},
    )
    _, caption, _ = drawn(seen)
    assert "those that were trained on where `holdout` is 0" in caption
    _, caption, _ = drawn(dimension(full=0.1, dimension=None))
    assert "no better than the untrained network" in caption


def test_nothing_is_drawn_of_nothing() -> None:
    still = updates()
    still.arrays["effective_rank"][:] = np.nan
    assert "nothing of 10 on average" in drawn(still)[2]
    none = artifact(
        "begin", "gradients.hessian_overlap", "a:grad", {"null": 0.1, "share": None}, {"share": np.zeros(3)}
    )
    assert "on average" not in drawn(none)[2]


def test_wide_ranges_are_logarithmic() -> None:
    wide = hessian()
    wide.arrays["eigenvalue"][:] = (900, 30, 1)
    assert drawn(wide)[0].axes[0].get_yscale() == "log"
    wide.arrays["eigenvalue"][:] = (900, -30, 1)
    assert drawn(wide)[0].axes[0].get_yscale() == "symlog"
    assert drawn(hessian())[0].axes[0].get_yscale() == "linear"


def test_lines_have_each_their_chance() -> None:
    other = overlap("end", 0.5)
    other.artifact.result["null"] = 0.2
    figure, _, _ = drawn(overlap("begin", 0.3), other)
    levels = {float(np.asarray(line.get_ydata())[0]) for line in figure.axes[0].get_lines()}
    assert {0.01, 0.2} <= levels


def test_smoothing_keeps_a_constant_and_short_lines() -> None:
    short = np.arange(5.0)
    assert smoothed(short) is short
    np.testing.assert_allclose(smoothed(np.full(200, 3.0)), 3.0)
    spiked = np.zeros(200)
    spiked[100] = 9
    assert smoothed(spiked).max() == 0
    assert len(smoothed(np.arange(201.0))) == 201


def test_more_sites_than_panels_are_told() -> None:
    many = [overlap("end", 0.5, f"layer.{n}.weight:grad") for n in range(6)]
    figure, caption, _ = drawn(*many)
    assert len(figure.axes) == 4
    assert "2 further results are in the tables" in caption


def test_the_page_has_them() -> None:
    files = render(report_data()._replace(artifacts=(*artifacts(bert()), *EVERY)))
    page = files[PAGE].decode()
    assert 'id="training"' in page
    for name in NAMES:
        assert f'id="figure-{name}"' in page
        assert f"figures/{name}.svg" in files
    assert 'id="training"' not in render(report_data())[PAGE].decode()


def test_curvature_is_no_spectrum_of_rows() -> None:
    assert site_rows([hessian()]) == []


def test_arrays_over_steps_are_read_where_they_are_few(tmp_path: File) -> None:
    root = Location(str(tmp_path))
    capture = make_capture(root, {"x": np.zeros((6, 2), dtype=np.float32)}, np.arange(6))
    stage = stage_of("gradients.trajectory", {"x": rows_ref(capture, "x")})
    found = run_of(root, stage)
    assert found.arrays["projection"].shape[0] == 6
    assert found.arrays["share"].ndim == 1


def run_of(root: Location, stage: Any) -> StageArtifact:
    from tasks.drive import serial
    from tasks.engine import run_stages

    return stage_artifact(root, "path", run_stages(root, [stage], serial)[stage.id].id)
