"""Uses of parameters that no layer of torch stands for: exact in every form, by a rule or named as done sample by sample."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as parametrizations
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from schemas.gradients import Exact, Factors, Keep, Kronecker, Norms, Sketch
from tasks.extract.gradients.agreement import Probe, needs_loop
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import sample_gradients
from tests.extract.gradients.zoo import Made, draw, loop, p, tensors

FORMS: tuple[Keep, ...] = (
    Exact(),
    Kronecker(dimension=3),
    Norms(),
    Sketch(dimension=4),
    Factors(rank=1, dimension=3),
)


def words(x: Tensor) -> Tensor:
    """Ids from values, [sample, position]."""
    return (x > 0).long().view(len(x), -1)


def written(self: Any, x: Tensor) -> Tensor:
    """A token stands where values are missing."""
    y = x * 2
    y[x[..., 0] < 0] = self.b
    return y


def dropped(self: Any, x: Tensor) -> Tensor:
    """What an operation in place returns is not looked at."""
    y = x.clone()
    y.add_(self.b)
    return y


def on_a_view(self: Any, x: Tensor) -> Tensor:
    """Gradients come by the base of a view."""
    y = torch.tanh(x * 2)
    some = y[:, 1:]
    some += self.b
    return y


def into_a_part(self: Any, x: Tensor) -> Tensor:
    """A token before the others."""
    y = x.new_empty(len(x), x.shape[1] + 1, 6)
    y[:, 0].copy_(self.c)
    y[:, 1:] = x
    return torch.tanh(self.l(y))


def added(self: Any, x: Tensor) -> Tensor:
    """A product written into zeros."""
    y = x.new_zeros(len(x), 4)
    y.addmm_(x, self.w)
    return y


def filtered(self: Any, x: Tensor) -> Tensor:
    """A filter that is learned as complex numbers."""
    return torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(self.w), n=6)


def packed(self: Any, x: Tensor) -> Tensor:
    """Only some rows pass."""
    mask = x[..., 0] > 0
    rows = torch.tanh(self.l(x[mask]))
    out = rows.new_zeros(*x.shape[:2], 4)
    out[mask] = rows
    return out


def watched(self: Any, x: Tensor) -> Tensor:
    """A gradient that somebody changes."""
    e = 1 + self.w
    if e.requires_grad:
        e.register_hook(lambda g: 2 * g)
    return x * e


def apart(n: int) -> Tensor:
    """Distances of positions."""
    return (torch.arange(n)[:, None] - torch.arange(n)).abs()


def attended(x: Tensor, bias: Tensor, windows: int = 1) -> Tensor:
    """Attention of two heads."""
    heads = x.reshape(len(x) * windows, 3, 2, 3).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads.tanh(), heads, attn_mask=bias)


class Centred(nn.Conv2d):
    """Standardises its weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Again(torch.autograd.Function):
    """A checkpoint of one's own: its backward runs the part again, and a backward of it."""

    @staticmethod
    def forward(ctx: Any, part: nn.Module, x: Tensor) -> Tensor:
        ctx.part = part
        ctx.save_for_backward(x)
        out: Tensor = part(x)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor | None]:
        (x,) = ctx.saved_tensors
        again = x.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.part(again)
        torch.autograd.backward(out, g)
        return None, again.grad


