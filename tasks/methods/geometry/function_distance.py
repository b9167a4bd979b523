"""How far apart the outputs of two networks are on the same rows: function space distance, exact over all rows.

The ports x and y are the output sites of both networks, or of one network at two times; rows are joined by sample key and position. The
distance is the mean squared difference, told apart into what all rows share and the rest; of logits also the divergences between
distributions, both ways, and how often the same class is named. Beside stands the distance of outputs for different rows: what networks
that agree in nothing but their output's law have. Intervals by leaving samples out. Arrays, by feature: `difference`, the mean of y - x,
and `square`, the mean of its square.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics.proportions import grouped
from tasks.numerics.split import spread

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(), "y": RowsPort()}
ARRAYS = {"difference": ("feature",), "square": ("feature",)}
REFERENCE = (
    "Dhawan, Huang, Bae, Grosse, Efficient parametric approximations of neural network function space distance, ICML (2023): the distance, "
    "which is computed as it is defined; their approximation without data is not. Divergences: Kullback, Leibler (1951); Lin, IEEE "
    "Transactions on Information Theory 37 (1991) 145"
)
SEEDS = (83,)
MEANS = ("x", "y")


class Config(Frozen):
    """What outputs are."""

    outputs: Literal["values", "logits"] = "values"
    """Numbers; or logits (log-probabilities are logits too), for which divergences are told."""
    groups: int = Field(default=20, ge=2, le=200)
    """Groups that samples are spread into for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""


