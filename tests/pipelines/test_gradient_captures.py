"""Captures of gradients: what lies in the store is what plain autograd gives, sample by sample, however the units ran."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipelines.cluster import DaskDriver, open_client
from pipelines.plan import make_plan
from pipelines.resolve import prepare
from pipelines.serial import run_serial
from pipelines.terminal import show_plan
from schemas.capture import CaptureRequest
from schemas.errors import ModelError, SpecError, UnknownNameError
from schemas.execution import Execution
from schemas.run import RunSpec
from subspan import open_artifact, open_capture
from tasks.extract import backward
from tasks.extract.gradients import sample_gradients
from tasks.produce import run_capture
from tasks.store.location import Location
from tasks.store.receipts import read_receipts
from tests import factories
from tests.extract.nets import save
from tests.pipelines.runs import TOKEN_LENGTHS, finished, store_bytes, tokens_of, vectors_run

CLASSES = {"kind": "classification", "label": "label"}
SMALL = {"kind": "kronecker", "dimension": 4}
TOKENS = {"kind": "factory", "factory": "tests.pipelines.runs:token_sequences"}


def vectors(root: Path, n: int = 50, **request: Any) -> RunSpec:
    return vectors_run(
        root, n, **{"loss": CLASSES, "sites": [], "parameter_gradients": {"keep": SMALL}, **request}
    )


def texts(root: Path, folder: Path, **request: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": "texts",
            "root": str(root),
            "captures": {
                "texts": {
                    "model": {"name": save("gpt2", folder, head=True), "head": "causal-lm"},
                    "data": {"source": TOKENS},
                    "loss": {"kind": "lm"},
                    "batch_tokens": 60,
                    "store": {"shard_rows": 16, "chunk_rows": 8},
                    **request,
                }
            },
            "report": None,
        }
    )


def captured(run: RunSpec) -> Any:
    outcome = run_serial(run)
    return open_capture(run.root, outcome.captures[0].id)


def loop(module: nn.Module, losses: list[Tensor]) -> dict[str, Tensor]:
    """Parameter to [sample, entry]."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    rows = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses]
    return {
        name: torch.stack([(torch.zeros_like(p) if row[n] is None else row[n]).flatten() for row in rows])
        for n, (name, p) in enumerate(zip(names, parameters, strict=True))
    }


def assert_rows(found: np.ndarray, expected: Tensor, tolerance: float = 1e-5) -> None:
    difference = np.linalg.norm(found - expected.detach().numpy(), axis=1)
    norms = np.linalg.norm(expected.detach().numpy(), axis=1)
    assert (difference <= tolerance * np.maximum(norms, 1e-3 * norms.max(initial=1e-12))).all()


def plain_vectors(n: int) -> dict[str, Tensor]:
    module, data = factories.squares(), factories.vectors(n)
    losses = [F.cross_entropy(module(data[k][0][None]), torch.tensor([data[k][1]])) for k in range(n)]
    return loop(module, losses)


def test_every_parameter_is_that_of_a_loop(tmp_path: Path) -> None:
    found = captured(vectors(tmp_path, parameter_gradients={"keep": {"kind": "exact"}}))
    expected = plain_vectors(50)
    assert set(found.sites) == {f"{name}:grad" for name in expected}
    for name, rows in expected.items():
        here = found.site(f"{name}:grad")
        assert_rows(here["parameter_gradient"].values, rows)
        assert here["parameter_gradient"].attrs["shape"] == list(
            factories.squares().get_parameter(name).shape
        )
        assert here["key"].values.tolist() == found.samples.index.tolist()


def test_texts_match_a_loop(tmp_path: Path) -> None:
    run = texts(
        tmp_path / "out",
        tmp_path / "gpt2",
        sites=["transformer.h.*", "transformer.wte", "transformer.ln_f"],
        quantities=["activation", "activation_gradient"],
        parameter_gradients={"keep": {"kind": "exact"}},
    )
    found = captured(run)
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2").eval()
    losses, states = [], []
    for n in range(len(TOKEN_LENGTHS)):
        ids = tokens_of(n)[None]
        out = module(ids, output_hidden_states=True, use_cache=False)
        losses.append(F.cross_entropy(out.logits[0, :-1], ids[0, 1:], reduction="sum"))
        states.append(out.hidden_states)
    for name, rows in loop_keep(module, losses).items():
        assert_rows(found.site(f"{name}:grad")["parameter_gradient"].values, rows, 2e-5)
    gradients = [
        torch.autograd.grad(loss, s[1], retain_graph=True)[0][0]
        for loss, s in zip(losses, states, strict=True)
    ]
    block = found.site("transformer.h.0:out:0:grad")
    assert_rows(block["activation_gradient"].values, torch.cat(gradients), 1e-4)
    assert_rows(block["activation"].values, torch.cat([s[1][0] for s in states]), 1e-5)
    assert block["sample"].values.tolist() == np.repeat(np.arange(len(TOKEN_LENGTHS)), TOKEN_LENGTHS).tolist()


