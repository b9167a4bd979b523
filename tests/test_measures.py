"""Measures of a site against closed forms, and which method's number is taken."""

import numpy as np
import pytest

from tasks.measures import site_rows
from tests.pages import artifact, artifacts, bert, spectrum

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
