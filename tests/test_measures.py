"""Measures of a site against closed forms, and which method's number is taken."""

import itertools

import numpy as np
import pytest

from tasks.catalogue import GROUPS, KEYS, MEASURES, groups_of
from tasks.comparison import comparisons
from tasks.depth import RESIDUAL
from tasks.findings import findings
from tasks.illustrations import illustrations
from tasks.measures import SiteRow, StageArtifact, site_rows
from tasks.methods.contract import load_method
from tasks.tables import measure_tables
from tests.pages import artifact, artifacts, bert, interval, series, spectrum, story

SITE = "h.3:out:0"


def test_a_flat_spectrum_has_as_many_dimensions_as_features() -> None:
    row = site_rows([artifact("pca", "spectrum.pca", SITE, {}, {"eigenvalue": np.full(16, 2.0)})])[0]
    for key in ("participation_ratio", "effective_rank", "stable_rank"):
        assert row.values[key] == pytest.approx(16)
    assert row.values["anisotropy"] == pytest.approx(1 / 16)
    assert row.values["top_10"] == pytest.approx(10 / 16)
    assert row.values["components_90"] == 15


def test_hidden_eigenvalues_count_as_nothing() -> None:
    hidden = np.array([3.0, 1.0, np.nan, np.nan])
    row = site_rows([artifact("pca", "spectrum.pca", SITE, {}, {"eigenvalue": hidden})])[0]
    assert row.values["participation_ratio"] == pytest.approx(16 / 10)
    assert row.spectrum is not None
    assert row.spectrum.tolist() == [3, 1, 0, 0]


def test_the_number_without_bias_wins_and_the_plain_one_is_kept() -> None:
    summary = {"participation_ratio": 50.0, "participation_ratio_unbiased": 60.0}
    row = site_rows([artifact("summary", "spectrum.summary", SITE, summary)])[0]
    assert (row.values["participation_ratio"], row.plain_ratio) == (60.0, 50.0)
    without = site_rows(
        [artifact("s", "spectrum.summary", SITE, {**summary, "participation_ratio_unbiased": None})]
    )
    assert without[0].values["participation_ratio"] == 50.0


def test_intervals_need_both_ends() -> None:
    both = {"anisotropy": 0.3, "anisotropy_low": 0.2, "anisotropy_high": 0.4}
    row = site_rows([artifact("s", "spectrum.summary", SITE, both)])[0]
    assert row.intervals == {"anisotropy": (0.2, 0.4)}
    one = site_rows([artifact("s", "spectrum.summary", SITE, {**both, "anisotropy_high": None})])[0]
    assert one.intervals == {}


@pytest.mark.parametrize(("top", "expected"), [(10, 0.7), (3, None)])
def test_a_concentration_is_the_top_ten_only_if_it_counts_ten(top: int, expected: float | None) -> None:
    row = site_rows(
        [
            artifact(
                "s", "spectrum.summary", SITE, {"stable_rank": 2.0, "concentration": 0.7}, config={"top": top}
            )
        ]
    )
    assert row[0].values.get("top_10") == expected


def test_sites_come_by_depth_and_methods_are_joined() -> None:
    sites = bert(3)
    rows = site_rows(artifacts(sites[::-1]))
    assert len(rows) == len(sites)
    assert [row.place.label for row in rows] == ["emb", *(str(i) for i in range(3) for _ in range(3))]
    assert all(row.band is not None and row.width == 32 for row in rows)


def test_a_result_without_any_measure_is_no_row() -> None:
    assert site_rows([artifact("other", "geometry.other", SITE, {"label": "x", "flag": True})]) == []
    assert site_rows([]) == []


def test_no_variance_gives_no_spectrum() -> None:
    assert site_rows([artifact("pca", "spectrum.pca", SITE, {}, {"eigenvalue": np.zeros(4)})]) == []
    assert np.isclose(spectrum(4, 0.0).sum(), 4)


