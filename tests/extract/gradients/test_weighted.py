"""Gradients of losses that are weighted by sample: what is counted to another sample is found, and nothing else is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from schemas.gradients import Exact
from tasks.extract.gradients.agreement import Probe, needs_loop
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.sample_gradients import sample_gradients
from tasks.extract.gradients.weighted import adds_up, keeps_weights, sample_weights
from tests.extract.gradients.orders import N, by_a_list, in_order, one_by_one, out_of_sight, sorting
from tests.extract.gradients.zoo import Sample, draw, make, next_token, pooled, tensors, texts


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


@pytest.mark.parametrize(
    ("dtype", "leak"),
    [(torch.float64, 1e-12), (torch.float32, 1e-9), (torch.bfloat16, 1e-9), (torch.float16, 1e-2)],
)
def test_a_trace_of_a_neighbour_is_seen(dtype: torch.dtype, leak: float) -> None:
    """It is far below the tolerance, but neighbours' weights lie far apart."""
    rows = torch.ones(6, 4).double()
    (weights,) = sample_weights(6, dtype)
    leaked, weighted = (v + leak * v.roll(1, 0) for v in (rows, rows * weights[:, None]))
    assert not keeps_weights(leaked, weighted, weights, dtype)


TOLERATED = [
    (torch.float64, 1e-12, 1e-8),
    (torch.float32, 1e-6, 1e-4),
    (torch.bfloat16, 1e-6, 1e-4),
    (torch.float16, 1e-2, 0.1),
]


@pytest.mark.parametrize(("dtype", "rounding", "error"), TOLERATED)
def test_weighted_gradients_may_differ_by_rounding(dtype: torch.dtype, rounding: float, error: float) -> None:
    rows, (weights,) = torch.ones(6, 4).double(), sample_weights(6, dtype)
    for off, kept in ((0, True), (rounding, True), (error, False)):
        assert keeps_weights(rows, rows * weights[:, None] * (1 + off), weights, dtype) == kept


def test_rows_that_are_no_multiple_of_the_samples_keep_nothing() -> None:
    (weights,) = sample_weights(6, torch.float64)
    assert not keeps_weights(torch.zeros(7), torch.zeros(7), weights, torch.float64)


ADDED = [
    (torch.float64, (1e-6, 1e-4), (1e-13, 1e-11)),
    (torch.float32, (1e-4, 1e-2), (1e-6, 1e-4)),
    (torch.bfloat16, (1e-2, 0.5), (1e-3, 0.1)),
]
"""What is rounding and what is not, of a parameter's own gradients, and of those of all parameters."""


@pytest.mark.parametrize(("dtype", "own", "little"), ADDED)
def test_rows_add_up_but_for_rounding(
    dtype: torch.dtype, own: tuple[float, float], little: tuple[float, float]
) -> None:
    rows = torch.eye(6, 4).double()
    whole, norm = rows.sum(0, keepdim=True), float(rows.norm())
    for off, right in ((0.0, True), (own[0], True), (own[1], False)):
        assert adds_up(rows, whole + off * norm * torch.eye(1, 4), 0.0, dtype) == right
    for off, right in ((little[0], True), (little[1], False)):
        assert adds_up(0 * rows, 100 * off * torch.eye(1, 4), 100.0, dtype) == right


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
