"""Batches that take another way than those of the plan: their gradients are those of plain autograd all the same."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from schemas.gradients import Exact, Factors, Global, Keep, Kronecker, Norms, Sketch
from tasks.extract.gradients.agreement import Probe, needs_loop
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import Gathered, sample_gradients
from tests.extract.gradients.orders import (
    WAYS,
    N,
    Through,
    by_a_list,
    in_order,
    joined,
    masked,
    rolled,
    sorting,
)
from tests.extract.gradients.zoo import Made, Sample, draw, tensors

FORMS: tuple[Keep, ...] = (
    Exact(),
    Kronecker(dimension=3),
    Global(dimension=4),
    Norms(),
    Sketch(dimension=4),
    Factors(rank=1),
)


def captured(module: nn.Module, x: Tensor, keep: Keep) -> tuple[Sample, Gathered]:
    """Gradients after a plan of samples in order."""
    probes = [Probe(s.losses, s.n) for s in (tensors(module, in_order(n)) for n in (N, N - 1))]
    names = [name for name, _ in module.named_parameters()]
    looped = frozenset(needs_loop(module, probes, names))
    assert not looped
    plan = make_plan(module, names, keep, 0, looped)
    sample = tensors(module, x)
    found = sample_gradients(module, sample.losses, sample.n, plan)
    expected = looped_gradients(plan.parameters, sample.losses, sample.n, plan.plan)
    for name, rows in expected.items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-9, atol=1e-12)
    return sample, found


@pytest.mark.parametrize("order", [[1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4], [3, 0, 5, 1, 4, 2]])
@pytest.mark.parametrize("through", WAYS)
def test_samples_in_an_order_that_the_plan_did_not_show(through: Through, order: list[int]) -> None:
    _, found = captured(sorting(through), in_order(N)[order], Exact())
    still = (through in (joined, rolled) and order[0] == 0) or (
        through is masked and set(order[:3]) == {0, 1, 2}
    )
    assert ("mid.weight" in found.looped) != still
    assert "last.weight" not in found.looped  # what comes after is right


@pytest.mark.parametrize("keep", FORMS, ids=lambda keep: keep.kind)
def test_every_form(keep: Keep) -> None:
    captured(sorting(by_a_list), in_order(N)[[3, 0, 5, 1, 4, 2]], keep)


def turned_tokens(s: Any, h: Tensor) -> Tensor:
    """Tokens of all samples in one row, cut in two and put together the other way round."""
    k = (2 * s.odd % len(h)) * h.shape[1]
    flat = h.flatten(0, 1)
    first, last = flat.split([k, len(flat) - k])
    rows = s.mid(torch.cat([last, first]))
    last, first = rows.split([len(flat) - k, k])
    return torch.cat([first, last]).view(h.shape)


def ragged(s: Any, h: Tensor) -> Tensor:
    """Rows of real tokens alone, cut by the samples' lengths; together as many as two for each sample."""
    lengths = (2 + s.odd * torch.tensor([1, -1])[(h[:, 0, 0] < s.middle).long()]).tolist()
    rows = s.mid(torch.cat([v[:k] for v, k in zip(h, lengths, strict=True)]))
    return torch.stack([v.sum(0) for v in rows.split(lengths)])[:, None]


def padded(s: Any, h: Tensor) -> Tensor:
    """Shifted by rows of zeros."""
    k, zero = 3 * s.odd, torch.zeros_like(h)
    shifted = torch.cat([zero[:k], h, zero[k:]]).view(2, *h.shape).sum(0)
    rows = s.mid(shifted)
    return torch.cat([rows[k:], rows[:k]])


def regrouped(s: Any, h: Tensor) -> Tensor:
    g = 3 if s.odd and len(h) % 3 == 0 else 1
    rows = s.mid(h.view(g, -1, *h.shape[1:]).transpose(0, 1).reshape(h.shape))
    return rows.view(-1, g, *h.shape[1:]).transpose(0, 1).reshape(h.shape)


def positions_first(s: Any, h: Tensor) -> Tensor:
    """Samples second, as many positions as two times samples."""
    order = torch.arange(h.shape[0]).roll(s.odd)
    rows = s.mid(h.transpose(0, 1)[:, order].transpose(0, 1))
    return rows.transpose(0, 1)[:, order.argsort()].transpose(0, 1)


def frequencies(s: Any, h: Tensor) -> Tensor:
    order = torch.arange(len(h)).roll(s.odd)
    rows = s.mid(torch.fft.irfft(torch.fft.rfft(h)[order], n=6))
    return torch.fft.irfft(torch.fft.rfft(rows)[order.argsort()], n=6)


def one_hot(s: Any, h: Tensor) -> Tensor:
    chosen = torch.eye(len(h)).bool().roll(s.odd, 0)
    back = torch.where(chosen.T[:, :, None, None], h[None], 0.0).sum(1)
    return torch.where(chosen[:, :, None, None], s.mid(back)[None], 0.0).sum(1)


