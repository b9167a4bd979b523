"""Batches that take another way than those of the plan did: samples in another order, seen in the graph behind the losses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from schemas.gradients import Exact, Factors, Global, Keep, Kronecker, Norms, Sketch
from tasks.extract.gradients.agreement import Probe, graphs_of, needs_loop
from tasks.extract.gradients.attribution import keeps_weights, sample_weights, signature
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import Gathered, make_plan, sample_gradients
from tests.extract.gradients.test_odd_uses import Made
from tests.extract.gradients.zoo import Sample, draw, make, next_token, pooled, tensors, texts

N = 6
Through = Callable[[Any, Tensor, list[int]], Tensor]


def ranks(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=lambda k: order[k])


def by_a_list(s: Any, h: Tensor, order: list[int]) -> Tensor:
    return s.mid(h[order])[ranks(order)]


def by_a_tensor(s: Any, h: Tensor, order: list[int]) -> Tensor:
    return s.mid(h[torch.tensor(order)])[torch.tensor(ranks(order))]


def one_by_one(s: Any, h: Tensor, order: list[int]) -> Tensor:
    rows = s.mid(torch.stack([h[k] for k in order]))
    return torch.stack([rows[k] for k in ranks(order)])


def unbound(s: Any, h: Tensor, order: list[int]) -> Tensor:
    rows, back = h.unbind(), ranks(order)
    again = s.mid(torch.stack([rows[k] for k in order])).unbind()
    return torch.stack([again[k] for k in back])


def joined(s: Any, h: Tensor, order: list[int]) -> Tensor:
    cut = order[0]
    rows = s.mid(torch.cat([h[cut:], h[:cut]]))
    return torch.cat([rows[len(h) - cut :], rows[: len(h) - cut]])


def rolled(s: Any, h: Tensor, order: list[int]) -> Tensor:
    return s.mid(h.roll(order[0], 0)).roll(-order[0], 0)


def copied(s: Any, h: Tensor, order: list[int]) -> Tensor:
    rows = s.mid(h[order])
    return torch.zeros_like(rows).index_copy(0, torch.tensor(order), rows)


def written(s: Any, h: Tensor, order: list[int]) -> Tensor:
    rows = s.mid(h[order])
    out = torch.zeros_like(rows)
    out[torch.tensor(order)] = rows
    return out


def into_a_view(s: Any, h: Tensor, order: list[int]) -> Tensor:
    rows = s.mid(h[order])
    out = h.clone()
    out[:, :3].index_copy_(0, torch.tensor(order), rows[:, :3])
    return out


def scattered(s: Any, h: Tensor, order: list[int]) -> Tensor:
    rows = s.mid(h[order])
    return torch.zeros_like(rows).scatter(0, torch.tensor(order)[:, None].expand_as(rows), rows)


def added(s: Any, h: Tensor, order: list[int]) -> Tensor:
    rows = s.mid(h[order])
    return torch.zeros_like(rows).index_add(0, torch.tensor(order), rows)


def masked(s: Any, h: Tensor, order: list[int]) -> Tensor:
    """Two halves, those of one kind first."""
    kind = torch.tensor(order) < len(h) // 2
    rows = s.mid(torch.cat([h[kind], h[~kind]]))
    out = torch.zeros_like(rows)
    out[kind], out[~kind] = rows[: int(kind.sum())], rows[int(kind.sum()) :]
    return out


def looked_up(s: Any, h: Tensor, order: list[int]) -> Tensor:
    return nn.functional.embedding(torch.tensor(ranks(order)), s.mid(h[order]))


def flipped(s: Any, h: Tensor, order: list[int]) -> Tensor:
    return s.mid(h) if order == sorted(order) else s.mid(h.flip(0)).flip(0)


def negative_steps(s: Any, h: Tensor, order: list[int]) -> Tensor:
    rows = s.mid(h) if order == sorted(order) else s.mid(h.as_strided((3, 2, 6), (6, 18, 1)).reshape(-1, 6))
    return rows if order == sorted(order) else rows.reshape(3, 2, 6).transpose(0, 1).reshape(-1, 6)


def turned(s: Any, h: Tensor, order: list[int]) -> Tensor:
    """As many positions as samples."""
    wide = h[:, None] * torch.arange(1.0, N + 1, dtype=h.dtype)[:, None]
    straight = order == sorted(order)
    return (s.mid(wide) if straight else s.mid(wide.transpose(0, 1)).transpose(0, 1)).sum(1)


def written_back(s: Any, h: Tensor, order: list[int]) -> Tensor:
    """In a function of the user's own."""
    out: Tensor = Turn.apply(s.mid(Turn.apply(h, order)), ranks(order))
    return out


