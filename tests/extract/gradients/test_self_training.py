"""Networks that differentiate themselves in their forward or backward, or do to their parameters what no operation shows."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from schemas.errors import ModelError
from schemas.gradients import Exact, Global, Keep, Kronecker
from tasks.extract.gradients.agreement import Probe, needs_loop
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import sample_gradients
from tests.extract.gradients.zoo import Made, draw, p, tensors

N = 6
WEIGHT = "mid.weight"
Way = Callable[[Any, Tensor], Tensor]


def stepped(weight: Tensor, x: Tensor) -> Tensor:
    """A step of gradient descent that can be differentiated."""
    (gradient,) = torch.autograd.grad((x @ weight.T - x).square().sum(), weight, create_graph=True)
    return weight - 0.1 * gradient


def adapted(s: Any, h: Tensor) -> Tensor:
    """Gradients of a parameter itself (MAML)."""
    return torch.stack([row @ stepped(s.mid.weight, row[None]).T for row in h])


def adapted_product(s: Any, h: Tensor) -> Tensor:
    """Gradients of what is made of one."""
    return torch.stack([row @ stepped(2 * s.mid.weight, row[None]).T for row in h])


def checked_alone(s: Any, h: Tensor) -> Tensor:
    """A checkpoint of nothing but parameters."""
    weight: Tensor = checkpoint(lambda w: w.tanh(), s.mid.weight, use_reentrant=True)
    return h @ weight.T


def trained(s: Any, h: Tensor) -> Tensor:
    """An optimiser trains a weight for each sample, and leaves what has no `.grad` alone."""
    weight, before, out = s.mid.weight, s.mid.weight.detach().clone(), []
    for row in h.detach():
        optimiser = torch.optim.SGD([weight], 0.1)
        optimiser.zero_grad()
        (F.linear(row, weight) - row).square().sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        out.append(F.linear(row, weight.clone()))
        with torch.no_grad():
            weight.copy_(before)
    weight.grad = None
    return torch.stack(out) + h


def looks_for_gradients(s: Any, h: Tensor) -> Tensor:
    y = s.mid(h)
    torch.autograd.backward(y.tanh().sum(), retain_graph=True)
    found, s.mid.weight.grad = s.mid.weight.grad is not None, None
    s.first.zero_grad()
    return 2 * y if found else y


def tries(s: Any, h: Tensor) -> Tensor:
    """Takes whatever is raised for an answer."""
    y = s.mid(h)
    try:
        torch.autograd.grad(y.sum(), s.mid.weight, retain_graph=True)
    except Exception:  # noqa: BLE001
        return y
    return 2 * y


def tries_everything(s: Any, h: Tensor) -> Tensor:
    y = s.mid(h)
    try:
        torch.autograd.grad(y.sum(), s.mid.weight, retain_graph=True)
    except BaseException:  # noqa: BLE001
        return y
    return 2 * y


def pulled_through_a_checkpoint(s: Any, h: Tensor) -> Tensor:
    z = checkpoint(lambda rows: s.mid(rows).tanh(), h, use_reentrant=False)
    return torch.autograd.grad(z.square().sum(), h, create_graph=True)[0]


def signs(s: Any, h: Tensor) -> Tensor:
    """Runs with other values than the weight's (binarised networks)."""
    before = s.mid.weight.data
    s.mid.weight.data = before.sign()
    out = s.mid(h)
    s.mid.weight.data = before
    return out.tanh() + h


def frozen(s: Any, h: Tensor) -> Tensor:
    """A critic that is not trained here."""
    s.mid.requires_grad_(False)
    y = s.mid(h) + (1 + s.mid.weight.sum(1))
    s.mid.requires_grad_(True)
    return y + h


def frozen_later(s: Any, h: Tensor) -> Tensor:
    """What it used is frozen when the backward comes."""
    y = F.linear(h, s.fixed.requires_grad_(True))
    torch.autograd.grad(y.square().sum(), s.fixed, retain_graph=True)
    s.fixed.requires_grad_(False)
    return s.mid(y)


def equilibrium(s: Any, h: Tensor) -> Tensor:
    """A fixed point, differentiated by another one in a hook of its backward."""

    def f(z: Tensor) -> Tensor:
        return (0.3 * s.mid(z) + h).tanh()

    with torch.no_grad():
        z = torch.zeros_like(h)
        for _ in range(40):
            z = f(z)
    z = f(z)
    at = z.detach().clone().requires_grad_()
    again = f(at)

    def solve(g: Tensor) -> Tensor:
        y = g
        for _ in range(40):
            y = torch.autograd.grad(again, at, y, retain_graph=True)[0] + g
        return y

    if z.requires_grad:
        z.register_hook(solve)  # type: ignore[no-untyped-call]
    return z


