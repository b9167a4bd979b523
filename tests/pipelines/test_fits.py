"""What of a stage does not fit its captures is refused by the plan: tokens, widths, series, options, labels, classes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.plan import Plan, make_plan
from pipelines.serial import run_serial
from schemas.errors import MethodError, SubspanError
from schemas.run import RunSpec
from tests.extract.nets import save
from tests.pipelines.runs import vectors_run

FIRST, ACT, LAST = "first:out:0", "act:out:0", "last:out:0"


def refused(root: Path, match: str, error: type[SubspanError] = MethodError, **stages: Any) -> None:
    with pytest.raises(error, match=match):
        make_plan(vectors_run(root, n=20, stages=stages))
    assert not (root / "captures").exists()


def two_captures(root: Path, width: int, **stages: Any) -> RunSpec:
    """`small` and `other`, which has data and a network of its own width."""
    small, other = (vectors_run(root, n=20, network={"width": w}).model_dump(mode="json") for w in (8, width))
    capture = other["captures"]["vectors"]
    capture["data"]["source"]["arguments"]["width"] = width
    captures = {"small": small["captures"]["vectors"], "other": capture}
    return RunSpec.model_validate({**small, "captures": captures, "stages": stages})


def tokens(root: Path, network: str, label: str) -> Plan:
    source = {"kind": "factory", "factory": "tests.pipelines.runs:token_sequences"}
    capture = {"model": {"name": network}, "data": {"source": source}, "sites": ["residual"]}
    stages = {"nc": {"method": "geometry.neural_collapse", "config": {"label": label}}}
    spec = {
        "name": "tokens",
        "root": str(root),
        "captures": {"it": capture},
        "stages": stages,
        "report": None,
    }
    return make_plan(RunSpec.model_validate(spec))


@pytest.mark.parametrize("label", ["token", "next_token"])
def test_tokens_of_rows_that_are_none(tmp_path: Path, label: str) -> None:
    nc = {"method": "geometry.neural_collapse", "sites": "last", "config": {"label": label}}
    refused(tmp_path, rf"stage 'nc' at {LAST}: .* rows of space 'sample' are no tokens", nc=nc)
    assert len(tokens(tmp_path, save("gpt2", tmp_path / "net"), label).stages) > 1


def test_captures_of_different_width_read_as_one(tmp_path: Path) -> None:
    stages = {"pca": {"method": "spectrum.pca", "inputs": {"x": {"captures": ["small", "other"]}}}}
    match = rf"stage 'pca' at {FIRST}: \w+ {FIRST} has 12 features, \w+ {FIRST} has 16: .*one width"
    with pytest.raises(MethodError, match=match):
        make_plan(two_captures(tmp_path, 6, **stages))
    assert len(make_plan(two_captures(tmp_path, 8, **stages)).stages) == 3


def test_ports_that_the_method_takes_at_one_width_only(tmp_path: Path) -> None:
    ports = {"x": {"sites": "first"}, "y": {"sites": "last"}}
    refused(
        tmp_path,
        rf"stage 'it' at {FIRST} \| {LAST}: x and y have 16 and 8 features",
        it={"method": "geometry.dynamics", "inputs": ports},
    )
    made = make_plan(vectors_run(tmp_path, stages={"it": {"method": "geometry.cka", "inputs": ports}}))
    assert len(made.stages) == 1


def test_an_artifact_of_another_width(tmp_path: Path) -> None:
    pca = {"method": "spectrum.pca", "sites": "last"}
    into = {"method": "spectrum.project", "inputs": {"x": {"sites": "first"}, "basis": {"stage": "pca"}}}
    refused(
        tmp_path,
        rf"'into' at {FIRST}: port 'basis' .* one width, found features 8 at \w+ {LAST}, 16 at \w+ {FIRST}",
        pca=pca,
        into=into,
    )
    into["inputs"] = {"x": {"sites": "last"}, "basis": {"stage": "pca"}}
    assert len(make_plan(vectors_run(tmp_path, stages={"pca": pca, "into": into})).stages) == 2


@pytest.mark.parametrize(
    ("captures", "made_at", "scored_at", "what"),
    [
        (("small", "small"), "first", "act", rf"\w+ {FIRST} \(weights \w+\) and \w+ {ACT} .* in the site"),
        (
            ("small", "other"),
            "first",
            "first",
            rf"\w+ {FIRST} \(weights \w+\) and \w+ {FIRST} .* in the network",
        ),
        (("small", "small"), "first", "first", None),
    ],
)
def test_a_detector_of_another_network_or_site(
    tmp_path: Path, captures: tuple[str, str], made_at: str, scored_at: str, what: str | None
) -> None:
    basis, scored = captures
    stages = {
        "pca": {"method": "spectrum.pca", "inputs": {"x": {"captures": [basis], "sites": made_at}}},
        "scores": {
            "method": "anomaly.residual",
            "inputs": {"x": {"captures": [scored], "sites": scored_at}, "basis": {"stage": "pca"}},
        },
    }
    run = two_captures(tmp_path, 8, **stages)
    other = run.captures["other"]
    others = other.model_copy(
        update={"model": other.model.model_copy(update={"arguments": {"width": 8, "seed": 1}})}
    )
    run = run.model_copy(update={"captures": {**run.captures, "other": others}})
    if what is None:
        assert len(make_plan(run).stages) == 2
        return
    with pytest.raises(MethodError, match=what):
        make_plan(run)


def test_a_series_of_one_or_of_two_widths(tmp_path: Path) -> None:
    pca, mean = {"method": "spectrum.pca", "sites": "last"}, {"method": "geometry.flag_mean"}
    refused(
        tmp_path,
        rf"stage 'mean' at {LAST}: port 'pca' .* takes 2 artifacts or more, found 1: \w+ {LAST}; give",
        pca=pca,
        mean=mean,
    )
    both = {**pca, "sites": "*st"}
    refused(tmp_path, rf"16 at \w+ {FIRST}, 8 at \w+ {LAST}; connect", pca=both, mean=mean)
    distances = {"method": "geometry.subspace_distances"}  # takes several widths
    plan = make_plan(vectors_run(tmp_path, stages={"pca": both, "distances": distances}))
    assert len(plan.stages) == 3


def test_more_components_than_features(tmp_path: Path) -> None:
    pca = {"method": "spectrum.pca", "config": {"components": 9}}
    refused(tmp_path, rf"'pca' at {LAST}: asked for 9 components, but the site has 8 features", pca=pca)
    wide = {"pca": {**pca, "sites": "first"}}
    assert len(make_plan(vectors_run(tmp_path, stages=wide)).stages) == 1


def test_a_class_that_the_label_has_not(tmp_path: Path) -> None:
    axis = {"method": "geometry.semantic_axes", "config": {"pole": "label", "low": "0", "high": "5"}}
    refused(tmp_path, r"stage 'axis' at first.*label 'label' has no class '5'; nearest: 0, 1, 2", axis=axis)
    axis["config"] = {"pole": "label", "low": "0", "high": "2"}
    assert len(make_plan(vectors_run(tmp_path, stages={"axis": axis})).stages) == 3


def states(root: Path, stage: dict[str, Any], *fuse: dict[str, Any]) -> RunSpec:
    return vectors_run(root, n=40, keep="states", fuse=list(fuse), sites=["first"], stages={"it": stage})


def test_a_stage_on_states_alone_names_the_entry_that_makes_its_own(tmp_path: Path) -> None:
    """The entry that is told, added, is enough; so is another method with the same state."""
    pca, collapse = (
        {"method": "spectrum.pca"},
        {"method": "geometry.rate_reduction", "config": {"label": "label"}},
    )
    told = rf"stage 'it' at {FIRST}: .* states of spectrum.pca, no rows.*; add (\{{.*\}}) to its `fuse`, or"
    with pytest.raises(MethodError, match=told) as error:
        make_plan(states(tmp_path, collapse, pca))
    found = re.search(told, str(error.value))
    assert found is not None
    entry = yaml.safe_load(found[1])
    assert entry == collapse
    assert run_serial(states(tmp_path, collapse, pca, entry)).exit_code == 0
    assert make_plan(states(tmp_path, {"method": "spectrum.summary"}, pca)).stages
    with pytest.raises(
        MethodError, match=r"neighbours cannot be fused, because it is of kind pairs: capture with"
    ):
        make_plan(states(tmp_path, {"method": "geometry.neighbours"}, pca))
