"""What the graph behind losses tells of rows: whether they stay with their samples."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tasks.extract.gradients.attribution import MOST_TRIED, rows_stay
from tests.extract.gradients.orders import Hidden, N, Turn

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
    "summed up from the end": lambda h: h.cumsum(-1).sum((1, 2)),
    "on diagonals": lambda h: torch.diag_embed(h).sum((1, 2, 3)),
    "in windows of each": lambda h: h.unfold(1, 2, 1).sum((1, 2, 3)),
}
MOVE: dict[str, Callable[[Tensor], Tensor]] = {
    "flipped": lambda h: h.flip(0).sum((1, 2)),
    "rolled": lambda h: h.roll(1, 0).sum((1, 2)),
    "rolled as one row": lambda h: h.roll(20).sum((1, 2)),
    "positions first": lambda h: h.transpose(0, 1).sum((0, 2)),
    "permuted": lambda h: h.permute(1, 0, 2).sum((0, 2)),
    "as columns": lambda h: h.sum(1).t().sum(0),
    "one by one": lambda h: torch.stack([v.sum() for v in h]),
    "as columns of a square": lambda h: h.flatten(1)[:, :N].t().sum(1),
    "summed up from above": lambda h: h.cumsum(-3).sum((1, 2)),
    "shifted": lambda h: F.pad(h, (0, 0, 0, 0, 1, -1)).sum((1, 2)),
    "in windows from the end": lambda h: h.flatten(0, 1).unfold(-2, 7, 1).reshape(N, -1).sum(1),
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
    "chosen by one number": lambda h: torch.ops.aten.index(
        h.flatten(1)[:, : 2 * N].view(N, N, 2), [torch.tensor(2)]
    ).sum(1),
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


WHOLE = torch.arange(1, 1 + N * 20).view(N, 5, 4)
WITHIN: dict[str, Callable[[Tensor], Tensor]] = {
    "AdaptiveMaxPool2D": lambda h: F.adaptive_max_pool2d(h, 2),
    "AdaptiveMaxPool3D": lambda h: F.adaptive_max_pool3d(h.view(N, 1, 5, 2, 2), 2),
    "Addcdiv": lambda h: torch.addcdiv(h, h, WHOLE),
    "Addcmul": lambda h: torch.addcmul(h, h, WHOLE),
    "Clamp": lambda h: h.clamp(min=WHOLE),
    "Div": lambda h: h / WHOLE,
    "Dropout": lambda h: torch.native_dropout(h, 0.5, True)[0],
    "Fmod": lambda h: torch.fmod(WHOLE, h),
    "MaskedFill": lambda h: h.masked_fill(WHOLE > 9, 0),
    "MaxPool2DWithIndices": lambda h: F.max_pool2d(h, 2),
    "MaxPool3DWithIndices": lambda h: F.max_pool3d(h.view(N, 1, 5, 2, 2), 2),
    "Mul": lambda h: h * WHOLE,
    "NllLoss": lambda h: F.nll_loss(h.sum(1), torch.ones(N).long(), reduction="none"),
    "NllLoss2D": lambda h: F.nll_loss(h.view(N, 5, 2, 2), torch.ones(N, 2, 2).long(), reduction="none"),
    "Pow": lambda h: h**WHOLE,
    "Remainder": lambda h: torch.remainder(WHOLE, h),
    "Where": lambda h: torch.where(WHOLE > 9, h, 0.0),
    "on diagonals": torch.diag_embed,
    "the largest from the end": lambda h: h.max(-2).values,
}


def verdict(once: Callable[[Tensor], Tensor], times: int) -> bool:
    """About losses with an operation that many times."""
    used = torch.randn(N, 5, 4, requires_grad=True) * 2
    return rows_stay(sum_of([once(used) for _ in range(times)]), N, [used.grad_fn])


def sum_of(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.reshape(N, -1).sum(1) for part in parts], 1).sum(1)


@pytest.mark.parametrize("once", WITHIN.values(), ids=WITHIN)
def test_operations_that_move_nothing_stay_however_many_there_are(once: Callable[[Tensor], Tensor]) -> None:
    """They are not tried by themselves."""
    assert verdict(once, MOST_TRIED + 1)


@pytest.mark.parametrize("more", [0, 1])
def test_no_more_operations_are_tried_than_a_second_backward_costs(more: int) -> None:
    assert verdict(lambda h: h[torch.arange(N)], MOST_TRIED + more) == (not more)


class Scaled(torch.autograd.Function):
    """Keeps a factor, in whatever form."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, factor: Any) -> Tensor:
        ctx.factor = factor
        return h * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * 2, None


@pytest.mark.parametrize("package", ["torch", "transformers", "timm", "torchvision", "torchlike"])
@pytest.mark.parametrize("kept", [2, (2, "two"), [2.0, None], torch.ones(()), [torch.ones(())], {}, abs])
def test_functions_of_known_packages_are_tried_if_they_keep_plain_values(package: str, kept: Any) -> None:
    function: Any = type("Scaled", (Scaled,), {"__module__": f"{package}.functions"})
    plain = kept in (2, (2, "two")) or kept == [2.0, None]
    assert verdict(lambda h: function.apply(h, kept), 1) == (plain and package != "torchlike")


def test_a_function_of_a_known_package_that_moves_rows_is_found() -> None:
    function: Any = type("Turn", (Turn,), {"__module__": "torch.functions"})
    assert verdict(lambda h: function.apply(h, list(range(N))), 1)
    assert not verdict(lambda h: function.apply(h, [1, 0, *range(2, N)]), 1)


def test_operations_that_are_not_of_torch_itself_do_not_tell() -> None:
    assert not verdict(lambda h: torch._C._functions.DelayedError("", 1)(h), 1)


def test_graphs_without_a_use() -> None:
    assert rows_stay(torch.zeros(3), 3, [])
    used = torch.randn(N, 4, requires_grad=True) * 2
    assert rows_stay((used * 2).sum(1), N, [(used * 3).grad_fn, None])