def loop_keep(module: nn.Module, losses: list[Tensor]) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    return {name: torch.stack([row[n].flatten() for row in rows]) for n, name in enumerate(names)}


def test_a_module_names_its_activations_and_norms_name_their_parameters(tmp_path: Path) -> None:
    keep = {"parameter_gradients": {"keep": {"kind": "norms"}}, "sites": ["first", "last"]}
    found = captured(vectors(tmp_path, 20, quantities=["activation", "activation_gradient"], **keep))
    assert "activation" in found.site("first")
    with pytest.raises(UnknownNameError, match="no site 'middle'"):
        found.site("middle")
    norms = found.site(":norm")
    expected = plain_vectors(20)
    assert norms["parameter"].values.tolist() == list(expected)
    for name, rows in expected.items():
        one = norms["gradient_norm"].values[:, norms["parameter"].values.tolist().index(name)]
        np.testing.assert_allclose(one, rows.norm(dim=1), rtol=1e-5)


def test_a_name_of_several_gradients_is_refused(tmp_path: Path) -> None:
    run = vectors(tmp_path, 20, sites=["first"], quantities=["activation_gradient"], parameter_gradients=None)
    assert "activation_gradient" in captured(run).site("first")
    ways = {"quantities": ["activation_gradient"], "sites": ["first:in:0", "first:out:0"]}
    both = captured(vectors(tmp_path / "both", 20, parameter_gradients=None, **ways))
    with pytest.raises(
        UnknownNameError, match=r"2 sites 'first': first:in:0:grad, first:out:0:grad; say which"
    ):
        both.site("first")


def test_no_batch_is_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with sites in the same pass, whose gradients open the graph elsewhere."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a batch was looked at again")

    monkeypatch.setattr(sample_gradients, "rows_astray", refuse)
    both = {"quantities": ["activation", "activation_gradient"]}
    captured(vectors(tmp_path / "vectors", sites=["first"], **both))
    captured(texts(tmp_path / "texts", tmp_path / "gpt2", sites=["transformer.h.*"], **both))
    kept = {"parameter_gradients": {"keep": SMALL}}
    captured(texts(tmp_path / "kept", tmp_path / "gpt2", sites=["transformer.h.*"], **both, **kept))


def test_gradients_of_activations_that_are_written_into_what_parameters_made(tmp_path: Path) -> None:
    """Where sites are watched, the graph is that of the network alone."""
    model = {"kind": "factory", "factory": f"{__name__}:slots"}
    kept = {"parameter_gradients": {"keep": {"kind": "exact"}}, "sites": ["layer"]}
    found = captured(vectors(tmp_path, 50, model=model, quantities=["activation_gradient"], **kept))
    module, data = slots(), factories.vectors(50)
    outputs: list[Tensor] = []
    module.layer.register_forward_hook(lambda _module, _inputs, out: outputs.append(out))
    losses = [F.cross_entropy(module(data[k][0][None]), torch.tensor([data[k][1]])) for k in range(50)]
    rows = torch.cat(
        [
            torch.autograd.grad(loss, out, retain_graph=True)[0]
            for loss, out in zip(losses, outputs, strict=True)
        ]
    )
    assert bool(rows.any(1).all())
    assert_rows(found.site("layer:out:0:grad")["activation_gradient"].values, rows)
    for name, expected in loop(module, losses).items():
        assert_rows(found.site(f"{name}:grad")["parameter_gradient"].values, expected)


