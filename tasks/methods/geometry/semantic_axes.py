"""Axes between the poles of pairs, such as antonyms: how they overlap, and in how few dimensions rows lie along all of them.

One label of the samples names the pair that a row belongs to, another its pole; an axis is the difference of both poles' mean rows,
scaled to length 1. Rows of no pair take part in how rows spread along the axes. A step of length 1 along an axis moves rows along another
one by the cosine between both: that is its effect off target. Beside stand axes of random directions that have the covariance of the rows.
Intervals leave samples out, with the axes that then lack a pole.

Arrays: `axis` (axis, feature); `pair` (axis), its code in the label, -1 without one; `rows` (axis, pole); `separation` (axis), distance of
both poles' means over the standard deviation of all rows along the axis; `cosine` and `correlation` (axis, other), of axes and of rows'
coordinates on them; `eigenvalue` (order) of the correlations, descending.
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
from tasks.methods.classes import class_code
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import class_moments
from tasks.numerics.symmetric import full

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "axis": ("axis", "feature"),
    "pair": ("axis",),
    "rows": ("axis", "pole"),
    "separation": ("axis",),
    "cosine": ("axis", "other"),
    "correlation": ("axis", "other"),
    "eigenvalue": ("order",),
}
REFERENCE = (
    "Semantic structure in large language model embeddings (2025), from its abstract: directions of antonym pairs, few dimensions of "
    "projections, off-target effects by cosines. Dimensions: participation ratio of the correlations of projections"
)
SEEDS = (170,)
DRAWS = 20
"""Of random axes."""


class Config(Frozen):
    """Which labels name pairs and poles."""

    pair: str | None = None
    """Label of the samples whose classes are pairs; None: there is one pair."""
    pole: str | None = None
    """Label of the samples whose classes are poles; None: the first, but for `pair`, with two classes."""
    low: str | None = None
    """Class of `pole` where axes begin; None: the first."""
    high: str | None = None
    """Class of `pole` where axes end; None: the second. Rows of other classes, or of none, belong to no pair."""
    top: int = Field(default=3, ge=1)
    """Dimensions whose share is told."""
    groups: int = Field(default=20, ge=2, le=200)
    """Groups that samples are dealt into for the intervals; one, without intervals, where means take more than 1 GiB."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""
    seed: int = Field(default=0, ge=0)
    """Of random axes."""


class Result(Frozen):
    """What was found; None where there are too few axes, or rows do not vary. `_random`: of axes with the covariance of rows."""

    pole: str
    n_rows: int
    n_other: int
    """Rows of no pair."""
    n_axes: int
    n_incomplete: int
    """Pairs with rows of one pole only, left out."""
    n_zero: int
    """Pairs whose poles have equal means, left out."""
    n_groups: int
    """That hold rows; 1: no intervals."""
    width: int
    """Features."""
    off_target: Interval | None
    """Mean |cosine| between axes: what a step along one does to another."""
    off_target_random: float | None
    off_target_uniform: float | None
    """Of uniform directions."""
    dimension: Interval | None
    """Participation ratio of the correlations of rows' coordinates: between 1 and the axes."""
    dimension_random: float | None
    top_share: Interval | None
    """Share of the `top` largest dimensions in the variance of standardised coordinates."""
    top_share_random: float | None
    components_90: int | None
    """Dimensions that hold 90 % of it."""
    entanglement: float | None
    """Correlation, over pairs of axes, of their cosine with that of rows' coordinates: 1 if axes explain how properties go together."""
    separation: float | None
    """Median over axes of the distance of poles over the standard deviation of rows."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for labels or classes that are not there.
    """
    pole = _pole(inputs, config)
    if config.pair is not None and (config.pair not in inputs.categories or config.pair == pole):
        others = [name for name in inputs.categories if name != pole]
        raise MethodError(
            f"label {config.pair!r} names no pairs; expected one of {nearest(config.pair, others)}"
        )
    ends = _ends(inputs, config)
    if ends[0] == ends[1]:
        raise MethodError(
            f"both poles are {inputs.categories[pole][ends[0]]!r}: name `low` and `high` of label {pole!r}"
        )


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on, beside the carry."""
    names = {"pair", "pole", "low", "high", "groups", "weight_label"}
    return {name: value for name, value in config.model_dump(mode="json").items() if name in names}


def start(inputs: Inputs, config: Config) -> State:
    """The poles' codes, how many pairs there are, and how many groups fit into memory."""
    width = inputs.widths["x"]
    pairs = len(inputs.categories.get(config.pair or "", ("all",)))
    fits = 8 * width * config.groups * (2 * pairs + 1 + width) <= class_groups.MOST_GROUPED_BYTES
    names = {"pole": _pole(inputs, config), "pair": config.pair or ""}
    carry = {name: torch.tensor(list(label.encode()), dtype=torch.uint8) for name, label in names.items()}
    carry |= {"ends": torch.tensor(_ends(inputs, config)), "pairs": torch.tensor(pairs)}
    return carry | {"groups": torch.tensor(config.groups if fits else 1)}


