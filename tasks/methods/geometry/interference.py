"""Whether features are arranged by how they are active together, and whether what they add to each other's readout helps.

Connect codes of features, not negative as after a ReLU, and name the weight that holds their directions: of a sparse autoencoder the input
of its decoder, such as `decoder:in:0`. A row of codes c stands for sum_j c_j d_j; read along d_i it gives c_i |d_i|^2 and the interference
r_i, the sum over j != i of c_j <d_j, d_i>. Interference of an active feature (c_i != 0) is constructive where it has the sign of c_i; at a
feature that is not active it is a false positive, which a ReLU takes away where it is negative. All formulas are reconstructed from the
abstract of the paper. Give rows that the network was not trained on: it is arranged by the accidental correlations of the others too.

Beside each number stands what the same codes give with features permuted (`_permuted`: directions are exchanged, lengths stay; of the net
effect the mean over all permutations) and, in closed form, with independent random directions of the same lengths: no net effect, half of
the interference constructive. Means of codes count too: features that are never negative have a net effect wherever cosines are positive
on average, and permuting keeps this part of it. Intervals are of samples; directions are taken as they are.

Arrays, over features: `activity` (share of the rows), `net` (mean c_i r_i over mean c_i^2 |d_i|^2), `constructive` (share of its
interference) and `inactive_square` (mean r_i^2 where it is not active); NaN where rows or the direction do not determine it.
"""

from functools import reduce
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods import interference_measures as measures
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.methods.interference_measures import SUMS
from tasks.numerics import collapse, interference
from tasks.numerics.moments import Precision
from tasks.numerics.split import spread

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = dict.fromkeys(("activity", "net", "constructive", "inactive_square"), ("feature",))
REFERENCE = (
    "From data statistics to feature geometry: how correlations shape superposition (2026), from its abstract: features arranged by "
    "co-activation, constructive interference, false positives; measures are reconstructed"
)
SEEDS = (237,)
FLOOR = {"float64": 1e-12, "float32": 1e-5}
"""Interference over readout below which it is rounding."""
FEW = 10
"""Rows in which a feature must be active for its correlations to say something."""