class Slots(nn.Module):
    """A learned row for each sample, of which a part is overwritten in samples that the plan does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = nn.Parameter(torch.randn(1, 8))
        self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.slot.repeat_interleave(len(x), 0)
        given, late = self.layer(x / 50), x.detach()[:, 0] > 20
        if bool(late.any()):
            rows[late, :2] = given[late, :2].tanh()
        out: Tensor = self.last(rows.tanh() + given)
        return out


def slots() -> Any:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Slots()


def test_samples_in_another_order_in_some_batches(tmp_path: Path) -> None:
    model = {"kind": "factory", "factory": f"{__name__}:turning"}
    found = captured(vectors(tmp_path, 200, model=model, parameter_gradients={"keep": {"kind": "exact"}}))
    assert found.spec.layout.gradients.looped == {}
    receipts = read_receipts(Location(str(tmp_path)), found.id)
    assert {"middle.weight", "middle.bias"} in [set(receipt.looped) for receipt in receipts.values()]
    module, data = turning(), factories.vectors(200)
    losses = [F.cross_entropy(module(data[k][0][None]), torch.tensor([data[k][1]])) for k in range(200)]
    for name, rows in loop(module, losses).items():
        assert_rows(found.site(f"{name}:grad")["parameter_gradient"].values, rows)


class Turning(nn.Module):
    """Takes samples from last to first where the first is large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        turn = float(x[0, 0]) > 50
        rows = self.first(x).tanh()
        rows = self.middle(rows.flip(0)).flip(0) if turn else self.middle(rows)
        out: Tensor = self.last(rows.tanh())
        return out


def turning() -> nn.Module:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Turning()


@pytest.mark.parametrize("keep", ["kronecker", "global", "sketch", "factors", "norms"])
def test_every_form_has_its_arrays(keep: str, tmp_path: Path) -> None:
    options = {"kronecker": {"dimension": 4}, "global": {"dimension": 16}, "sketch": {"dimension": 32}}
    run = vectors(tmp_path, parameter_gradients={"keep": {"kind": keep, **options.get(keep, {})}})
    found, exact = captured(run), plain_vectors(50)
    if keep == "norms":
        norms = found.site(":norm")["gradient_norm"]
        assert norms.attrs["features"] == list(exact)
        np.testing.assert_allclose(
            norms.values, torch.stack([r.norm(dim=1) for r in exact.values()], 1).detach().numpy(), rtol=1e-5
        )
    elif keep in ("global", "sketch"):
        assert found.sites == (":grad",)
        assert found.site(":grad")["parameter_gradient"].shape == (50, options[keep]["dimension"])
    else:
        assert set(found.sites) == {f"{name}:grad" for name in exact}


@pytest.mark.alone
def test_one_or_two_workers_threads_and_a_resumed_run_give_equal_bytes(tmp_path: Path) -> None:
    request = {"sites": ["first"], "quantities": ["activation", "activation_gradient"]}
    alone = vectors(tmp_path / "alone", n=200, **request)
    capture = run_serial(alone).captures[0].id
    expected = store_bytes(tmp_path / "alone", capture)
    threads = vectors(tmp_path / "threads", n=200, **request)
    execution = threads.execution.model_copy(update={"cluster": "threads"})
    run_serial(threads.model_copy(update={"execution": execution}))
    assert store_bytes(tmp_path / "threads", capture) == expected
    prepared = prepare(next(iter(alone.captures.values())), None)
    with open_client(Execution(cluster="processes", workers=2, device="cpu"), 1, "cpu") as client:
        run_capture(
            Location(str(tmp_path / "two")), prepared.spec, lambda: prepared.table, DaskDriver(client)
        )
    assert store_bytes(tmp_path / "two", capture) == expected


