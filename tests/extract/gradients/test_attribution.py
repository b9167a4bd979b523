"""Rows that belong to other samples than they are counted to, though the plan did not show it: told by the graph, or by weights."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from schemas.errors import ModelError
from schemas.gradients import Exact, Factors, Global, Keep, Kronecker, Norms, Sketch
from tasks.extract.gradients.agreement import Probe, needs_loop
from tasks.extract.gradients.attribution import keeps_weights, rows_stay, sample_weights
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import Gathered, make_plan, sample_gradients
from tests.extract.gradients.test_odd_uses import Made, p
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


def out_of_sight(s: Any, h: Tensor, order: list[int]) -> Tensor:
    """The same with its numbers in a tensor."""
    out: Tensor = Hidden.apply(s.mid(Hidden.apply(h, torch.tensor(order))), torch.tensor(ranks(order)))
    return out


class Hidden(torch.autograd.Function):
    """An order in a tensor."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return h[order]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g[ctx.saved_tensors[0].argsort()], None


class Turn(torch.autograd.Function):
    """An order that no operation of torch shows."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, order: list[int]) -> Tensor:
        ctx.order = order
        return h[order]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g[ranks(ctx.order)], None


WAYS: list[Through] = [
    by_a_list, by_a_tensor, one_by_one, unbound, joined, rolled, copied, written, into_a_view, scattered, added, masked,
    looked_up, flipped, negative_steps, turned, written_back, out_of_sight,
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


def passes_of(module: nn.Module, sample: Sample, looped: frozenset[str] = frozenset()) -> int:
    """Forwards of one batch."""
    names = [name for name, _ in module.named_parameters()]
    calls: list[int] = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    sample_gradients(module, sample.losses, sample.n, make_plan(module, names, Exact(), 0, looped))
    hook.remove()
    return len(calls)


def test_a_second_look_takes_three_passes() -> None:
    for through, passes in ((by_a_list, 1), (out_of_sight, 4), (one_by_one, 4)):
        module = sorting(through)
        assert passes_of(module, tensors(module, in_order(N))) == passes


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
    shapes = {
        "vit": (3, 8, 8),
        "cnn": (3, 8, 8),
        "mlp": (6,),
        "conv1d": (3, 9),
        "conv3d": (2, 6, 6, 6),
        "bare": (4, 6),
    }
    if kind in shapes:
        return tensors(module, draw(8, *shapes[kind])[:n])
    return texts(module, next_token if kind in ("gpt2", "llama") else pooled, [n + 1, *range(2, n + 1)])


@pytest.mark.parametrize(
    "kind", ["gpt2", "llama", "bert", "albert", "vit", "cnn", "mlp", "conv1d", "conv3d", "bare"]
)
def test_ordinary_networks_need_no_second_look(kind: str) -> None:
    """Whatever the sizes and the padding."""
    looped: frozenset[str] | None = None
    for n in (8, 7, 3, 2):
        sample = of_size(kind, n)
        names = [name for name, _ in sample.module.named_parameters()]
        if looped is None:
            looped = frozenset(needs_loop(sample.module, [Probe(sample.losses, n)], names))
        assert passes_of(sample.module, sample, looped) == 1


STAY: dict[str, Callable[[Tensor], Tensor]] = {
    "alone": lambda h: h.tanh().sum((1, 2)),
    "heads": lambda h: (h.view(N, 5, 2, 2).transpose(1, 2) @ h.view(N, 5, 2, 2).permute(0, 2, 3, 1)).sum(
        (1, 2, 3)
    ),
    "flat": lambda h: F.linear(h.flatten(0, 1), torch.ones(3, 4)).view(N, -1).sum(1),
    "before one axis": lambda h: h[None].softmax(2).mean((0, 2, 3)),
    "a part": lambda h: h[:, 1:3].sum((1, 2)),
    "chosen": lambda h: h.gather(1, torch.zeros(N, 5, 4, dtype=torch.int64)).sum((1, 2)),
    "chosen from the end": lambda h: h.gather(-1, torch.zeros(N, 5, 4, dtype=torch.int64)).sum((1, 2)),
    "the largest": lambda h: h.max(1).values.sum(-1),
    "the last": lambda h: h[torch.arange(N), torch.tensor([0, 1, 2, 3, 4, 0])].sum(1),
    "in order": lambda h: h[list(range(N))].sum((1, 2)),
    "scattered": lambda h: torch.zeros(N, 5, 4).index_copy(0, torch.arange(N), h).sum((1, 2)),
    "words": lambda h: (
        F.cross_entropy(h.flatten(0, 1), torch.ones(N * 5).long(), reduction="none").view(N, 5).sum(1)
    ),
    "masked": lambda h: (h.masked_fill(h > 1, 0) * (h > 0).long() * 2).sum((1, 2)),
    "turned within": lambda h: h.roll(1, 1).flip(2).sum((1, 2)),
    "padded": lambda h: F.pad(h, (1, 1, 2, 0)).sum((1, 2)),
    "repeated": lambda h: h.repeat(1, 2, 1).sum((1, 2)),
    "written": lambda h: written_into(h, (slice(None), 0)).sum((1, 2)),
    "an image": lambda h: F.instance_norm(h.view(N, 5, 2, 2)).sum((1, 2, 3)),
    "numbers": lambda h: torch.view_as_real(torch.view_as_complex(h.view(N, 5, 2, 2))[list(range(N))]).sum(
        (1, 2, 3)
    ),
    "logarithms": lambda h: h.logsumexp(1).sum(1),
}
MOVE: dict[str, Callable[[Tensor], Tensor]] = {
    "flipped": lambda h: h.flip(0).sum((1, 2)),
    "rolled": lambda h: h.roll(1, 0).sum((1, 2)),
    "rolled as one row": lambda h: h.roll(20).sum((1, 2)),
    "positions first": lambda h: h.transpose(0, 1).sum((0, 2)),
    "permuted": lambda h: h.permute(1, 0, 2).sum((0, 2)),
    "as columns": lambda h: h.sum(1).t().sum(0),
    "one by one": lambda h: torch.stack([v.sum() for v in h]),
    "cut": lambda h: torch.cat(h.split([2, 4])).sum((1, 2)),
    "joined": lambda h: torch.cat([h, h[:0]]).sum((1, 2)),
    "sliced": lambda h: torch.cat([h, h])[N:].sum((1, 2)),
    "repeated": lambda h: h.repeat(2, 1, 1)[:N].sum((1, 2)),
    "padded": lambda h: F.pad(h, (0, 0, 0, 0, N, 0)).view(2, N, 5, 4).sum((0, 2, 3)),
    "times a matrix": lambda h: (torch.eye(N) @ h.flatten(1)).sum(1),
    "times matrices": lambda h: (torch.eye(N)[None] @ h.flatten(1)[None])[0].sum(1),
    "beside others": lambda h: (h.sum((1, 2)) * torch.eye(N)).sum(1),
    "repeated beside": lambda h: h.sum((1, 2)).expand(N, N).diagonal(),
    "where": lambda h: torch.where(torch.eye(N).bool()[:, :, None], h.sum(1)[None], 0.0).sum((1, 2)),
    "chosen": lambda h: h[torch.arange(N).flip(0)].sum((1, 2)),
    "sorted": lambda h: h.sort(0).values.sum((1, 2)),
    "scattered": lambda h: torch.zeros(N, 5, 4).index_copy(0, torch.arange(N).flip(0), h).sum((1, 2)),
    "added": lambda h: torch.zeros(N, 5, 4).index_add(0, torch.arange(N).flip(0), h).sum((1, 2)),
    "looked up": lambda h: F.embedding(torch.arange(N).flip(0), h.sum(1)).sum(1),
    "written": lambda h: written_into(h, torch.arange(N).flip(0)).sum((1, 2)),
    "overlaid": lambda h: h.as_strided((N, 5, 4), (20, 4, 1), 0).flip(0).sum((1, 2)),
    "numbers": lambda h: torch.view_as_real(
        torch.view_as_complex(h.view(N, 5, 2, 2))[list(range(N))[::-1]]
    ).sum((1, 2, 3)),
    "filtered": lambda h: F.conv1d(h.flatten(1)[None], torch.eye(N)[:, :, None])[0].sum(1),
    "filtered as one": lambda h: F.conv1d(h.flatten(1), torch.eye(N)[:, :, None]).sum(1),
    "as filters": lambda h: F.conv1d(torch.ones(N, 1, 20), h.flatten(1)[:, None])[:, :, 0].diagonal(),
    "attended": lambda h: F.scaled_dot_product_attention(*[h.flatten(1)[None, None]] * 3)[0, 0].sum(1),
    "sampled": lambda h: F.grid_sample(
        h.flatten(1)[None, None], torch.zeros(1, N, 20, 2), align_corners=False
    )[0, 0].sum(1),
    "solved": lambda h: torch.linalg.solve(torch.eye(N).flip(0), h.flatten(1)).sum(1),
    "triangular": lambda h: torch.linalg.solve_triangular(
        torch.ones(N, N).tril(), h.flatten(1), upper=False
    ).sum(1),
    "pooled": lambda h: F.avg_pool1d(h.flatten(1).T[None], 3, 1, 1)[0].T.sum(1),
    "far from each": lambda h: torch.cdist(torch.ones(N, 20), h.flatten(1)).diagonal(),
    "of a pair": lambda h: (
        torch.cat([h, h], 1).view(2 * N, 5, 4).gather(1, torch.zeros(N, 5, 4).long()).sum((1, 2))
    ),
    "in windows of positions": lambda h: (
        torch.cat([h, h[:, :1]], 1).transpose(0, 1).unfold(0, N, 1).sum(-1)[0].sum(1)
    ),
    "in windows": lambda h: torch.cat([h, h])[: 2 * N - 1].unfold(0, N, 1).sum((1, 2, 3)),
    "normalised": lambda h: F.layer_norm(h, (N, 5, 4)).sum((1, 2)),
    "by the batch": lambda h: F.batch_norm(h.flatten(1), None, None, training=True).sum(1),
    "summed over batches": lambda h: torch.addbmm(torch.zeros(N, 4), torch.ones(N, N, 5), h).sum(1),
    "in frames": lambda h: h.view(2, 3, 5, 4).transpose(0, 1).reshape(N, -1).sum(1),
    "a user's function": lambda h: Own.apply(h).sum((1, 2)),
    "a function": lambda h: Turn.apply(h, [1, 0, 2, 3, 4, 5]).sum((1, 2)),
    "a function that keeps more": lambda h: Hidden.apply(h, torch.tensor([1, 0, 2, 3, 4, 5])).sum((1, 2)),
    "out of sight": lambda h: checkpoint(lambda v: v[torch.arange(N).flip(0)], h, use_reentrant=False).sum(
        (1, 2)
    ),
    "run again": lambda h: checkpoint(lambda v: v.tanh(), h, use_reentrant=True).sum((1, 2)),
}


def written_into(h: Tensor, places: Any) -> Tensor:
    out = torch.zeros(N, 5, 4)
    part = out[:, :, :3]
    part[places] = h[:, 0, :3] if isinstance(places, tuple) else h[:, :, :3]
    return out


class Own(torch.autograd.Function):
    """Keeps nothing but what it was given."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize("made", [*STAY.items(), *MOVE.items()], ids=lambda made: made[0])
