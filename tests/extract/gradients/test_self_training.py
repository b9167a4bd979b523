"""Networks that train themselves in their forward: they cannot run while their parameters take part without gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from schemas.capture import Precision, Rows
from schemas.gradients import Exact, Global, Keep, Kronecker
from schemas.layout import Site, SiteLayout
from tasks.extract.backward import collect_backward
from tasks.extract.batches import Batch
from tasks.extract.gradients.agreement import Probe, needs_loop
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import make_plan, sample_gradients
from tasks.extract.models import wrap
from tests.extract.gradients.test_odd_uses import Made
from tests.extract.gradients.zoo import draw, loop, tensors

N = 6
WEIGHT = "mid.weight"


def stepped(weight: Tensor, x: Tensor) -> Tensor:
    """[sample, out, in]: a step of gradient descent for each sample."""
    inner = (x @ weight.T - x).square().sum()
    (gradient,) = torch.autograd.grad(inner, weight, create_graph=True)
    return weight - 0.1 * gradient


def one_by_one(x: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([row @ stepped(weight, row[None]).T for row in x])


def adapted(s: Any, x: Tensor) -> Tensor:
    """Gradients of a parameter itself (MAML)."""
    return one_by_one(x, s.mid.weight)


def adapted_product(s: Any, x: Tensor) -> Tensor:
    """Gradients of what is made of one."""
    return one_by_one(x, 2 * s.mid.weight)


def checked_alone(s: Any, x: Tensor) -> Tensor:
    """A checkpoint of nothing but parameters."""
    weight: Tensor = checkpoint(lambda w: w.tanh(), s.mid.weight, use_reentrant=True)
    return x @ weight.T


WAYS = [adapted, adapted_product, checked_alone]


def network(way: Callable[[Any, Tensor], Tensor]) -> Any:
    torch.manual_seed(0)
    parts = {"first": nn.Linear(6, 6), "mid": nn.Linear(6, 6, bias=False), "last": nn.Linear(6, 2)}

    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.first(x)
        out: Tensor = s.last((way(s, h) if s.odd else s.mid(h)).tanh())
        return out

    return Made(forward, **parts, odd=True).double()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("keep", [Exact(), Kronecker(dimension=3), Global(dimension=4)], ids=lambda k: k.kind)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_plain_autograd(way: Callable[[Any, Tensor], Tensor], keep: Keep) -> None:
    module = network(way)
    sample, fewer = (tensors(module, draw(N, 6)[:n]) for n in (N, N - 1))
    names = [name for name, _ in module.named_parameters()]
    why = needs_loop(module, [Probe(s.losses, s.n) for s in (sample, fewer)], names)
    assert WEIGHT in why
    for looped in (frozenset[str](), frozenset(why)):
        plan = make_plan(module, names, keep, 0, looped)
        found = sample_gradients(module, sample.losses, N, plan)
        for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
            torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


def test_why_is_told() -> None:
    module = network(adapted)
    sample = tensors(module, draw(N, 6))
    why = needs_loop(module, [Probe(sample.losses, N)], [name for name, _ in module.named_parameters()])
    assert set(why) == {name for name, _ in module.named_parameters()}
    assert all(
        "cannot run while its parameters take part without their gradient" in one for one in why.values()
    )


def test_what_only_a_later_batch_does() -> None:
    module = network(adapted)
    names = [name for name, _ in module.named_parameters()]
    sample = tensors(module, draw(N, 6))
    module.odd = False
    assert needs_loop(module, [Probe(sample.losses, N)], names) == {}
    module.odd = True
    found = sample_gradients(module, sample.losses, N, make_plan(module, names, Exact(), 0))
    assert set(found.looped) == set(names)
    for name, rows in loop(sample).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)


def test_an_error_of_the_network_is_its_own() -> None:
    def raises(s: Any, x: Tensor) -> Tensor:
        raise ValueError(f"{len(x)} rows are too many")

    module = network(raises)
    sample = tensors(module, draw(N, 6))
    with pytest.raises(ValueError, match="rows are too many"):
        sample_gradients(module, sample.losses, N, make_plan(module, ["mid.weight"], Exact(), 0))


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


SITES = [
    SiteLayout(site=Site(module="first", quantity=quantity), space="sample", width=6, feature_axis=1)
    for quantity in ("activation", "activation_gradient")
]


def parameter(module: nn.Module, name: str) -> SiteLayout:
    width = module.get_parameter(name).numel()
    site = Site(module=name, quantity="parameter_gradient")
    return SiteLayout(site=site, space="sample", width=width, feature_axis=1)


@pytest.mark.parametrize("way", [adapted, adapted_product, forces, attacked])
@pytest.mark.parametrize("wanted", [(), (WEIGHT,), ("first.weight", "last.weight")])
def test_sites_are_watched_in_networks_that_differentiate_themselves(
    way: Any, wanted: tuple[str, ...]
) -> None:
    """Activations and their gradients, beside those of parameters."""
    module = network(way)
    if way in (forces, attacked):
        module.function = way
    x = draw(N, 6).double()
    objective: Any = lambda output, _batch: output.square().sum(1)  # noqa: E731
    sites = [*SITES, *(parameter(module, name) for name in wanted)]
    plan = make_plan(module, wanted, Exact(), 0, entries="all")
    done = collect_backward(
        wrap(module, torch.float64), Batch({"": x}), sites, Rows(), Precision(), objective, plan
    )
    kept: list[Tensor] = []
    module.first.register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    (expected,) = torch.autograd.grad(module(x.clone()).square().sum(), kept[0])
    torch.testing.assert_close(done.rows["first:out:0"], kept[0].detach())
    torch.testing.assert_close(done.rows["first:out:0:grad"], expected, rtol=1e-8, atol=1e-12)
    for name in wanted:
        weight = module.get_parameter(name)
        rows = [
            torch.autograd.grad(
                module(v[None].clone()).square().sum(), weight, allow_unused=True, materialize_grads=True
            )[0]
            for v in x
        ]
        torch.testing.assert_close(
            done.rows[f"{name}:grad"], torch.stack(rows).flatten(1), rtol=1e-8, atol=1e-12
        )