@pytest.mark.alone
def test_a_killed_capture_goes_on_where_it_was(tmp_path: Path) -> None:
    network = {"pause": 0.05}
    quiet = vectors(tmp_path / "quiet", n=300, network=network)
    capture = run_serial(quiet).captures[0].id
    run = vectors(tmp_path / "killed", n=300, network=network)
    file = tmp_path / "run.json"
    file.write_text(run.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from schemas.run import RunSpec; from pipelines.serial import run_serial; "
        "run_serial(RunSpec.model_validate_json(Path(sys.argv[1]).read_text()))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(file)])
    folder = tmp_path / "killed" / "captures" / f"{capture}.receipts"
    while process.poll() is None and not (folder.exists() and len(list(folder.glob("sample-*.json"))) > 2):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    spec = make_plan(run).captures[0].spec
    before = finished(tmp_path / "killed", spec)
    assert before
    again = run.execution.model_copy(update={"take_over_lease": True})
    run_serial(run.model_copy(update={"execution": again}))
    after = finished(tmp_path / "killed", spec)
    assert {path: after[path] for path in before} == before
    assert store_bytes(tmp_path / "killed", capture) == store_bytes(tmp_path / "quiet", capture)


def test_samples_that_raise_or_give_no_number_are_named(tmp_path: Path) -> None:
    run = vectors(tmp_path, network={"fragile": True}, parameter_gradients={"keep": {"kind": "exact"}})
    found = captured(run)
    assert [f.sample for f in found.failures] == [7, 11]
    assert "NaN or infinite" in found.failures[1].reason
    rows = found.site("first.weight:grad")["parameter_gradient"].values
    assert np.isnan(rows[[7, 11]]).all()
    kept = [n for n in range(50) if n not in (7, 11)]
    assert_rows(rows[kept], plain_vectors(50)["first.weight"][kept])


def test_the_receipt_tells_how_exact_gradients_are(tmp_path: Path) -> None:
    run = vectors(tmp_path)
    capture = run_serial(run).captures[0].id
    first = min(read_receipts(Location(str(tmp_path)), capture).items())[1]
    assert first.max_gradient_error is not None
    assert first.max_gradient_error < 1e-5
    assert first.looped == ()


def test_a_capture_of_a_loss_alone_keeps_its_samples(tmp_path: Path) -> None:
    found = captured(vectors(tmp_path, parameter_gradients=None))
    assert found.sites == ()
    assert len(found.samples) == 50


def test_stages_read_gradients(tmp_path: Path) -> None:
    run = vectors(
        tmp_path,
        sites=["first"],
        quantities=["activation", "activation_gradient"],
        stages={
            "weights": {"method": "spectrum.summary", "sites": "*.weight:grad"},
            "there": {"method": "spectrum.summary", "sites": "first:out:0:grad"},
            "values": {"method": "spectrum.summary", "sites": "first"},
        },
    )
    outcome = run_serial(run)
    assert sorted(stage.site for stage in outcome.artifacts) == [
        "first.weight:grad", "first:out:0", "first:out:0:grad", "last.weight:grad",
    ]  # fmt: skip


def test_a_named_artifact_of_one_site_serves_others(tmp_path: Path) -> None:
    run = vectors(
        tmp_path,
        sites=["first:in"],
        parameter_gradients={"parameters": ["first.weight"], "keep": {"kind": "exact"}},
        stages={
            "inputs": {"method": "spectrum.pca", "sites": "first:in"},
            "overlap": {
                "method": "gradients.update_activation_overlap",
                "inputs": {"x": {"sites": "first.weight:grad"}, "activations": {"stage": "inputs"}},
            },
        },
    )
    outcome = run_serial(run)
    assert not outcome.stage_failures
    result = open_artifact(tmp_path, outcome.artifacts[1].id).result
    assert (result["outputs"], result["inputs"], result["n_rows"]) == (16, 8, 50)


class TestRefusals:
    def test_a_label_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownNameError, match="no label 'labels'; nearest: label"):
            make_plan(vectors(tmp_path, loss={"kind": "classification", "label": "labels"}))

    def test_gradients_of_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValidationError, match="no loss"):
            vectors(tmp_path, loss=None)

    def test_a_parameter_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownNameError, match=r"first\.weight"):
            make_plan(vectors(tmp_path, parameter_gradients={"parameters": ["frist.weight"], "keep": SMALL}))

    def test_a_frozen_parameter(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = {"kind": "factory", "factory": f"{__name__}:half_frozen"}
        with pytest.raises(ModelError, match=r"first\.weight is frozen"):
            make_plan(
                vectors(tmp_path, model=model, parameter_gradients={"parameters": ["first.*"], "keep": SMALL})
            )
        plan = make_plan(vectors(tmp_path, model=model))
        assert [str(site.site) for site in plan.captures[0].spec.layout.sites] == [
            "last.weight:grad",
            "last.bias:grad",
        ]
        show_plan(plan)
        assert "parameters left out: frozen" in capsys.readouterr().out
        layout = plan.captures[0].spec.layout.gradients
        assert layout is not None
        assert layout.frozen == ("first.weight", "first.bias")

    def test_a_language_model_without_its_head(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="has no language model's head"):
            make_plan(texts(tmp_path, tmp_path / "gpt2", model={"name": save("gpt2", tmp_path / "gpt2")}))

    def test_a_loss_that_is_no_number_per_sample(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="one number for each"):
            make_plan(vectors(tmp_path, loss={"kind": "factory", "function": f"{__name__}:mean_of_all"}))

    @pytest.mark.parametrize("loss", ["shared_out", "contrasted", "contrasted_far_up"])
    @pytest.mark.parametrize("parameters", [{"keep": SMALL}, None])
    def test_a_loss_that_mixes_samples(self, loss: str, parameters: Any, tmp_path: Path) -> None:
        run = vectors(
            tmp_path,
            loss={"kind": "factory", "function": f"{__name__}:{loss}"},
            parameter_gradients=parameters,
            sites=["first"],
            quantities=["activation_gradient"],
        )
        with pytest.raises(ModelError, match="so that no sample has a gradient of its own"):
            make_plan(run)

    @pytest.mark.parametrize("parameters", [{"keep": SMALL}, None])
    def test_a_loss_that_raises(self, parameters: Any, tmp_path: Path) -> None:
        loss = {"kind": "factory", "function": f"{__name__}:no_such_key", "arguments": {"scale": 2}}
        run = vectors(tmp_path, loss=loss, parameter_gradients=parameters)
        said = r"no_such_key raised KeyError: 'digit'; it was called with a tensor of shape \(3, 8\), .*3 samples and the arguments scale"
        with pytest.raises(ModelError, match=said):
            make_plan(run)

    def test_a_compiled_network(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="compiled"):
            make_plan(vectors(tmp_path, model={"kind": "factory", "factory": f"{__name__}:compiled"}))

    def test_statistics_of_the_batch(self, tmp_path: Path) -> None:
        model = {"kind": "factory", "factory": f"{__name__}:batch_statistics"}
        with pytest.raises(ModelError, match="takes each alone, without statistics of the batch"):
            make_plan(vectors(tmp_path, model=model))

    def test_a_projection_that_is_larger_than_the_gradient(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="dimension"):
            make_plan(vectors(tmp_path, parameter_gradients={"keep": {"kind": "kronecker", "dimension": 64}}))

    def test_the_loss_changed_since_the_plan(self, tmp_path: Path) -> None:
        run = vectors(tmp_path, loss={"kind": "factory", "function": f"{__name__}:first_output"})
        spec = make_plan(run).captures[0].spec
        assert spec.layout.gradients is not None
        assert len(spec.layout.gradients.loss_digest) == 64
        other = make_plan(
            vectors(tmp_path, loss={"kind": "factory", "function": f"{__name__}:second_output"})
        )
        assert other.captures[0].id != spec.id


@pytest.mark.parametrize("source", ["global", "own", "forked", "numpy"])
def test_a_network_that_draws_random_numbers_is_not_taken_for_one_that_mixes(
    source: str, tmp_path: Path
) -> None:
    model = {"kind": "factory", "factory": f"{__name__}:noisy", "arguments": {"source": source}}
    layout = make_plan(vectors(tmp_path, model=model)).captures[0].spec.layout.gradients
    assert layout is not None
    assert set(layout.looped) == {"weight", "bias"}


@pytest.mark.parametrize("kind", ["batch", "loss", "time first", "one by one", "checkpoint"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_samples_that_meet_are_found_beside_random_numbers(kind: str, noise: float, tmp_path: Path) -> None:
    model = {"kind": "factory", "factory": f"{__name__}:meeting", "arguments": {"kind": kind, "noise": noise}}
    loss = {
        "kind": "factory",
        "function": f"{__name__}:{'apart' if kind in ('batch', 'checkpoint') else 'hidden_in_time'}",
    }
    with pytest.raises(ModelError, match="so that no sample has a gradient of its own"):
        make_plan(vectors(tmp_path, model=model, loss=loss))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_samples_second_is_no_meeting(noise: float, tmp_path: Path) -> None:
    model = {
        "kind": "factory",
        "factory": f"{__name__}:meeting",
        "arguments": {"kind": "time first", "noise": noise},
    }
    make_plan(vectors(tmp_path, model=model, loss={"kind": "factory", "function": f"{__name__}:apart"}))


class Meeting(nn.Module):
    """Rows of samples that are disturbed, beside their mean, with positions before samples, or one by one."""

    def __init__(self, kind: str, noise: float) -> None:
        super().__init__()
        self.kind, self.noise = kind, noise
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.noise * torch.randn_like(x)
        if self.kind == "one by one":
            return torch.stack([self.layer(v) for v in x])[None]
        if self.kind == "checkpoint":
            x = checkpoint(self.layer, x, use_reentrant=False)
        rows = self.layer(x) + torch.ones(2, 1, 1) if self.kind == "time first" else self.layer(x)[None]
        return rows - rows.mean(1, keepdim=True) if self.kind in ("batch", "checkpoint") else rows


def meeting(kind: str, noise: float) -> nn.Module:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Meeting(kind, noise)


@pytest.mark.parametrize("kind", ["positions", "words"])
def test_numbers_that_samples_share_are_no_meeting(kind: str, tmp_path: Path) -> None:
    model = {"kind": "factory", "factory": f"{__name__}:sharing", "arguments": {"kind": kind}}
    make_plan(vectors(tmp_path, model=model, loss={"kind": "factory", "function": f"{__name__}:as_squares"}))


class Sharing(nn.Module):
    """Adds learned positions, or every word once."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer, self.words = nn.Linear(8, 8), nn.Embedding(50, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "positions":
            return self.layer(x) + self.words(torch.arange(2)).mean(0)
        words, places = (x[:, :2].abs() * 7).long().remainder(50).unique(return_inverse=True)
        return self.layer(x) + self.words(words)[places].sum(1)


def sharing(kind: str) -> nn.Module:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Sharing(kind)


def as_squares(output: Tensor, batch: Any) -> Tensor:
    """Each sample by itself."""
    return output.square().sum(1)


def apart(output: Tensor, batch: Any) -> Tensor:
    """Of outputs [position, sample, feature]."""
    return output.square().sum((0, 2))


def hidden_in_time(output: Tensor, batch: Any) -> Tensor:
    """Each sample against those of its batch, beside a number that hides it."""
    return contrasted(output.mean(0), batch) + 1e6


class Noisy(nn.Linear):
    """A layer whose input is disturbed."""

    def __init__(self, source: str) -> None:
        super().__init__(8, 8)
        self.source = source
        self.generator = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.noise(x))

    def noise(self, x: Tensor) -> Tensor:
        if self.source == "numpy":
            return torch.from_numpy(self.numpy.standard_normal(tuple(x.shape))).to(x)
        if self.source == "own":
            return torch.randn(x.shape, generator=self.generator)
        if self.source == "forked":
            with torch.random.fork_rng():
                return torch.randn_like(x)
        return torch.randn_like(x)


def noisy(source: str) -> nn.Module:
    """The network; its own generators start anew where it is made."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Noisy(source)


def test_outputs_of_samples_in_another_order_are_no_matter_of_the_loss(tmp_path: Path) -> None:
    model = {"kind": "factory", "factory": f"{__name__}:sorting"}
    loss = {"kind": "factory", "function": f"{__name__}:first_of_all"}
    make_plan(vectors(tmp_path, model=model, loss=loss))


class Sorting(nn.Module):
    """Sorts its samples, and gives the sorted rows beside those in the order of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        order = (-x[:, 0]).argsort()
        rows = self.layer(x[order])
        return rows[order.argsort()], rows


def sorting() -> nn.Module:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Sorting()


def first_of_all(output: tuple[Tensor, Tensor], batch: Any) -> Tensor:
    """Of the rows in the order of the batch."""
    return output[0].square().sum(1)


@pytest.mark.parametrize("kind", ["one number each", "whole numbers too", "nothing trained"])
def test_networks_of_which_no_sample_meets_another(kind: str, tmp_path: Path) -> None:
    model = {"kind": "factory", "factory": f"{__name__}:single", "arguments": {"kind": kind}}
    loss = {"kind": "factory", "function": f"{__name__}:as_given"}
    given = {"sites": ["layer"], "quantities": ["activation_gradient"], "parameter_gradients": None}
    captured(vectors(tmp_path, model=model, loss=loss, **given))


class Single(nn.Module):
    """One number for each sample."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        if kind == "whole numbers too":
            self.counts = nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)
        if kind == "nothing trained":
            self.layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))[:, 0]


