"""Whether rows are sums of components, one for each concept's value, and whether components of different concepts are orthogonal.

Concepts are labels of the samples. Means of rows with the same combination of values are fitted by a mean and a component for each value
(least squares); what of their differences is left is interaction. Each combination is also foretold from the others. One pass; intervals
by leaving samples out where the means fit into memory once for each group.

Arrays: by value, over all concepts, `component` (feature; their mean over a concept's rows is zero), `concept`, `code` and `rows`; by
concept `share` (of the variance of rows), `rank` (directions that hold 95 % of its components' variance) and `participation`; `overlap`
(concept, other), mean squared cosine of the angles between both concepts' spaces.
"""

import math
from functools import reduce
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError, nearest
from tasks.methods import class_groups, grouped_moments
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import class_moments, factorisation
from tasks.numerics.factorisation import Factors

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "component": ("value", "feature"),
    "concept": ("value",),
    "code": ("value",),
    "rows": ("value",),
    "share": ("concept",),
    "rank": ("concept",),
    "participation": ("concept",),
    "overlap": ("concept", "other"),
}
REFERENCE = (
    "Compositional generalization requires linear, orthogonal representations in vision embedding models (2026), reconstructed from its "
    "abstract: linear factorisation, orthogonality and rank of per-concept components. Leaving a combination out: the identity of least "
    "squares (Allen, Technometrics 16 (1974) 125)"
)
SEEDS = (124,)
LIKE_A_NAME = 64
"""Values of a label beyond which it is no concept unless it is named."""


class Config(Frozen):
    """Which labels are concepts."""

    concepts: tuple[str, ...] | None = None
    """Labels of the samples with values; None: all of 2 to 64 values."""
    groups: int = Field(default=20, ge=2, le=200)
    """Groups that samples are dealt into for the intervals; one, without intervals, where means take more than 1 GiB."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found; None where rows or combinations do not determine a number."""

    concepts: tuple[str, ...]
    """In the order of the arrays."""
    n_values: int
    """That occur, over all concepts."""
    n_rows: int
    n_unlabelled: int
    """Rows without a value of some concept, left out."""
    n_combinations: int
    """That occur."""
    n_possible: int
    """Of values that occur."""
    n_groups: int
    """That hold rows; 1: no intervals."""
    width: int
    """Features."""
    confounded: int
    """Degrees of freedom of components that the combinations do not determine: then components are the shortest of many that fit alike."""
    r2: Interval | None
    """Share of the variance of rows that the sum of components explains."""
    r2_combinations: Interval | None
    """The same of a mean for each combination: no model of concepts explains more."""
    additive: Interval | None
    """Share of the variance between combinations that is additive: 1 for linear factorisation."""
    additive_random: float | None
    """Expected of combinations whose means have nothing to do with their values, of equal rows."""
    additive_unseen: Interval | None
    """The same of combinations that are each foretold from the others, over those that the others determine; below 0 if values mislead."""
    n_unseen: int
    """Combinations that the others determine."""
    cosine: Interval | None
    """Mean |cosine| between components of different concepts: 0 for orthogonal ones."""
    cosine_random: float
    """Of uniform directions."""
    overlap: Interval | None
    """Mean over pairs of concepts of the mean squared cosine of the angles between their spaces, by the smaller one."""
    overlap_random: float | None
    """Of random spaces of these dimensions."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: without a label that can be a concept, for one that has no values, or twice the same.
    """
    names = _concepts(inputs, config)
    if not names:
        raise MethodError(
            f"no label has 2 to {LIKE_A_NAME} values; found {', '.join(sorted(inputs.categories)) or 'none with values'}: name `concepts`"
        )
    for name in names:
        if name not in inputs.categories:
            raise MethodError(
                f"label {name!r} has no values; expected one of {nearest(name, inputs.categories)}"
            )
    if len(set(names)) < len(names):
        raise MethodError(f"concepts are {', '.join(names)}, expected each once")
    if math.prod(len(inputs.categories[name]) for name in names) >= 1 << 62:
        raise MethodError(
            f"{len(names)} concepts have more combinations than can be counted; name fewer `concepts`"
        )


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on, beside the carry."""
    names = {"concepts", "groups", "weight_label"}
    return {name: value for name, value in config.model_dump(mode="json").items() if name in names}


def start(inputs: Inputs, config: Config) -> State:
    """The labels, their values, and how many groups fit into memory."""
    names = _concepts(inputs, config)
    sizes = [len(inputs.categories[name]) for name in names]
    width, cells = inputs.widths["x"], min(math.prod(sizes), inputs.n_rows)
    fits = 8 * width * config.groups * (cells + width) <= class_groups.MOST_GROUPED_BYTES
    return {
        "names": torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8),
        "sizes": torch.tensor(sizes),
        "groups": torch.tensor(config.groups if fits else 1),
    }


def partial(block: Block, carry: State, config: Config) -> State:
    """The moments of combinations in each group, and how many rows have none.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    code = torch.zeros_like(block.sample)
    none = torch.zeros_like(block.sample, dtype=torch.bool)
    for name, size in zip(
        bytes(carry["names"].tolist()).decode().split("\n"), carry["sizes"].tolist(), strict=True
    ):
        value = block.labels[name]
        code, none = code * size + value.clamp(min=0), none | (value < 0)
    state = class_groups.partial(block["x"], code.masked_fill(none, -1), block, int(carry["groups"]))
    return state | {"none": none.sum()}