ROWS, FLAT, SQUARE = (8, 3, 6), (8, 6), (8, 8, 6)
BY_RULE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "low rank": (lambda: Made(lambda s, x: x @ s.w + x @ s.a @ s.b, w=p(6, 6), a=p(6, 2), b=p(2, 6)), ROWS),
    "two roles": (lambda: Made(lambda s, x: F.linear(x, s.w) @ s.w, w=p(6, 6)), ROWS),
    "two axes": (lambda: Made(lambda s, x: x + s.b, b=p(3, 6)), ROWS),
    "an axis of one": (lambda: Made(lambda s, x: x + s.b, b=p(3, 1)), ROWS),
    "a row": (lambda: Made(lambda s, x: x + s.b, b=p(1, 6)), FLAT),
    "beside itself without gradient": (lambda: Made(lambda s, x: F.linear(x, s.w) + F.linear(x, s.w).detach(), w=p(4, 6)), FLAT),
    "minuend": (lambda: Made(lambda s, x: s.b - x, b=p(6)), ROWS),
    "subtrahend": (lambda: Made(lambda s, x: x - s.b, b=p(6)), ROWS),
    "a number": (lambda: Made(lambda s, x: s.b * x * 3, b=p()), ROWS),
    "groups wider than the projection": (lambda: nn.Conv2d(8, 40, 3, groups=2), (8, 8, 5, 5)),
    "a copied token": (lambda: Made(lambda s, x: torch.cat([x, s.b.repeat(len(x), 1, 1)], 1), b=p(1, 2, 6)), ROWS),
    "an expanded matrix": (lambda: Made(lambda s, x: torch.bmm(x, s.w.expand(len(x), 6, 4)), w=p(1, 6, 4)), ROWS),
    "norm over two axes": (lambda: nn.LayerNorm([3, 6]), ROWS),
    "times itself": (lambda: Made(lambda s, x: x * (s.w * s.w), w=p(6)), ROWS),
    "one more than a weight": (lambda: Made(lambda s, x: x * (1 + s.w.float().double()), w=p(6)), ROWS),
    "a scale for each channel": (lambda: Made(lambda s, x: x * s.w.view(1, -1, 1) + s.b[:, None].exp(), w=p(3), b=p(3)), ROWS),
    "one of its entries": (lambda: Made(lambda s, x: x * s.w[1] + s.w.sum(), w=p(6)), ROWS),
    "bounded": (lambda: Made(lambda s, x: F.linear(x, s.l.weight, s.l.bias.clamp(-0.1, 0.1)) + s.l.bias, l=nn.Linear(6, 4)), ROWS),
    "cosines to prototypes": (lambda: Made(lambda s, x: F.normalize(x, dim=-1) @ F.normalize(s.w, dim=1).T, w=p(4, 6)), ROWS),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh()), FLAT),
    "transposed twin": (lambda: Made(lambda s, x: F.linear(torch.tanh(F.linear(x, s.w)), s.w.t()), w=p(4, 6)), ROWS),
    "a row for all": (lambda: Made(lambda s, x: x + s.e(torch.zeros(1).long()), e=nn.Embedding(3, 6)), ROWS),
    "transposed": (lambda: Made(lambda s, x: x @ s.w.T + x @ s.v.transpose(0, 1), w=p(4, 6), v=p(4, 6)), ROWS),
    "transposed twice": (lambda: Made(lambda s, x: x @ s.w.T.mT + s.w.t().sum(1)[:4], w=p(6, 4)), ROWS),
    "words by their numbers": (lambda: Made(lambda s, x: s.w[words(x)] + s.v[words(x) - 1, :], w=p(3, 5), v=p(3, 5)), ROWS),
    "added to a weight": (lambda: Made(lambda s, x: F.linear(x, s.w + s.a @ s.b), w=p(4, 6), a=p(4, 2), b=p(2, 6)), ROWS),
    "a large one, scaled": (lambda: Made(lambda s, x: F.linear(x, s.w * 0.01) + F.linear(x, s.w), w=p(300, 250)), (4, 250)),
    "the first positions of many": (lambda: Made(lambda s, x: x + s.w[:3], w=p(15000, 6)), ROWS),
    "a filter with its mean taken out": (lambda: nn.Sequential(Centred(3, 4, 3), nn.Tanh()), (4, 3, 6, 6)),
    "how far apart": (lambda: Made(lambda s, x: x.transpose(1, 2) @ (x + s.e(apart(3)).mean(-1)), e=nn.Embedding(3, 6)), (8, 3, 3)),
    "biases of positions": (lambda: Made(lambda s, x: attended(x, s.e(apart(3)).permute(2, 0, 1)), e=nn.Embedding(3, 2)), ROWS),
    "biases in windows": (lambda: Made(lambda s, x: attended(x, s.b, 2), b=p(1, 2, 3, 3)), (8, 6, 6)),
    "words and positions by hand": (
        lambda: Made(lambda s, x: s.l((s.w[words(x)] + s.v[:3]).tanh()), w=p(3, 6), v=p(5, 6), l=nn.Linear(6, 4)), (8, 3),
    ),
    "first without a rule": (
        lambda: Made(lambda s, x: s.l(torch.einsum("bsi,io->bso", x, s.w).tanh()), w=p(6, 5), l=nn.Linear(5, 4)), ROWS,
    ),
    "a bias where there is none": (lambda: Made(lambda s, x: s.l(torch.where(x > 0, x, s.b)) + x, b=p(6), l=nn.Linear(6, 6)), ROWS),
    "zeros like it": (lambda: Made(lambda s, x: x * s.b + torch.zeros_like(s.b), b=p(6)), ROWS),
    "transposed, with a bias": (lambda: Made(lambda s, x: F.linear(x, s.w.t(), s.b) * s.w.t().sum(), w=p(6, 4), b=p(4)), ROWS),
    "two of one": (lambda: Made(lambda s, x: F.layer_norm(x, (6,), s.w[0] + 1, s.w[1].exp()), w=p(2, 6)), ROWS),
    "every row twice": (lambda: Made(lambda s, x: s.l(torch.tanh(s.l(x.repeat_interleave(2, 1)))), l=nn.Linear(12, 12)), FLAT),
    "padding from the end": (lambda: Made(lambda s, x: s.e(words(x)), e=nn.Embedding(3, 5, padding_idx=-2)), ROWS),
    "one word each": (lambda: Made(lambda s, x: s.e((x[:, 0, 0] > 0).long()), e=nn.Embedding(3, 5)), ROWS),
    "rows as often as numbers say": (
        lambda: Made(lambda s, x: torch.tanh(s.l(x.repeat_interleave(torch.ones(len(x)).long(), 0))), l=nn.Linear(6, 4)), FLAT,
    ),
    "positions": (lambda: Made(lambda s, x: x + s.e(torch.arange(3)[None]), e=nn.Embedding(3, 6)), ROWS),
    "transposed, a square": (lambda: Made(lambda s, x: F.linear(x, s.w.t()) @ s.v.T, w=p(6, 6), v=p(6, 6)), ROWS),
    "transposed and conjugated": (lambda: Made(lambda s, x: x @ s.w.H + x @ s.v.mH, w=p(4, 6), v=p(4, 6)), ROWS),
    "read in another order": (lambda: Made(lambda s, x: F.linear(x, s.w.view(4, 6)), w=p(6, 4)), ROWS),
    "its real part": (lambda: Made(lambda s, x: x * s.w.real, w=p(6)), ROWS),
    "laid out as another": (lambda: Made(lambda s, x: x * s.w.view_as(s.v) + s.v, w=p(6), v=p(6)), ROWS),
    "a filter with its axes turned round": (lambda: Made(lambda s, x: F.conv1d(x, s.w.permute(2, 1, 0)), w=p(2, 3, 4)), ROWS),
    "told to want a gradient": (lambda: Made(lambda s, x: x * s.w.requires_grad_(), w=p(6)), ROWS),
}  # fmt: skip
BY_LOOP: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "bias alone": (lambda: Made(lambda s, x: F.linear(x, s.w.detach(), s.b), w=p(4, 6), b=p(4)), FLAT),
    "bilinear": (lambda: Made(lambda s, x: s.b(x, x), b=nn.Bilinear(6, 6, 4)), FLAT),
    "a sparse factor": (lambda: Made(lambda s, x: x @ (torch.eye(6).double().to_sparse() @ s.w), w=p(6, 4)), ROWS),
    "watched": (lambda: Made(watched, w=p(6)), ROWS),
    "in place by a word": (lambda: Made(lambda s, x: x + F.relu(2 * s.b, inplace=True) + s.b, b=p(6)), ROWS),
    "slope": (lambda: nn.Sequential(nn.Linear(6, 6), nn.PReLU(6)), FLAT),
    "recurrent": (lambda: Made(lambda s, x: s.g(x)[0], g=nn.GRU(6, 5, batch_first=True)), ROWS),
    "in place": (lambda: Made(lambda s, x: x.clone().mul_(2).add_(s.b), b=p(6)), ROWS),
    "in place, its value dropped": (lambda: Made(dropped, b=p(6)), ROWS),
    "in place on a view": (lambda: Made(on_a_view, b=p(6)), ROWS),
    "copied into a part": (lambda: Made(into_a_part, l=nn.Linear(6, 4), c=p(6)), ROWS),
    "added to nothing": (lambda: Made(lambda s, x: added(s, x).tanh(), w=p(6, 4)), FLAT),
    "a filter of frequencies": (lambda: Made(filtered, w=p(4, 2)), FLAT),
    "complex": (lambda: Made(lambda s, x: (torch.complex(s.a, s.b) * x).abs(), a=p(6), b=p(6)), FLAT),
    "where": (lambda: Made(lambda s, x: torch.where(x > 0, x, s.b), b=p(6)), ROWS),
    "divided": (lambda: Made(lambda s, x: x / (s.b.abs() + 1), b=p(6)), ROWS),
    "with a factor": (lambda: Made(lambda s, x: torch.add(x, s.b, alpha=3), b=p(6)), ROWS),
    "transposed convolution": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Tanh()), (8, 2, 4, 4)),
    "one by one, as wide as samples": (lambda: Made(lambda s, x: torch.stack([s.c(v) for v in x]), c=nn.Linear(8, 3)), (8, 8)),
    "written": (lambda: Made(written, b=p(6)), ROWS),
    "packed": (lambda: Made(packed, l=nn.Linear(6, 4)), ROWS),
    "one by one": (lambda: Made(lambda s, x: torch.stack([s.c(v) for v in x]), c=nn.Linear(6, 3)), FLAT),
    "attention": (lambda: Made(lambda s, x: s.m(x, x, x)[0], m=nn.MultiheadAttention(6, 2, batch_first=True)), ROWS),
    "einsum": (lambda: Made(lambda s, x: torch.einsum("bsi,oi->bso", x, s.w), w=p(4, 6)), ROWS),
    "samples second": (lambda: Made(lambda s, x: s.l(x.transpose(0, 1)).mean(0), l=nn.Linear(6, 4)), SQUARE),
    "samples second, flat": (
        lambda: Made(lambda s, x: s.l(x.transpose(0, 1).reshape(-1, 6)).view(x.shape[1], len(x), 4).mean(0), l=nn.Linear(6, 4)), SQUARE,
    ),
    "sorted samples": (lambda: Made(lambda s, x: torch.tanh(s.l(x[x[:, 0].argsort()])), l=nn.Linear(6, 4)), FLAT),
    "sorted and back": (
        lambda: Made(lambda s, x: s.l(x.index_select(0, x[:, 0, 0].argsort()))[x[:, 0, 0].argsort().argsort()], l=nn.Linear(6, 4)), ROWS,
    ),
    "inside vmap": (lambda: Made(lambda s, x: torch.func.vmap(lambda r: torch.tanh(s.l(r)))(x), l=nn.Linear(6, 4)), FLAT),
    "a Jacobian": (
        lambda: Made(lambda s, x: torch.func.vmap(torch.func.jacrev(lambda r: torch.tanh(s.l(r))))(x).sum(1), l=nn.Linear(6, 4)), FLAT,
    ),
    "bags of words": (lambda: Made(lambda s, x: s.e(words(x)), e=nn.EmbeddingBag(3, 5)), ROWS),
    "positions of one axis": (lambda: Made(lambda s, x: x + s.e(torch.arange(x.shape[1])), e=nn.Embedding(8, 6)), SQUARE),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [*BY_RULE, *BY_LOOP])
