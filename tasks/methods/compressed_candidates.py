"""Ways to compress a whole network that are tried: which artifact stands in each layer's place, at which rank, and by which budget.

Methods with ranks are tried at equal shares of every layer, and with the ranks that lose least for all numbers together. Where one of them
has losses in one unit for all layers (`compression.two_sided`), layers are also chosen among all methods by their bytes: what rounded
weights lose in that unit is the error of each output times what it costs, taken as if errors of two outputs did not go together.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.compressed.bits import row_bytes
from tasks.methods.compressed_groups import Group, losses_of, shape_of
from tasks.methods.contract import Member
from tasks.numerics import budget, layer_factors
from tasks.numerics.budget import Ways

STEP_BYTES = 2
"""Of the step of a row of factors in few bits."""
OF_ALL = "of all methods"


class Layer(Frozen):
    """A layer of the chosen candidate."""

    module: str
    kind: str | None
    """What stands in its place; None where it stays."""
    rank: int | None
    output_error: float | None
    """Mean squared change of its outputs in the whole compressed network, over their mean square; None where there is no such output."""


class Part(NamedTuple):
    """What is made of one artifact."""

    group: int
    artifact: int
    """Its place in the group."""
    rank: int
    """0: its layers stay as they are; 1 where there is none to choose. The width at a norm, where the network is sliced."""
    bits: int | None
    """Of factors that are stored in few bits."""


class Candidate(NamedTuple):
    """A network to be tried."""

    name: str
    way: str
    """Its name without the share."""
    group: int
    """Whose losses deal out ranks."""
    rule: str
    """How: `uniform`, `greedy`, `mixed` among methods, or `as made` for layers without ranks."""
    kept: float | None
    """The share that was asked for; of the width, where the network is sliced."""
    parts: tuple[Part, ...]
    bits: int | None = None
    """Of all factors."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of each part."""
        return tuple(part.rank for part in self.parts)


class _Choice(NamedTuple):
    """One way to store a layer."""

    part: Part
    cost: float
    """Bytes."""
    loss: float


def candidates_of(
    groups: Sequence[Group], shares: Sequence[float], quantised: tuple[Sequence[float], int] | None = None
) -> tuple[Candidate, ...]:
    """Every group at every share, with the same share for all layers and with ranks dealt out by losses; then layers among all groups.

    Args:
        groups: that are tried.
        shares: of numbers; of bytes, where layers are chosen among groups.
        quantised: of which shares factors of single layers are tried in how many bits too.

    Raises:
        MethodError: for a share so small that even rank 1 of every layer takes more.
    """
    found: list[Candidate] = []
    for number, group in enumerate(groups):
        if group.sliced:
            found += _widths(group, number)
        elif losses_of(group.members[0]) is None:
            found.append(
                Candidate(
                    group.name, group.name, number, "as made", None, _parts(number, [1] * len(group.members))
                )
            )
        else:
            found += [one for kept in shares for one in _of_ranks(group, number, kept, quantised)]
    bits = None if quantised is None else quantised[1]
    return (*found, *_of_all(groups, shares, bits))


def _of_ranks(
    group: Group, number: int, kept: float, quantised: tuple[Sequence[float], int] | None
) -> Iterator[Candidate]:
    """By both rules, at one share with factors in few bits beside them."""
    in_bits = quantised is not None and kept in quantised[0] and group.kind == "low_rank"
    for rule, ranks in (("uniform", _uniform(group, kept)), ("greedy", _greedy(group, kept))):
        for bits in (None, quantised[1]) if quantised is not None and in_bits else (None,):
            way = f"{group.name}{f' in {bits} bits' if bits else ''}, {rule}"
            yield Candidate(f"{way}, {kept:g}", way, number, rule, kept, _parts(number, ranks, bits), bits)


def _widths(group: Group, number: int) -> Iterator[Candidate]:
    """Those that the artifact has."""
    for at in group.members[0].result["at"]:
        for rule, widths in (
            ("uniform", [at["width"]] * len(group.modules)),
            ("greedy", at["widths"]),
        ):
            way = f"{group.name}, {rule}"
            yield Candidate(f"{way}, {at['kept']:g}", way, number, rule, at["kept"], _parts(number, widths))


def _parts(number: int, ranks: Sequence[int], bits: int | None = None) -> tuple[Part, ...]:
    return tuple(Part(number, artifact, rank, bits) for artifact, rank in enumerate(ranks))


def _uniform(group: Group, kept: float) -> tuple[int, ...]:
    """Of a layer that factors would not make smaller: as it is."""
    return tuple(_fitting(member, kept) for member in group.members)


