"""Fewer experts: a trained mixture on digits, planted copies, losses against plain loops, and what is refused."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import MethodError
from tasks.compressed.experts import MergedExperts
from tasks.compressed.files import load_compressed, save_compressed
from tasks.compressed.layer import Affine
from tasks.methods.compression import experts
from tasks.methods.contract import Block, Inputs
from tests.methods.cases import Answer, Case, run


class Expert(nn.Module):
    """Two layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.up(x)))
        return y


class Mixture(nn.Module):
    """Every expert for every row, weighed by the two likeliest: a plain loop."""

    def __init__(self, width: int, hidden: int, n: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(n))
        self.router = nn.Linear(width, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        p = self.router(x).softmax(1)
        chosen = torch.zeros_like(p).scatter(1, p.topk(2, dim=1).indices, 1.0) * p
        chosen = chosen / chosen.sum(1, keepdim=True)
        return sum(chosen[:, n, None] * expert(x) for n, expert in enumerate(self.experts))  # type: ignore[return-value]


class Classifier(nn.Module):
    """Around a mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.moe, self.after = nn.Linear(64, 24), Mixture(24, 16, 8), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        inside = torch.tanh(self.before(x))
        y: Tensor = self.after(inside + self.moe(inside))
        return y


@cache
def trained() -> tuple[Classifier, Tensor, Tensor]:
    """A network, and the digits it has not seen."""
    data = load_digits()
    x, y = torch.from_numpy(data.data / 16).float(), torch.from_numpy(data.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    x, y = x[order], y[order]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Classifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(300):
        rows = slice(step * 100 % 1200, step * 100 % 1200 + 100)
        p = net.moe.router(torch.tanh(net.before(x[rows]))).softmax(1)
        balance = (
            8 * (p.mean(0) * torch.bincount(p.topk(2, dim=1).indices.flatten(), minlength=8) / 200).sum()
        )
        loss = (
            F.cross_entropy(net(x[rows]), y[rows]) + 0.05 * balance
        )  # or half of the experts are never chosen
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), x[1297:], y[1297:]


def case_of(moe: nn.Module, x: Tensor, **options: Any) -> Case:
    config = experts.Config.model_validate({"biases": True} | options)
    weights = {}
    for name in experts.parameters(config):
        weights[name] = moe.get_parameter(name.removeprefix("{module}.")).detach()
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), weights=weights)
    index = torch.arange(len(x))
    return Case(experts, config, inputs, Block({"x": x}, index, torch.zeros_like(index), index))


def answer(here: Case) -> Answer:
    experts.check(here.inputs, here.config)
    return run(here)


def module_of(found: Answer, moe: Mixture) -> MergedExperts:
    return MergedExperts.of(
        found.arrays, found.result.model_dump(), {}, Affine(moe.router.weight.detach(), None)
    )


def test_a_trained_mixture_of_eight_becomes_one_of_four(tmp_path: Path) -> None:
    net, x, y = trained()
    with torch.no_grad():
        inside = torch.tanh(net.before(x))
        whole = net.moe(inside)
        found = answer(case_of(net.moe, inside))
        fewer = module_of(found, net.moe)
        result = found.result
        lost = float((fewer(inside) - whole).square().sum() / whole.square().sum())
        accuracy = [
            float((net.after(inside + m).argmax(1) == y).float().mean()) for m in (whole, fewer(inside))
        ]
    assert result.lost == pytest.approx(lost, rel=1e-3)
    assert result.lost == pytest.approx(result.lost_mean, rel=1e-9)  # with all directions they are the same
    assert sorted(sum(result.groups, ())) == list(range(8))
    assert accuracy[0] > 0.93
    assert accuracy[1] > 0.1
    assert result.numbers_after == sum(p.numel() for p in fewer.parameters()) < result.numbers
    assert result.cosine_within is None or result.cosine_within > result.cosine_between
    small = copy.deepcopy(net)
    small.moe = fewer
    save_compressed(tmp_path, small, {"moe": fewer}, {"source": {"factory": "mine"}})
    with torch.no_grad():
        assert torch.equal(load_compressed(tmp_path, copy.deepcopy(net))(x), small(x))
    some = answer(case_of(net.moe, inside, share=0.7)).result
    assert some.lost != some.lost_mean
    assert max(max(ranks) for ranks in some.ranks) < 24


def test_losses_are_those_of_a_plain_loop() -> None:
    """Of the most used experts with a router of their own, and of means."""
    net, x, _ = trained()
    with torch.no_grad():
        inside = torch.tanh(net.before(x)).double()
        whole = Mixture(24, 16, 8).double()
        whole.load_state_dict(net.moe.state_dict())
        result = answer(case_of(net.moe, inside)).result
        y, p = whole(inside), whole.router(inside).softmax(1)
        used = torch.bincount(p.topk(2, dim=1).indices.flatten(), minlength=8)
        assert set(result.kept) == set(used.argsort(descending=True)[:4].tolist())
        few = Mixture(24, 16, 4).double()
        for k, n in enumerate(result.kept):
            few.experts[k].load_state_dict(whole.experts[n].state_dict())
        few.router.weight.copy_(whole.router.weight[list(result.kept)])
        assert result.lost_kept == pytest.approx(float((few(inside) - y).square().sum() / y.square().sum()))
        chance = torch.stack([p[:, list(group)].sum(1) for group in result.groups], 1)
        merged = Mixture(24, 16, 4).double()
        for k, group in enumerate(result.groups):
            share = used[list(group)] / used[list(group)].sum()
            for name, parameter in merged.experts[k].named_parameters():
                parts = [whole.experts[n].get_parameter(name) for n in group]
                parameter.copy_(sum(s * part for s, part in zip(share, parts, strict=True)))
        top = torch.zeros_like(chance).scatter(1, chance.topk(2, dim=1).indices, 1.0) * chance
        top = top / top.sum(1, keepdim=True)
        out = sum(top[:, k, None] * merged.experts[k](inside) for k in range(4))
        assert result.lost == pytest.approx(float((out - y).square().sum() / y.square().sum()), rel=1e-6)


def test_copies_are_merged_for_nothing() -> None:
    """Four experts, each twice, chosen one at a time: together as likely as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        moe, x = Mixture(12, 9, 8), torch.randn(300, 12)
    for n in range(4):
        moe.experts[n + 4].load_state_dict(moe.experts[n].state_dict())
    result = answer(case_of(moe, x, top=1, normalise=True)).result
    assert result.groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert result.cosine_within == pytest.approx(1)
    moe.router.weight.data[4:] = moe.router.weight.data[:4]
    doubled = answer(case_of(moe, x, top=1)).result
    assert doubled.lost < 1e-12


def test_gated_experts() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        moe, x = nn.Module(), torch.randn(50, 6).double()
        moe.router = nn.Linear(6, 3, bias=True)
        moe.experts = nn.ModuleList(
            nn.ModuleDict({"w1": nn.Linear(6, 5), "w3": nn.Linear(6, 5), "w2": nn.Linear(5, 6)})
            for _ in range(3)
        )
    options: dict[str, Any] = {
        "experts": 3, "groups": 2, "layers": ("w1", "w3", "w2"), "router_bias": True, "activation": "gelu", "top": 1,
        "normalise": False,
    }  # fmt: skip
    here = case_of(moe, x, **options)
    carry = experts.start(here.inputs, here.config)
    moe = moe.double()
    with torch.no_grad():
        p = moe.router(x).softmax(1)
        each = torch.stack([e["w2"](F.gelu(e["w1"](x)) * e["w3"](x)) for e in moe.experts], 1)  # type: ignore[operator]
        best = p.max(1)
        expected = best.values[:, None] * each[torch.arange(50), best.indices]
        torch.testing.assert_close(experts._mixture(carry, here.config, "")(x), expected, rtol=0, atol=1e-6)
    found = answer(here)
    assert found.arrays["first"].shape == (2, 10, 6)
    assert all(len(ranks) == 3 for ranks in found.result.ranks)


def test_one_row_and_dead_features() -> None:
    net, x, _ = trained()
    with torch.no_grad():
        inside = torch.tanh(net.before(x))
        inside[:, 3] = 0
        one = answer(case_of(net.moe, inside[:1])).result
        many = answer(case_of(net.moe, inside)).result
    assert one.n_rows == 1
    assert "6 experts were chosen by no row" in " ".join(one.caveats)
    assert 0 <= many.lost < 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": 8}, "8 experts shall become 8, of which a token chooses 2"),
        ({"groups": 1}, "8 experts shall become 1, of which a token chooses 2"),
        ({"experts": 6}, r"router.weight has the shape \(8, 24\), expected \(6, 24\)"),
        ({"layers": ("down", "up")}, r"has the shape \(24, 16\), expected"),
    ],
)
def test_what_is_no_such_mixture_is_refused(change: dict[str, Any], words: str) -> None:
    net, x, _ = trained()
    with pytest.raises(MethodError, match=words):
        answer(case_of(net.moe, torch.tanh(net.before(x)).detach(), **change))


def test_weights_that_are_not_finite_and_no_rows_are_refused() -> None:
    net, x, _ = trained()
    here = case_of(net.moe, torch.tanh(net.before(x)).detach())
    name = "{module}.experts.2.up.weight"
    bad = replace(here.inputs, weights={**here.inputs.weights, name: torch.full((16, 24), torch.inf)})
    with pytest.raises(MethodError, match=r"experts\.2\.up\.weight holds NaN or infinity"):
        answer(here._replace(inputs=bad))
    with pytest.raises(MethodError, match="found no rows"):
        answer(case_of(net.moe, torch.zeros(0, 24)))
