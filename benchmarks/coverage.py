"""Which per-sample gradients of parameters a library gives, and how far they are from plain autograd of each sample alone.

    python -m benchmarks.coverage [--only ours,bergson,dattri,kronfluence,opacus,traker]

Small networks with random weights: GPT-2 with its tied unembedding, Llama, the base of ALBERT (one layer, used three times), a ViT
classifier, an MLP, a CNN with activations and sums in place, and the same CNN without. 8 samples of equal length, without padding; the
loss of a sample is a fixed function of its outputs, and the loss of a batch is their sum. No dropout, evaluation mode, float64.

covered   share of the parameters' entries for which the library gives one gradient for each sample
right     share whose gradients agree with autograd to 1e-6 in float64, to 1e-3 where the library gives float32
error     the largest over covered parameters and samples, by norm, relative to the gradient of this parameter, or to a thousandth of the
          sample's whole gradient where that is larger
failure   what the library raised, where it did: its first 100 characters

ours         needs_loop and sample_gradients with Exact; `looped` is the share that took a pass for each sample
bergson      GradientCollector without projection, with biases, as a context around forward and backward. Where that fails, again with the
             layers alone that run once and on [sample, position, feature], which is what it takes; `failure` is then of the first try
dattri       hooks: HookManager on all linear layers, as its LoGra has it, its sparsifier and projector both the
             identity (LoGra itself projects), and the mean loss that it wants. Where that fails, again with the layers alone that run once.
             task: AttributionTask.get_grad_loss_func, vmap of grad over all parameters; eager attention
kronfluence  what post_process_per_sample_gradient of its Task sees, in the mode that aggregates gradients, with has_shared_parameters;
             a layer that is used several times has the sum over its uses
opacus       GradSampleModule(strict=False) in training mode, which its hooks want; batch norms stay in evaluation mode and frozen, since
             in training mode they have no per-sample gradients, and it refuses their parameters. A gradient without one row for each
             sample does not count as covered
traker       vmap of grad over functional_call of all parameters, as its gradient computer has it; eager attention

A network whose library fails has covered 0. Results go to benchmarks/results/coverage.json.

This module imports nothing of ours at its top, because peers' interpreters import it.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

MARK = "##coverage "
ROOT = Path(__file__).resolve().parent.parent
PEERS = ("bergson", "dattri", "kronfluence", "opacus", "traker")
N, LENGTH, VOCABULARY = 8, 9, 50
RIGHT = {torch.float64: 1e-6, torch.float32: 1e-3}
FLOOR = 1e-3
"""Of the whole gradient of a sample: a gradient below it is compared to it."""


class Case(NamedTuple):
    """A network, a batch, and how outputs are read."""

    kind: str
    network: nn.Module
    values: Tensor
    """[sample, ...], the first argument of the network."""
    options: dict[str, Any]
    """Other arguments of the network."""
    field: str
    """Of the output, where it is not a tensor."""

    def losses(self, values: Tensor, call: Callable[..., Any] | None = None) -> Tensor:
        """[sample], of the network or of what runs in its place."""
        out = (call or self.network)(values, **self.options)
        out = getattr(out, self.field) if self.field else out
        out = out.reshape(len(values), -1)
        weight = torch.linspace(-1, 2, out.shape[1], dtype=out.dtype)
        return (out * weight).tanh().sum(1) + (out**2).sum(1)

    def names(self) -> dict[int, str]:
        """The first name of each parameter, by its identity: what is tied has one."""
        return {id(parameter): name for name, parameter in self.network.named_parameters()}


class Found(NamedTuple):
    """What a library gave for one network."""

    gradients: Mapping[str, Tensor]
    """Parameter to [sample, ...]."""
    failure: str = ""
    looped: tuple[str, ...] = ()


Way = Callable[[Case], Found]


class Conv(nn.Module):
    """Grouped, dilated, strided, circular and same-padded convolutions, three kinds of norms; activation and sum in place, or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.group_norm = nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4)
        self.circular = nn.Conv2d(12, 12, 3, stride=2, padding=1, padding_mode="circular", bias=False)
        self.batch_norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, (3, 5), padding="same", groups=12)
        self.skip = nn.Conv2d(12, 12, 1)
        self.instance_norm = nn.InstanceNorm2d(12, affine=True)
        self.first_act, self.second_act, self.third_act = (nn.ReLU(inplace=in_place) for _ in range(3))
        self.last = nn.Linear(12, 5)
        self.in_place = in_place
        self.batch_norm.running_mean.normal_()  # type: ignore[union-attr]
        self.batch_norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.first_act(self.group_norm(self.first(x)))
        x = self.second_act(self.circular(self.grouped(x)))
        x = self.batch_norm(x)
        y = self.depthwise(x)
        if self.in_place:
            y += self.skip(x)
        else:
            y = y + self.skip(x)
        out: Tensor = self.last(self.instance_norm(self.third_act(y)).flatten(2).mean(2))
        return out