def single(kind: str) -> nn.Module:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Single(kind)


def as_given(output: Tensor, batch: Any) -> Tensor:
    """The output is the loss."""
    return output


def test_losses_next_to_nothing_are_not_taken_for_mixed(tmp_path: Path) -> None:
    model = {"kind": "factory", "factory": f"{__name__}:returning"}
    make_plan(vectors(tmp_path, model=model, loss={"kind": "mse"}))


class Returning(nn.Module):
    """An autoencoder that gives back what it is given, to rounding."""

    def __init__(self) -> None:
        super().__init__()
        turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).Q
        self.turn = nn.Parameter(turn)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.turn), self.turn.T.contiguous())


def returning() -> nn.Module:
    """The network."""
    return Returning()


def test_a_filter_of_complex_numbers_is_kept_and_looked_at(tmp_path: Path) -> None:
    run = vectors(
        tmp_path,
        model={"kind": "factory", "factory": f"{__name__}:filtering"},
        parameter_gradients={"keep": {"kind": "exact"}},
    )
    found = captured(run).site("filter:grad")["parameter_gradient"].values
    module, data = filtering(), factories.vectors(50)
    losses = [F.cross_entropy(module(data[k][0][None]), torch.tensor([data[k][1]])) for k in range(50)]
    assert_rows(found.reshape(50, -1), loop(module, losses)["filter"], 1e-5)