def merge(a: State, b: State) -> State:
    """The moments of both.

    Raises:
        MethodError: if means of combinations take more than 4 GiB.
    """
    return class_groups.merge(_cells(a), _cells(b)) | {"none": a["none"] + b["none"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The fit of all rows, and of all rows but each group's.

    Raises:
        MethodError: for less than two combinations.

    Cost: O(groups (combination value^2 + combination value feature)).
    """
    groups = class_groups.groups_of(_cells(state))
    total = reduce(class_moments.merge, groups, class_moments.empty(inputs.widths["x"], state["none"].device))
    names, sizes = _concepts(inputs, config), carry["sizes"].tolist()
    if len(total["code"]) < 2:
        raise MethodError(
            f"rows have {len(total['code'])} combination of {', '.join(names)}, and {int(state['none'])} rows lack a value; factorisation "
            "takes at least 2: capture samples of more values"
        )
    whole = _measured(total, sizes)
    rests = grouped_moments.leaving_out(groups, class_moments.merge) if len(groups) > 1 else ()
    without = [_numbers(_measured(rest, sizes)) for rest in rests if len(rest["code"]) > 1]
    numbers = _numbers(whole)
    found = {
        name: grouped_moments.interval(value, [w[name] for w in without], config.confidence)
        for name, value in numbers.items()
    }
    width, m = inputs.widths["x"], len(sizes)
    n_values = torch.bincount(whole.concept, minlength=m)
    dimensions = [len(s) for s, _ in whole.spaces]
    pairs = [(a, b) for a in range(m) for b in range(a) if min(dimensions[a], dimensions[b]) > 0]
    cells = len(total["code"])
    result = Result(
        concepts=names,
        n_values=len(whole.concept),
        n_rows=int(total["n"].sum()),
        n_unlabelled=int(state["none"]),
        n_combinations=cells,
        n_possible=math.prod(n_values.tolist()),
        n_groups=len(groups),
        width=width,
        confounded=int((n_values - 1).sum()) - whole.factors.rank,
        additive_random=whole.factors.rank / (cells - 1) if m > 1 else None,
        n_unseen=whole.factors.n_unseen,
        cosine_random=math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi),
        overlap_random=sum(max(dimensions[a], dimensions[b]) for a, b in pairs) / len(pairs) / width
        if pairs
        else None,
        caveats=_caveats(whole, cells, m, len(groups), n_values),
        **found,
    )
    return result, _arrays(whole, m)


class _Measured(NamedTuple):
    """Of some rows."""

    factors: Factors
    concept: Tensor
    code: Tensor
    spaces: list[tuple[Tensor, Tensor]]
    overlap: Tensor
    cosine: float
    total: float


def _measured(state: State, sizes: list[int]) -> _Measured:
    rest, columns = state["code"], []
    for size in reversed(sizes):
        columns.append(rest % size)
        rest = rest // size
    values, place, concept, first = [], [], [], 0
    for c, column in enumerate(reversed(columns)):
        code, where = torch.unique(column, return_inverse=True)
        place.append(where + first)
        values.append(code)
        concept.append(torch.full_like(code, c))
        first += len(code)
    which, codes = torch.cat(concept), torch.cat(values)
    factors = factorisation.fit(state["mean"], state["w"], torch.stack(place, 1), which)
    spaces = factorisation.spectra(factors, which, len(sizes))
    overlap = torch.full((len(sizes), len(sizes)), math.nan, dtype=torch.float64)
    for a, (_, one) in enumerate(spaces):
        for b, (_, other) in enumerate(spaces):
            if len(one) and len(other):
                overlap[a, b] = float((one @ other.T).square().sum()) / min(len(one), len(other))
    total = factors.between + float(state["q"].sum())
    return _Measured(
        factors, which, codes, spaces, overlap, factorisation.cosines(factors.component, which), total
    )


def _numbers(found: _Measured) -> dict[str, float]:
    """Those with intervals."""
    f, m = found.factors, len(found.spaces)
    apart = found.overlap[torch.ones(m, m).tril(-1).bool()]
    apart = apart[apart.isfinite()]
    several = m > 1
    return {
        "r2": _share(f.between - f.left, found.total),
        "r2_combinations": _share(f.between, found.total),
        "additive": _share(f.between - f.left, f.between) if several else math.nan,
        "additive_unseen": _share(f.unseen_between - f.unseen, f.unseen_between) if several else math.nan,
        "cosine": found.cosine if several else math.nan,
        "overlap": float(apart.mean()) if len(apart) else math.nan,
    }


def _arrays(found: _Measured, m: int) -> Arrays:
    variance = [s for s, _ in found.spaces]
    rank = [int((s.cumsum(0) < 0.95 * s.sum()).sum()) + 1 if len(s) else 0 for s in variance]
    weight = float(found.factors.weight.sum()) / m
    share = [_share(float(s.sum()) * weight, found.total) for s in variance]
    participation = [_share(float(s.sum().square()), float(s.square().sum())) for s in variance]
    arrays = {
        "component": found.factors.component,
        "concept": found.concept,
        "code": found.code,
        "rows": found.factors.weight,
        "share": torch.tensor(share, dtype=torch.float64),
        "rank": torch.tensor(rank),
        "participation": torch.tensor(participation, dtype=torch.float64),
        "overlap": found.overlap,
    }
    return {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _concepts(inputs: Inputs, config: Config) -> tuple[str, ...]:
    if config.concepts is not None:
        return config.concepts
    return tuple(sorted(n for n, values in inputs.categories.items() if 2 <= len(values) <= LIKE_A_NAME))


def _cells(state: State) -> State:
    return {name: values for name, values in state.items() if name != "none"}


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _caveats(found: _Measured, cells: int, m: int, groups: int, n_values: Tensor) -> tuple[str, ...]:
    notes = []
    if m == 1:
        notes.append("one concept: whether components add up and are orthogonal shows with two or more")
    if m > 1 and cells - 1 <= found.factors.rank:
        notes.append(
            f"{cells} combinations are fitted by {found.factors.rank} degrees of freedom: any means would be additive"
        )
    if int((n_values - 1).sum()) > found.factors.rank:
        notes.append("concepts are confounded: components are not determined, only what they add up to")
    if groups == 1:
        notes.append("no intervals: samples fill one group, or means do not fit into memory for more")
    return tuple(notes)