def _gpt2(**more: Any) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=4, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def _llama(**more: Any) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, **more,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _albert(**more: Any) -> nn.Module:
    config = transformers.AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=8, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        **more,
    )  # fmt: skip
    return transformers.AlbertModel(config, add_pooling_layer=False)


def _vit(**more: Any) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=8, patch_size=4,
        num_labels=5, **more,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 4), nn.RMSNorm(4))


TRANSFORMERS = {
    "gpt2": (_gpt2, {"use_cache": False}, "logits"),
    "llama": (_llama, {"use_cache": False}, "logits"),
    "albert": (_albert, {}, "last_hidden_state"),
    "vit": (_vit, {}, "logits"),
}
PLAIN = {"mlp": _mlp, "cnn": lambda: Conv(True), "cnn, nothing in place": lambda: Conv(False)}
KINDS = (*TRANSFORMERS, *PLAIN)


def make(kind: str, eager: bool = False) -> Case:
    """The network of a name, with the same weights in every interpreter.

    Args:
        kind: one of `KINDS`.
        eager: plain attention instead of a fused one.
    """
    torch.manual_seed(1)
    options: dict[str, Any] = {}
    field = ""
    if kind in TRANSFORMERS:
        maker, options, field = TRANSFORMERS[kind]
        network = maker(attn_implementation="eager") if eager else maker()
    else:
        network = PLAIN[kind]()
    with torch.no_grad():
        for parameter in network.parameters():  # biases and norms are not left at zeros and ones
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    if field and kind != "vit":
        values = torch.randint(3, VOCABULARY, (N, LENGTH))
    else:
        values = torch.randn(*((N, 6) if kind == "mlp" else (N, 3, 8, 8))).double()
    return Case(kind, network.double().eval(), values, options, field)


def loop(case: Case) -> dict[str, Tensor]:
    """Parameter to [sample, entry], by plain autograd of each sample alone."""
    names, parameters = zip(*case.network.named_parameters(), strict=True)
    rows = [
        torch.autograd.grad(case.losses(case.values[n : n + 1]).sum(), parameters, allow_unused=True)
        for n in range(N)
    ]
    return {
        name: torch.stack([(torch.zeros_like(p) if row[k] is None else row[k]).flatten() for row in rows])
        for k, (name, p) in enumerate(zip(names, parameters, strict=True))
    }


def compared(found: Found, expected: Mapping[str, Tensor]) -> dict[str, Any]:
    """Shares and errors of one network."""
    sizes = {name: rows.shape[1] for name, rows in expected.items()}
    total = sum(sizes.values())
    floor = FLOOR * torch.stack([rows.square().sum(1) for rows in expected.values()]).sum(0).sqrt()
    errors: dict[str, float] = {}
    right = []
    for name, given in found.gradients.items():
        rows = given.detach().reshape(len(given), -1)
        if rows.shape != expected[name].shape:
            continue
        error = (rows.double() - expected[name]).norm(dim=1) / expected[name].norm(dim=1).maximum(floor)
        errors[name] = float(error.max())
        if errors[name] <= RIGHT[given.dtype]:
            right.append(name)
    worst = max(errors, key=errors.__getitem__, default=None)
    return {
        "covered": sum(sizes[name] for name in errors) / total,
        "right": sum(sizes[name] for name in right) / total,
        "error": None if worst is None else errors[worst],
        "worst": worst,
        "error_of_right": max((errors[name] for name in right), default=None),
        "wrong": [name for name in errors if name not in right],
        "missing": [name for name in sizes if name not in errors],
        "looped": sum(sizes[name] for name in found.looped) / total,
        "failure": found.failure,
        "dtype": sorted({str(given.dtype).removeprefix("torch.") for given in found.gradients.values()}),
    }