class Inner(torch.autograd.Function):
    """Keeps a graph of its own, of which it takes the gradient of its input alone."""

    @staticmethod
    def forward(ctx: Any, part: nn.Module, h: Tensor) -> Tensor:
        with torch.enable_grad():
            ctx.h = h.detach().requires_grad_()
            ctx.out = part(ctx.h)
        out: Tensor = ctx.out.detach()
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, torch.autograd.grad(ctx.out, ctx.h, g)[0]


def inner(s: Any, h: Tensor) -> Tensor:
    out: Tensor = Inner.apply(s.mid, h)
    return out


WAYS: list[Way] = [
    adapted, adapted_product, checked_alone, trained, looks_for_gradients, tries, tries_everything, pulled_through_a_checkpoint, signs,
    frozen, frozen_later, equilibrium, inner,
]  # fmt: skip


def network(way: Way) -> Any:
    """Two layers, between them a way that is taken where `odd` is set."""
    torch.manual_seed(0)
    parts = {"first": nn.Linear(6, 6), "mid": nn.Linear(6, 6, bias=False), "last": nn.Linear(6, 6)}

    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.first(x).tanh()
        out: Tensor = s.last((way(s, h) if s.odd else s.mid(h)).tanh())
        return out

    fixed = nn.Parameter(torch.randn(6, 6), requires_grad=False)
    return Made(forward, **parts, fixed=fixed, odd=True).double()