def test_leading_eigenvalues_alone_give_no_measure() -> None:
    some = artifact("s", "spectrum.subspace", SITE, {"trace": 20.0}, {"eigenvalue": np.array([8.0, 2.0])})
    row = site_rows([some])[0]
    assert row.values == {}
    assert row.total == 20.0
    full = artifact(
        "pca", "spectrum.pca", SITE, {"trace": 20.0}, {"eigenvalue": np.array([8.0, 6.0, 4.0, 2.0])}
    )
    both = site_rows([some, full])[0]
    assert both.values["anisotropy"] == pytest.approx(0.4)
    assert both.spectrum is not None
    assert len(both.spectrum) == 4


def only(*artifacts: StageArtifact) -> SiteRow:
    rows = site_rows(artifacts)
    assert len(rows) == 1
    return rows[0]


def test_a_number_with_an_interval_is_read_from_inside_it() -> None:
    result = {"twonn": interval(12.0), "dimension": {**interval(9.0), "low": None}, "levina_bickel": None}
    row = only(artifact("d", "geometry.dimension", SITE, result))
    assert row.values == {"twonn": 12.0, "mle": 9.0}
    assert row.intervals == {"twonn": (pytest.approx(10.8), pytest.approx(13.2))}


def test_the_jackknifes_interval_wins_over_that_of_gaussian_rows() -> None:
    gaussian = {"anisotropy": 0.3, "anisotropy_low": 0.29, "anisotropy_high": 0.31}
    summary = artifact("s", "spectrum.summary", SITE, gaussian)
    jackknife = artifact("j", "spectrum.jackknife", SITE, {"anisotropy": interval(0.3, 0.5)})
    assert only(summary).intervals["anisotropy"] == (0.29, 0.31)
    assert only(summary, jackknife).intervals["anisotropy"] == (pytest.approx(0.15), pytest.approx(0.45))


@pytest.mark.parametrize("unbiased", [52.0, 60.0])
def test_the_ratio_without_bias_has_the_jackknifes_interval_in_proportion(unbiased: float) -> None:
    summary = {"participation_ratio": 50.0, "participation_ratio_unbiased": unbiased}
    jackknife = artifact("j", "spectrum.jackknife", SITE, {"participation_ratio": interval(50.0)})
    row = only(artifact("s", "spectrum.summary", SITE, summary), jackknife)
    assert row.values["participation_ratio"] == unbiased
    assert row.intervals["participation_ratio"] == (
        pytest.approx(0.9 * unbiased),
        pytest.approx(1.1 * unbiased),
    )
    assert only(jackknife).values["participation_ratio"] == 50.0


def test_null_values_are_those_of_the_method() -> None:
    found = [
        artifact("u", "geometry.uniformity", SITE, {"entropy": interval(3.0), "entropy_uniform": 5.0}),
        artifact("c", "geometry.neural_collapse", SITE, {"vci": interval(0.4), "vci_random": None}),
        artifact(
            "r", "geometry.rate_reduction", SITE,
            {"rate_reduction": interval(2.0), "rate_reduction_random": 0.1, "rate_reduction_random_samples": 0.6},
        ),
    ]  # fmt: skip
    assert only(*found).nulls == {"entropy": 5.0, "rate_reduction": 0.6}
    alone = {"rate_reduction": interval(2.0), "rate_reduction_random": 0.1}
    assert only(artifact("r", "geometry.rate_reduction", SITE, alone)).nulls == {"rate_reduction": 0.1}


def test_equal_names_of_other_methods_mean_something_else() -> None:
    tree = artifact(
        "t", "geometry.spanning_tree", SITE, {"dimension": interval(7.0), "dimension_uniform": 30.0}
    )
    walk = artifact(
        "w", "geometry.diffusion_entropy", SITE, {"entropy": interval(2.0), "entropy_gaussian": 3.0}
    )
    row = only(tree, walk)
    assert row.values == {"tree_dimension": 7.0, "diffusion_entropy": 2.0}
    assert row.nulls == {"tree_dimension": 30.0, "diffusion_entropy": 3.0}