def answer(ways: Mapping[str, Way], package: str, eager: bool = False) -> None:
    """In the interpreter of a peer: every network in every way of it, printed as JSON."""
    found = {}
    for way, gradients in ways.items():
        found[way] = measured(gradients, eager)
    versions = {name: version(name) for name in (package, "torch", "transformers")}
    print(MARK + json.dumps({"ways": found, "versions": versions}), flush=True)


def runs(case: Case, kinds: tuple[type[nn.Module], ...]) -> dict[str, list[tuple[int, ...]]]:
    """Layers of some kinds to the shapes of their inputs, one for each time that they run."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shapes.setdefault(name, []).append(tuple(inputs[0].shape))

        return hook

    handles = [
        part.register_forward_pre_hook(note(name))
        for name, part in case.network.named_modules()
        if isinstance(part, kinds)
    ]
    with torch.no_grad():
        case.losses(case.values)
    for handle in handles:
        handle.remove()
    return shapes


def measured(gradients: Way, eager: bool = False) -> dict[str, Any]:
    """Kind of network to its shares and errors."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    lines = {}
    for kind in KINDS:
        case = make(kind, eager)
        expected = loop(case)
        try:
            found = gradients(case)
        except Exception as error:  # noqa: BLE001  (whatever a library raises is a result)
            found = Found({}, said(error))
        lines[kind] = compared(found, expected)
    return lines


def said(error: Exception) -> str:
    """The kind of an error and the first 100 characters of what it says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def ours(case: Case) -> Found:
    """Exact gradients, after a look at which parameters need a pass for each sample."""
    from schemas.gradients import Exact
    from tasks.extract.gradients.agreement import Probe, needs_loop
    from tasks.extract.gradients.gradient_plan import make_plan
    from tasks.extract.gradients.sample_gradients import sample_gradients

    def losses(sample: int | None) -> Tensor:
        return case.losses(case.values if sample is None else case.values[sample : sample + 1])

    names = [name for name, _ in case.network.named_parameters()]
    looped = frozenset(needs_loop(case.network, [Probe(losses, N)], names))
    gathered = sample_gradients(case.network, losses, N, make_plan(case.network, names, Exact(), 0, looped))
    return Found(gathered.values, looped=gathered.looped)


def theirs(peer: str) -> dict[str, Any]:
    """What a peer's interpreter answers.

    Raises:
        RuntimeError: if it ends without an answer.
    """
    from benchmarks.extraction import _requirements
    from benchmarks.protocol import peer_python

    there = ROOT / ".bench" / peer / "bin" / "python"
    python = str(there) if there.exists() else peer_python(peer, _requirements(peer))
    done = subprocess.run(
        [python, "-m", f"benchmarks.peers.{peer}_coverage"],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise RuntimeError(f"{peer} ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(lines[-1].removeprefix(MARK)))


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row for each way, a cell for each network: covered / right, largest error, or what it raised."""
    rows = ["| | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for result in results.values():
        for way, lines in result["ways"].items():
            cells = [_cell(lines[kind]) for kind in KINDS]
            rows.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(line: Mapping[str, Any]) -> str:
    parts = []
    if line["error"] is not None:
        parts.append(f"{100 * line['covered']:.1f} % / {100 * line['right']:.1f} %, {line['error']:.0e}")
    if line["failure"]:
        parts.append(line["failure"].replace("|", "\\|"))
    return "; ".join(parts) or "0 %"


def main() -> None:
    """Measure what is asked, save the numbers, print the table of all that is saved."""
    from benchmarks.protocol import environment, save, saved

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(("ours", *PEERS)))
    parser.add_argument("--pairs", help="not used: nothing is timed")
    options = parser.parse_args()
    results = saved("coverage")
    results["environment"] = environment(1, ("torch", "transformers", "numpy"))
    found = results.setdefault("coverage", {})
    for name in options.only.split(","):
        found[name] = {"ways": {"ours": measured(ours)}} if name == "ours" else theirs(name)
        print(f"saved {save('coverage', results)}", file=sys.stderr, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
