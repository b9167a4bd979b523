"""How sharply a label changes from row to row: max |y_i - y_j| / |x_i - x_j| over all pairs, exactly, and the margin of each row.

Classes count as 1 apart, so that a row's sharpness is 1 over the distance to the nearest row of another class; for labels of
numbers it is that of its steepest pair. Arrays, by row: `sharpness`, `distance` to the other row of that pair (for classes: the
nearest row of another class) and `partner`, that row over all captures laid end to end. NaN and -1 where the label is missing.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowOutput, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import row_sample
from tasks.numerics.neighbours import Neighbours, nearest
from tasks.numerics.steepest import Steepest, steepest

VERSION = 1
KIND = "pairs"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "sharpness": ("row",),
    "distance": ("row",),
    "partner": ("row",),
    "share": ("level",),
    "quantile": ("level",),
}
REFERENCE = (
    "Konz, Mazurowski, The effect of intrinsic dataset properties on generalization, ICLR (2024), definition of K_F: over all pairs, where "
    "its code draws 1000 rows and takes equal classes for different ones when there are more than two"
)
SEEDS = (230,)
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_GROUPS = 20


class Config(Frozen):
    """Which label."""

    label: str | None = None
    """Of classes (texts, whole numbers) or of numbers (2.0 rather than 2); None: the first of classes, else the first of numbers."""
    quantile_rows: int = Field(default=32768, ge=10, le=1_000_000)
    """Rows that quantiles are made of: all, or so many drawn without replacement."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the interval of the median."""


