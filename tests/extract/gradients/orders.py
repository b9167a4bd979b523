"""Networks that send samples in another order through a layer in the middle, in every way that torch has."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.extract.gradients.zoo import Made, draw

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
