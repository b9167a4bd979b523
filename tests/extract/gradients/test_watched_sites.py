"""Sites of networks that differentiate themselves: activations and gradients are those of the network as it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schemas.capture import Precision, Rows
from schemas.errors import ModelError
from schemas.gradients import Exact
from schemas.layout import Site, SiteLayout
from tasks.extract.backward import collect_backward
from tasks.extract.batches import Batch
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.loop import looped_gradients
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