class Config(Frozen):
    """Where the directions are, and what is drawn."""

    weight: str = "{module}.weight"
    """The parameter that holds the features' directions; `{module}` is the module of the site."""
    axis: Literal["auto", "columns", "rows"] = "auto"
    """Which side of it counts features. auto: columns, as of a linear layer that reads the codes, where there are as many as features,
    else rows, as of an embedding."""
    pairs: int = Field(default=200_000, ge=1)
    """Most pairs of features whose cosines and correlations are compared; of more so many are drawn."""
    draws: int = Field(default=100, ge=2, le=10_000)
    """Permutations of the features for the correlations."""
    permutations: int = Field(default=3, ge=1, le=20)
    """Permutations for what is summed row by row; each costs as much as the directions themselves."""
    groups: int = Field(default=20, ge=2, le=200)
    """Groups that samples are dealt into for the intervals; each costs one more covariance of memory."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, and gives equal correlations different ranks."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""
    seed: int = Field(default=0, ge=0)
    """Of pairs and permutations."""


class Result(Frozen):
    """What was found; None where the rows do not determine a number. `_deviation`: standard deviation over permutations, or directions."""

    n_rows: int
    n_groups: int
    """That hold rows."""
    width: int
    """Features."""
    dimension: int
    """Of their directions."""
    n_varying: int
    """Features that vary and have a direction: pairs are of these."""
    n_silent: int
    """That no row makes active."""
    n_zero: int
    """Whose direction is zero."""
    n_pairs: int
    every_pair: bool
    """Whether these are all."""
    active_share: float
    """Of rows times features."""
    rank_correlation: Interval | None
    """Spearman's, over pairs of features, of the cosine of directions with the correlation of codes: 1 if features lie together as they
    go together."""
    rank_correlation_permuted: float | None
    rank_correlation_permuted_deviation: float | None
    linear_correlation: Interval | None
    """Pearson's of the same: what few pairs that go together strongly do to it; most pairs, which hardly do, decide the other one."""
    linear_correlation_permuted: float | None
    linear_correlation_permuted_deviation: float | None
    net: Interval | None
    """Sum of c_i r_i over sum of c_i^2 |d_i|^2: what interference adds to readouts, from -1; 0 for random directions on average."""
    net_random_deviation: float | None
    net_permuted: float | None
    net_permuted_deviation: float | None
    constructive: Interval | None
    """Share of sum |c_i r_i| that has the sign of c_i; 0.5 for random directions on average."""
    constructive_permuted: float | None
    constructive_permuted_deviation: float | None
    """None for one permutation."""
    inactive_square: Interval | None
    """Mean r_i^2 over rows and features that are not active: false positives of a linear readout."""
    inactive_square_random: float | None
    inactive_square_permuted: float | None
    inactive_positive: Interval | None
    """Share of it where r_i > 0: what a ReLU without a bias lets through."""
    inactive_positive_permuted: float | None
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """The directions."""
    return (config.weight,)


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the weight has not one direction for each feature, there is one feature, or states take too much memory.
    """
    width, weight = inputs.widths["x"], inputs.weights[config.weight]
    if width < 2:
        raise MethodError(f"the site has {width} feature, interference takes at least 2")
    if weight.ndim != 2 or weight.shape[_side(weight, width, config)] != width:
        where = "rows or columns" if config.axis == "auto" else config.axis
        raise MethodError(
            f"{config.weight} has shape {tuple(weight.shape)}, expected a matrix with as many {where} as the site has features, {width}: "
            "connect the codes that it multiplies, such as decoder:in:0, or name another `weight` or `axis`"
        )
    if not bool(weight.isfinite().all()):
        raise MethodError(f"{config.weight} holds NaN or infinity, expected directions of features")
    grouped_moments.check(width, config.groups)


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on, beside the carry."""
    return grouped_moments.state_config(config)


def start(inputs: Inputs, config: Config) -> State:
    """The directions as rows, and permutations of those that are not zero."""
    width, weight = inputs.widths["x"], inputs.weights[config.weight].double()
    directions = weight.T.contiguous() if _side(weight, width, config) == 1 else weight
    some = directions.any(1).nonzero().flatten()
    return {
        "directions": directions,
        "order": interference.orders(some, width, config.permutations, config.seed),
    }


