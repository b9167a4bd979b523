"""Sentences about trainings: the numbers in them are those of the results, and chance stands beside them."""

import pytest

from tasks.page import PAGE, render
from tasks.training_findings import training_findings
from tests.pages import artifact, report_data
from tests.training_pages import EVERY, overlap, updates


def said(*artifacts: object) -> list[str]:
    return [f"{f.figure} | {f.sentence}" for f in training_findings(artifacts)]  # type: ignore[arg-type]


def test_gradients_in_the_leading_directions() -> None:
    assert said(overlap("begin", 0.3), overlap("end", 0.8)) == [
        "80 % | 80 % of a gradient at a.weight:grad lies in the 10 leading directions of the curvature (end), 1.0 % by chance; "
        "30 % where it is least, of 2 results."
    ]
    assert said(overlap("only", 0.8))[0].endswith("1.0 % by chance.")


@pytest.mark.parametrize(("above", "verdict"), [(True, "more than"), (False, "no more than")])
def test_a_path_beside_the_walk(above: bool, verdict: str) -> None:
    result = {"first_share": 0.9, "first_share_null": 0.6, "exceeds_null": [above, False]}
    assert said(artifact("path", "gradients.trajectory", "a:weight", result)) == [
        f"90 % | One component holds 90 % of the path at a:weight, 60 % of a random walk's: {verdict} such walks have."
    ]


def test_the_thinnest_update() -> None:
    thin, thick = updates("thin:update", 3.0, 10), updates("thick:update", 2.0, 4)
    assert said(thick, thin) == [
        "3.0 | An update of thin:update has an effective rank of 3.0 of 10, 8.0 with its entries shuffled."
    ]
    assert said(updates("vector:update", 1.0, 1)) == []


def test_nothing_is_said_of_nothing() -> None:
    none = {"share": None, "null": 0.1, "components": 3}
    assert said() == said(artifact("none", "gradients.hessian_overlap", "a:grad", none)) == []


def test_the_page_begins_with_them() -> None:
    data = report_data()._replace(artifacts=EVERY)
    page = render(data)[PAGE].decode()
    first, *_ = training_findings(EVERY)
    assert first.sentence in page