class Filtering(nn.Module):
    """Learns which frequencies pass, as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
        self.filter = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(self.filter), n=8)


def filtering() -> nn.Module:
    """The network."""
    return Filtering()


def test_what_goes_wrong_in_a_unit_is_seen_by_its_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backward.sample_gradients

    def nothing(*given: Any) -> Any:
        found = real(*given)
        return found._replace(values={name: 0 * rows for name, rows in found.values.items()})

    monkeypatch.setattr(backward, "sample_gradients", nothing)
    capture = run_serial(vectors(tmp_path)).captures[0].id
    first = min(read_receipts(Location(str(tmp_path)), capture).items())[1]
    assert first.max_gradient_error == pytest.approx(1)


def shared_out(output: Tensor, batch: Any) -> Tensor:
    """Losses of which the batch's mean would be the sum."""
    return output.square().sum(1) / batch.n_samples


def contrasted(output: Tensor, batch: Any) -> Tensor:
    """Each sample against those of its batch."""
    rows = F.normalize(output, dim=1)
    return F.cross_entropy(rows @ rows.T, torch.arange(len(rows)), reduction="none")


def contrasted_far_up(output: Tensor, batch: Any) -> Tensor:
    """The same beside a number that hides it."""
    return contrasted(output, batch) + 1e6


