"""The page of a real run of many methods: two small networks on digits, layer by layer and side by side."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.serial import run_serial
from schemas.outcome import RunOutcome
from schemas.run import RunSpec
from tasks.gather import gather
from tasks.measures import SiteRow, site_rows
from tasks.page import capture_names
from tasks.store.location import Location

SITES = ("first.1", "second.0", "hidden", "readout")
IMAGES = "*"
METHODS: dict[str, dict[str, Any]] = {
    "pca": {"method": "spectrum.pca"},
    "summary": {"method": "spectrum.summary"},
    "jackknife": {"method": "spectrum.jackknife", "config": {"groups": 6}},
    "uniformity": {"method": "geometry.uniformity", "config": {"groups": 6}},
    "neighbours": {"method": "geometry.neighbours", "sites": IMAGES},
    "dimension": {"method": "geometry.dimension", "sites": IMAGES, "config": {"groups": 6}},
    "collapse": {"method": "geometry.neural_collapse", "sites": IMAGES, "config": {"label": "digit", "groups": 6}},
    "rate": {"method": "geometry.rate_reduction", "sites": IMAGES, "config": {"label": "digit", "groups": 6}},
    "probe": {"method": "probe.linear", "sites": IMAGES, "config": {"label": "digit"}},
}  # fmt: skip


def of_capture(name: str) -> dict[str, Any]:
    """The methods over one capture, in stages of its name."""
    stages = {}
    for stage, asked in METHODS.items():
        inputs: dict[str, Any] = {"x": {"captures": [name], "sites": asked.get("sites", "**")}}
        if stage == "dimension":
            inputs["neighbours"] = {"stage": f"neighbours-{name}"}
        stages[f"{stage}-{name}"] = {
            "method": asked["method"],
            "inputs": inputs,
            "config": asked.get("config", {}),
        }
    return stages


def asked(root: Path) -> RunSpec:
    def network(epochs: int) -> dict[str, Any]:
        arguments = {"channels": 4, "epochs": epochs}
        return {
            "model": {"kind": "factory", "factory": "examples.networks:digits_net", "arguments": arguments},
            "data": {
                "source": {"kind": "digits", "layout": "image"},
                "subset": {"max_samples": 150, "stratify_by": "digit"},
            },
            "sites": list(SITES),
        }

    both = {
        "distances": {
            "method": "geometry.subspace_distances",
            "inputs": {"pca": {"stage": "pca-after", "sites": "*.*"}},
            "config": {"components": 2},
        },
        "cka": {
            "method": "geometry.cka",
            "inputs": {"x": {"captures": ["after"]}, "y": {"captures": ["before"]}},
        },
        "steps": {
            "method": "geometry.difference_subspace",
            "inputs": {"pca": {"stage": "pca-*", "sites": "*.*"}},
            "config": {"components": 2, "along": "sites"},
        },
    }
    return RunSpec.model_validate(
        {
            "name": "story",
            "root": str(root),
            "captures": {"after": network(3), "before": network(0)},
            "stages": {**of_capture("after"), **of_capture("before"), **both},
            "report": {"figures": ["svg"]},
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, RunOutcome]:
    spec = asked(tmp_path_factory.mktemp("story"))
    outcome = run_serial(spec)
    assert not outcome.stage_failures
    return spec, outcome


@pytest.fixture(scope="module")
def rows(run: tuple[RunSpec, RunOutcome]) -> dict[tuple[str, str], SiteRow]:
    spec, outcome = run
    data = gather(Location(outcome.root), outcome, spec)
    found = site_rows(data.artifacts, capture_names(data.captures))
    return {(row.site.partition(":")[0], row.capture): row for row in found}


def test_every_site_of_each_capture_has_its_measures(rows: dict[tuple[str, str], SiteRow]) -> None:
    assert set(rows) == {(s, c) for s in SITES for c in ("after", "before", "after + before")}
    everywhere = {"participation_ratio", "effective_rank", "anisotropy", "entropy", "distance"}
    images = everywhere | {"twonn", "mle", "nc1", "cdnv", "vci", "nearest", "rate_reduction", "accuracy"}
    for (site, capture), row in rows.items():
        if capture != "after + before":
            wanted = images if "." not in site else everywhere
            assert wanted <= row.values.keys()
            assert wanted - row.intervals.keys() == set()
            assert "entropy" in row.nulls
            assert all(low <= row.values[key] <= high for key, (low, high) in row.intervals.items())


def test_training_collapses_classes_beyond_both_intervals(rows: dict[tuple[str, str], SiteRow]) -> None:
    after, before = (rows["readout", name] for name in ("after", "before"))
    assert after.intervals["vci"][1] < before.intervals["vci"][0]
    assert before.values["vci"] < before.nulls["vci"]


def test_the_page_tells_it(run: tuple[RunSpec, RunOutcome]) -> None:
    _, outcome = run
    assert outcome.report is not None
    page = Path(outcome.report).read_text()
    figures = set(re.findall(r'<figure id="figure-([a-z-]+)"', page))
    assert {
        f"profiles-{group}" for group in ("linear", "intrinsic", "evenness", "classes", "alignment")
    } <= figures
    assert {"between-distances", "steps-steps"} <= figures
    assert {f"{name}.svg" for name in figures} == {
        p.name for p in (Path(outcome.report).parent / "figures").iterdir()
    }
    for heading in (
        "Side by side",
        "Between sites",
        "Linear dimension",
        "Intrinsic dimension",
        "Evenness of directions",
    ):
        assert f">{heading}</h" in page
    assert "after and before differ beyond both intervals in participation ratio" in page
    assert "after: The intrinsic dimension (TwoNN) of the rows peaks at" in page
    assert "after: Classes are most collapsed at" in page
    assert 'title="beyond the intervals of after">≠' in page
    assert len(page) < 3_000_000
