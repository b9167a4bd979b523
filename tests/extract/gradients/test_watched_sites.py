"""Sites of networks that differentiate themselves: activations and gradients are those of the network as it is."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from schemas.capture import Precision, Rows
from schemas.errors import ModelError
from schemas.gradients import Exact
from schemas.layout import Site, SiteLayout
from tasks.extract import backward
from tasks.extract.backward import collect_backward
from tasks.extract.batches import Batch
from tasks.extract.collect import running
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.mixing import refuse_mixed
from tasks.extract.models import wrap
from tests.extract.gradients.test_self_training import (
    WAYS,
    WEIGHT,
    N,
    Way,
    adapted,
    equilibrium,
    network,
)
from tests.extract.gradients.zoo import Made, draw, p


def watched_at(name: str) -> list[SiteLayout]:
    """Activations and their gradients."""
    return [
        SiteLayout(site=Site(module=name, quantity=quantity), space="sample", width=6, feature_axis=1)
        for quantity in ("activation", "activation_gradient")
    ]


def parameter(module: nn.Module, name: str) -> SiteLayout:
    width = module.get_parameter(name).numel()
    site = Site(module=name, quantity="parameter_gradient")
    return SiteLayout(site=site, space="sample", width=width, feature_axis=1)


def forces(s: Any, x: Tensor) -> Tensor:
    """The gradient of an energy at the inputs comes by every site before the backward does."""
    if not x.requires_grad:
        x.requires_grad_()
    energy = s.mid(s.first(x).tanh()).square().sum()
    (force,) = torch.autograd.grad(energy, x, create_graph=True)
    out: Tensor = s.last(force)
    return out


def attacked(s: Any, x: Tensor) -> Tensor:
    """The same without a graph of it."""
    h = s.first(x)
    (found,) = torch.autograd.grad(s.mid(h).tanh().sum(), h, retain_graph=True)
    out: Tensor = s.last((h + found.detach()).tanh())
    return out


def noisy(s: Any, x: Tensor) -> Tensor:
    """A pass that is begun again draws the same numbers."""
    h = s.first(x) + torch.randn(6).to(x)
    out: Tensor = s.last(adapted(s, h).tanh())
    return out


FORWARDS: list[Way] = [forces, attacked, noisy]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("at", ["first", "last"])
@pytest.mark.parametrize("wanted", [(), (WEIGHT,), ("first.weight", "last.weight")])
@pytest.mark.parametrize("way", [*WAYS, *FORWARDS])
def test_sites_are_those_of_the_network_as_it_is(way: Way, wanted: tuple[str, ...], at: str) -> None:
    """Activations and their gradients, beside those of parameters."""
    module = network(way)
    if way in FORWARDS:
        module.function = way
    x = draw(N, 6).double()
    objective: Any = lambda output, _batch: output.square().sum(1)  # noqa: E731
    sites = [*watched_at(at), *(parameter(module, name) for name in wanted)]
    plan = make_plan(module, wanted, Exact(), 0, entries="all")
    done = collect_backward(
        wrap(module, torch.float64), Batch({"": x}), sites, Rows(), Precision(), objective, plan
    )
    kept: list[Tensor] = []
    handle = module.get_submodule(at).register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    torch.manual_seed(Precision().seed)
    losses = module(x.clone()).square().sum(1)
    handle.remove()
    (expected,) = torch.autograd.grad(losses.sum(), kept[0], retain_graph=True)
    torch.testing.assert_close(done.rows[f"{at}:out:0"], kept[0].detach())
    torch.testing.assert_close(done.rows[f"{at}:out:0:grad"], expected, rtol=1e-8, atol=1e-12)
    if way is noisy or not wanted:
        return
    chosen = {name: module.get_parameter(name) for name in wanted}

    def alone(k: int | None) -> Tensor:
        found: Tensor = module(x[k : k + 1].clone()).square().sum(1)  # type: ignore[operator]
        return found

    for name, rows in looped_gradients(chosen, alone, N, plan.plan, plan.beside(chosen)).items():
        torch.testing.assert_close(done.rows[f"{name}:grad"], rows, rtol=1e-8, atol=1e-12)


def test_a_site_that_only_an_inner_backward_passes_is_refused() -> None:
    module = network(equilibrium)
    x = draw(N, 6).double()
    objective: Any = lambda output, _batch: output.square().sum(1)  # noqa: E731
    sites = [
        layout.model_copy(update={"site": layout.site.model_copy(update={"call": 41})})
        for layout in watched_at("mid")
    ]
    plan = make_plan(module, (), Exact(), 0, entries="all")
    with pytest.raises(ModelError, match="only a backward that the network runs by itself"):
        collect_backward(
            wrap(module, torch.float64), Batch({"": x}), sites, Rows(), Precision(), objective, plan
        )


def of_words(s: Any, x: Tensor) -> Tensor:
    return (
        s.w.T[x.long().abs() % 6] + torch.cat([part[x.long().abs() % 6] for part in s.w.chunk(2, 1)], -1)
    ).tanh()


def test_words_of_a_turned_table_have_a_gradient() -> None:
    """Views of parameters begin a graph where sites are watched."""
    module = Made(
        lambda s, x: s.last(s.mid(of_words(s, x)[:, 0])), w=p(6, 6), mid=nn.Tanh(), last=nn.Linear(6, 2)
    ).double()
    x = 5 * draw(N, 1).double()
    objective: Any = lambda output, _batch: output.square().sum(1)  # noqa: E731
    sites = watched_at("mid")
    done = collect_backward(
        wrap(module, torch.float64),
        Batch({"": x}),
        sites,
        Rows(),
        Precision(),
        objective,
        make_plan(module, (), Exact(), 0, entries="all"),
    )
    y = of_words(module, x)[:, 0].detach().tanh().requires_grad_()
    (expected,) = torch.autograd.grad(module.last(y).square().sum(), y)
    torch.testing.assert_close(done.rows["mid:out:0:grad"], expected)


def watched(module: nn.Module, x: Tensor, *names: str) -> dict[str, Tensor]:
    """Rows of sites by a plan of no parameters."""
    objective: Any = lambda output, _batch: output.square().flatten(1).sum(1)  # noqa: E731
    sites = [layout for name in names for layout in watched_at(name)]
    plan = make_plan(module, (), Exact(), 0, entries="all")
    net = wrap(module, torch.float64)
    return collect_backward(net, Batch({"": x}), sites, Rows(), Precision(), objective, plan).rows


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_is_left_of_a_pass_with_many_sites(raises: bool) -> None:
    module = network(lambda s, h: s.mid(h) if not raises else s.mid(h)[:, 99])
    module.odd = raises
    x = draw(N, 6).double()

    def go() -> None:
        try:
            watched(module, x, "first", "mid", "last")
        except IndexError:
            assert raises

    go()
    gc.collect()
    before = sum(type(thing) is backward._Watch for thing in gc.get_objects())
    for _ in range(5):
        go()
    gc.collect()
    assert sum(type(thing) is backward._Watch for thing in gc.get_objects()) == before


class Recurrent(nn.Module):
    """What a layer of several outputs gives is written into, before any parameter of a rule."""

    def __init__(self, part: nn.Module, picks: Any) -> None:
        super().__init__()
        self.part, self.last, self.picks = part, nn.Linear(6, 6), picks

    def forward(self, x: Tensor) -> Tensor:
        h = self.picks(self.part, x)
        h += x
        out: Tensor = self.last(F.relu(h, inplace=True))
        return out


RECURRENT = {
    "lstm": lambda: Recurrent(nn.LSTM(6, 6, batch_first=True), lambda part, x: part(x)[0]),
    "attention": lambda: Recurrent(
        nn.MultiheadAttention(6, 2, batch_first=True), lambda part, x: part(x, x, x)[0]
    ),
    "the largest": lambda: Recurrent(
        nn.Linear(6, 6), lambda part, x: torch.max(part.weight, 0)[0].expand(len(x), 3, 6).contiguous()
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_what_several_outputs_give_may_be_written_into(name: str) -> None:
    torch.manual_seed(0)
    module = RECURRENT[name]().double()
    x = draw(N, 3, 6).double()
    kept: list[Tensor] = []
    handle = module.last.register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    losses = module(x.clone()).square().flatten(1).sum(1)
    handle.remove()
    (expected,) = torch.autograd.grad(losses.sum(), kept[0])
    objective: Any = lambda output, _batch: output.square().flatten(1).sum(1)  # noqa: E731
    layouts = [
        layout.model_copy(update={"space": "seq3", "feature_axis": 2}) for layout in watched_at("last")
    ]
    net, plan = wrap(module, torch.float64), make_plan(module, (), Exact(), 0, entries="all")
    found = collect_backward(net, Batch({"": x}), layouts, Rows(), Precision(), objective, plan).rows
    torch.testing.assert_close(found["last:out:0:grad"], expected.flatten(0, 1))
    with running(net, Batch({"": x}), Precision()), torch.enable_grad():
        assert not refuse_mixed(net, (Batch({"": x}), Batch({"": x[:-1]})), objective)


def test_a_view_of_a_frozen_table_may_be_kept() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.kept = s.table.view(1, 6) if s.kept is None else s.kept
        out: Tensor = s.mid((x + s.kept).tanh())
        return out

    table = nn.Parameter(torch.randn(6), requires_grad=False)
    module = Made(forward, kept=None, table=table, mid=nn.Linear(6, 6)).double()
    x = draw(N, 6).double()
    first, second = (watched(module, x, "mid")["mid:out:0:grad"] for _ in range(2))
    assert torch.equal(first, second)


def test_a_site_that_a_checkpoint_takes_from_outside_has_its_gradient() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        side = s.side(x).tanh()
        out: Tensor = checkpoint(lambda h: s.mid(h * side), s.first(x), use_reentrant=True)
        return out

    torch.manual_seed(0)
    parts = {name: nn.Linear(6, 6) for name in ("first", "side", "mid")}
    module = Made(forward, **parts).double()
    x = draw(N, 6).double()
    found = watched(module, x, "side")["side:out:0:grad"]
    side = module.side(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(module.mid(module.first(x) * side.tanh()).square().sum(), side)
    torch.testing.assert_close(found, expected)


def test_a_network_that_cannot_be_opened_is_judged_by_its_values() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        assert s.mid.weight.T.requires_grad
        h = s.mid(x)
        torch.autograd.backward(h.sum(), inputs=[s.mid.weight], retain_graph=True)
        s.mid.weight.grad = None
        return h if s.apart else h + h.mean(0)

    module = Made(forward, mid=nn.Linear(6, 6), apart=True).double()
    net, x = wrap(module, torch.float64), draw(N, 6).double()
    objective: Any = lambda output, _batch: output.square().sum(1)  # noqa: E731
    batches = Batch({"": x}), Batch({"": x[:-1]})
    with running(net, batches[0], Precision()), torch.enable_grad():
        assert refuse_mixed(net, batches, objective)
        module.apart = False
        with pytest.raises(ModelError, match="no sample has a gradient of its own"):
            refuse_mixed(net, batches, objective)


@pytest.mark.parametrize("outside", [True, False])
def test_a_site_whose_gradient_comes_in_pieces_is_refused(outside: bool) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        side = s.side(x)
        z = checkpoint(lambda h: s.mid(h * side), s.first(x), use_reentrant=True)
        out: Tensor = z + side if outside else checkpoint(lambda h: s.mid(h + side), z, use_reentrant=True)
        return out

    torch.manual_seed(0)
    parts = {name: nn.Linear(6, 6) for name in ("first", "mid")}
    module = Made(forward, **parts, side=Made(lambda s, x: x + s.b, b=p(6))).double()
    with pytest.raises(ModelError, match="comes in pieces"):
        watched(module, draw(N, 6).double(), "side")


def test_a_plan_hears_a_backward_by_its_function() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        handle = s.mid.register_forward_hook(lambda _module, _inputs, out: 2 * out)
        inner = x.detach().requires_grad_()
        torch.autograd.backward(s.mid(inner).square().sum(), inputs=[inner])
        handle.remove()
        out: Tensor = s.mid(x + inner.grad)
        return out

    module = Made(forward, mid=nn.Linear(6, 6)).double()
    net, x = wrap(module, torch.float64), draw(N, 6).double()
    objective: Any = lambda output, _batch: output.square().sum(1)  # noqa: E731
    with running(net, Batch({"": x}), Precision()), torch.enable_grad():
        assert refuse_mixed(net, (Batch({"": x}), Batch({"": x[:-1]})), objective)
    assert not module.mid._forward_hooks
    assert torch.autograd.backward.__module__ == "torch.autograd"