class Result(Frozen):
    """What was found. None where no two rows differ in the label."""

    n_rows: int
    """With the label."""
    n_missing: int
    """Rows without it."""
    n_alone: int
    """Rows without one that differs in the label."""
    n_contradictions: int
    """Rows at distance 0 from one that differs in the label: their sharpness is endless, and the maximum leaves them out."""
    classes: int | None
    """Names of classes; None for numbers."""
    sharpness: float | None
    """The largest: label units per distance."""
    row: int | None
    """Where, over all captures laid end to end."""
    partner: int | None
    """The other row of that pair."""
    distance: float | None
    """Between the two."""
    median: Interval | None
    """Of rows' sharpness; for classes 1 over the median margin."""
    over_median: float | None
    """The largest over the median: the same for rows of any scale."""
    n_quantile: int
    """Rows of median and quantiles."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the label has one class only.
    """
    label = config.label or min(inputs.categories, default=None)
    names = inputs.categories.get(label or "")
    if names is not None and len(names) < 2:
        raise MethodError(
            f"label {label!r} has {len(names)} class, sharpness compares at least 2; choose another label"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {
        "sharpness": RowOutput("float64"),
        "distance": RowOutput("float64"),
        "partner": RowOutput("int64"),
    }


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is needed beside the rows."""
    return {}


def begin(block: Block, carry: State, config: Config) -> State:
    """No pair yet; NaN where the label is missing."""
    known = _known(_label(block, config))
    zero = torch.zeros(len(known), dtype=torch.float64, device=known.device)
    return {
        "sharpness": zero.masked_fill(~known, math.nan),
        "distance": (zero + math.inf).masked_fill(~known, math.nan),
        "partner": torch.full_like(block.index, -1),
    }


def pair(state: State, block: Block, other: Block, carry: State, config: Config) -> State:
    """The sharpest pairs after one more block."""
    labels = _label(block, config), _label(other, config)
    ours, theirs = (torch.nonzero(_known(label)).flatten() for label in labels)
    before = {name: values[ours] for name, values in state.items()}
    x, y = (block["x"][ours], block.index[ours]), (other["x"][theirs], other.index[theirs])
    a, b = labels[0][ours], labels[1][theirs]
    if a.is_floating_point():
        found = Steepest(before["sharpness"], before["distance"], before["partner"])
        after = steepest(found, *x, a.double(), *y, b.double())
        sharpness, distance, partner = after.slope, after.distance, after.index
    else:
        near = Neighbours(before["distance"][:, None], before["partner"][:, None])
        closest = nearest(near, *x, *y, (a, b))
        distance, partner = closest.distance[:, 0], closest.index[:, 0]
        sharpness = 1 / distance
    new = {"sharpness": sharpness, "distance": distance, "partner": partner}
    return {name: values.index_copy(0, ours, new[name]) for name, values in state.items()}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Counts, the sharpest row, and a sample for quantiles."""
    sharpness = outputs["sharpness"]
    known = ~torch.isnan(sharpness)
    group = (block.sample % MOST_GROUPS).double()
    kept = known & (sharpness > 0) & torch.isfinite(sharpness)
    rows = torch.nonzero(kept).flatten()
    drawn = row_sample.of_rows(
        block.index[rows], torch.stack([sharpness[rows], group[rows]], 1), config.quantile_rows
    )
    counts = {"known": known, "missing": ~known, "alone": sharpness == 0, "endless": torch.isinf(sharpness)}
    return {name: values.sum() for name, values in counts.items()} | drawn | _sharpest(block, outputs, rows)


def merge(a: State, b: State) -> State:
    """Both; of equally sharp rows the first."""
    drawn = row_sample.merge(a, b)
    first = float(a["best"]) > float(b["best"])
    tied = float(a["best"]) == float(b["best"]) and bool(a["pair"][0] <= b["pair"][0])
    best = a if first or tied else b
    counts = {name: a[name] + b[name] for name in ("known", "missing", "alone", "endless")}
    return counts | drawn | {name: best[name] for name in ("best", "pair", "apart")}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The sharpest pair, and quantiles of the sample."""
    drawn = row_sample.values(state)
    shares = torch.tensor(SHARES, dtype=torch.float64)
    there = len(drawn) > 0
    quantile = torch.quantile(drawn[:, 0].cpu(), shares) if there else torch.full_like(shares, math.nan)
    label = config.label or min(inputs.categories, default=None)
    names = inputs.categories.get(label or "")
    median, best = float(quantile[2]), float(state["best"])
    result = Result(
        n_rows=int(state["known"]),
        n_missing=int(state["missing"]),
        n_alone=int(state["alone"]),
        n_contradictions=int(state["endless"]),
        classes=None if names is None else len(names),
        sharpness=best if there else None,
        row=int(state["pair"][0]) if there else None,
        partner=int(state["pair"][1]) if there else None,
        distance=float(state["apart"]) if there else None,
        median=_median(drawn, median, config) if there else None,
        over_median=best / median if there else None,
        n_quantile=len(drawn),
        caveats=_caveats(state, len(drawn)),
    )
    return result, {"share": Array(shares, ARRAYS["share"]), "quantile": Array(quantile, ARRAYS["quantile"])}


def _label(block: Block, config: Config) -> Tensor:
    """Codes or numbers of the rows.

    Raises:
        MethodError: if samples have no such label.
    """
    coded = [name for name, values in block.labels.items() if not values.is_floating_point()]
    name = config.label or min(coded or block.labels, default=None)
    if name is None or name not in block.labels:
        known = ", ".join(sorted(block.labels)) or "none"
        raise MethodError(f"label {name!r} is not among the samples' labels, which are: {known}")
    return block.labels[name]


def _known(label: Tensor) -> Tensor:
    return torch.isfinite(label) if label.is_floating_point() else label >= 0


def _sharpest(block: Block, outputs: dict[str, Tensor], rows: Tensor) -> State:
    """The first of the sharpest of some rows."""
    index = block.index
    if len(rows) == 0:
        nothing = torch.zeros((), dtype=torch.float64, device=index.device)
        return {"best": nothing, "pair": index.new_full((2,), -1), "apart": nothing.clone()}
    sharpness = outputs["sharpness"][rows]
    tied = rows[sharpness == sharpness.max()]
    row = tied[index[tied].argmin()]
    both = torch.stack([index[row], outputs["partner"][row]])
    return {"best": outputs["sharpness"][row], "pair": both, "apart": outputs["distance"][row]}


def _median(drawn: Tensor, value: float, config: Config) -> Interval | None:
    values, group = drawn.cpu().unbind(1)
    parts = [values[group != g] for g in torch.unique(group).tolist()]
    without = [float(part.quantile(0.5)) if len(part) else math.nan for part in parts]
    return grouped_moments.interval(value, without, config.confidence)


def _caveats(state: State, drawn: int) -> tuple[str, ...]:
    notes = [
        "the largest is a maximum over pairs: it grows with rows and has no interval; compare equal numbers of rows"
    ]
    endless, sharp = int(state["endless"]), int(state["known"] - state["alone"] - state["endless"])
    if endless:
        notes.append(
            f"{endless} rows equal one that differs in the label: over all pairs it is endlessly sharp, the figure is that of the others"
        )
    if not endless and not sharp:
        notes.append("no two rows differ in the label")
    if drawn < sharp:
        notes.append(f"median and quantiles rest on {drawn} rows drawn from {sharp}")
    return tuple(notes)
