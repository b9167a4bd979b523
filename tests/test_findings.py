"""Sentences: the numbers in them are those of the planted rows."""

import itertools

from tasks.findings import RowCounts, findings
from tasks.measures import SiteRow, site_rows
from tests.pages import CAPTURE, artifact, interval, story

PLANTED = {0: 10.0, 1: 40.0, 2: 30.0}


def planted_rows() -> list:
    made = [
        artifact(
            "summary",
            "spectrum.summary",
            f"h.{layer}:out:0",
            {
                "participation_ratio": ratio,
                "anisotropy": 0.2 * layer + 0.2,
                "components_90": 5 + layer,
                "width": 64,
            },
        )
        for layer, ratio in PLANTED.items()
    ]
    return site_rows(made)


def sentences(*args: object) -> list[str]:
    return [f"{finding.figure} | {finding.sentence}" for finding in findings(*args)]  # type: ignore[arg-type]


def test_the_peak_and_both_ends() -> None:
    said = sentences(planted_rows(), [], 0, 0)[0]
    assert said == (
        "40.0 | The dimension of the residual stream peaks at layer 1 with a participation ratio of 40.0 "
        "(64 features), up from 10.0 at layer 0 and down to 30.0 at layer 2."
    )


def test_the_first_component_and_the_compression() -> None:
    said = sentences(planted_rows(), [], 0, 0)
    assert said[1].startswith(
        "60 % | The first component owns 60 % of the variance at layer 2, more than anywhere else."
    )
    assert "At 1 of 3 sites one direction holds more than half." in said[1]
    assert (
        said[2] == "5–7 | 5 to 7 of 64 components hold 90 % of the variance of the residual stream: "
        "at most 11 % of the directions."
    )


def test_outliers_name_the_worst_site() -> None:
    counts = [RowCounts(1000, {"a": 3, "b": 20}, 10.0), RowCounts(500, {"c": 1}, 10.0)]
    assert sentences([], counts, 0, 0) == [
        "20 | 20 of 1,000 rows (2.0 %) at b are longer than 10 times the median norm; "
        "such rows can own the first components."
    ]
    assert sentences([], [RowCounts(10, {"a": 0}, 5.0)], 0, 0) == [
        "0 | No row is longer than 5 times the median norm at any site."
    ]


def test_one_outlier_per_sample_is_noticed() -> None:
    assert ", about one per sample; such" in sentences([], [RowCounts(1000, {"a": 99}, 10.0)], 100, 0)[0]
    assert "per sample" not in sentences([], [RowCounts(1000, {"a": 99}, 10.0)], 50, 0)[0]


def test_the_best_probe_is_told() -> None:
    made = [artifact("p", "probe.linear", f"h.{i}:out:0", {"accuracy": 0.5 + 0.1 * i}) for i in range(3)]
    assert sentences(site_rows(made), [], 0, 0) == [
        "70 % | A linear map finds the class of 70 % of unseen rows at h.2:out:0, the best of 3 sites."
    ]


def test_failures_are_told_with_their_number() -> None:
    assert sentences([], [], 10, 0) == ["10 | None of 10 captured samples failed."]
    assert sentences([], [], 10, 2)[0].startswith("2 | 2 of 10 samples failed")


def test_one_site_and_nothing_at_all() -> None:
    assert sentences(planted_rows()[:1], [], 0, 0)[0].startswith(
        "10.0 | The rows at h.0:out:0 spread over about 10.0 directions"
    )
    assert sentences([], [], 0, 0) == []


LAYERS = [f"h.{n}:out:0" for n in range(4)]


def starting(found: list[str], start: str) -> str:
    """The one sentence that begins so."""
    (sentence,) = [said.partition(" | ")[2] for said in found if said.partition(" | ")[2].startswith(start)]
    return sentence


