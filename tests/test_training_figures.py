"""What figures of a training show: the numbers of the artifacts, and chance beside them."""

from pathlib import Path as File
from typing import Any

import numpy as np
import pytest

from tasks.gather import stage_artifact
from tasks.measures import StageArtifact, site_rows
from tasks.page import PAGE, render
from tasks.store.location import Location
from tasks.training_figures import smoothed
from tasks.training_illustrations import NAMES, training_illustrations
from tests.helpers import make_capture, rows_ref, stage_of
from tests.pages import artifact, artifacts, bert, report_data
from tests.training_pages import (
    EVERY,
    STEPS,
    X,
    activations,
    band_of,
    density,
    dimension,
    dominant,
    drawn,
    early,
    hessian,
    legend_of,
    lines,
    overlap,
    trajectory,
    updates,
)


def test_every_method_has_its_figure() -> None:
    assert [made.name for made in training_illustrations(EVERY)] == list(NAMES)
    assert [made.name for made in training_illustrations(EVERY[::-1])] == list(NAMES)
    for method in {a.artifact.stage.method for a in EVERY}:
        names = [
            m.name for m in training_illustrations([a for a in EVERY if a.artifact.stage.method == method])
        ]
        assert names, method
    assert list(training_illustrations(artifacts(bert()))) == []


def test_what_lacks_arrays_is_left_to_the_tables() -> None:
    bare = [a._replace(arrays={}) for a in EVERY]
    assert [m.name for m in training_illustrations(bare)] == ["modules"]  # which shows results alone
    empty = dominant()._replace(arrays=dominant().arrays | {"adjacent": np.zeros(0)})
    assert list(training_illustrations([empty])) == []


def test_a_trajectory_lies_beside_the_walk() -> None:
    figure, _, description = drawn(trajectory(), trajectory("b.weight:weight"))
    shares, components, *others = figure.axes
    assert len(others) == 2
    found = lines(shares)
    np.testing.assert_allclose(found["this training"], 0.4 ** np.arange(1.0, 6))
    np.testing.assert_allclose(found["random walk"], 0.5 ** np.arange(1.0, 6))
    ((low, high),) = [band_of(c) for c in shares.collections]
    np.testing.assert_allclose((low, high), (0.8 * 0.5**5, 1.2 * 0.5))
    assert (shares.get_yscale(), shares.get_ylabel()) == ("log", "share of variance")
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
    assert first.get_yscale() == "log"
    assert set(lines(second)) == {"end", "chance"}
    assert figure.legends == []  # the panels differ: each has its own
    assert [text.get_text() for text in second.get_legend().get_texts()] == ["end", "chance"]
    assert "80 % on average, 1.0 % by chance" in description


def test_overlaps_of_subspaces() -> None:
    figure, _, description = drawn(dominant())
    found = lines(figure.axes[0])
    assert set(found) == {"with the step before", "with the first step", "with the last step", "chance"}
    assert set(found["chance"]) == {0.2}
    assert [len(found[name]) for name in ("with the step before", "with the first step")] == [39, 40]
    assert figure.axes[0].get_ylim()[1] == pytest.approx(1.04)
    (band,) = figure.axes[0].patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.1, 0.3))  # type: ignore[attr-defined]
    assert legend_of(figure) == [*found]
    assert "0.90 between neighbours, 0.20 by chance" in description


STEP = 10.0 * np.arange(STEPS)

OVER_STEPS = (
    trajectory(step=STEP),
    overlap("end", 0.8, step=STEP),
    dominant(step=STEP),
    *(a._replace(arrays=a.arrays | {"step": STEP}) for a in (updates(), activations(), early())),
)


@pytest.mark.parametrize("made", OVER_STEPS, ids=lambda a: a.artifact.stage.method)
def test_lines_lie_over_the_steps_where_rows_name_them(made: StageArtifact) -> None:
    last = drawn(made)[0].axes[-1]
    assert last.get_xlabel() == "step"
    ends = {float(np.nanmax(np.asarray(line.get_xdata()))) for line in last.get_lines()}
    assert ends - {1.0} == {390.0}  # a constant null goes from edge to edge
    unnamed = made._replace(arrays={k: v for k, v in made.arrays.items() if k != "step"})
    last = drawn(unnamed)[0].axes[-1]
    assert last.get_xlabel() == "row"
    assert max(float(np.nanmax(np.asarray(line.get_xdata()))) for line in last.get_lines()) == 39


@pytest.mark.parametrize("step", [np.full(STEPS, np.nan), STEP[::-1], np.zeros(STEPS)])
def test_steps_that_do_not_rise_are_no_axis(step: np.ndarray) -> None:
    assert drawn(overlap("end", 0.8, step=step))[0].axes[0].get_xlabel() == "row"


def test_neighbours_lie_at_the_later_step() -> None:
    (first, *_) = drawn(dominant(step=STEP))[0].axes[0].get_lines()
    assert np.asarray(first.get_xdata())[[0, -1]].tolist() == [10, 390]


def test_eigenvalues_have_their_residuals() -> None:
    figure, _, _ = drawn(hessian("begin"), hessian("end"))
    bars = [c.get_label() for c in figure.axes[0].containers]
    assert bars == ["begin", "end"]
    (low, high), *_ = figure.axes[0].containers[0].lines[2][0].get_segments()  # type: ignore[attr-defined]
    assert (low[1], high[1]) == pytest.approx((4.99, 5.01))
    points = figure.axes[0].containers[0].lines[0]  # type: ignore[attr-defined]
    assert points.get_ydata().tolist() == [5, -2, 1]
    assert points.get_linewidth() == 0  # no line through zero and back
    assert legend_of(figure) == ["begin", "end"]


def test_density_is_logarithmic() -> None:
    figure, _, description = drawn(density())
    (axes,) = figure.axes
    assert (axes.get_yscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "eigenvalue", "density")
    (line,) = axes.get_lines()
    np.testing.assert_allclose(line.get_ydata(), density().arrays["density"])
    low, high = band_of(axes.collections[0])
    assert (low, high) == pytest.approx((np.exp(-1) - 0.02, density().arrays["density"].max() + 0.02))
    deep = density()
    deep.arrays["density"][10:20] = 1e-12
    (line,) = drawn(deep)[0].axes[0].get_lines()
    assert np.isnan(np.asarray(line.get_ydata())[10:20]).all()  # no line along the axis
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


def test_long_lines_say_that_they_are_smoothed() -> None:
    short = artifact(
        "end", "gradients.hessian_overlap", "a:grad", {"null": 0.1, "share": 0.5}, {"share": X[:20]}
    )
    assert "running median" not in drawn(short)[1]
    long = short._replace(arrays={"share": np.linspace(0.1, 0.9, 200)})
    assert "running median" in drawn(long)[1]


def test_narrow_logarithmic_axes_have_plain_numbers() -> None:
    figure, _, _ = drawn(overlap("end", 0.5))
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    shown = [
        tick.get_text()
        for tick, y in zip(figure.axes[0].get_yticklabels(), figure.axes[0].get_yticks(), strict=True)
        if low <= y <= high
    ]
    assert {"0.01", "0.02", "0.05", "0.1", "0.2", "0.5"} == set(shown)


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