def partial(block: Block, carry: State, config: Config) -> State:
    """The moments of each pole of each pair, and of the other rows, in each group.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    pole = block.labels[bytes(carry["pole"].tolist()).decode()]
    name = bytes(carry["pair"].tolist()).decode()
    pair = block.labels[name] if name else torch.zeros_like(pole)
    low, high = carry["ends"].tolist()
    inside = (pair >= 0) & ((pole == low) | (pole == high))
    code = torch.where(inside, 2 * pair + (pole == high).long(), 2 * carry["pairs"].to(pole.device))
    return class_groups.partial(block["x"], code, block, int(carry["groups"]))


def merge(a: State, b: State) -> State:
    """The moments of both."""
    return class_groups.merge(a, b)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The axes of all rows, and of all rows but each group's.

    Raises:
        MethodError: if no pair has both poles.

    Cost: O(groups axis feature^2), and O(feature^3) once.
    """
    groups = class_groups.groups_of(state)
    total = reduce(
        class_moments.merge, groups, class_moments.empty(inputs.widths["x"], state["0.mean"].device)
    )
    pairs = int(carry["pairs"])
    whole = _measured(total, pairs, config.top)
    if whole is None:
        raise MethodError(
            f"none of {pairs} pairs has rows of both poles with different means, among {int(total['n'].sum())} rows; check the labels "
            f"{config.pair!r} and {_pole(inputs, config)!r}"
        )
    rests = grouped_moments.leaving_out(groups, class_moments.merge) if len(groups) > 1 else ()
    without = [_measured(rest, pairs, config.top) for rest in rests]

    def interval(name: str) -> Interval | None:
        left = [math.nan if w is None else float(getattr(w, name)) for w in without]
        most = len(whole.axis) if name == "dimension" else 1.0
        return grouped_moments.interval(float(getattr(whole, name)), left, config.confidence, most)

    random = _random(whole, config)
    width, several = inputs.widths["x"], len(whole.axis) > 1
    other = total["n"][total["code"] == 2 * pairs]
    values = whole.eigenvalue
    result = Result(
        pole=_pole(inputs, config),
        n_rows=int(total["n"].sum()),
        n_other=int(other.sum()),
        n_axes=len(whole.axis),
        n_incomplete=whole.incomplete,
        n_zero=whole.zero,
        n_groups=len(groups),
        width=width,
        off_target=interval("off_target"),
        off_target_random=random[0],
        off_target_uniform=math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2))
        / math.sqrt(math.pi)
        if several
        else None,
        dimension=interval("dimension"),
        dimension_random=random[1],
        top_share=interval("top_share"),
        top_share_random=random[2],
        components_90=int((values.cumsum(0) < 0.9 * values.sum()).sum()) + 1
        if math.isfinite(whole.dimension)
        else None,
        entanglement=_entanglement(whole),
        separation=_known(float(whole.separation.nanmedian())),
        caveats=_caveats(whole, without, config),
    )
    arrays = {name: getattr(whole, name) for name in ARRAYS}
    arrays["pair"] = whole.pair if config.pair is not None else torch.full_like(whole.pair, -1)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Measured(NamedTuple):
    """Of some rows."""

    axis: Tensor
    pair: Tensor
    rows: Tensor
    separation: Tensor
    cosine: Tensor
    correlation: Tensor
    eigenvalue: Tensor
    covariance: Tensor
    off_target: float
    dimension: float
    top_share: float
    incomplete: int
    zero: int


def _measured(state: State, pairs: int, top: int) -> _Measured | None:
    """None without an axis."""
    code, w = state["code"], state["w"]
    low = torch.nonzero((code % 2 == 0) & (code < 2 * pairs)).flatten()
    place = torch.searchsorted(code, code[low] + 1).clamp(max=max(0, len(code) - 1))
    both = code[place] == code[low] + 1
    incomplete = int((code < 2 * pairs).sum()) - 2 * int(both.sum())
    low, high = low[both], place[both]
    apart = state["mean"][high] - state["mean"][low]
    length = torch.linalg.vector_norm(apart, dim=1)
    kept = length > 1e-12 * (state["mean"][high].norm(dim=1) + state["mean"][low].norm(dim=1))
    if not bool(kept.any()):
        return None
    axis = apart[kept] / length[kept, None]
    z = state["mean"] - (w[:, None] * state["mean"]).sum(0) / w.sum()
    covariance = (full(state["g"]) + (w[:, None] * z).T @ z) / w.sum()
    spread, cosine, correlation, eigenvalue = _along(axis, covariance)
    numbers = _numbers(cosine, eigenvalue, top)
    rows = torch.stack([state["n"][low[kept]], state["n"][high[kept]]], 1)
    pair, separation = code[low[kept]] // 2, length[kept] / spread.where(spread > 0, math.nan)
    counts = incomplete, int((~kept).sum())
    return _Measured(
        axis, pair, rows, separation, cosine, correlation, eigenvalue, covariance, *numbers, *counts
    )


