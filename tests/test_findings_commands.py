"""Each finding of `python -m benchmarks.findings` with small sizes: the direction of its claim holds, and its page is current."""

import json
import warnings

import pytest

from benchmarks import findings, protocol
from benchmarks.claims.figure import Figure, Finding

SMALL: dict[str, dict[str, int]] = {
    "offset": {},
    "power_iterations": {"rows": 3000, "width": 256},
    "kept_rank": {},
    "small_singular_values": {"rows": 2000, "width": 100},
    "certificates": {"trials": 3},
    "order": {},
    "small_angles": {},
    "chance": {},
    "few_rows": {},
    "dependent_rows": {"trials": 16, "texts": 50},
    "random_walk": {"steps": 250, "width": 2000},
    "rank_of_random_layers": {"depth": 2},
    "duplicates": {"rows": 1500},
    "local_dimension": {"rows": 1000},
    "walk_of_entropy": {"rows": 200},
}


def test_every_finding_is_tested() -> None:
    assert list(SMALL) == [finding.name for finding in findings.FINDINGS]


@pytest.mark.parametrize("finding", findings.FINDINGS, ids=lambda f: f.name)
def test_the_claim_holds(finding: Finding) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # peers warn of their own
        figures = finding.measure(**SMALL[finding.name])
    assert [f"{f.who}: {f.what}: {f.found} expected {f.expected}" for f in figures if not f.holds] == []
    assert json.loads(json.dumps(finding.record(figures), allow_nan=False))["holds"]
    assert any(f.who.startswith("subspan") for f in figures)


def test_a_number_outside_its_limits_is_told() -> None:
    def measure() -> list[Figure]:
        """A claim."""
        return [Figure("a peer", "an error", 0.5, 0, 0.1)]

    wrong = Finding(measure)
    assert not findings.shown(wrong)["holds"]
    assert "Not all numbers" in findings.page(
        {**protocol.saved("findings"), findings.FINDINGS[0].name: wrong.record(wrong.measure())}
    )


def test_the_page_is_current() -> None:
    results = protocol.saved("findings")
    assert {finding.name for finding in findings.FINDINGS} <= set(results)
    assert findings.PAGE.read_text() == findings.page(results), "python -m benchmarks.findings --page"
    assert all(results[finding.name]["holds"] for finding in findings.FINDINGS)
