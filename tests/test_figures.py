"""Figures: what is drawn is what was given."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from tasks import figures, scatter, series_figures
from tasks.depth import Place, along_network, places
from tasks.drawing import draw, inline
from tasks.figures import Curve, Point
from tasks.palette import LIGHT_TO_DARK, css, depth_color
from tasks.profiles import Panel, lines_of, profiles
from tasks.scatter import Dots
from tasks.series_figures import Stretch
from tests.pages import bert, sample_map, spectrum


def curves(sites: list[str], width: int = 32) -> list[Curve]:
    at = places(sites)
    return [Curve(at[site], spectrum(width, 1.0)) for site in sites]


def points(sites: list[str]) -> list[Point]:
    at = places(sites)
    return [Point(at[site], float(index), index - 0.5, index + 0.5) for index, site in enumerate(sites)]


def test_one_panel_per_kind_and_one_line_per_site() -> None:
    figure = figures.spectra(curves(bert(4)))
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["residual stream", "attention", "MLP"]
    assert [len(axes.get_lines()) for axes in panels] == [5, 4, 4]


def test_a_spectrum_is_drawn_as_shares() -> None:
    values = np.array([6.0, 3.0, 1.0, 0.0])
    figure = figures.spectra([Curve(Place("a", (), ""), values)])
    line = figure.axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert np.allclose(line.get_ydata(), [0.6, 0.3, 0.1])


def test_shares_of_leading_eigenvalues_are_of_the_whole() -> None:
    some = np.array([8.0, 2.0])
    line = figures.spectra([Curve(Place("a", (), ""), some, 20.0)]).axes[0].get_lines()[0]
    assert np.allclose(line.get_ydata(), [0.4, 0.1])
    written = [text.get_text() for text in figures.scree(some, None, None, 20.0).axes[1].texts]
    assert written == ["50%: 2"]


@given(st.integers(1, 100_000))
def test_thinned_indices_rise_and_keep_both_ends(n: int) -> None:
    kept = figures.thinned(n)
    assert kept[0] == 0
    assert kept[-1] == n - 1
    assert len(kept) <= figures.MOST_POINTS
    assert (np.diff(kept) > 0).all()


def test_the_scree_plot_has_its_band_and_its_counts() -> None:
    values = spectrum(40, 1.0)
    figure = figures.scree(values, values * 0.9, values * 1.1)
    assert len(figure.axes[0].collections) == 1
    written = [text.get_text() for text in figure.axes[1].texts]
    share = np.cumsum(values) / values.sum()
    assert written == [f"{level:.0%}: {int((share < level).sum()) + 1}" for level in (0.5, 0.9, 0.99)]
    assert not figures.scree(values, None, None).axes[0].collections


def test_eigenvalues_without_an_interval_leave_a_gap_and_no_warning() -> None:
    values = np.array([4.0, 2.0, 0.0, 0.0])
    high = np.array([5.0, 3.0, np.nan, np.nan])
    assert draw(figures.scree(values, high - 2, high), "png")


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50).filter(lambda v: sum(v) > 0), st.floats(0.01, 1))
def test_components_for_a_share_are_the_fewest(values: list[float], level: float) -> None:
    share = np.sort(np.array(values))[::-1] / np.sum(values)
    count = figures.components_for(share, level)
    assert share[:count].sum() >= level - 1e-9
    assert share[: count - 1].sum() < level


def test_profiles_draw_a_line_per_kind_with_more_than_one_depth() -> None:
    figure = profiles([Panel("Ratio", points([*bert(3), "pooler.dense:out:0"]))])
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["residual stream", "attention", "MLP"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["emb", "0", "1", "2"]


def drawn(axes: Axes, label: str) -> list[list[float]]:
    """What the lines of a name run through."""
    return [np.asarray(line.get_ydata()).tolist() for line in axes.get_lines() if line.get_label() == label]


def test_a_profile_has_its_values_its_band_and_what_chance_gives() -> None:
    at = Place("a", (0,), "0"), Place("a", (1,), "1"), Place("a", (2,), "2")
    given = [
        Point(at[0], 1.0, 0.5, 1.5, 3.0),
        Point(at[1], 2.0, None, None, 4.0),
        Point(at[2], 4.0, 3.0, 6.0),
    ]
    axes = profiles([Panel("Entropy", given, null="uniform")]).axes[0]
    assert drawn(axes, "a") == [[1.0, 2.0, 4.0]]
    assert drawn(axes, "_null")[0][:2] == [3.0, 4.0]
    assert np.isnan(drawn(axes, "_null")[0][2])
    bands = [found for found in axes.collections if found.get_label() == "_interval"]
    ends = np.array([path.vertices[:, 1] for path in bands[0].get_paths()])
    assert ends[0].tolist() == [0.5, 1.5]
    assert ends[2].tolist() == [3.0, 6.0]
    assert np.isnan(ends[1]).all()
    assert axes.get_xlabel() == "depth · dashed: uniform"


def test_what_lies_far_above_is_told_and_not_drawn() -> None:
    given = [Point(Place("a", (n,), str(n)), 7.0 + n, null=167.0) for n in range(3)]
    axes = profiles([Panel("Spanning tree", given, null="uniform")]).axes[0]
    assert drawn(axes, "_null") == []
    assert axes.get_xlabel() == "depth · uniform, far above: 167"
    assert axes.get_ylim()[0] == 0.0
    assert axes.get_ylim()[1] < 20


def test_two_captures_are_two_lines_with_their_names() -> None:
    at = places([f"h.{n}:out:0" for n in range(3)])
    both = [Point(place, float(n), capture=c) for c in ("one", "two") for n, place in enumerate(at.values())]
    panel = Panel("Ratio", both)
    figure = profiles([panel])
    assert len(figure.axes[0].get_lines()) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    assert len({line.color for line in lines_of([panel])}) == 2
    kinds = [p._replace(place=p.place._replace(kind=k)) for p in both for k in ("attention", "MLP")]
    lines = lines_of([Panel("Ratio", kinds)])
    assert len({(line.color, line.marker) for line in lines}) == 4
    assert [t.get_text() for t in profiles([Panel("Ratio", kinds)]).legends[0].get_texts()] == [
        "attention",
        "MLP",
        "one",
        "two",
    ]


@pytest.mark.parametrize(
    ("values", "scale"), [((100.0, 0.5), "log"), ((2.0, 1.0), "linear"), ((100.0, 0.0), "linear")]
)
def test_decades_have_a_logarithmic_axis_where_they_can(values: tuple[float, float], scale: str) -> None:
    given = [Point(Place("a", (n,), str(n)), value) for n, value in enumerate(values)]
    assert profiles([Panel("NC1", given, log=True)]).axes[0].get_yscale() == scale


def test_names_of_sites_are_slanted_and_no_numbers_of_layers() -> None:
    sites = [f"{name}:out:0" for name in ("first.0", "first.1", "second.0", "hidden", "readout")]
    at = along_network(sites, places(sites))
    axes = profiles([Panel("Ratio", [Point(at[site], 1.0) for site in sites])]).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "first.0",
        "first.1",
        "second.0",
        "hidden",
        "readout",
    ]
    assert axes.get_xticklabels()[0].get_rotation() == 35
    assert axes.get_xlabel() == ""


def test_a_map_between_members_writes_its_numbers_and_leaves_gaps() -> None:
    values = np.array([[1.0, 0.25, np.nan], [0.25, 1.0, 0.5], [np.nan, 0.5, 1.0]])
    axes = series_figures.between(values, ["a", "b", "c"], "Map", "overlap", (0.0, 1.0)).axes[0]
    written = {(t.get_position()[1] - 0.5, t.get_position()[0] - 0.5): t.get_text() for t in axes.texts}
    assert written[0.0, 1.0] == "0.25"
    assert (0.0, 2.0) not in written
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "c"]
    many = series_figures.between(np.eye(40), [str(n) for n in range(40)], "Map", "overlap")
    assert not many.axes[0].texts
    assert len(many.axes) == 2  # the map and its colour bar


def test_steps_have_a_line_each_and_their_null() -> None:
    one = Stretch(
        "one", ("0 → 1", "1 → 2"), np.array([1.0, 2.0]), np.array([9.0, 9.0]), np.array([np.nan] * 2)
    )
    figure = series_figures.steps([one, one._replace(name="two", values=np.array([3.0, 4.0]))], "Moves")
    lines = [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].get_lines()]
    assert lines == [[9.0, 9.0], [1.0, 2.0], [9.0, 9.0], [3.0, 4.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_a_heat_map_writes_its_numbers_and_leaves_gaps() -> None:
    sites = bert(3)
    figure = figures.heat_maps({"Ratio": points(sites)})
    assert len(figure.axes[0].texts) == len(sites)
    assert figure.axes[0].texts[0].get_text() == "0.00"
    wide = figures.heat_maps({"Ratio": points(bert(40))})
    assert not wide.axes[0].texts
    for map_, bar in (figure.axes, wide.axes):
        assert map_.get_title("left") == "Ratio"
        low, high = bar.get_ylim()
        values = [point.value for point in points(sites if map_ is figure.axes[0] else bert(40))]
        assert (low, high) == pytest.approx((min(values), max(values)))


def test_the_map_names_and_counts_its_classes() -> None:
    dots = sample_map(400, 3).dots
    figure = scatter.sample_map(dots)
    texts = [text.get_text() for text in figure.axes[0].texts]
    for index, name in enumerate(dots.names):
        assert texts.count(name) == 2  # at its median and in the key
        assert f"{np.count_nonzero(dots.codes == index):,}" in texts
    assert "5 others" in texts


@pytest.mark.parametrize("n", [1, 2])
def test_a_map_of_hardly_any_samples(n: int) -> None:
    assert draw(scatter.sample_map(Dots(np.zeros((n, 2)), ("a",), np.zeros(n, dtype=np.int64))), "svg")


def test_equal_figures_give_equal_bytes() -> None:
    for file_format in ("svg", "png"):
        a, b = (draw(figures.spectra(curves(bert())), file_format) for _ in range(2))
        assert a == b


def test_inside_a_page_colours_are_variables_and_ids_are_its_own() -> None:
    svg = draw(figures.spectra(curves(bert())), "svg")
    text = str(inline(svg, "one", 'a "quoted" <description>'))
    assert text.startswith('<svg role="img" aria-label="a &#34;quoted&#34; &lt;description&gt;"')
    assert not any(light in text for light in LIGHT_TO_DARK)
    assert text.count('id="') == text.count('id="one-')
    assert text.count("url(#") == text.count("url(#one-")
    assert "<metadata" not in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_every_colour_has_its_own_dark_twin() -> None:
    assert len(set(LIGHT_TO_DARK.values())) == len(LIGHT_TO_DARK)
    assert css(dark=True).count("--c") == css(dark=False).count("--c") == len(LIGHT_TO_DARK)
    assert depth_color(0, 5) != depth_color(4, 5)
    assert depth_color(0, 1) in LIGHT_TO_DARK


@given(st.floats(0, 1))
def test_a_percentage_is_right_to_two_digits(share: float) -> None:
    assert float(figures.percent(share).removesuffix(" %")) == pytest.approx(100 * share, rel=0.06, abs=1e-12)


@given(st.text(max_size=80), st.integers(8, 40))
def test_a_shortened_name_fits(text: str, most: int) -> None:
    assert len(figures.cut(text, most)) <= most
    shown = figures.shortened(text, most).replace(r"\$", "$")
    assert shown.isprintable()
    if text.isprintable():
        assert shown == figures.cut(text, most)


def test_names_in_any_script_are_drawn_without_a_warning() -> None:
    """What the font lacks is a box; what is no letter, such as the character 0, would make the SVG unreadable."""
    names = ("漢字", "two\nlines", "\x00\x1b[31m", "$x_{")
    svg = draw(scatter.sample_map(Dots(np.eye(4)[:, :2], names, np.arange(4))), "svg")
    assert len(ElementTree.fromstring(svg)) > 0


def test_the_dots_of_the_map_are_drawn_in_a_png() -> None:
    """A line without length is a dot in an SVG and nothing in a PNG."""
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    dots = Dots(rng.standard_normal((400, 2)), ("a $x^$", "costs $5 to $9"), rng.integers(0, 2, 400))
    coloured = []
    for shown in (dots, dots._replace(xy=dots.xy[:2], codes=np.array([0, 1]))):
        data = draw(scatter.sample_map(shown), "png")
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)
        coloured.append(int((np.ptp(picture, axis=2) > 40).sum()))
    assert coloured[0] > coloured[1] + 2000
    texts = [text.get_text() for text in scatter.sample_map(dots).axes[0].texts]
    assert r"costs \$5 to \$9" in texts