def _along(axis: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standard deviations along axes, cosines, correlations of coordinates, and their eigenvalues."""
    cosine = axis @ axis.T
    products = axis @ covariance @ axis.T
    spread = products.diagonal().clamp(min=0).sqrt()
    correlation = (products / torch.outer(spread, spread)).clamp(-1, 1)
    correlation = torch.where(torch.outer(spread, spread) > 0, correlation, 0.0)
    return spread, cosine, correlation, torch.linalg.eigvalsh(correlation).flip(0).clamp(min=0)


def _numbers(cosine: Tensor, eigenvalue: Tensor, top: int) -> tuple[float, float, float]:
    """Off target, dimension, share; NaN for one axis."""
    n, total = len(cosine), float(eigenvalue.sum())
    if n < 2 or total == 0:
        return math.nan, math.nan, math.nan
    off = (float(cosine.abs().sum()) - n) / (n * (n - 1))
    return off, total**2 / float(eigenvalue.square().sum()), float(eigenvalue[:top].sum()) / total


def _random(found: _Measured, config: Config) -> tuple[float | None, float | None, float | None]:
    """Means over draws of axes whose directions have the covariance of the rows."""
    values, vectors = torch.linalg.eigh(found.covariance)
    root = vectors * values.clamp(min=0).sqrt()
    if len(found.axis) < 2 or not float(values[-1]) > 0:
        return None, None, None
    generator, numbers = torch.Generator().manual_seed(config.seed), []
    for _ in range(DRAWS):
        drawn = torch.randn(len(found.axis), len(values), generator=generator, dtype=torch.float64).to(
            root.device
        )
        axis = torch.nn.functional.normalize(drawn @ root.T, dim=1)
        _, cosine, _, eigenvalue = _along(axis, found.covariance)
        numbers.append(_numbers(cosine, eigenvalue, config.top))
    off, dimension, share = torch.tensor(numbers, dtype=torch.float64).mean(0).tolist()
    return off, dimension, share


def _entanglement(found: _Measured) -> float | None:
    n = len(found.axis)
    if n < 3:
        return None
    low = torch.ones(n, n, device=found.cosine.device).tril(-1).bool()
    return _known(float(torch.corrcoef(torch.stack([found.cosine[low], found.correlation[low]]))[0, 1]))


def _pole(inputs: Inputs, config: Config) -> str:
    """The label of poles.

    Raises:
        MethodError: if it is not there, or has less than two classes.
    """
    two = sorted(name for name, names in inputs.categories.items() if len(names) == 2 and name != config.pair)
    name = config.pole or (two[0] if two else None)
    if name is None:
        raise MethodError(
            "no label has two classes, expected one that names poles: set `pole`, and `low` and `high` where it has more"
        )
    if name not in inputs.categories or len(inputs.categories[name]) < 2:
        raise MethodError(
            f"label {name!r} names no poles; expected one of {nearest(name, inputs.categories)}, with two classes or more"
        )
    return name


def _ends(inputs: Inputs, config: Config) -> tuple[int, int]:
    """Codes of both poles."""
    label = _pole(inputs, config)
    return class_code(inputs, label, config.low, 0), class_code(inputs, label, config.high, 1)


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _caveats(found: _Measured, without: list[_Measured | None], config: Config) -> tuple[str, ...]:
    notes = []
    if len(found.axis) < 2:
        notes.append("one axis: overlaps and dimensions show with two or more; name a `pair` label")
    fewest = min((0 if w is None else len(w.axis) for w in without), default=len(found.axis))
    if fewest < len(found.axis):
        notes.append(
            f"without some group of samples {len(found.axis) - fewest} axes lack a pole: intervals are those of fewer axes"
        )
    if config.top >= len(found.axis) > 1:
        notes.append(f"{len(found.axis)} axes lie in {config.top} dimensions whatever they are")
    if not without:
        notes.append("no intervals: samples fill one group, or means do not fit into memory for more")
    return tuple(notes)
