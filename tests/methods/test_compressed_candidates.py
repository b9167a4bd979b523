"""Candidates: names, ranks under a budget, what is refused, and that one copy of a network changes no other."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from schemas.errors import MethodError
from tasks.methods import compressed_candidates as candidates
from tasks.methods import compressed_groups as groups_of_layers
from tasks.methods import compressed_networks as networks
from tasks.methods.compression import model
from tasks.methods.contract import Inputs, Member
from tasks.methods.grouped_moments import Interval
from tasks.methods.network_judgement import Point
from tests.methods.cases import TinyNetwork, case, layer_member


def members(method: str = "compression.low_rank", **config: Any) -> list[Member]:
    network = TinyNetwork.of(40)
    return [replace(layer_member(method, network, path), config=config) for path in ("0", "2")]


def test_groups_are_called_by_what_they_differ_in() -> None:
    some = [*members(metric="outputs", kept=1), *members(metric="weights", kept=1)]
    assert [g.name for g in groups_of_layers.groups_of(some)] == [
        "low_rank (metric: outputs)",
        "low_rank (metric: weights)",
    ]
    assert [g.name for g in groups_of_layers.groups_of(members(metric="outputs"))] == ["low_rank"]
    with pytest.raises(MethodError, match="the layer 0 comes twice"):
        groups_of_layers.groups_of([*members(), *members()])


def test_ranks_fit_the_budget_and_a_layer_that_factors_would_not_shrink_stays() -> None:
    (group,) = groups_of_layers.groups_of(members())
    for one in candidates.candidates_of([group], (0.9, 0.6)):
        assert one.kept is not None
        shapes = ((4, 4), (5, 4))
        numbers = [r * sum(s) if r else np.prod(s) for r, s in zip(one.ranks, shapes, strict=True)]
        if one.rule == "greedy":
            assert sum(numbers) <= one.kept * 36
        assert all(r * sum(s) < np.prod(s) for r, s in zip(one.ranks, shapes, strict=True))
    with pytest.raises(
        MethodError, match=r"0\.2 of the numbers cannot be met, rank 1 of every layer takes 0\.4722"
    ):
        candidates.candidates_of([group], (0.2,))


def test_no_more_ranks_than_an_artifact_has() -> None:
    """Utilised directions may be few."""
    (group,) = groups_of_layers.groups_of(members("compression.utilised"))
    network = TinyNetwork.of(40)
    found = candidates.candidates_of([group], (0.9,))
    made = networks.Candidates(networks.carried([group], found))
    for one in made.all:
        most = [len(member.arrays["loss"]) - 1 for member in group.members]
        assert all(rank <= highest for rank, highest in zip(one.ranks, most, strict=True))
        for path, layer in made.made(network.copy(), one).items():
            assert layer.spec()["rank"] == one.ranks[("0", "2").index(path)]


def test_dealt_out_ranks_are_compared_with_equal_shares_of_as_many_bits() -> None:
    groups = groups_of_layers.groups_of(members())
    made = networks.Candidates(
        networks.carried(groups, candidates.candidates_of(groups, (0.8,), ((0.8,), 8)))
    )
    worth = {"uniform": 0.90, "greedy": 0.95}, {"uniform": 0.80, "greedy": 0.70}  # whole, in 8 bits
    points = tuple(point(worth[one.bits is not None][one.rule]) for one in made.all)
    found = model._dealt_worse((point(1.0), *points), made, "rank_correlation")
    assert found == ["low_rank in 8 bits, 0.8"]


def point(value: float) -> Point:
    number = Interval(value=value, corrected=None, low=None, high=None)
    missing = dict.fromkeys(("loss", "perplexity", "right", "agreement", "divergence", "recall", "cosine"))
    size = {"kept": 0.8, "stored_bytes": 8, "kept_of_network": 0.9, "kept_numbers": 0.8, "kept_products": 0.8}
    return Point(name="", way="", rank_correlation=number, **size, **missing)


@pytest.mark.parametrize(
    ("kept", "told"), [(0.8, "cannot be compared"), (0.5, "no candidate keeps 0.5 of the bytes or less")]
)
def test_why_no_candidate_is_best(kept: float, told: str) -> None:
    """One of the wanted size may give numbers that are not finite, which is no matter of its size."""
    points = point(1.0), point(1.0).model_copy(update={"rank_correlation": None})
    (caveat,) = model._caveats(points, None, [], Inputs({}, 0, 0), model.Config(kept=kept))
    assert told in caveat


def test_factors_in_bits_are_tried_at_one_share() -> None:
    names = [
        one.name
        for one in candidates.candidates_of(groups_of_layers.groups_of(members()), (0.8, 0.6), ((0.8,), 8))
    ]
    assert names == [
        "low_rank, uniform, 0.8",
        "low_rank in 8 bits, uniform, 0.8",
        "low_rank, greedy, 0.8",
        "low_rank in 8 bits, greedy, 0.8",
        "low_rank, uniform, 0.6",
        "low_rank, greedy, 0.6",
    ]


def test_a_copy_shares_tensors_and_nothing_else() -> None:
    network = TinyNetwork.of(40)
    groups = groups_of_layers.groups_of(members())
    made = networks.Candidates(networks.carried(groups, candidates.candidates_of(groups, (0.6,))))
    copied = network.copy()
    layers = made.made(copied, made.all[0])
    assert isinstance(network.module.get_submodule("0"), nn.Linear)
    changed = [path for path, layer in layers.items() if copied.get_submodule(path) is layer]
    assert changed == [path for path, rank in zip(("0", "2"), made.all[0].ranks, strict=True) if rank]
    assert {module: rank for module, _, rank in made.layers(made.all[0])} == {
        path: rank or None for path, rank in zip(("0", "2"), made.all[0].ranks, strict=True)
    }


def test_layers_of_another_network() -> None:
    groups = groups_of_layers.groups_of(members())
    shapes = {"0.weight": (4, 4), "2.weight": (5, 4)}
    groups_of_layers.check_layers(groups, Inputs({}, 0, 0, parameters=shapes))
    with pytest.raises(
        MethodError, match=r"the layer 2 of \(5, 4\) outputs and inputs is not in the network"
    ):
        groups_of_layers.check_layers(groups, Inputs({}, 0, 0, parameters={**shapes, "2.weight": (5, 5)}))
    with pytest.raises(MethodError, match="missing, not trained"):
        groups_of_layers.check_layers(groups, Inputs({}, 0, 0, parameters={"0.weight": (4, 4)}))


def test_what_cannot_be_replaced() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(
        MethodError, match=r"0 shares its weight with 2\.weight: replacing it would untie them"
    ):
        networks.layer_of(tied, "0")
    with pytest.raises(MethodError, match="a Tanh is no linear layer"):
        networks.layer_of(tied, "1")
    with pytest.raises(MethodError, match="cannot be replaced"):
        networks.layer_of(tied, "nowhere")
    weight = networks.layer_of(nn.Sequential(nn.Linear(3, 2)), "0").weight
    assert weight.shape == torch.Size([2, 3])


def planted(path: str, outputs: int, inputs: int, loss: torch.Tensor) -> Member:
    """Of `compression.two_sided`, with these losses and outputs that cost as much as each other."""
    result = {"kind": "low_rank", "outputs": outputs, "width": inputs, "one_unit": True, "n_rows": 10}
    arrays = {"loss": loss, "sensitivity": torch.full((outputs,), 2.0)}
    return Member(
        f"{path}:in:0",
        ("c",),
        arrays,
        result | {"bytes_before": 4 * outputs * inputs},
        "compression.two_sided",
    )


def coded(path: str, outputs: int, inputs: int, bits: int, error: float) -> Member:
    """Of `compression.quantised`."""
    result = {
        "kind": "quantised",
        "outputs": outputs,
        "width": inputs,
        "bytes_after": bits * outputs * inputs // 8,
    }
    arrays = {"output_error": torch.full((outputs,), error)}
    return Member(f"{path}:in:0", ("c",), arrays, result, "compression.quantised", {"bits": bits})


def test_layers_are_chosen_among_methods_by_their_bytes() -> None:
    """Every choice of four layers, gone through: none that fits loses less, but for what a last step leaves over."""
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 8), "b": (16, 8), "c": (8, 16), "d": (8, 8)}
    two = [
        planted(k, *s, torch.from_numpy(np.sort(rng.exponential(size=9))[::-1].copy()))
        for k, s in shapes.items()
    ]
    codes = [
        coded(k, *s, bits, 0.3 * 4.0**-bits * rng.exponential()) for bits in (2, 4) for k, s in shapes.items()
    ]
    groups = groups_of_layers.groups_of([*two, *codes])
    whole = sum(4 * a * b for a, b in shapes.values())
    for share in (0.07, 0.1, 0.2, 0.5):
        (made,) = candidates._of_all(groups, (share,), None)
        choices = [candidates._choices(groups, 0, k, None) for k in range(4)]
        assert [len(some) for some in choices] == [6, 8, 8, 6]  # as it is, ranks that save numbers, two codes
        found = [
            next(c for c in some if c.part == part) for some, part in zip(choices, made.parts, strict=True)
        ]
        assert sum(c.cost for c in found) <= share * whole
        fit = [c for c in product(*choices) if sum(one.cost for one in c) <= share * whole]
        least = min(sum(one.loss for one in c) for c in fit)
        largest = max(one.loss for some in choices for one in some if one.part.rank)
        assert least <= sum(one.loss for one in found) <= least + 0.1 * largest
    assert {part.group for part in made.parts} > {0}


def test_what_codes_lose_is_told_in_the_unit_of_the_gradients() -> None:
    groups = groups_of_layers.groups_of(
        [planted("a", 8, 8, torch.arange(9.0).flip(0)), coded("a", 8, 8, 4, 0.01)]
    )
    found = candidates._choices(groups, 0, 0, 8)
    assert found[-1].loss == pytest.approx(10 * 8 * 2.0 * 0.01)  # rows, outputs, what each costs, its error
    assert found[-1].cost == 8 * 8 / 2
    one, eight = found[1], found[2]
    assert (one.part.bits, eight.part.bits, one.loss, eight.loss) == (None, 8, 70.0, 70.0)
    assert (one.cost, eight.cost) == (4 * 16, 8 * 3 + 10)


def test_without_losses_in_one_unit_nothing_is_chosen_among_methods() -> None:
    groups = groups_of_layers.groups_of([*members(), coded("0", 4, 4, 4, 0.1)])
    assert not list(candidates._of_all(groups, (0.5,), None))
    alone = groups_of_layers.groups_of([planted("a", 8, 8, torch.arange(9.0))])
    assert not list(candidates._of_all(alone, (0.5,), 8))


def test_candidates_may_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what all together say."""
    made = case("compression.model")
    carry = model.start(made.inputs, made.config)
    together = model.partial(made.block, carry, made.config)
    monkeypatch.setattr(networks, "HELD", 1)
    in_turn = model.partial(made.block, carry, made.config)
    assert len(list(networks.Candidates(carry).of_network(made.block.network))) > 1
    assert together.keys() == in_turn.keys()
    assert all(torch.equal(together[name].nan_to_num(-1), in_turn[name].nan_to_num(-1)) for name in together)