NAMES = ["first.weight", "first.bias", WEIGHT, "last.weight", "last.bias"]
KEEPS = [Exact(), Kronecker(dimension=3), Global(dimension=4)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("keep", KEEPS, ids=lambda keep: keep.kind)
@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_plain_autograd(way: Way, planned: bool, keep: Keep) -> None:
    """Whether the plan has seen it, or only a later batch does it."""
    module = network(way)
    sample, fewer = (tensors(module, draw(N, 6)[:n]) for n in (N, N - 1))
    module.odd = planned
    looped = frozenset(needs_loop(module, [Probe(s.losses, s.n) for s in (sample, fewer)], NAMES))
    module.odd = True
    plan = make_plan(module, NAMES, keep, 0, looped)
    found = sample_gradients(module, sample.losses, N, plan)
    for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


def test_why_is_told() -> None:
    module = network(adapted)
    sample = tensors(module, draw(N, 6))
    why = needs_loop(module, [Probe(sample.losses, N)], NAMES)
    assert set(why) == set(NAMES)
    assert all("differentiates itself in its forward" in one for one in why.values())


def test_tables_with_gradients_of_few_rows() -> None:
    module = nn.Sequential(nn.Embedding(4, 6, sparse=True), nn.Linear(6, 6)).double()
    ids = torch.tensor([[0], [1], [3], [1]])

    def losses(k: int | None) -> Tensor:
        return module(ids if k is None else ids[k : k + 1]).square().sum((1, 2))

    names = [name for name, _ in module.named_parameters()]
    assert needs_loop(module, [Probe(losses, 4)], names) == {}
    exact = looped_gradients(
        dict(module.named_parameters()), losses, 4, make_plan(module, names, Exact(), 0).plan
    )
    for looped in (frozenset[str](), frozenset(names)):
        found = sample_gradients(module, losses, 4, make_plan(module, names, Exact(), 0, looped)).values
        for name, rows in exact.items():
            torch.testing.assert_close(found[name], rows)


@pytest.mark.parametrize("n", [1, 5, 6])
def test_a_table_that_is_kept_between_forwards_is_refused(n: int) -> None:
    """However many samples its rows are taken for."""

    def forward(s: Any, x: Tensor) -> Tensor:
        s.kept = torch.zeros(12, 6).to(x) + s.b if s.kept is None else s.kept
        out: Tensor = s.last((s.first(x) + s.kept[:3].sum(0)).tanh())
        return out

    module = Made(forward, kept=None, b=p(6), first=nn.Linear(6, 6), last=nn.Linear(6, 2)).double()
    sample = tensors(module, draw(n, 6))
    plan = make_plan(module, ["b", "last.weight"], Exact(), 0)

    def twice() -> None:
        for _ in range(2):
            sample_gradients(module, sample.losses, n, plan)

    with pytest.raises(ModelError, match="keeps between forwards"):
        twice()


def writes(s: Any, h: Tensor) -> Tensor:
    s.mid.weight.add_(1)
    out: Tensor = s.mid(h)
    return out


def writes_a_part(s: Any, h: Tensor) -> Tensor:
    s.mid.weight[0] = 1
    out: Tensor = s.mid(h)
    return out


@pytest.mark.parametrize("way", [writes, writes_a_part])
def test_what_plain_autograd_refuses_is_refused(way: Way) -> None:
    module = network(way)
    sample, before = tensors(module, draw(N, 6)), module.mid.weight.detach().clone()
    with pytest.raises(RuntimeError, match="in-place operation"):
        sample_gradients(module, sample.losses, N, make_plan(module, ["last.weight"], Exact(), 0))
    assert torch.equal(before, module.mid.weight)


def writes_and_goes_back(s: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        s.mid.weight.mul_(0.5)
    torch.autograd.grad((s.mid(h) - h).square().sum(), s.mid.weight, retain_graph=True)
    out: Tensor = s.mid(h)
    with torch.no_grad():
        s.mid.weight.mul_(2)
    return out


def test_a_forward_that_cannot_be_begun_again_is_refused() -> None:
    module = network(writes_and_goes_back)
    sample = tensors(module, draw(N, 6))
    with pytest.raises(ModelError, match="writes into its parameters"):
        sample_gradients(module, sample.losses, N, make_plan(module, ["last.weight"], Exact(), 0))


def writes_through_data(s: Any, h: Tensor) -> Tensor:
    s.mid.weight.data.mul_(0.5)
    torch.autograd.grad((s.mid(h) - h).square().sum(), s.mid.weight)
    s.mid.weight.data.mul_(2)
    out: Tensor = s.mid(h)
    return out


def freezes_all(s: Any, h: Tensor) -> Tensor:
    """An attack on a network that is frozen meanwhile."""
    inner = h.detach().requires_grad_()
    before = [parameter.requires_grad for parameter in s.parameters()]
    for parameter in s.parameters():
        parameter.requires_grad_(False)
    (found,) = torch.autograd.grad(s.mid(inner).square().sum(), inner)
    for parameter, wants in zip(s.parameters(), before, strict=True):
        parameter.requires_grad_(wants)
    out: Tensor = s.mid(h + found.sign())
    return out


def looks_inside(s: Any, h: Tensor) -> Tensor:
    """A hook that stays until the gradient is there."""
    handle = s.last.register_forward_hook(lambda _module, _inputs, out: out + 1)
    inner = h.detach().requires_grad_()
    (found,) = torch.autograd.grad(s.last(s.mid(inner)).square().sum(), inner)
    handle.remove()
    out: Tensor = s.mid(h + found)
    return out


def keeps_a_table(s: Any, h: Tensor) -> Tensor:
    """Made of a frozen parameter once."""
    if s.kept is None:
        s.kept = s.fixed.tanh()
    inner = h.detach().requires_grad_()
    (found,) = torch.autograd.grad((inner @ s.kept).square().sum(), inner)
    out: Tensor = s.mid(h @ s.kept + found)
    return out


def drops(s: Any, h: Tensor) -> Tensor:
    """Another mode for a while."""
    s.part.training = True
    inner = h.detach().requires_grad_()
    (found,) = torch.autograd.grad(s.mid(inner).square().sum(), inner)
    s.part.training = False
    out: Tensor = s.mid(s.part(h + found))
    return out


@pytest.mark.parametrize(
    ("way", "known"),
    [(way, known) for way in (freezes_all, keeps_a_table, drops) for known in (True, False)]
    + [(looks_inside, True)],
)
def test_a_forward_that_is_broken_off_leaves_nothing_behind(way: Way, known: bool) -> None:
    module = network(way)
    module.kept, module.part = None, nn.Dropout(0.5)
    sample = tensors(module, draw(N, 6))
    plan = make_plan(module, NAMES, Exact(), 0, as_it_is=known)
    for _ in range(2):
        found = sample_gradients(module, sample.losses, N, plan)
        assert set(found.looped) == set(NAMES)
        assert all(
            parameter.requires_grad == (name != "fixed") for name, parameter in module.named_parameters()
        )
        assert not module.last._forward_hooks
        for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
            torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


def test_networks_that_are_known_to_differentiate_themselves_may_write() -> None:
    """No pass is broken off, and none is run for nobody."""
    module = network(writes_through_data)
    sample, before, forwards = tensors(module, draw(N, 6)), module.mid.weight.detach().clone(), []
    handle = module.register_forward_pre_hook(lambda *_: forwards.append(1))
    plan = make_plan(module, NAMES, Exact(), 0, as_it_is=True)
    found = sample_gradients(module, sample.losses, N, plan)
    handle.remove()
    assert len(forwards) == N
    assert torch.equal(before, module.mid.weight)
    for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


def test_hooks_that_come_and_go_are_refused_where_it_is_not_known() -> None:
    module = network(looks_inside)
    sample = tensors(module, draw(N, 6))
    with pytest.raises(ModelError, match="registers or removes hooks"):
        sample_gradients(module, sample.losses, N, make_plan(module, NAMES, Exact(), 0))


def reads_data(s: Any, h: Tensor) -> Tensor:
    scale = s.mid.weight.data.abs().max()
    inner = h.detach().requires_grad_()
    (found,) = torch.autograd.grad(s.mid(inner).square().sum(), inner)
    out: Tensor = s.mid(h + found / scale)
    return out


def test_who_only_reads_data_is_no_writer() -> None:
    module = network(reads_data)
    sample = tensors(module, draw(N, 6))
    plan = make_plan(module, NAMES, Exact(), 0)
    found = sample_gradients(module, sample.losses, N, plan)
    for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


def test_a_write_through_data_is_refused_where_it_is_not_known() -> None:
    module = network(writes_through_data)
    sample = tensors(module, draw(N, 6))
    with pytest.raises(ModelError, match="writes into its parameters"):
        sample_gradients(module, sample.losses, N, make_plan(module, NAMES, Exact(), 0))


def test_a_sparse_parameter_is_no_matter() -> None:
    module = network(lambda s, h: s.mid(h) + (s.table @ h.T).T)
    module.table = nn.Parameter(torch.eye(6).double().to_sparse(), requires_grad=False)
    sample = tensors(module, draw(N - 1, 6))
    plan = make_plan(module, NAMES, Exact(), 0)
    found = sample_gradients(module, sample.losses, N - 1, plan)
    for name, rows in looped_gradients(plan.parameters, sample.losses, N - 1, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        OSError(5, "no"),
        MemoryError("no"),
        torch.OutOfMemoryError("no"),
        RuntimeError("DefaultCPUAllocator: no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_network_is_its_own(error: Exception) -> None:
    """What is no matter of the network is not tried again."""
    begun = []

    def raises(s: Any, h: Tensor) -> Tensor:
        begun.append(1)
        raise error

    module = network(raises)
    sample = tensors(module, draw(N, 6))
    with pytest.raises(type(error), match="no"):
        sample_gradients(module, sample.losses, N, make_plan(module, [WEIGHT], Exact(), 0))
    assert len(begun) == (2 if isinstance(error, ValueError) else 1)


def test_gradients_of_parameters_are_kept_though_a_part_runs_a_backward_of_its_own() -> None:
    module = network(lambda s, h: checkpoint(s.mid, adapted(s, h), use_reentrant=True))
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    sample = tensors(module, draw(N, 6))
    sample_gradients(module, sample.losses, N, make_plan(module, ["last.weight"], Exact(), 0))
    assert all(bool((parameter.grad == 7).all()) for parameter in module.parameters())


def turned_inside(s: Any, h: Tensor) -> Tensor:
    """A transform in which nothing may watch what is saved."""
    inside = torch.func.grad(lambda row: (row @ s.mid.weight.T).square().sum())
    return torch.func.vmap(inside)(h) + h


def test_a_turned_weight_inside_a_transform() -> None:
    module = network(turned_inside)
    sample = tensors(module, draw(N, 6))
    assert set(needs_loop(module, [Probe(sample.losses, N)], NAMES)) == {WEIGHT}
    plan = make_plan(module, NAMES, Exact(), 0)
    found = sample_gradients(module, sample.losses, N, plan).values
    for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
        torch.testing.assert_close(found[name], rows, rtol=1e-8, atol=1e-12)


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize(
    "way",
    [lambda s, h: h * s.mid.weight[0].exp(), lambda s, h: h + s.mid.weight[:1].expand(len(h), 6).tanh()],
)
def test_nothing_is_left_of_a_pass(way: Way) -> None:
    module = network(way)
    sample = tensors(module, draw(N, 6))
    plan = make_plan(module, NAMES, Exact(), 0)
    sample_gradients(module, sample.losses, N, plan)
    before = tensors_alive()
    for _ in range(8):
        sample_gradients(module, sample.losses, N, plan)
    assert tensors_alive() <= before + 2