def test_the_intrinsic_dimension_peaks_beside_the_linear_one() -> None:
    said = sentences(site_rows(story(LAYERS)), [], 0, 0)
    assert starting(said, "The intrinsic dimension") == (
        "The intrinsic dimension (TwoNN) of the residual stream peaks at layer 1 with 10.00 [9.70, 10.30], up from 8.00 [7.76, 8.24] "
        "at layer 0 and down to 8.00 [7.76, 8.24] at layer 3; the samples do not tell it from layer 2. The participation ratio "
        "there is 40 [36, 44], 4.0 times as many: rows fill more directions than tell them from their neighbours."
    )


def rows_of(method: str, key: str, values: list[dict], **more: object) -> list[SiteRow]:
    made = [artifact("s", method, LAYERS[n], {key: value, **more}) for n, value in enumerate(values)]
    return site_rows(made)


def test_nothing_is_higher_than_what_the_samples_do_not_tell_apart() -> None:
    rows = rows_of("spectrum.jackknife", "participation_ratio", [interval(20.0, 0.5), interval(22.0, 0.5)])
    assert sentences(rows, [], 0, 0) == [
        "22.0 | The dimension of the residual stream peaks at layer 1 with a participation ratio of 22 [11, 33]; "
        "from 20 [10, 30] at layer 0 the samples resolve no difference."
    ]
    rows = rows_of("spectrum.jackknife", "anisotropy", [interval(0.20, 0.5), interval(0.21, 0.5)])
    assert sentences(rows, [], 0, 0) == [
        "21 % | The first component owns 21 % [10, 32] of the variance at layer 1; the samples do not tell it from layer 0."
    ]


def test_a_linear_dimension_without_an_interval_is_no_multiple() -> None:
    both = [
        artifact("d", "geometry.dimension", LAYERS[0], {"twonn": interval(8.0)}),
        artifact("s", "spectrum.summary", LAYERS[0], {"participation_ratio": 40.0}),
    ]
    said = starting(sentences(site_rows(both), [], 0, 0), "The intrinsic")
    assert said.endswith("The participation ratio there is 40.0.")
    few = artifact("j", "spectrum.jackknife", LAYERS[0], {"participation_ratio": interval(8.5)})
    said = starting(sentences(site_rows([both[0], few]), [], 0, 0), "The intrinsic")
    assert said.endswith("no difference that the samples resolve.")


def test_directions_are_most_even_by_their_share_of_what_uniform_ones_have() -> None:
    said = sentences(site_rows(story(LAYERS)), [], 0, 0)
    assert starting(said, "Directions") == (
        "Directions are most even at layer 3: entropy 3.50 [3.43, 3.57] of the 4.0 of uniform directions; "
        "least at layer 0: 2.00 [1.96, 2.04] of the 4.0 of uniform directions (50 %)."
    )
    alike = rows_of("geometry.uniformity", "entropy", [interval(3.0), interval(3.1)], entropy_uniform=4.0)
    assert starting(sentences(alike, [], 0, 0), "Directions").endswith(
        "between sites the samples resolve no difference."
    )


def test_classes_are_most_collapsed_where_the_index_is_least() -> None:
    said = sentences(site_rows(story(LAYERS)), [], 0, 0)
    assert starting(said, "Classes") == (
        "Classes are most collapsed at layer 3: VCI 0.300 [0.294, 0.306], where labels that say nothing give 0.95; "
        "it is 0.900 [0.882, 0.918] at layer 0."
    )
    chance = rows_of("geometry.neural_collapse", "vci", [interval(0.9), interval(0.91)], vci_random=0.95)
    assert starting(sentences(chance, [], 0, 0), "Classes") == (
        "Classes are most collapsed at layer 0: VCI 0.90 [0.81, 0.99], where labels that say nothing give 0.95: no difference "
        "that the samples resolve; from 0.91 [0.82, 1.00] at layer 1 the samples resolve no difference."
    )


def test_the_chance_of_a_collapse_is_that_of_samples() -> None:
    rows = rows_of(
        "geometry.neural_collapse", "vci", [interval(0.3), interval(0.9)], vci_random=0.9, vci_chance=0.5
    )
    assert "where labels that say nothing give 0.50;" in starting(sentences(rows, [], 0, 0), "Classes")
    few = rows_of("geometry.neural_collapse", "vci", [interval(0.01), interval(0.02)], vci_random=0.0)
    assert not [line for line in sentences(few, [], 0, 0) if "collapsed" in line]