def test_every_form_is_exact(name: str) -> None:
    make, shape = (BY_RULE | BY_LOOP)[name]
    torch.manual_seed(0)
    sample = tensors(make(), draw(*shape))
    fewer = tensors(sample.module, draw(*shape)[: shape[0] - 1])
    names = [name for name, _ in sample.module.named_parameters()]
    looped = frozenset(needs_loop(sample.module, [Probe(s.losses, s.n) for s in (sample, fewer)], names))
    assert bool(looped) == (name in BY_LOOP)
    exact = loop(sample)
    unplanned = sample_gradients(
        sample.module, sample.losses, sample.n, make_plan(sample.module, names, Exact(), 0)
    )
    for part, rows in exact.items() if name != "sorted samples" else ():  # whose losses are in another order
        torch.testing.assert_close(unplanned.values[part], rows, rtol=1e-9, atol=1e-11)
    for keep in FORMS:
        plan = make_plan(sample.module, names, keep, 0, looped)
        found = sample_gradients(sample.module, sample.losses, sample.n, plan).values
        expected = looped_gradients(plan.parameters, sample.losses, sample.n, plan.plan)
        scale = max(float(rows.norm()) for rows in expected.values())
        for part, rows in expected.items():
            assert float((found[part] - rows).norm()) <= 1e-10 * max(float(rows.norm()), 1e-3 * scale), (
                keep.kind,
                part,
            )
            if keep.kind == "exact":
                torch.testing.assert_close(rows, exact[part], rtol=1e-10, atol=1e-12 * scale)