@pytest.mark.parametrize("method", ["geometry.uniformity", "clustering.spectral"])
def test_eigenvalues_of_something_else_are_no_variances(method: str) -> None:
    other = artifact("u", method, SITE, {}, {"eigenvalue": np.full(8, 0.125)})
    assert site_rows([other]) == []


def test_every_measure_has_a_group_and_a_key_of_its_own() -> None:
    assert len(KEYS) == len(MEASURES)
    assert {measure.group for measure in MEASURES} == {group.key for group in GROUPS}
    for group, measures in groups_of(set(KEYS)).items():
        assert [m.group for m in measures] == [group.key] * len(measures)
        assert len([m for m in measures if m.drawn]) <= 6


def test_every_source_is_a_field_of_its_method() -> None:
    for measure in MEASURES:
        for source in measure.sources:
            if source.method is not None:
                fields = load_method(source.method).Result.model_fields
                assert source.field in fields, measure.key
                assert source.null is None or source.null in fields, measure.key


def test_captures_have_rows_of_their_own_under_the_names_of_the_run() -> None:
    sites = ["h.0:out:0", "h.1:out:0"]
    both = [*story(sites, "a" * 20), *story(sites, "b" * 20)]
    pair = artifact("cka", "geometry.cka", sites[0], {"cka": 0.9}, capture="a" * 20, other="b" * 20)
    rows = site_rows([*both, pair], {"a" * 20: "before", "b" * 20: "after"})
    assert [(row.site, row.capture) for row in rows] == [
        (sites[0], "before"),
        (sites[0], "after"),
        (sites[0], "before + after"),
        (sites[1], "before"),
        (sites[1], "after"),
    ]
    assert rows[2].values == {"cka": 0.9}


def test_every_stage_that_measures_classes_has_a_row_and_a_line() -> None:
    """By two labels, by one label with other options, and one that a probe shares; what else is known is told once."""
    sites = [f"h.{n}:out:0" for n in range(3)]

    def collapse(stage: str, site: str, nc1: float, label: str) -> StageArtifact:
        return artifact(stage, "geometry.neural_collapse", site, {"nc1": nc1}, config={"label": label})

    made = [
        part
        for site in sites
        for part in (
            artifact("s", "spectrum.summary", site, {"participation_ratio": 9.0}),
            collapse("by-topic", site, 1.0, "topic"),
            collapse("by-author", site, 2.0, "author"),
            collapse("topic-again", site, 3.0, "topic"),
            artifact("probe", "probe.linear", site, {"accuracy": 0.5}, config={"label": "author"}),
        )
    ]
    rows = site_rows(made)
    assert [(r.stage, r.further, r.values) for r in rows[:3]] == [
        ("by-topic", False, {"participation_ratio": 9.0, "nc1": 1.0}),
        ("by-author, probe", True, {"nc1": 2.0, "accuracy": 0.5}),
        ("topic-again", True, {"nc1": 3.0}),
    ]
    (table,) = measure_tables(rows)
    assert [heading for heading, _ in table.headings][:2] == ["Site", "Stage"]
    assert [row[1].text for row in table.rows] == ["by-topic", "by-author, probe", "topic-again"] * 3
    (drawn,) = [made for made in illustrations(rows, None) if made.name == "profiles"]
    assert "by-author, probe" in drawn.caption
    labels = {text.get_text() for text in drawn.figure.legends[0].get_texts()}
    assert labels == {"by-topic", "by-author, probe", "topic-again"}
    assert [r.stage for r in site_rows([a for a in made if a.stage in ("s", "by-topic", "probe")])] == [
        ""
    ] * 3


