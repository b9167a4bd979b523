"""Stages over a network: the same numbers for any workers, resumed after a kill, with failed samples left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipelines.plan import make_plan
from pipelines.serial import run_serial
from pipelines.terminal import plan_line
from schemas.errors import SpecError
from schemas.run import RunSpec
from schemas.stage import NETWORK, RowsRef
from subspan import open_artifact
from tasks.engine import reduce
from tasks.engine.network import CapturedNetwork, NetworkPart
from tasks.store.location import Location
from tests import factories
from tests.pipelines.runs import artifact_bytes, vectors_run

HESSIAN: dict[str, Any] = {
    "method": "gradients.hessian",
    "config": {"components": 3, "tolerance": 1e-5, "max_rounds": 40},
}


def run_of(root: Path, n: int = 150, **request: Any) -> RunSpec:
    loss = {"kind": "classification", "label": "label"}
    return vectors_run(root, n, **{"loss": loss, "sites": [], "stages": {"curvature": HESSIAN}, **request})


def exact(keep: list[int], n: int = 150) -> np.ndarray:
    """Eigenvalues of the dense Hessian of the mean loss over some samples, by falling magnitude."""
    module, data = factories.squares().double(), factories.vectors(n)
    x = torch.stack([data[k][0] for k in keep]).double()
    label = torch.tensor([data[k][1] for k in keep])
    parameters = list(module.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(module(x), label), parameters, create_graph=True)
    flat = torch.cat([slope.flatten() for slope in slopes])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in flat]
    matrix = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]).numpy()
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    found: np.ndarray = values[np.argsort(-np.abs(values))]
    return found


def test_it_is_that_of_the_samples(tmp_path: Path) -> None:
    outcome = run_serial(run_of(tmp_path))
    (artifact,) = outcome.artifacts
    assert artifact.site == "network"
    view = open_artifact(tmp_path, artifact.id)
    assert view.result["n_samples"] == 150
    assert view.result["converged"]
    np.testing.assert_allclose(view.arrays["eigenvalue"], exact(list(range(150)))[:3], rtol=1e-4)


def test_failed_samples_are_left_out(tmp_path: Path) -> None:
    keep = {"parameters": ["last.*"], "keep": {"kind": "norms"}}
    run = run_of(tmp_path, network={"fragile": True}, parameter_gradients=keep)
    (artifact,) = run_serial(run).artifacts
    view = open_artifact(tmp_path, artifact.id)
    assert view.result["n_samples"] == 148
    kept = [k for k in range(150) if k not in (7, 11)]
    np.testing.assert_allclose(view.arrays["eigenvalue"], exact(kept)[:3], rtol=1e-4)


def test_threads_give_the_same_bytes(tmp_path: Path) -> None:
    (alone,) = run_serial(run_of(tmp_path / "alone")).artifacts
    run = run_of(tmp_path / "threads")
    execution = run.execution.model_copy(update={"cluster": "threads"})
    (beside,) = run_serial(run.model_copy(update={"execution": execution})).artifacts
    assert artifact_bytes(tmp_path / "threads", beside.id) == artifact_bytes(tmp_path / "alone", alone.id)


def test_a_stage_that_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (quiet,) = run_serial(run_of(tmp_path / "quiet")).artifacts
    real, rounds = reduce.advance, []

    def stopping(job: Any) -> Any:
        rounds.append(job.rounds[0][1].number)
        if len(rounds) == 4:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(reduce, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_serial(run_of(tmp_path / "stopped"))
    (resumed,) = run_serial(run_of(tmp_path / "stopped")).artifacts
    assert rounds[4] == 3  # not 0
    assert artifact_bytes(tmp_path / "stopped", resumed.id) == artifact_bytes(tmp_path / "quiet", quiet.id)


def test_a_capture_without_a_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has no loss"):
        make_plan(run_of(tmp_path, loss=None, sites=["first"]))


def test_the_density_of_a_transformer(tmp_path: Path) -> None:
    from tests.extract.nets import save

    run = RunSpec.model_validate(
        {
            "name": "lm",
            "root": str(tmp_path),
            "captures": {
                "lm": {
                    "model": {"name": save("gpt2", tmp_path / "gpt2", head=True), "head": "causal-lm"},
                    "data": {
                        "source": {"kind": "factory", "factory": "tests.pipelines.runs:token_sequences"}
                    },
                    "loss": {"kind": "lm"},
                }
            },
            "stages": {
                "density": {
                    "method": "gradients.spectral_density",
                    "config": {"probes": 2, "steps": 5, "parameters": ["transformer.h.*.mlp.**"]},
                }
            },
            "report": None,
        }
    )
    (artifact,) = run_serial(run).artifacts
    result = open_artifact(tmp_path, artifact.id).result
    assert result["steps"] == 5
    assert result["largest"] > 0


def test_gradients_in_the_leading_space(tmp_path: Path) -> None:
    keep = {"parameters": ["last.weight"], "keep": {"kind": "exact"}}
    curvature = {**HESSIAN, "config": {**HESSIAN["config"], "parameters": ["last.weight"]}}
    stages = {"curvature": curvature, "overlap": {"method": "gradients.hessian_overlap", "sites": "**:grad"}}
    outcome = run_serial(run_of(tmp_path, parameter_gradients=keep, stages=stages))
    assert not outcome.stage_failures
    view = open_artifact(tmp_path, outcome.artifacts[1].id)
    assert view.result["n_parameters"] == 8 * 16
    assert view.result["share"] > 10 * view.result["null"]
    assert np.isnan(view.arrays["step"]).all()  # samples, no steps of a training


DIMENSION: dict[str, Any] = {
    "method": "gradients.intrinsic_dimension",
    "config": {"dimensions": [2, 20], "steps": 12, "learning_rate": 0.05},
}


def test_training_in_subspaces_resumes_and_is_alike_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> RunSpec:
        return run_of(tmp_path / name, stages={"dimension": DIMENSION})

    (quiet,) = run_serial(run("quiet")).artifacts
    view = open_artifact(tmp_path / "quiet", quiet.id)
    assert view.result["n_trained"] + view.result["n_measured"] == 150
    assert view.arrays["full_history"][-1] < view.arrays["full_history"][0]
    real, rounds = reduce.advance, []

    def stopping(job: Any) -> Any:
        rounds.append(job.rounds[0][1].number)
        if len(rounds) == 7:
            raise KeyboardInterrupt
        return real(job)

    with monkeypatch.context() as patched:
        patched.setattr(reduce, "advance", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_serial(run("stopped"))
        (resumed,) = run_serial(run("stopped")).artifacts
    assert rounds[7] == 6
    assert artifact_bytes(tmp_path / "stopped", resumed.id) == artifact_bytes(tmp_path / "quiet", quiet.id)
    threads = run("threads")
    execution = threads.execution.model_copy(update={"cluster": "threads"})
    (beside,) = run_serial(threads.model_copy(update={"execution": execution})).artifacts
    assert artifact_bytes(tmp_path / "threads", beside.id) == artifact_bytes(tmp_path / "quiet", quiet.id)


@pytest.mark.parametrize("tied", [False, True])
def test_other_weights_are_those_of_a_network_with_them(tmp_path: Path, tied: bool) -> None:
    from tests.extract.nets import save

    model = {"name": save("gpt2", tmp_path / "gpt2", head=True), "head": "causal-lm"}
    data = {"source": {"kind": "factory", "factory": "tests.pipelines.runs:token_sequences"}}
    spec = {
        "name": "lm",
        "root": str(tmp_path),
        "captures": {"lm": {"model": model, "data": data, "loss": {"kind": "lm"}, "sites": []}},
        "report": None,
    }
    (capture,) = run_serial(RunSpec.model_validate(spec)).captures
    reference = RowsRef(capture=capture.id, digest=capture.id, site=NETWORK)
    part = NetworkPart(Location(str(tmp_path)), reference)
    network = CapturedNetwork(part, np.arange(4), "cpu")
    name = "transformer.wte.weight" if tied else "transformer.h.0.mlp.c_fc.weight"
    before = network.parameters[name].detach().clone()
    moved = before + 0.1 * torch.randn_like(before)
    for view in network.batches():
        found, at_start = view.losses(at={name: moved}).detach(), view.losses().detach()
        assert not torch.allclose(found, at_start)
        with torch.no_grad():
            network.parameters[name].copy_(moved)
        expected = view.losses().detach()
        with torch.no_grad():
            network.parameters[name].copy_(before)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(view.losses().detach(), at_start, rtol=0, atol=0)
        torch.testing.assert_close(view.loss_of(view.output(at={name: moved})).detach(), found)


def test_the_plan_says_that_no_time_is_known(tmp_path: Path) -> None:
    plan = make_plan(run_of(tmp_path))
    assert "1 of the artifacts send all samples through the network again" in plan_line(plan, None)
    done = tuple(stage.model_copy(update={"done": True}) for stage in plan.stages)
    assert "again" not in plan_line(plan.model_copy(update={"stages": done}), None)