def in_a_checkpoint(s: Any, h: Tensor) -> Tensor:
    """Everything that has a rule runs again."""
    k = int(s.odd)
    return checkpoint(lambda rows: s.mid(rows.roll(k, 0)).roll(-k, 0), h, use_reentrant=True)


def in_a_newer_checkpoint(s: Any, h: Tensor) -> Tensor:
    order = torch.arange(len(h)).roll(s.odd)
    return checkpoint(lambda rows: s.mid(rows[order])[order.argsort()], h, use_reentrant=False)


def overwritten(s: Any, h: Tensor) -> Tensor:
    """What a layer gave is written into."""
    rows = s.mid(h)
    if s.odd:
        rows[:, 0] = 0
    return rows


def bounded(s: Any, h: Tensor) -> Tensor:
    return s.mid(h).relu_() if s.odd else s.mid(h)


def hooked(s: Any, h: Tensor) -> Tensor:
    """A gradient that the network changes."""
    rows = s.mid(h)
    if s.odd:
        rows = rows * 1
        rows.register_hook(lambda g: g * 0.1)
    return rows


def forward_derivative(s: Any, h: Tensor) -> Tensor:
    if not s.odd:
        return s.mid(h)
    with forward_ad.dual_level():
        made = s.mid(forward_ad.make_dual(h, torch.ones_like(h)))
        return made + forward_ad.unpack_dual((made * made).tanh()).tangent


def differentiated(s: Any, h: Tensor) -> Tensor:
    """The network differentiates itself."""
    rows = s.mid(h)
    if s.odd:
        inner = h.detach().requires_grad_()
        torch.autograd.backward(s.last(s.mid(inner).tanh()).sum(), inputs=[inner], create_graph=True)
        rows = rows + inner.grad
    return rows


def attacked(s: Any, h: Tensor) -> Tensor:
    """The same for a number that has no graph."""
    if s.odd:
        inner = h.detach().requires_grad_()
        (found,) = torch.autograd.grad(s.last(s.mid(inner).tanh()).sum(), inner)
        h = h + found.sign()
    return s.mid(h)


BRANCHES = [
    turned_tokens, ragged, padded, regrouped, positions_first, frequencies, one_hot, in_a_checkpoint, in_a_newer_checkpoint,
    overwritten, bounded, hooked, forward_derivative, differentiated, attacked,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph:UserWarning")
@pytest.mark.filterwarnings("ignore:.*requires_grad=True. Gradients will be None:UserWarning")
@pytest.mark.parametrize("keep", [Exact(), Norms()], ids=lambda keep: keep.kind)
@pytest.mark.parametrize("through", BRANCHES)
def test_what_only_a_later_batch_does(through: Callable[[Any, Tensor], Tensor], keep: Keep) -> None:
    torch.manual_seed(0)
    parts = {"first": nn.Linear(6, 6), "mid": nn.Linear(6, 6), "last": nn.Linear(6, 1)}
    module = Made(lambda s, x: s.last(through(s, s.first(x)).tanh()), **parts, odd=0, middle=0.0).double()
    names = [name for name, _ in module.named_parameters()]
    shape = (N, 2 * N if through is positions_first else 3, 6)
    probes = [Probe(s.losses, s.n) for s in (tensors(module, draw(*shape)[:n]) for n in (N, N - 1))]
    looped = frozenset(needs_loop(module, probes, names))
    plan = make_plan(module, names, keep, 0, looped)
    module.odd = 1
    x = draw(*shape)
    module.middle = module.first(x.double())[:, 0, 0].detach().sort().values[N // 2]
    sample = tensors(module, x)
    found = sample_gradients(module, sample.losses, N, plan)
    for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*requires_grad=True. Gradients will be None:UserWarning")
@pytest.mark.parametrize("keep", FORMS, ids=lambda keep: keep.kind)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_weight_that_runs_again_twice(keep: Keep, reentrant: bool) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.first(x)
        for _ in range(2):
            h = checkpoint(lambda rows: s.mid(rows).tanh(), h, use_reentrant=reentrant)
        out: Tensor = s.last(h)
        return out

    torch.manual_seed(0)
    module = Made(forward, first=nn.Linear(6, 6), mid=nn.Linear(6, 6), last=nn.Linear(6, 1)).double()
    sample = tensors(module, draw(N, 6))
    plan = make_plan(module, [name for name, _ in module.named_parameters()], keep, 0)
    found = sample_gradients(module, sample.losses, N, plan)
    assert found.looped == ()
    for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


def test_nothing_stays_where_a_forward_raises() -> None:
    module = sorting(by_a_list)
    names = [name for name, _ in module.named_parameters()]
    plan, made = make_plan(module, names, Exact(), 0), []

    def losses(_: int | None) -> Tensor:
        out = module(in_order(N).double())
        made.append(weakref.ref(out))
        raise ValueError("no loss")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no loss"):
            sample_gradients(module, losses, N, plan)
        assert made[0]() is None
    finally:
        gc.enable()
