"""Sentences: the numbers in them are those of the planted rows."""

from tasks.findings import RowCounts, findings
from tasks.measures import site_rows
from tests.pages import artifact

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