def test_neighbours_of_the_same_sample_are_named_beside_the_dimension() -> None:
    caveats = ["neighbours of a row may be rows of the same sample, as tokens of one text: ..."]
    rows = rows_of("geometry.dimension", "twonn", [interval(6.0), interval(5.0)], caveats=caveats)
    assert "whose path alone this may be" in starting(sentences(rows, [], 0, 0), "The intrinsic")
    rows = rows_of("geometry.dimension", "twonn", [interval(6.0), interval(5.0)])
    assert "path" not in starting(sentences(rows, [], 0, 0), "The intrinsic")


def test_collapse_in_the_middle_has_both_ends() -> None:
    rows = rows_of("geometry.neural_collapse", "nc1", [interval(v) for v in (9.0, 1.0, 5.0)])
    assert starting(sentences(rows, [], 0, 0), "Classes") == (
        "Classes are most collapsed at layer 1: NC1 1.00 [0.90, 1.10]; it is 9.0 [8.1, 9.9] at layer 0 and 5.0 [4.5, 5.5] at layer 2."
    )


def test_two_captures_differ_only_beyond_both_intervals() -> None:
    names = {"a" * 20: "before", "b" * 20: "after"}
    both = [*story(LAYERS, "a" * 20), *story(LAYERS, "b" * 20, factor=2.0)]
    said = sentences(site_rows(both, names), [], 0, 0)
    assert starting(said, "before and after") == (
        "before and after differ beyond both intervals in participation ratio at 4 of 4 sites (most at layer 0: 20.0 [18.0, 22.0] "
        "and 40 [36, 44]), in TwoNN at 0 of 4 sites, in MLE at 0 of 4 sites. "
        "Elsewhere the samples resolve no difference."
    )
    assert all("| before" in sentence for sentence in said)


def test_the_least_alike_site_of_two_captures_is_told() -> None:
    made = [
        artifact(
            "cka", "geometry.cka", site, {"cka_debiased": 0.9 - 0.1 * n}, capture="a" * 20, other="b" * 20
        )
        for n, site in enumerate(LAYERS)
    ]
    assert sentences(site_rows(made, {"a" * 20: "one", "b" * 20: "two"}), [], 0, 0) == [
        "0.6000 | one + two arrange the same rows with a CKA without bias of 0.6000 at layer 3, the lowest of 4 sites."
    ]


def test_the_least_alike_pair_of_sites_is_told_with_both_names() -> None:
    made = [
        artifact("cka", "geometry.cka", a, {"cka_debiased": 0.9 - 0.1 * n}, beside=b)
        for n, (a, b) in enumerate(itertools.pairwise(LAYERS))
    ]
    assert sentences(site_rows(made, {CAPTURE: "docs"}), [], 0, 0) == [
        "0.7000 | h.2 and h.3 (docs) arrange the same rows with a CKA without bias of 0.7000, the lowest of 3 pairs."
    ]


def test_components_of_sites_of_several_widths_are_no_part_of_one() -> None:
    made = [
        artifact("s", "spectrum.summary", site, {"components_90": 4 + n, "width": 8 * (n + 1)})
        for n, site in enumerate(LAYERS[:2])
    ]
    assert sentences(site_rows(made), [], 0, 0) == [
        "4–5 | 4 to 5 components hold 90 % of the variance of the residual stream, at most 50 % of the directions, at layer 0."
    ]


def test_an_intrinsic_dimension_beside_what_full_directions_would_show() -> None:
    tree = artifact(
        "t", "geometry.spanning_tree", LAYERS[0], {"dimension": interval(7.0), "dimension_uniform": 30.0}
    )
    assert sentences(site_rows([tree]), [], 0, 0) == [
        "7.0 | The intrinsic dimension (spanning tree) at h.0:out:0 is 7.0 [6.3, 7.7]; as many rows that fill all directions "
        "would give 30.0."
    ]
