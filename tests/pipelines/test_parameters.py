"""Methods that read weights of the network beside rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.capture import CaptureSpec, MethodCall
from schemas.errors import MethodError, UnknownNameError
from schemas.layout import UnitRef
from schemas.model import Model, RecordedModel, TransformersModel
from subspan import open_artifact, open_capture
from tasks.engine import Fusion
from tasks.engine.parameters import load_parameters, wanted
from tasks.extract.models import network
from tasks.store.location import Location
from tests import factories, weighted_method
from tests.extract.nets import save
from tests.helpers import make_capture
from tests.pipelines.runs import vectors_run

METHOD = "tests.weighted_method"


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSPAN_METHOD_PACKAGES", "tests")


def spec_of(root: Path, model: Model) -> CaptureSpec:
    """A capture that says it is of that network."""
    spec = make_capture(Location(str(root)), {"a": np.zeros((4, 2))})
    digest = "recorded" if isinstance(model, RecordedModel) else network(model).digest
    return spec.model_copy(
        update={"request": spec.request.model_copy(update={"model": model}), "weights": digest}
    )


def test_the_weight_of_the_site_itself(tmp_path: Path) -> None:
    sites = ["first:in", "last:in"]
    outcome = run_serial(vectors_run(tmp_path, 40, sites=sites, stages={"mean": {"method": METHOD}}))
    assert not outcome.stage_failures
    rows, net = open_capture(tmp_path, outcome.captures[0].id), factories.squares()
    for artifact in outcome.artifacts:
        view = open_artifact(tmp_path, artifact.id)
        layer: Any = net.get_submodule(artifact.site.partition(":")[0])
        mean = np.asarray(rows.site(artifact.site)["activation"], dtype=np.float64).mean(0)
        expected = layer.weight.detach().double().numpy() @ mean
        np.testing.assert_allclose(view.arrays["mean"], expected, rtol=1e-10)


def test_a_name_that_the_network_has_not_is_refused_in_the_plan(tmp_path: Path) -> None:
    stages = {"mean": {"method": METHOD, "config": {"weight": "{module}.weigth"}}}
    with pytest.raises(UnknownNameError, match=r"stage 'mean' at first.*'first.weigth'.*first.weight"):
        make_plan(vectors_run(tmp_path, 40, sites=["first:in"], stages=stages))


def test_names_at_sites() -> None:
    config = weighted_method.Config()
    for site, expected in (
        ("encoder.0.out:in:0", "encoder.0.out.weight"),
        ("encoder.0.out:out:1#0:grad", "encoder.0.out.weight"),
        ("encoder.0.bias:grad", "encoder.0.weight"),
        ("weight:update", "weight"),
        (":out:0", "weight"),
    ):
        assert wanted(weighted_method, config, site) == {"{module}.weight": expected}


def test_names_of_neighbours() -> None:
    """Of what stands beside the site's module, and beside what holds it."""
    names = ("{module}.bias", "{parent}.key.weight", "{grandparent}.output.dense.weight")
    for site, expected in (
        (
            "l.0.attention.self.query:in:0",
            ("l.0.attention.self.query", "l.0.attention.self", "l.0.attention"),
        ),
        ("l.self.query.bias:grad", ("l.self.query", "l.self", "l")),
        ("self.query:in:0", ("self.query", "self", "")),
        (":out:0", ("", "", "")),
    ):
        found = [wanted(weighted_method, weighted_method.Config(weight=name), site)[name] for name in names]
        ends = (".bias", ".key.weight", ".output.dense.weight")
        assert found == [(path + end).lstrip(".") for path, end in zip(expected, ends, strict=True)]


def test_steps_of_a_training_have_no_network(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"a\.weight.*recorded steps.*connect a capture of the network"):
        load_parameters([spec_of(tmp_path, RecordedModel())], {"w": "a.weight"})


def test_captures_of_two_networks_are_refused(tmp_path: Path) -> None:
    spec = make_capture(Location(str(tmp_path)), {"a": np.zeros((4, 2))})
    other = spec.model_copy(update={"weights": "another"})
    with pytest.raises(MethodError, match="2 captures are of different networks"):
        load_parameters([spec, other], {"w": "a.weight"})


def test_linear_maps_are_outputs_by_inputs_and_tied_ones_have_both_names(tmp_path: Path) -> None:
    model = TransformersModel(name=save("gpt2", tmp_path / "gpt2", head=True), head="causal-lm")
    spec, net = spec_of(tmp_path, model), network(model).module
    names = ["transformer.h.0.mlp.c_fc.weight", "transformer.wte.weight", "lm_head.weight"]
    found = load_parameters([spec], {name: name for name in names})
    stored: Any = net.get_submodule("transformer.h.0.mlp.c_fc")
    width = net.config.n_embd
    assert found[names[0]].shape == (4 * width, width)
    x = torch.randn(3, width)
    torch.testing.assert_close(x @ found[names[0]].T + stored.bias, stored(x))
    assert torch.equal(found["lm_head.weight"], found["transformer.wte.weight"])


def test_they_are_not_there_while_rows_are_captured(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    spec = make_capture(root, {"a": np.zeros((16, 2))})
    with pytest.raises(MethodError, match="reads weights of the network"):
        Fusion([MethodCall(method=METHOD)], root, spec, UnitRef(space="tokens", index=0), allowed=("tests",))