def _fitting(member: Member, kept: float) -> int:
    losses = losses_of(member)
    assert losses is not None
    outputs, inputs = shape_of(member)
    rank = min(layer_factors.fitting_rank(kept, outputs, inputs), len(losses) - 1)
    return rank if rank * (outputs + inputs) < outputs * inputs else 0


def _greedy(group: Group, kept: float) -> tuple[int, ...]:
    """Ranks with the least sum of losses: in the unit of the losses where all have one, else each over its layer's energy."""
    ways = [_ways(member) for member in group.members]
    whole = float(sum(np.prod(shape_of(member)) for member in group.members))
    least = budget.cheapest(ways) / whole
    if least > kept:
        raise MethodError(
            f"{group.name}: {kept:g} of the numbers cannot be met, rank 1 of every layer takes {least:.4f}; ask for more"
        )
    chosen = budget.dealt(ways, kept * whole)
    return tuple(0 if way == len(ways[n].cost) - 1 else way + 1 for n, way in enumerate(chosen))


def _ways(member: Member) -> Ways:
    """Ranks 1, 2, ... that save numbers, and at last the layer as it is."""
    outputs, inputs = shape_of(member)
    losses = _losses(member)
    cost = np.arange(1.0, len(losses) + 1) * (outputs + inputs)
    return Ways(np.append(cost, float(outputs * inputs)), np.append(losses, 0.0))


def _losses(member: Member) -> np.ndarray:
    """[rank - 1]: of ranks that save numbers, in the unit of all layers or over the layer's energy."""
    outputs, inputs = shape_of(member)
    found = losses_of(member)
    assert found is not None
    loss = found.double().cpu().numpy()
    most = min(len(loss) - 1, (outputs * inputs - 1) // (outputs + inputs))
    if member.result.get("one_unit"):  # losses are means over rows, of which each counts once
        return np.asarray(loss[1 : most + 1] * float(member.result["n_rows"]))
    return np.asarray(loss[1 : most + 1] / (float(loss[0]) if loss[0] > 0 else 1.0))


def _of_all(groups: Sequence[Group], shares: Sequence[float], bits: int | None) -> Iterator[Candidate]:
    """Layers chosen among groups, where the losses of one can be told in a unit for all, and others tell of the same layers."""
    unit = next(
        (n for n, g in enumerate(groups) if not g.sliced and g.kind == "low_rank" and g.one_unit), None
    )
    if unit is None:
        return
    layers = [_choices(groups, unit, artifact, bits) for artifact in range(len(groups[unit].members))]
    if not any(choice.part.group != unit for choices in layers for choice in choices):
        return
    ways = [
        Ways(np.array([choice.cost for choice in choices]), np.array([choice.loss for choice in choices]))
        for choices in layers
    ]
    whole = sum(int(member.result["bytes_before"]) for member in groups[unit].members)
    seen: set[tuple[Part, ...]] = set()
    for kept in sorted(shares):
        chosen = budget.dealt(ways, kept * whole)
        parts = tuple(choices[way].part for choices, way in zip(layers, chosen, strict=True))
        if parts not in seen:  # more bytes than the layers can use change nothing
            yield Candidate(f"{OF_ALL}, {kept:g}", OF_ALL, unit, "mixed", kept, parts)
        seen.add(parts)


def _choices(groups: Sequence[Group], unit: int, artifact: int, bits: int | None) -> list[_Choice]:
    """Of a layer: as it is, its ranks, these in few bits (which are taken to lose no more), and codes of other methods."""
    member = groups[unit].members[artifact]
    outputs, inputs = shape_of(member)
    before = int(member.result["bytes_before"])
    each = before / (outputs * inputs)
    found = [_Choice(Part(unit, artifact, 0, None), float(before), 0.0)]
    for rank, loss in enumerate(_losses(member), 1):
        part = Part(unit, artifact, rank, None)
        found.append(_Choice(part, rank * (outputs + inputs) * each, float(loss)))
        if bits is not None:
            left = outputs * (row_bytes(rank, bits) + STEP_BYTES)
            right = rank * (row_bytes(inputs, bits) + STEP_BYTES)
            found.append(_Choice(part._replace(bits=bits), float(left + right), float(loss)))
    module = groups[unit].places[artifact][0].module
    for number, group in enumerate(groups):
        for other, places in enumerate(group.places):
            if number != unit and not group.sliced and [place.module for place in places] == [module]:
                found += _coded(group.members[other], Part(number, other, 1, None), member)
    return found


def _coded(other: Member, part: Part, member: Member) -> list[_Choice]:
    """Weights of a method that tells the error of each output; none of others."""
    errors: Tensor | None = other.arrays.get("output_error")
    if errors is None:
        return []
    cost = member.arrays["sensitivity"].double().cpu() @ errors.double().cpu()
    return [_Choice(part, float(other.result["bytes_after"]), float(cost) * float(member.result["n_rows"]))]