class Turn(torch.autograd.Function):
    """An order that no operation of the graph shows."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, order: list[int]) -> Tensor:
        ctx.order = order
        return h[order]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g[ranks(ctx.order)], None


WAYS: list[Through] = [
    by_a_list, by_a_tensor, one_by_one, unbound, joined, rolled, copied, written, into_a_view, scattered, added, masked,
    looked_up, flipped, negative_steps, turned, written_back,
]  # fmt: skip
FORMS: tuple[Keep, ...] = (
    Exact(),
    Kronecker(dimension=3),
    Global(dimension=4),
    Norms(),
    Sketch(dimension=4),
    Factors(rank=1),
)


def sorting(through: Through) -> nn.Module:
    """Sorts samples by their first number for a layer in the middle, and back."""
    torch.manual_seed(0)

    def forward(s: Any, x: Tensor) -> Tensor:
        order = x[:, 0].argsort().tolist()
        out: Tensor = s.last(through(s, s.first(x), order).tanh())
        return out

    return Made(forward, first=nn.Linear(6, 6), mid=nn.Linear(6, 6), last=nn.Linear(6, 1)).double()


def in_order(n: int) -> Tensor:
    x = draw(n, 6)
    x[:, 0] = torch.arange(n)
    return x


def captured(module: nn.Module, x: Tensor, keep: Keep) -> tuple[Sample, Gathered]:
    """Gradients after a plan of samples in order."""
    probes = [Probe(s.losses, s.n) for s in (tensors(module, in_order(n)) for n in (N, N - 1))]
    names = [name for name, _ in module.named_parameters()]
    looped = frozenset(needs_loop(module, probes, names))
    assert not looped
    plan = make_plan(module, names, keep, 0, looped, graphs=graphs_of(module, probes, names, looped))
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


@pytest.mark.parametrize("through", WAYS)
def test_what_the_plan_showed_is_not_looked_at_again(through: Through) -> None:
    module = sorting(through)
    names = [name for name, _ in module.named_parameters()]
    probe = Probe((sample := tensors(module, in_order(N))).losses, N)
    graphs = graphs_of(module, [probe], names, frozenset())
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    plan = make_plan(module, names, Exact(), 0, graphs=graphs)
    passes = []
    for _ in range(2):
        del calls[:]
        assert sample_gradients(module, sample.losses, N, plan).looped == ()
        passes.append(len(calls))
    assert passes == (
        [3, 3] if through in (written_back, masked) else [1, 1]
    )  # nothing tells where these move rows


def test_what_a_batch_showed_is_not_looked_at_again() -> None:
    module = sorting(one_by_one)
    names = [name for name, _ in module.named_parameters()]
    plan = make_plan(module, names, Exact(), 0)
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    sample = tensors(module, in_order(N))
    for expected in (3, 1):
        del calls[:]
        assert sample_gradients(module, sample.losses, N, plan).looped == ()
        assert len(calls) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 41, 42, 100, 400])
def test_weights_tell_any_two_samples_apart(n: int, dtype: torch.dtype) -> None:
    weights = torch.stack(sample_weights(n, dtype))
    assert len({tuple(column) for column in weights.T.tolist()}) == n
    assert bool((torch.log2(weights) % 1 == 0).all())
    assert bool((weights.to(dtype).double() == weights).all())


@given(st.permutations(range(9)), st.integers(1, 3))
def test_a_permutation_is_seen(order: list[int], positions: int) -> None:
    rows = torch.randn(9 * positions, 4, generator=torch.Generator().manual_seed(0))
    (weights,) = sample_weights(9, torch.float32)
    scaled = (rows.double() * weights[order].repeat_interleave(positions)[:, None]).float()
    assert keeps_weights(rows, scaled, weights, torch.float32) == (order == sorted(order))


def of_size(kind: str, n: int) -> Sample:
    """The first samples of a network's batch, or texts of other lengths."""
    module = make(kind).module
    if kind in ("vit", "cnn"):
        return tensors(module, draw(8, 3, 8, 8)[:n])
    if kind in ("mlp", "recurrent"):
        return tensors(module, (draw(8, 6) if kind == "mlp" else draw(8, 5, 6))[:n])
    return texts(module, next_token if kind in ("gpt2", "llama") else pooled, [n + 1, *range(1, n)])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "albert", "vit", "cnn", "mlp", "recurrent"])