def no_such_key(output: Tensor, batch: Any, scale: int) -> Tensor:
    """A loss that asks for a label under a wrong name."""
    loss: Tensor = scale * (output - batch.targets["digit"] if batch.targets else {}["digit"])
    return loss


def test_the_plan_tells_what_takes_the_slow_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = vectors(tmp_path, model={"kind": "factory", "factory": f"{__name__}:turned"})
    plan = make_plan(run)
    layout = plan.captures[0].spec.layout.gradients
    assert layout is not None
    assert list(layout.looped) == ["weight"]
    show_plan(plan)
    assert "no rule covers this operation" in " ".join(capsys.readouterr().out.split())
    receipts = read_receipts(Location(str(tmp_path)), run_serial(run).captures[0].id)
    assert {receipt.looped for receipt in receipts.values()} == {("weight",)}


def test_the_plan_and_receipts_tell_of_batches_that_take_more_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, weighed in (("hidden", True), ("turned", False)):
        run = vectors(tmp_path / name, model={"kind": "factory", "factory": f"{__name__}:{name}"})
        plan = make_plan(run)
        layout = plan.captures[0].spec.layout.gradients
        assert layout is not None
        assert layout.weighed is weighed
        show_plan(plan)
        assert ("four passes or more for each batch" in capsys.readouterr().out) is weighed
        receipts = read_receipts(Location(run.root), run_serial(run).captures[0].id).values()
        assert all(receipt.batches > 0 for receipt in receipts)
        assert all(receipt.weighed == (receipt.batches if weighed else 0) for receipt in receipts)


class Squared(torch.autograd.Function):
    """Of which no graph tells what it does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


class Hidden(nn.Module):
    """A function of its own between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.late = nn.Linear(8, 6), nn.Linear(6, 3), False

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x / 50)
        plain = self.late and bool(x[0, 0] < 20)
        out: Tensor = self.last((h.square() if plain else Squared.apply(h)).tanh())
        return out


def hidden() -> Any:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Hidden()


def test_receipts_count_the_batches_that_took_more_passes(tmp_path: Path) -> None:
    run = vectors(tmp_path, model={"kind": "factory", "factory": f"{__name__}:hidden_late"})
    plan = make_plan(run)
    layout = plan.captures[0].spec.layout.gradients
    assert layout is not None
    assert not layout.weighed
    receipts = read_receipts(Location(run.root), run_serial(run).captures[0].id).values()
    assert 0 < sum(receipt.weighed for receipt in receipts) < sum(receipt.batches for receipt in receipts)


def hidden_late() -> nn.Module:
    """A function of its own in batches that the plan does not see."""
    module = hidden()
    module.late = True
    return module


