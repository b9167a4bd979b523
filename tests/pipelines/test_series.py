"""Stages over artifacts alone: two captures and two sites, in order, once, and shown like any other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from pipelines.cli import main
from pipelines.plan import make_plan
from pipelines.serial import run_serial
from pipelines.status import artifact_status
from schemas.errors import MethodError, SpecError, UnknownNameError
from schemas.run import RunSpec
from schemas.stage import ResolvedStage, spanning
from subspan import list_artifacts, open_artifact
from tasks.drive import serial
from tasks.engine import prepare, run_stages
from tasks.store.artifacts import read_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.pipelines.runs import vectors_run

FIRST, ACT, LAST = "first:out:0", "act:out:0", "last:out:0"


@pytest.fixture(autouse=True)
def _own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSPAN_METHOD_PACKAGES", "tests")


def run_of(root: Path, **inputs: Any) -> RunSpec:
    """Two captures of other data, the components of two sites of each, and one stage over all four."""
    small = vectors_run(root).captures["vectors"].model_dump(mode="json")
    more = {**small, "data": {"source": {**small["data"]["source"], "arguments": {"n": 60}}}}
    stages: dict[str, Any] = {
        name: {
            "method": "spectrum.pca",
            "config": {"components": 2},
            "inputs": {"x": {"captures": [capture], "sites": "*st"}},
        }
        for name, capture in (("pca_new", "more"), ("pca_old", "small"))
    }
    stages["seen"] = {"method": "tests.own_series", "inputs": inputs}
    whole = vectors_run(root).model_dump(mode="json")
    report = {"color_by": None}
    spec = {**whole, "captures": {"small": small, "more": more}, "stages": stages, "report": report}
    return RunSpec.model_validate(spec)


def test_two_ports_may_take_every_pair(tmp_path: Path) -> None:
    """Of one glob each two sites once; of two captures also a site with itself."""

    def of(stage: dict[str, Any], run: RunSpec) -> list[str]:
        whole = {**run.model_dump(mode="json"), "stages": {"cka": {"method": "geometry.cka", **stage}}}
        return [plan.place for plan in make_plan(RunSpec.model_validate(whole)).stages]

    one, two = vectors_run(tmp_path), run_of(tmp_path)
    both = {"x": {"sites": "**:out"}, "y": {"sites": "**:out"}}
    assert of({"pairs": "all", "inputs": both}, one) == [
        f"{FIRST} | {ACT}",
        f"{FIRST} | {LAST}",
        f"{ACT} | {LAST}",
    ]
    captures = {
        "x": {"captures": ["small"], "sites": "*st"},
        "y": {"captures": ["more"], "sites": "{first,act}"},
    }
    expected = [FIRST, f"{FIRST} | {ACT}", f"{LAST} | {FIRST}", f"{LAST} | {ACT}"]
    assert of({"pairs": "all", "inputs": captures}, two) == expected
    with pytest.raises(SpecError, match="two ports of rows, found x; leave"):
        of({"method": "spectrum.pca", "pairs": "all"}, one)
    with pytest.raises(SpecError, match=rf"both ports read \w+ {LAST} alone"):
        of({"pairs": "all", "sites": "last"}, one)


def test_ports_of_other_sites_pair_in_order_though_some_have_one_name(tmp_path: Path) -> None:
    """Each layer with the next, also of two captures, where the middle one was read twice and the last one never."""

    def of(run: RunSpec, x: dict[str, Any], y: dict[str, Any]) -> list[str]:
        stage = {"method": "geometry.cka", "inputs": {"x": x, "y": y}}
        whole = {**run.model_dump(mode="json"), "stages": {"cka": stage}}
        return [plan.place for plan in make_plan(RunSpec.model_validate(whole)).stages]

    early, late = "{first,act}", "{act,last}"
    expected = [f"{FIRST} | {ACT}", f"{ACT} | {LAST}"]
    assert of(vectors_run(tmp_path), {"sites": early}, {"sites": late}) == expected
    new, old = ({"captures": [name]} for name in ("more", "small"))
    assert of(run_of(tmp_path), {**old, "sites": early}, {**new, "sites": late}) == expected
    assert of(run_of(tmp_path), {**old, "sites": early}, {**new, "sites": early}) == [FIRST, ACT]


def test_a_stage_runs_once_over_artifacts_of_two_captures_and_sites(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    outcome = run_serial(run)
    assert outcome.exit_code == 0
    captures = {capture.name: capture.id for capture in outcome.captures}
    (made,) = [a for a in outcome.artifacts if a.stage == "seen"]
    assert made.site == f"{FIRST} | {LAST}"
    view = open_artifact(tmp_path, made.id)
    assert view.result["sites"] == [FIRST, LAST, FIRST, LAST]
    assert view.result["captures"] == [[captures["more"]]] * 2 + [[captures["small"]]] * 2
    assert view.result["rows"] == [60, 60, 100, 100]
    largest = [
        float(open_artifact(tmp_path, a.id).arrays["eigenvalue"][0])
        for name in ("pca_new", "pca_old")
        for a in outcome.artifacts
        if a.stage == name
    ]
    np.testing.assert_array_equal(view.arrays["largest"], largest)
    artifact = read_artifact(Location(str(tmp_path)), made.id)
    assert (artifact.rows_used, artifact.rows_dropped) == (0, 0)
    assert artifact_status(artifact).sites == (FIRST, LAST)
    assert set(artifact_status(artifact).captures) == set(captures.values())
    found = list_artifacts(tmp_path, "tests.own_series", capture="small", site="last")
    assert [a.id for a in found] == [made.id]
    old = {a.id for a in outcome.artifacts if a.stage == "pca_old"}
    assert {a.id for a in list_artifacts(tmp_path, stage="pca_old")} == old
    assert [a.stage.places[0][1] for a in list_artifacts(tmp_path, stage="pca_old", site="last")] == [LAST]
    assert list_artifacts(tmp_path, "tests.own_series", stage="pca_old") == []
    with pytest.raises(UnknownNameError, match=r"no run .* has a stage 'pca_odl'; nearest: pca_old, pca_new"):
        list_artifacts(tmp_path, stage="pca_odl")
    assert outcome.report is not None
    assert "seen" in Path(outcome.report).read_text()
    again = run_serial(run)
    assert not any(a.computed for a in again.artifacts)


def test_sites_captures_and_stages_are_chosen(tmp_path: Path) -> None:
    def members(**port: Any) -> list[tuple[str, str]]:
        plan = make_plan(run_of(tmp_path, pca=port))
        names = {capture.id: capture.name for capture in plan.captures}
        (stage,) = [s.stage for s in plan.stages if s.name == "seen"]
        return [(names[ref.captures[0]], ref.site) for ref in stage.series["pca"]]

    assert members(sites="last") == [("more", LAST), ("small", LAST)]
    assert members(captures=["small"]) == [("small", FIRST), ("small", LAST)]
    assert members(stage="pca_new", sites="first") == [("more", FIRST)]
    assert members(stage="pca_*", captures=["more", "small"], sites="first") == [
        ("more", FIRST),
        ("small", FIRST),
    ]
    with pytest.raises(SpecError, match=r"no stage of that method called 'seen'; nearest: .*pca_"):
        members(stage="seen")
    with pytest.raises(ValidationError, match=r"no stage 'pcb_\*'; nearest: .*pca_"):
        members(stage="pcb_*")
    with pytest.raises(SpecError, match="act"):
        members(sites="act")


def test_one_question_under_two_names_is_one_member(tmp_path: Path) -> None:
    """And is told under both."""
    run = run_of(tmp_path).model_dump(mode="json")
    run["stages"]["pca_same"] = run["stages"]["pca_old"]
    outcome = run_serial(RunSpec.model_validate(run))
    names = [a.stage for a in outcome.artifacts]
    assert [names.count(name) for name in ("pca_new", "pca_old", "pca_same", "seen")] == [2, 2, 2, 1]
    (made,) = [a for a in outcome.artifacts if a.stage == "seen"]
    assert open_artifact(tmp_path, made.id).result["sites"] == [FIRST, LAST, FIRST, LAST]


def test_a_port_of_one_artifact_takes_no_pattern(tmp_path: Path) -> None:
    run = run_of(tmp_path).model_dump(mode="json")
    run["stages"] = {
        "pca": run["stages"]["pca_old"],
        "seen": {
            "method": "spectrum.project",
            "inputs": {"basis": {"stage": "pc*"}, "x": {"captures": ["small"]}},
        },
    }
    with pytest.raises(SpecError, match=r"takes one artifact; found 'pc\*'"):
        make_plan(RunSpec.model_validate(run))


def test_a_named_stage_must_run_the_method_of_the_port(tmp_path: Path) -> None:
    """Before anything is captured."""
    run = run_of(tmp_path).model_dump(mode="json")
    run["stages"] = {
        "shape": run["stages"]["pca_old"] | {"method": "spectrum.summary", "config": {}},
        "seen": {
            "method": "spectrum.project",
            "inputs": {"basis": {"stage": "shape"}, "x": {"captures": ["small"]}},
        },
    }
    with pytest.raises(
        SpecError, match=r"'basis' takes an artifact of spectrum.pca; found stage 'shape' of spectrum.summary"
    ):
        make_plan(RunSpec.model_validate(run))


def test_own_methods_are_planned_and_described_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run_of(tmp_path).model_dump(mode="json")))
    assert main(["plan", str(file)]) == 0
    assert "5 artifacts" in capsys.readouterr().out
    assert main(["methods", "tests.own_series"]) == 0
    assert "artifacts of `spectrum.pca`, of several sites or captures" in capsys.readouterr().out


def test_a_series_must_come_from_the_method(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    spec = make_capture(root, {"a": np.random.default_rng(0).standard_normal((20, 4))})
    wrong = stage_of("spectrum.summary", {"x": rows_ref(spec, "a")})
    for stages, reason in (
        ([wrong], "found an artifact of spectrum.summary, expected one of spectrum.pca"),
        ([], "connect every port"),
    ):
        stage = stage_of("tests.own_series", {}, series={"pca": stages})
        with pytest.raises(MethodError, match=reason):
            run_stages(root, [*stages, stage], serial, allowed=("tests",))


def test_a_series_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "MOST_SERIES_BYTES", 100)
    root = Location(str(tmp_path))
    spec = make_capture(root, {"a": np.random.default_rng(0).standard_normal((20, 4))})
    pca = stage_of("spectrum.pca", {"x": rows_ref(spec, "a")})
    with pytest.raises(MethodError, match=r"1 artifacts hold .* at most 100 are read"):
        run_stages(
            root, [pca, stage_of("tests.own_series", {}, series={"pca": [pca]})], serial, allowed=("tests",)
        )


def test_a_stage_without_a_series_is_written_as_before() -> None:
    stage = ResolvedStage(method="spectrum.pca", version=1, config={})
    assert stage.model_dump(mode="json").keys() == {"method", "version", "config", "rows", "artifacts"}
    assert ResolvedStage.model_validate(stage.model_dump(mode="json")) == stage


def test_names_of_many_sites_are_short() -> None:
    assert spanning(["a", "b", "a"]) == "a | b"
    assert spanning(list("abcdef")) == "a | 4 more | f"