def partial(block: Block, carry: State, config: Config) -> State:
    """Moments of each group's rows, and sums of their interference, of the directions and of those permuted.

    Raises:
        MethodError: for rows or weights that are not finite.

    Cost: row feature (feature + 4 dimension (1 + permutations)) flops.
    """
    state = grouped_moments.partial(block["x"], block, config)
    kept = slice(None) if block.weight is None else block.weight > 0
    x, group = block["x"][kept], spread(block.sample[kept], config.groups)
    weight = torch.ones_like(group).double() if block.weight is None else block.weight[kept].double()
    share = weight.new_zeros(config.groups, len(x))
    share[group, torch.arange(len(x), device=x.device)] = weight
    own = carry["directions"]
    all_of_them = [own, *(interference.rearranged(own, order) for order in carry["order"])]
    state |= _nothing(config.groups, len(all_of_them), x.shape[1], x.device)
    step = max(1, interference.BLOCK_ELEMENTS // x.shape[1])
    for first in range(0, len(x), step):
        _add(state, x[first : first + step], all_of_them, share[:, first : first + step], config.precision)
    return state


def merge(a: State, b: State) -> State:
    """The moments and sums of both."""
    of_groups = grouped_moments.merge(measures.moments_of(a), measures.moments_of(b))
    return of_groups | {name: a[name] + b[name] for name in SUMS}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All measures, of all rows and of all rows but each group's.

    Raises:
        MethodError: for less than two groups with rows, or less than two features that vary.

    Cost: O(groups feature^2 + (groups + draws) pair log pair).
    """
    groups = grouped_moments.groups_of(state)
    of = measures.geometry(carry["directions"], FLOOR[config.precision])
    total = measures.codes(reduce(measures.merged, groups), of)
    some = measures.varying(total, of)
    chosen = collapse.pairs(len(some), config.pairs, config.seed, some.device)
    pairs = chosen._replace(first=some[chosen.first], second=some[chosen.second])
    whole = measures.measured(total, of, pairs)
    without = [
        measures.measured(measures.codes(rest, of), of, pairs)
        for rest in grouped_moments.leaving_out(groups, measures.merged)
    ]
    intervals = {
        name: measures.interval(name, value, [getattr(w, name) for w in without], config.confidence)
        for name, value in whole._asdict().items()
    }
    result = Result.model_validate(
        {
            **intervals,
            **measures.arranged(total, of, pairs, some, config.draws, config.seed + 1),
            **measures.at_random(total, of),
            **measures.permuted(total, of),
            "n_rows": int(total.state["n"]),
            "n_groups": len(groups),
            "width": len(of.length),
            "dimension": of.dimension,
            "n_varying": len(some),
            "n_silent": int((total.state["active"] == 0).sum()),
            "n_zero": int((of.length == 0).sum()),
            "n_pairs": len(pairs.first),
            "every_pair": pairs.every,
            "active_share": float(total.state["active"].mean() / total.state["w"]),
            "caveats": _caveats(total.state, of.length, pairs.every, len(groups), inputs, config),
        }
    )
    arrays = measures.per_feature(total, of)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _nothing(groups: int, kinds: int, width: int, device: torch.device) -> State:
    """Sums over no rows; the first kind is the directions as they are."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(SUMS[:4], (groups, kinds, width))
    shapes |= {"active": (groups, width), "spill": (groups, width), "negative": (groups,)}
    return {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}


def _add(state: State, x: Tensor, kinds: list[Tensor], share: Tensor, precision: Precision) -> None:
    """Sums over some rows, in place."""
    codes = x.to(getattr(torch, precision))
    for k, directions in enumerate(kinds):
        for name, values in interference.of_rows(codes, directions.to(codes.dtype), share).items():
            state[name][:, k] += values
    active = (codes != 0).double()
    energy = codes.double().square() @ kinds[0].square().sum(1)
    state["active"] += share @ active
    state["spill"] += (share * energy) @ (1 - active)
    state["negative"] += share @ (codes < 0).double().sum(1)


def _caveats(
    state: State, length: Tensor, every: bool, groups: int, inputs: Inputs, config: Config
) -> tuple[str, ...]:
    notes = list(grouped_moments.caveats(groups, config.groups))
    shape = inputs.weights[config.weight].shape
    if config.axis == "auto" and shape[0] == shape[1]:
        notes.append(
            f"{config.weight} is square: its columns are taken as directions; set `axis` for its rows"
        )
    active, rows = float(state["active"].sum()), state["active"] / state["w"] * int(state["n"])
    if float(state["negative"].sum()) > 0:
        notes.append(
            f"{float(state['negative'].sum()) / active:.1%} of active codes are negative: constructive is then what moves a readout away "
            "from 0, and codes that are small rather than 0 count as active"
        )
    silent, few = int((rows == 0).sum()), int(((rows > 0) & (rows < FEW)).sum())
    if silent:
        notes.append(
            f"{silent} features are never active: permutations that are summed row by row take their directions too"
        )
    if few:
        notes.append(
            f"{few} features are active in less than {FEW} rows: their correlations are noise, which draws those with cosines to 0"
        )
    if bool((length == 0).any()):
        notes.append(f"{int((length == 0).sum())} features have no direction and are left out")
    if not every:
        notes.append(f"pairs of features were drawn with seed {config.seed}")
    return tuple(notes)


def _side(weight: Tensor, width: int, config: Config) -> int:
    """The axis of the weight that counts features."""
    if config.axis != "auto":
        return 1 if config.axis == "columns" else 0
    return 1 if weight.ndim == 2 and weight.shape[1] == width else 0