def test_rows_that_stay(made: tuple[str, Callable[[Tensor], Tensor]]) -> None:
    used = torch.randn(N, 5, 4, requires_grad=True) * 2
    losses = made[1](used)
    assert losses.shape == (N,)
    assert rows_stay(losses, N, [used.grad_fn]) == (made in STAY.items())


def test_graphs_without_a_use() -> None:
    assert rows_stay(torch.zeros(3), 3, [])
    used = torch.randn(N, 4, requires_grad=True) * 2
    assert rows_stay((used * 2).sum(1), N, [(used * 3).grad_fn, None])


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


def test_samples_that_one_weight_does_not_tell_apart() -> None:
    """41 powers of two for 84 samples: the first and the 42nd have the same."""
    order = list(range(84))
    order[0], order[41] = 41, 0
    module = sorting(by_a_list)
    names = [name for name, _ in module.named_parameters()]
    sample = tensors(module, in_order(84)[order])
    found = sample_gradients(module, sample.losses, 84, make_plan(module, names, Exact(), 0))
    assert set(found.looped) == {"mid.weight", "mid.bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision(dtype: torch.dtype) -> None:
    """What is astray is found, and nothing else is."""
    module = sorting(by_a_list).to(dtype)
    names = [name for name, _ in module.named_parameters()]
    plan = make_plan(module, names, Exact(), 0)
    for order, looped in (([0, 1, 2, 3, 4, 5], set()), ([1, 0, 2, 3, 4, 5], {"mid.weight", "mid.bias"})):
        x = (in_order(N)[order] / 4).to(dtype)

        def losses(one: int | None) -> Tensor:
            return module(x if one is None else x[one : one + 1]).float().square().sum(1)  # noqa: B023

        assert set(sample_gradients(module, losses, N, plan).looped) == looped


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