class Result(Frozen):
    """What was found; None where it was not asked for, or rows do not determine it. Divergences are in nats."""

    n_rows: int
    """Joined rows."""
    n_equal: int
    """Rows with the same outputs, to the bit."""
    n_groups: int
    """That hold rows."""
    width: int
    """Features."""
    distance: Interval | None
    """Mean over rows of the squared distance between both outputs."""
    shift: float
    """The part of it that is the squared length of the mean difference: the same for all rows."""
    distance_apart: Interval | None
    """Of outputs for different rows: both variances and the shift."""
    relative: Interval | None
    """Distance over that: 0 for one function, about 1 for outputs that have nothing to do with each other."""
    distance_centred: Interval | None
    """Of logits about their mean over classes: nothing else of them counts in a softmax."""
    divergence_xy: Interval | None
    """Mean of KL(x || y), what y loses on words drawn from x."""
    divergence_yx: Interval | None
    divergence: Interval | None
    """Mean of Jensen and Shannon's divergence: at most ln 2."""
    agreement: float | None
    """Share of rows with the same largest logit; the first of equal ones."""
    agreement_low: float | None
    agreement_high: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for outputs of different widths.
    """
    widths = inputs.widths["x"], inputs.widths["y"]
    if widths[0] != widths[1]:
        raise MethodError(
            f"outputs have {widths[0]} and {widths[1]} features, a distance takes equal ones; connect the same output of both"
        )


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on."""
    return {"outputs": config.outputs, "groups": config.groups}


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried."""
    return {}


def partial(block: Block, carry: State, config: Config) -> State:
    """Sums over rows, and means and scatter of both outputs, in each group of samples.

    Raises:
        MethodError: for outputs whose squares overflow.
    """
    x, y = block["x"].double(), block["y"].double()
    group = spread(block.sample, config.groups)
    apart = y - x
    per_row = {"distance": apart.square().sum(1), "equal": (block["x"] == block["y"]).all(1).double()}
    if config.outputs == "logits":
        per_row |= _of_logits(x, y)
    n = torch.bincount(group, minlength=config.groups)
    zero = torch.zeros(config.groups, dtype=torch.float64, device=x.device)
    state = {"n": n} | {name: zero.index_add(0, group, values) for name, values in per_row.items()}
    wide = zero.new_zeros(config.groups, x.shape[1])
    state |= {"sum": wide.index_add(0, group, apart), "square": wide.index_add(0, group, apart.square())}
    for name, rows in zip(MEANS, (x, y), strict=True):
        shift = rows.mean(0) if len(rows) else rows.new_zeros(x.shape[1])
        mean = wide.index_add(0, group, rows - shift) / n.clamp(min=1)[:, None] + shift
        mean = mean * (n > 0)[:, None]
        state |= {
            f"{name}.mean": mean,
            f"{name}.scatter": zero.index_add(0, group, (rows - mean[group]).square().sum(1)),
        }
    if not all(bool(values.isfinite().all()) for values in state.values()):
        raise MethodError("squares or divergences of the outputs overflow; scale the outputs")
    return state


def merge(a: State, b: State) -> State:
    """The sums of both; means and scatter by Chan, Golub and LeVeque's identity."""
    out = {name: a[name] + b[name] for name in a}
    mine, theirs, n = a["n"].double(), b["n"].double(), out["n"].clamp(min=1).double()
    for name in MEANS:
        e = (b[f"{name}.mean"] - a[f"{name}.mean"]) * ((mine > 0) & (theirs > 0))[:, None]
        old = torch.where((mine > 0)[:, None], a[f"{name}.mean"], b[f"{name}.mean"])
        out[f"{name}.mean"] = old + (theirs / n)[:, None] * e
        out[f"{name}.scatter"] = out[f"{name}.scatter"] + mine * theirs / n * e.square().sum(1)
    return out


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means of the sums, of all rows and of all but each group's.

    Raises:
        MethodError: if no row has a partner.

    Cost: O(groups feature).
    """
    n = int(state["n"].sum())
    if n == 0:
        raise MethodError(
            "no row of x has a partner in y: sample keys or positions differ; connect captures of the same data"
        )
    groups = [_one(state, g) for g in torch.nonzero(state["n"] > 0).flatten().tolist()]
    total = groups[0]
    for other in groups[1:]:
        total = merge(total, other)
    whole = _numbers(total)
    without = (
        [_numbers(rest) for rest in grouped_moments.leaving_out(groups, merge)] if len(groups) > 1 else []
    )
    found = {
        name: grouped_moments.interval(value, [w[name] for w in without], config.confidence)
        for name, value in whole.items()
    }
    share = grouped(state["agree"].long(), state["n"], config.confidence) if "agree" in state else None
    difference = total["sum"][0] / n
    result = Result(
        n_rows=n,
        n_equal=int(total["equal"]),
        n_groups=len(groups),
        width=inputs.widths["x"],
        shift=float(difference.square().sum()),
        agreement=None if share is None else share.value,
        agreement_low=None if share is None else share.low,
        agreement_high=None if share is None else share.high,
        caveats=grouped_moments.caveats(len(groups), config.groups),
        **{name: found.get(name) for name in _WITH_INTERVALS},
    )
    arrays = {"difference": difference, "square": total["square"][0] / n}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


_DIVERGENCES = ("distance_centred", "divergence_xy", "divergence_yx", "divergence")
_WITH_INTERVALS = ("distance", "distance_apart", "relative", *_DIVERGENCES)


def _of_logits(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of each row."""
    centred = (y - y.mean(1, keepdim=True)) - (x - x.mean(1, keepdim=True))
    p, q = x.log_softmax(1), y.log_softmax(1)
    middle = torch.logaddexp(p, q) - math.log(2)
    halves = [(_expected(a, a - middle) / 2) for a in (p, q)]
    return {
        "distance_centred": centred.square().sum(1),
        "divergence_xy": _expected(p, p - q),
        "divergence_yx": _expected(q, q - p),
        "divergence": halves[0] + halves[1],
        "agree": (x.argmax(1) == y.argmax(1)).double() if len(x) else x.new_zeros(0),
    }


def _expected(log: Tensor, values: Tensor) -> Tensor:
    """Mean of values over classes by their probability: 0 where that is none, and never below 0 as no divergence is."""
    weight = log.exp()
    return (weight * torch.where(weight > 0, values, 0.0)).sum(1).clamp(min=0)


def _one(state: State, g: int) -> State:
    return {name: values[g : g + 1] for name, values in state.items()}


def _numbers(state: State) -> dict[str, float]:
    n = float(state["n"])
    names = [name for name in ("distance", *_DIVERGENCES) if name in state]
    found = {name: float(state[name]) / n for name in names}
    apart = float((state["x.mean"] - state["y.mean"]).square().sum())
    scatter = float(state["x.scatter"] + state["y.scatter"])
    found["distance_apart"] = apart + scatter / (n - 1) if n > 1 else math.nan
    found["relative"] = (
        found["distance"] / found["distance_apart"] if n > 1 and found["distance_apart"] > 0 else math.nan
    )
    return found