def test_what_gradients_cost_is_no_part_of_the_identity(tmp_path: Path) -> None:
    spec = make_plan(vectors(tmp_path)).captures[0].spec
    gradients = spec.layout.gradients
    assert gradients is not None
    other = spec.layout.model_copy(update={"gradients": gradients.model_copy(update={"weighed": True})})
    assert spec.model_copy(update={"layout": other}).id == spec.id


@pytest.mark.parametrize("quantities", [["activation", "activation_gradient"], ["activation"]])
@pytest.mark.parametrize("kind", ["maml", "expressive"])
def test_the_plan_tells_what_units_do(kind: str, quantities: list[str], tmp_path: Path) -> None:
    """Also where gradients at sites lie in the same row space; and numbers are those of a loop."""
    model = {"kind": "factory", "factory": f"{__name__}:{kind}"}
    kept = {"parameter_gradients": {"keep": {"kind": "exact"}}, "sites": ["first"]}
    run = vectors(tmp_path, 20, model=model, quantities=quantities, **kept)
    layout = make_plan(run).captures[0].spec.layout.gradients
    assert layout is not None
    every = {name for name, _ in factory(kind)().named_parameters()}
    watched = "activation_gradient" in quantities
    assert set(layout.looped) == (every if kind == "maml" else {"gain"} if watched else set())
    found = captured(run)
    receipts = read_receipts(Location(run.root), found.id).values()
    assert {name for receipt in receipts for name in receipt.looped} == set(layout.looped)
    module, data = factory(kind)(), factories.vectors(20)
    outputs: list[Tensor] = []
    module.get_submodule("first").register_forward_hook(lambda _m, _i, out: outputs.append(out))
    losses = [F.cross_entropy(module(data[k][0][None]), torch.tensor([data[k][1]])) for k in range(20)]
    rows = torch.cat([output.detach() for output in outputs])
    assert_rows(found.site("first:out:0")["activation"].values, rows)
    if watched:
        pairs = zip(losses, outputs, strict=True)
        gradients = [torch.autograd.grad(loss, out, retain_graph=True)[0] for loss, out in pairs]
        assert_rows(found.site("first:out:0:grad")["activation_gradient"].values, torch.cat(gradients))
    for name, expected in loop(module, losses).items():
        assert_rows(found.site(f"{name}:grad")["parameter_gradient"].values, expected)


class Maml(nn.Module):
    """Takes a step of its own for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            h, weight, rows = self.first(x / 50), self.mid.weight, []
            for row in h:
                inner = (F.linear(row, weight) - row).square().sum()
                (gradient,) = torch.autograd.grad(inner, weight, create_graph=True)
                rows.append(F.linear(row, weight - 0.1 * gradient))
            out: Tensor = self.last(torch.stack(rows))
        return out


class Expressive(nn.Module):
    """Multiplies by one more than a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.gain = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last((self.first(x / 50) * (1 + self.gain)).tanh())
        return out


def factory(kind: str) -> Any:
    """Makes the network of a name."""
    return {"maml": maml, "expressive": expressive}[kind]


def maml() -> nn.Module:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Maml()


def expressive() -> nn.Module:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Expressive()


class Turned(nn.Module):
    """Its weight is used transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("oi,ni->no", self.weight, x))


def turned() -> nn.Module:
    """The network."""
    return Turned()


def batch_statistics() -> nn.Module:
    """Normalises by its batch also in evaluation mode."""
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, track_running_stats=False))


def half_frozen() -> nn.Module:
    """Its first layer is frozen."""
    module = factories.squares()
    for parameter in module.get_submodule("first").parameters():
        parameter.requires_grad_(False)
    return module


def compiled() -> nn.Module:
    """A compiled network, not yet called."""
    module = factories.squares()
    module.compile()
    return module


def mean_of_all(output: Tensor, batch: Any) -> Tensor:
    """One number for all samples."""
    return output.mean()


def first_output(output: Tensor, batch: Any) -> Tensor:
    """The first output of each sample."""
    return output[:, 0]


def second_output(output: Tensor, batch: Any) -> Tensor:
    """The second output of each sample."""
    return output[:, 1]


def test_old_requests_keep_their_ids() -> None:
    request = CaptureRequest.model_validate(
        {
            "model": {"kind": "factory", "factory": "a:b"},
            "data": {"source": {"kind": "digits"}},
            "sites": ["0"],
        }
    )
    assert not request.wants_gradients
