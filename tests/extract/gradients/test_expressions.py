"""What becomes of parameters before samples come in, and what else a network does with them on the way."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from schemas.gradients import Exact
from tasks.extract.gradients import expressions
from tasks.extract.gradients.by_rules import by_rules
from tasks.extract.gradients.call import Use
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import Gathered, sample_gradients
from tasks.extract.gradients.terms import Dense, Outer
from tests.extract.gradients.zoo import Made, draw, p, tensors

N = 8


def captured(module: nn.Module, entries: Literal["wanted", "all"] = "wanted") -> Gathered:
    """Gradients of a network, those of plain autograd."""
    module.double()
    sample = tensors(module, draw(N, 3, 6))
    plan = make_plan(module, [name for name, _ in module.named_parameters()], Exact(), 0, entries=entries)
    found = sample_gradients(module, sample.losses, N, plan)
    for name, rows in looped_gradients(plan.parameters, sample.losses, N, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-8, atol=1e-12)
    return found


def hooked(s: Any) -> Tensor:
    s.w.register_hook(lambda _: None).remove()
    w: Tensor = s.w
    return w


def hooked_afterwards(s: Any) -> Tensor:
    s.w.register_post_accumulate_grad_hook(lambda _: None).remove()
    w: Tensor = s.w
    return w


def kept(s: Any) -> Tensor:
    made: Tensor = 1 + s.w
    if made.requires_grad:
        made.retain_grad()
    return made


def sparse(s: Any) -> Tensor:
    return torch.eye(6).double().to_sparse() @ s.w


@pytest.mark.parametrize("made", [hooked, hooked_afterwards, kept, sparse])
def test_only_a_parameter_that_is_looked_at_takes_a_pass_for_each_sample(
    made: Callable[[Any], Tensor],
) -> None:
    torch.manual_seed(0)
    assert captured(Made(lambda s, x: x @ made(s) + s.b, w=p(6, 4), b=p(4))).looped == ("w",)


def mapped(s: Any, h: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: s.mid(row).tanh())(h)


def differentiated(s: Any, h: Tensor) -> Tensor:
    with forward_ad.dual_level():
        made = s.mid(forward_ad.make_dual(h, torch.ones_like(h))).tanh()
        found: Tensor = forward_ad.unpack_dual(made).tangent
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("inside", [mapped, differentiated])
def test_only_what_is_inside_a_transform_takes_a_pass_for_each_sample(
    inside: Callable[[Any, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    module = Made(lambda s, x: s.last(inside(s, x)), mid=nn.Linear(6, 6), last=nn.Linear(6, 2))
    assert captured(module).looped == ("mid.weight", "mid.bias")


@pytest.mark.parametrize("entries", ["wanted", "all"])
def test_a_gradient_that_is_reset_and_a_value_that_is_read_cost_nothing(
    entries: Literal["wanted", "all"],
) -> None:
    torch.manual_seed(0)

    def forward(s: Any, x: Tensor) -> Tensor:
        s.w.grad = None
        return (x @ s.w) * float(s.w.detach().sum()) + s.b

    assert captured(Made(forward, w=p(6, 4), b=p(4)), entries).looped == ()


@pytest.mark.parametrize("most", [0, 1 << 60])
@pytest.mark.parametrize("shape", [(), (6,), (1, 6), (3, 6), (1, 3, 6)])
def test_gradients_are_brought_back_together_and_one_by_one(
    shape: tuple[int, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expressions, "SMALL", most)
    torch.manual_seed(0)
    assert captured(Made(lambda s, x: x * s.w.exp() + s.b, w=p(*shape), b=p(6))).looped == ()


def test_a_parameter_seen_from_another_side_keeps_its_factors() -> None:
    """Nothing of its size is formed."""
    w = p(4, 6)
    known = expressions.Expressions({id(w): "w"}, [])
    rows, columns = Dense(draw(N, 3, 6)), Dense(draw(N, 3, 4))
    for turned, made in (
        (True, known.follow(Tensor.t, (w,), {}, [w], "")),
        (False, known.follow(Tensor.view, (w, 4, 6), {}, [w], "")),
    ):
        assert made is not None
        given = Outer(rows, columns) if turned else Outer(columns, rows)
        (found,) = known.among([made]).values()
        (use,) = found.brought_back(Use("=", lambda _: given), N)  # noqa: B023
        assert use.term(torch.zeros(())) == Outer(columns, rows)


def test_a_checkpoint_runs_again_once() -> None:
    """Not for what it makes of parameters."""
    calls = []

    def part(s: Any, rows: Tensor) -> Tensor:
        calls.append(1)
        return rows.tanh() * torch.exp(s.w).tanh()

    torch.manual_seed(0)
    module = Made(
        lambda s, x: s.last(checkpoint(part, s, s.first(x), use_reentrant=False)),
        w=p(6),
        first=nn.Linear(6, 6),
        last=nn.Linear(6, 2),
    ).double()
    sample = tensors(module, draw(N, 6))
    plan = make_plan(module, [name for name, _ in module.named_parameters()], Exact(), 0)
    assert by_rules(sample.losses, N, plan, frozenset()).refused == {}
    assert len(calls) == 2


@pytest.mark.parametrize("first", [1, 0])
def test_what_is_laid_along_samples_is_brought_back_once_for_each(first: int) -> None:
    """Not through the copies of all others, however it was laid."""

    def forward(s: Any, x: Tensor) -> Tensor:
        w = (s.w * 2).expand(len(x), -1, -1) if first else (s.w * 2)[0].expand(len(x), 6, 6)
        out: Tensor = s.last(torch.bmm(x, w + w.tanh()).tanh())
        return out

    torch.manual_seed(0)
    module = Made(forward, w=p(1, 6, 6), last=nn.Linear(6, 2)).double()
    sample = tensors(module, draw(8, 3, 6))
    names = [name for name, _ in module.named_parameters()]
    plan = make_plan(module, names, Exact(), 0)
    found = sample_gradients(module, sample.losses, 8, plan)
    assert found.looped == ()
    for name, rows in looped_gradients(plan.parameters, sample.losses, 8, plan.plan).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-9, atol=1e-12)


def test_expressions_with_many_rows_are_taken_sample_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row would pass all of them."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = torch.einsum("btd,edh->bteh", x, s.w).relu()
        mixed: Tensor = s.gate(x).softmax(-1)[..., None] * torch.einsum("bteh,ehd->bted", h, s.v)
        return mixed.sum(2)

    module = Made(forward, w=p(2, 6, 5), v=p(2, 5, 4), gate=nn.Linear(6, 2)).double()
    sample = tensors(module, draw(8, 3, 6))
    plan = make_plan(module, [name for name, _ in module.named_parameters()], Exact(), 0)
    few = sample_gradients(module, sample.losses, 8, plan)
    monkeypatch.setattr(expressions, "MOST_ROW_BY_ROW", 8 * 8 * 3 * 2 * 4 - 1)
    assert sample_gradients(module, sample.losses, 8, plan).looped == ()  # one sixteenth of a pass
    monkeypatch.setattr(expressions, "DEAR", 1)
    many = sample_gradients(module, sample.losses, 8, plan)
    assert (few.looped, set(many.looped)) == ((), {"w", "v"})
    for name, rows in looped_gradients(plan.parameters, sample.losses, 8, plan.plan).items():
        for found in (few, many):
            torch.testing.assert_close(found.values[name], rows, rtol=1e-9, atol=1e-12)
