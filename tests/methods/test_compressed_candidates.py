"""Candidates: names, ranks under a budget, what is refused, and that one copy of a network changes no other."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from schemas.errors import MethodError
from tasks.methods import compressed_candidates as candidates
from tasks.methods.compression import model
from tasks.methods.contract import Inputs, Member
from tasks.methods.grouped_moments import Interval
from tasks.methods.network_judgement import Point
from tests.methods.cases import TinyNetwork, layer_member


def members(method: str = "compression.low_rank", **config: Any) -> list[Member]:
    network = TinyNetwork.of(40)
    return [replace(layer_member(method, network, path), config=config) for path in ("0", "2")]


def test_groups_are_called_by_what_they_differ_in() -> None:
    some = [*members(metric="outputs", kept=1), *members(metric="weights", kept=1)]
    assert [g.name for g in candidates.groups_of(some)] == [
        "low_rank (metric: outputs)",
        "low_rank (metric: weights)",
    ]
    assert [g.name for g in candidates.groups_of(members(metric="outputs"))] == ["low_rank"]
    with pytest.raises(MethodError, match="the layer 0 comes twice"):
        candidates.groups_of([*members(), *members()])


def test_ranks_fit_the_budget_and_a_layer_that_factors_would_not_shrink_stays() -> None:
    (group,) = candidates.groups_of(members())
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


def test_dealt_out_ranks_are_compared_with_equal_shares_of_as_many_bits() -> None:
    groups = candidates.groups_of(members())
    made = candidates.Candidates(
        candidates.carried(groups, candidates.candidates_of(groups, (0.8,), (0.8, 8)))
    )
    worth = {"uniform": 0.90, "greedy": 0.95}, {"uniform": 0.80, "greedy": 0.70}  # whole, in 8 bits
    points = tuple(point(worth[one.bits is not None][one.rule]) for one in made.all)
    found = model._dealt_worse((point(1.0), *points), made, "rank_correlation")
    assert found == ["low_rank in 8 bits, 0.8"]


def point(value: float) -> Point:
    number = Interval(value=value, corrected=None, low=None, high=None)
    missing = dict.fromkeys(("loss", "perplexity", "right", "agreement", "divergence", "recall", "cosine"))
    size = {"kept": 0.8, "stored_bytes": 8, "kept_of_network": 0.9}
    return Point(name="", way="", rank_correlation=number, **size, **missing)


def test_factors_in_bits_are_tried_at_one_share() -> None:
    names = [
        one.name for one in candidates.candidates_of(candidates.groups_of(members()), (0.8, 0.6), (0.8, 8))
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
    groups = candidates.groups_of(members())
    made = candidates.Candidates(candidates.carried(groups, candidates.candidates_of(groups, (0.6,))))
    copied = network.copy()
    layers = made.made(copied, made.all[0])
    assert isinstance(network.module.get_submodule("0"), nn.Linear)
    changed = [path for path, layer in layers.items() if copied.get_submodule(path) is layer]
    assert changed == [path for path, rank in zip(("0", "2"), made.all[0].ranks, strict=True) if rank]
    assert {layer.module: layer.rank for layer in made.layers(made.all[0])} == {
        path: rank or None for path, rank in zip(("0", "2"), made.all[0].ranks, strict=True)
    }


def test_layers_of_another_network() -> None:
    groups = candidates.groups_of(members())
    shapes = {"0.weight": (4, 4), "2.weight": (5, 4)}
    candidates.check_layers(groups, Inputs({}, 0, 0, parameters=shapes))
    with pytest.raises(
        MethodError, match=r"the layer 2 of \(5, 4\) outputs and inputs is not in the network"
    ):
        candidates.check_layers(groups, Inputs({}, 0, 0, parameters={**shapes, "2.weight": (5, 5)}))
    with pytest.raises(MethodError, match="missing, not trained"):
        candidates.check_layers(groups, Inputs({}, 0, 0, parameters={"0.weight": (4, 4)}))


def test_what_cannot_be_replaced() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(
        MethodError, match=r"0 shares its weight with 2\.weight: replacing it would untie them"
    ):
        candidates.layer_of(tied, "0")
    with pytest.raises(MethodError, match="a Tanh is no linear layer"):
        candidates.layer_of(tied, "1")
    with pytest.raises(MethodError, match="cannot be replaced"):
        candidates.layer_of(tied, "nowhere")
    weight = candidates.layer_of(nn.Sequential(nn.Linear(3, 2)), "0").weight
    assert weight.shape == torch.Size([2, 3])
