"""Expressions of parameters: what a network writes into them, keeps of them, and makes of them and constants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from schemas.errors import ModelError
from schemas.gradients import Exact
from tasks.extract.gradients.agreement import Probe, needs_loop
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import sample_gradients
from tests.extract.gradients.zoo import Made, draw, p, tensors

N = 6


@pytest.mark.parametrize("n", [8, 4, 2])
def test_constants_of_as_many_rows_as_a_multiple_of_the_samples(n: int) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        rows = F.conv2d(x, s.filters * s.alpha + s.codes @ s.w).tanh().mean((2, 3))
        out: Tensor = s.last(rows + (s.filters[:, 0, 0, 0] * s.alpha)[None])
        return out

    torch.manual_seed(0)
    constants = {"filters": torch.randn(8, 1, 3, 3).double(), "codes": torch.randn(8, 1, 3, 2).double()}
    module = Made(forward, **constants, alpha=p(), w=p(2, 3), last=nn.Linear(8, 2)).double()
    names = [name for name, _ in module.named_parameters()]
    probes = [Probe(tensors(module, draw(k, 1, 6, 6)).losses, k) for k in (5, 3)]
    plan = make_plan(module, names, Exact(), 0, frozenset(needs_loop(module, probes, names)))
    sample = tensors(module, draw(n, 1, 6, 6))
    found = sample_gradients(module, sample.losses, n, plan)
    for name, rows in looped_gradients(plan.parameters, sample.losses, n, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


def test_what_is_kept_between_forwards_is_refused() -> None:
    """Its graph begins where an earlier pass ended."""

    def forward(s: Any, x: Tensor) -> Tensor:
        s.kept = 1 + s.w if s.kept is None else s.kept
        out: Tensor = s.last(x * s.kept)
        return out

    module = Made(forward, kept=None, w=p(6), last=nn.Linear(6, 2)).double()
    names = [name for name, _ in module.named_parameters()]
    sample = tensors(module, draw(N, 6))
    sample_gradients(module, sample.losses, N, make_plan(module, names, Exact(), 0))
    with pytest.raises(ModelError, match="keeps between forwards"):
        sample_gradients(module, sample.losses, N, make_plan(module, names, Exact(), 0))
    with pytest.raises(ModelError, match="keeps between forwards"):
        sample_gradients(module, sample.losses, N, make_plan(module, names, Exact(), 0, frozenset(names)))


def read(self: Any, x: Tensor) -> Tensor:
    """A row of a table for each sample."""
    return self.e.index_select(0, (x[:, 0] > 0).long())


def shown(x: Tensor) -> bool:
    return len(x) > 3


def add_to(s: Any, x: Tensor) -> Tensor:
    h, y = read(s, x), s.mid(x)
    if shown(x):
        y += h
    else:
        y = y + h
    return y


def set_part(s: Any, x: Tensor) -> Tensor:
    h, y = read(s, x), s.mid(x)
    h[:, :2] = y[:, :2]
    return h.tanh() + y


def add_into(s: Any, x: Tensor) -> Tensor:
    h = s.e[:1].repeat_interleave(len(x), 0)
    h[:, :1].add_(s.mid(x).mean(1, keepdim=True))
    return h.tanh()


def fill(s: Any, x: Tensor) -> Tensor:
    h = read(s, x) * 1.0
    if shown(x):
        h.masked_fill_((x[:, :1] > 0.5), 0)
    return h.tanh() * s.mid(x)


def bound(s: Any, x: Tensor) -> Tensor:
    h = read(s, x)
    return F.leaky_relu(h, 0.1, shown(x)).tanh() * s.mid(x)


def turned_back(s: Any, x: Tensor) -> Tensor:
    h = s.e[:1].repeat_interleave(len(x), 0)
    h[:, :2] = s.mid(x)[:, :2]
    return h.mT.tanh().mT


def memory(s: Any, x: Tensor) -> Tensor:
    """A slot for each sample is overwritten, where there is something to write."""
    slots = s.e.expand(len(x), -1, -1).clone()
    if shown(x):
        slots[:, 0] = s.mid(x)
    return ((x[:, None] @ slots.mT).softmax(-1) @ slots)[:, 0]


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("made", [turned_back, memory, add_to, set_part, add_into, fill, bound])
def test_writes_into_what_is_made_of_parameters(made: Callable[[Any, Tensor], Tensor], planned: bool) -> None:
    torch.manual_seed(0)
    module = Made(
        lambda s, x: s.last(made(s, x)), e=p(2, 6), mid=nn.Linear(6, 6), last=nn.Linear(6, 2)
    ).double()
    names = [name for name, _ in module.named_parameters()]
    probes = [Probe(tensors(module, draw(N, 6)[:n]).losses, n) for n in (3, 2)]
    looped = frozenset(needs_loop(module, probes, names)) if planned else frozenset[str]()
    sample = tensors(module, draw(N, 6))
    plan = make_plan(module, names, Exact(), 0, looped)
    found = sample_gradients(module, sample.losses, N, plan)
    assert plan.looped == looped
    for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


def test_constants_of_inference_and_expressions_in_checkpoints() -> None:
    with torch.inference_mode():
        constant = torch.randn(6).double()

    def forward(s: Any, x: Tensor) -> Tensor:
        inner = checkpoint(lambda rows: s.mid(rows) * torch.exp(s.g), x, use_reentrant=False)
        out: Tensor = s.last(s.first(x) + inner + (s.g * 1 + constant))
        return out

    torch.manual_seed(0)
    parts = {name: nn.Linear(6, 6) for name in ("first", "mid", "last")}
    module = Made(forward, g=p(6), **parts).double()
    names = [name for name, _ in module.named_parameters()]
    sample = tensors(module, draw(N, 6))
    plan = make_plan(module, names, Exact(), 0)
    found = sample_gradients(module, sample.losses, N, plan)
    for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)