def test_every_detector_has_a_row_and_a_line_beside_chance() -> None:
    """Beside a probe by the same label, which is no detector and stays with all else."""
    sites = [f"h.{n}:out:0" for n in range(3)]
    config = {"label": "kind"}
    made = [
        part
        for n, site in enumerate(sites)
        for part in (
            artifact("probe", "probe.linear", site, {"accuracy": 0.5}, config=config),
            artifact("far", "anomaly.quality", site, {"auroc": interval(0.6 + 0.1 * n, 0.05)}, config=config),
            artifact("near", "anomaly.quality", site, {"auroc": interval(0.5, 0.05)}, config=config),
        )
    ]
    rows = site_rows(made)
    assert [(r.stage, r.further, sorted(r.values)) for r in rows[:2]] == [
        ("far", False, ["accuracy", "auroc"]),
        ("near", True, ["auroc"]),
    ]
    assert rows[0].nulls == {"auroc": 0.5}
    (drawn,) = [made for made in illustrations(rows, None) if made.name == "profiles"]
    assert {text.get_text() for text in drawn.figure.legends[0].get_texts()} >= {"far", "near"}
    (told,) = [f for f in findings(rows, [], 0, 0) if "AUROC" in f.sentence]
    assert told == (
        "0.80",
        "Strange rows are told from normal ones with an AUROC of 0.80 [0.76, 0.84] at layer 2 (far); least 0.500 [0.475, 0.525] at layer 0 "
        "(near); chance is 0.5.",
    )
    alone = [a for a in made if a.stage != "near"]
    assert {r.stage for r in site_rows(alone)} == {""}
    (told,) = [f for f in findings(site_rows(alone[:2]), [], 0, 0) if "AUROC" in f.sentence]
    assert told.sentence.startswith(
        "Strange rows are told from normal ones with an AUROC of 0.600 [0.570, 0.630]"
    )


def test_pairs_of_sites_of_one_capture_have_rows_that_name_both() -> None:
    sites = [f"h.{n}:out:0" for n in range(3)]
    pairs = [
        artifact("cka", "geometry.cka", sites[0], {"cka_debiased": 0.9 - 0.1 * n}, beside=other)
        for n, other in enumerate(sites[1:])
    ]
    rows = site_rows([*story(sites), *pairs])
    found = {row.name: row.values["cka_debiased"] for row in rows if "cka_debiased" in row.values}
    assert found == {f"{sites[0]} | {sites[1]}": 0.9, f"{sites[0]} | {sites[2]}": 0.8}
    assert all("participation_ratio" in row.values for row in rows if not row.partner)
    table = next(table for table in measure_tables(rows) if "CKA, no bias" in dict(table.headings))
    assert table.title == "Sites or captures in pairs"
    assert [row[0].text for row in table.rows] == ["h.0 | h.1", "h.0 | h.2"]
    assert comparisons(rows) == []
    assert not any("CKA" in made.caption for made in illustrations(rows, None)), (
        "no line: a site in two pairs"
    )
    assert any("CKA" in made.caption for made in illustrations(chain(sites), None))


def chain(sites: list[str]) -> list[SiteRow]:
    """Each site beside the next one: a line over depth."""
    made = [
        artifact("cka", "geometry.cka", a, {"cka_debiased": 0.5}, beside=b)
        for a, b in itertools.pairwise(sites)
    ]
    return site_rows(made)


def test_layers_of_two_networks_have_the_same_places() -> None:
    one, two = [f"h.{n}:out:0" for n in range(3)], [f"encoder.layer.{n}:out:0" for n in range(3)]
    rows = site_rows([*story(one, "a" * 20), *story(two, "b" * 20)])
    assert {row.place.kind for row in rows} == {RESIDUAL}
    assert [row.place.label for row in rows] == ["0", "0", "1", "1", "2", "2"]


def test_what_joins_sites_is_no_row() -> None:
    members = [("a" * 20, "h.0:out:0"), ("a" * 20, "h.1:out:0")]
    made = series("d", "geometry.subspace_distances", members, {"overlap": 0.5, "anisotropy": 0.2}, {})
    assert made.site == "h.0:out:0 | h.1:out:0"
    assert site_rows([made]) == []
    alone = series(
        "d", "geometry.subspace_distances", [("a" * 20, SITE), ("b" * 20, SITE)], {"anisotropy": 0.2}, {}
    )
    assert site_rows([alone]) == []