def test_batches_of_other_sizes_are_of_one_graph(kind: str) -> None:
    """Whatever their lengths: a second look would cost two passes. (A padded Llama's graph is another than one without padding.)"""
    looped, seen = frozenset[str](), set[str]()
    for n in (8, 7, 3, 2):
        sample = of_size(kind, n)
        names = [name for name, _ in sample.module.named_parameters()]
        looped = looped or frozenset(needs_loop(sample.module, [Probe(sample.losses, n)], names))
        seen |= set(graphs_of(sample.module, [Probe(sample.losses, n)], names, looped))
    assert len(seen) == 1


@pytest.mark.parametrize(("positions", "told"), [(5, True), (N, False)])
def test_an_axis_as_long_as_the_batch_may_count_its_samples(positions: int, told: bool) -> None:
    used = torch.randn(N, positions, 4, requires_grad=True) * 2
    places = torch.zeros(N, positions, 4, dtype=torch.int64)
    graphs = [
        signature(values.gather(1, places).sum((1, 2)), N, [(used.grad_fn, "use")])
        for values in (used, used.transpose(0, 1) if positions == N else used)
    ]
    assert all((graph is not None) == told for graph in graphs)


def test_what_the_signature_tells() -> None:
    """Order and operations, not sizes or real numbers."""

    def of(made: Callable[[Tensor], Tensor], n: int = N, use: str = "use") -> str | None:
        used = torch.randn(n, 4, requires_grad=True) * 2
        return signature(made(used), n, [(used.grad_fn, use)])

    plain = of(lambda h: (h * 3).sum(1))
    assert plain == of(lambda h: (h * 5).sum(1)) == of(lambda h: (h * 3).sum(1), 9)
    others = [
        of(lambda h: (h * 3).sum(1), use="other"),
        of(lambda h: (h * 3).flip(0).sum(1)),
        of(lambda h: (h * 3).flip(1).sum(1)),
        of(lambda h: (h * 3)[:, 1:].sum(1)),
        of(lambda h: (h * 3)[:, :2].sum(1)),
        of(lambda h: torch.stack([h[k] for k in range(N)]).sum(1)),
        of(lambda h: torch.stack([h[k] for k in (1, 0, *range(2, N))]).sum(1)),
        of(lambda h: torch.stack(h.unbind()).sum(1)),
        of(lambda h: torch.stack(h.unbind()[::-1]).sum(1)),
    ]
    assert None not in others
    assert len({plain, *others}) == 1 + len(others)
    assert of(lambda h: h[torch.arange(N)].sum(1)) == of(lambda h: h[list(range(N))].sum(1)) is not None
    assert of(lambda h: h[torch.arange(N).flip(0)].sum(1)) is None
    assert signature(torch.zeros(3), 3, []) == ""