@pytest.mark.parametrize("slow", [False, True])
def test_a_checkpoint_of_ones_own(slow: bool) -> None:
    """Beside the same network without it: plain autograd.grad does not reach what such a backward forms."""

    def made(through: Callable[..., Tensor]) -> nn.Module:
        torch.manual_seed(0)
        parts = {"f": nn.Linear(6, 5), "m": nn.Linear(5, 4), "l": nn.Linear(4, 3)}
        return Made(lambda s, x: s.l(torch.tanh(through(s.m, s.f(x)))), **parts)

    own, plain = (tensors(made(through), draw(*FLAT)) for through in (Again.apply, lambda part, x: part(x)))
    names = [name for name, _ in own.module.named_parameters()]
    looped = needs_loop(own.module, [Probe(own.losses, own.n)], names)
    assert looped == {}
    plan = make_plan(own.module, names, Exact(), 0, frozenset(names if slow else ()))
    found = sample_gradients(own.module, own.losses, own.n, plan).values
    for name, rows in loop(plain).items():
        torch.testing.assert_close(found[name], rows, rtol=1e-10, atol=1e-12)
    assert all(parameter.grad is None for parameter in own.module.parameters())


def outside(self: Any, h: Tensor) -> Tensor:
    w = self.mid.weight.t() * 1.0
    return checkpoint(lambda rows: rows @ w, h, use_reentrant=True)


def called(self: Any, h: Tensor) -> Tensor:
    doubled = {name: 2 * value for name, value in self.mid.named_parameters()}
    return checkpoint(
        lambda rows: torch.func.functional_call(self.mid, doubled, (rows,)), h, use_reentrant=True
    )


def again(self: Any, h: Tensor) -> Tensor:
    return checkpoint(lambda rows: self.mid(rows).tanh(), h, use_reentrant=True)


class Own(torch.autograd.Function):
    """Builds a graph in its forward and runs a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: nn.Module) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.out = part(ctx.x)
        out: Tensor = ctx.out.detach()
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None]:
        torch.autograd.backward(ctx.out, g)
        return ctx.x.grad, None


def own(self: Any, h: Tensor) -> Tensor:
    out: Tensor = Own.apply(h, self.mid)
    return out


def scripted(self: Any, h: Tensor) -> Tensor:
    return checkpoint(self.compiled, h, use_reentrant=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*requires_grad=True. Gradients will be None:UserWarning")
@pytest.mark.parametrize("through", [outside, called, again, own, scripted])
@pytest.mark.parametrize(
    "wanted", [("mid.weight",), ("mid.weight", "mid.bias"), ("mid.weight", "last.weight")]
)
def test_parts_that_run_again_leave_a_trace_though_nothing_before_them_is_wanted(
    through: Callable[..., Tensor], wanted: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    parts = {"first": nn.Linear(6, 6), "mid": nn.Linear(6, 6), "last": nn.Linear(6, 1)}
    module = Made(lambda s, x: s.last(through(s, s.first(x)).tanh()), **parts)
    module.double()
    if through is scripted:
        compiled = torch.jit.script(parts["mid"])
        module.compiled = lambda rows: compiled(rows)
    sample = tensors(module, draw(*FLAT))
    parameters = dict(sample.module.named_parameters())
    expected: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for k in range(sample.n):
        sample.module.zero_grad()
        sample.losses(k).sum().backward()
        for name, rows in expected.items():
            grad = parameters[name].grad
            rows.append(
                torch.zeros(parameters[name].numel()).double() if grad is None else grad.flatten().clone()
            )
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 7)
    looped = frozenset(needs_loop(sample.module, [Probe(sample.losses, sample.n)], wanted))
    for slow in (looped, frozenset(wanted)):
        plan = make_plan(sample.module, wanted, Exact(), 0, slow)
        found = sample_gradients(sample.module, sample.losses, sample.n, plan).values
        for name, rows in expected.items():
            torch.testing.assert_close(found[name], torch.stack(rows), rtol=1e-10, atol=1e-12)
    for parameter in parameters.values():
        assert bool((parameter.grad == 7).all())


def test_a_complex_use_that_the_plan_did_not_see() -> None:
    def seldom(s: Any, x: Tensor) -> Tensor:
        h = s.mid(x)
        if s.wild:
            h = h + torch.fft.irfft(torch.fft.rfft(s.mid.bias) * torch.fft.rfft(h), n=6)
        return h.tanh()

    torch.manual_seed(0)
    module = Made(seldom, mid=nn.Linear(6, 6), wild=False)
    sample = tensors(module, draw(*FLAT))
    names = ["mid.weight", "mid.bias"]
    assert needs_loop(module, [Probe(sample.losses, sample.n)], names) == {}
    module.wild = True
    found = sample_gradients(module, sample.losses, sample.n, make_plan(module, names, Exact(), 0))
    assert found.looped == ("mid.bias",)
    for name, rows in loop(sample).items():
        torch.testing.assert_close(found.values[name], rows, rtol=1e-9, atol=1e-12)
