"""Whether rows are sums of parts, one for each value of several concepts, and whether parts of different concepts are orthogonal.

Concepts are labels of the samples. Parts are fitted to the means of the combinations that occur, so that one pass is enough; a combination
that was never seen is predicted from others, as generalisation to new combinations would have it. Arrays: `cosine` (concept, other) mean
|cosine| between parts of two concepts, and between those of one on the diagonal; `directions_95` (concept) fewest directions that hold
95 % of a concept's parts; `variance` (concept) share of the rows' variance that its parts have.
"""

import math
from functools import reduce
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import class_groups, grouped_moments
from tasks.methods.classes import carried, class_label, codes_of
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import class_moments, collapse, factorisation

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {"cosine": ("concept", "other"), "directions_95": ("concept",), "variance": ("concept",)}
REFERENCE = (
    "Uselis, Dittadi, Oh, Compositional generalization requires linear, orthogonal representations in vision embedding models (2026): "
    "linear factorisation, plain and whitened, and orthogonality of per-concept parts. Here parts are those of least squares, "
    "which need no balanced design"
)
SEEDS = (124,)


class Config(Frozen):
    """What the concepts are, and how parts are found."""

    labels: tuple[str, ...] | None = None
    """Labels of the samples with classes, one for each concept; None: all of them."""
    parts: Literal["least_squares", "marginal"] = "least_squares"
    """Parts whose sums come closest to the means of combinations, or mean over the rows of each value, as in the paper: the same where
    all combinations are equally frequent."""
    groups: int = Field(default=20, ge=2, le=200)
    """Groups that samples are dealt into for the intervals; one, without intervals, where means do not fit into 1 GiB once for each."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found; None where the rows do not determine a number."""

    labels: tuple[str, ...]
    n_rows: int
    n_unlabelled: int
    """Rows that lack one of the concepts, left out."""
    n_cells: int
    """Combinations that occur."""
    n_possible: int
    """Combinations of values that occur."""
    confounded: int
    """Differences between parts that the combinations do not tell apart; the smallest parts are taken then."""
    n_groups: int
    """That hold rows; 1: no intervals."""
    width: int
    """Features."""
    r2: Interval | None
    """Share of the rows' variance that sums of parts explain. Few samples make it too large, by about what labels that say nothing give;
    `corrected` is without that, the interval's ends are not."""
    r2_whitened: Interval | None
    """The same with rows scaled to variance 1 in every direction."""
    r2_random: float | None
    """Of labels that say nothing, plain or whitened, for independent rows."""
    r2_cells: Interval | None
    """Of the means of combinations themselves: no sum of parts explains more."""
    linear_share: Interval | None
    """r2 / r2_cells: 1 if combinations are nothing but sums of their parts."""
    r2_unseen: float | None
    """Share of the variance between combinations that is predicted for each from parts fitted without it; below 0 if worse than the mean.
    Only of least squares."""
    n_unpredictable: int
    """Combinations that cannot be predicted, because one of their values occurs nowhere else; left out of it."""
    cosine_across: Interval | None
    """Mean |cosine| between parts of different concepts: 0 if they are orthogonal; None for a single concept."""
    cosine_within: Interval | None
    """Between different parts of one concept."""
    cosine_random: float
    """Of uniform directions."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for labels that name no classes, are given twice, or all have one class.
    """
    labels = _labels(inputs, config)
    if len(set(labels)) < len(labels):
        raise MethodError(f"labels {', '.join(labels)}: found one twice; name each concept once")
    if math.prod(len(inputs.categories[label]) for label in labels) >= 1 << 62:
        raise MethodError(
            f"labels {', '.join(labels)} have too many combinations to number; name fewer in `labels`"
        )
    if all(len(inputs.categories[label]) < 2 for label in labels):
        raise MethodError(f"labels {', '.join(labels)} have one class each, parts need concepts that vary")


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on, beside the carry."""
    return {"labels": config.labels, "groups": config.groups, "weight_label": config.weight_label}


def start(inputs: Inputs, config: Config) -> State:
    """Labels, how many values each has, and how many groups fit into memory."""
    labels = _labels(inputs, config)
    sizes = [len(inputs.categories[label]) for label in labels]
    groups = class_groups.n_groups(inputs, math.prod(sizes), config.groups, inputs.widths["x"])
    carry = {f"label.{n}": carried(label) for n, label in enumerate(labels)}
    return carry | {"sizes": torch.tensor(sizes), "groups": torch.tensor(groups)}


def partial(block: Block, carry: State, config: Config) -> State:
    """The moments of each combination, in each group.

    Raises:
        MethodError: for rows or weights that are not finite, or without the labels.
    """
    code = torch.zeros_like(block.sample)
    none = torch.zeros_like(block.sample, dtype=torch.bool)
    for n, size in enumerate(carry["sizes"].tolist()):
        found = codes_of(block, carry[f"label.{n}"])
        none |= found < 0
        code = code * size + found
    state = class_groups.partial(block["x"], code.masked_fill(none, -1), block, int(carry["groups"]))
    return state | {"none": none.sum()}


def merge(a: State, b: State) -> State:
    """The moments of both."""
    return class_groups.merge(_cells(a), _cells(b)) | {"none": a["none"] + b["none"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Parts and what they explain, of all rows and of all but each group's.

    Raises:
        MethodError: for less than two combinations.

    Cost: O(groups (feature^3 + cell values (values + feature))).
    """
    sizes = tuple(carry["sizes"].tolist())
    groups = class_groups.groups_of(_cells(state))
    total = reduce(class_moments.merge, groups, class_moments.empty(inputs.widths["x"], state["none"].device))
    if len(total["code"]) < 2:
        raise MethodError(
            f"rows have {len(total['code'])} combination of {', '.join(_labels(inputs, config))}, and {int(state['none'])} rows lack one; "
            "parts need at least 2: capture samples of more combinations"
        )
    whole = _measured(total, sizes, config)
    several = len(groups) > 1
    without = [
        _measured(rest, sizes, config)
        for rest in (grouped_moments.leaving_out(groups, class_moments.merge) if several else ())
    ]
    intervals = {
        name: grouped_moments.interval(
            getattr(whole, name), [getattr(w, name) for w in without], config.confidence, 1.0
        )
        for name in ("r2", "r2_whitened", "r2_cells", "linear_share", "cosine_across", "cosine_within")
    }
    rows = float(total["w"].sum().square() / total["w2"].sum())
    fit = whole.fit
    unseen, unpredictable = _unseen(total, fit)
    result = Result.model_validate(
        {
            **intervals,
            "labels": _labels(inputs, config),
            "n_rows": int(total["n"].sum()),
            "n_unlabelled": int(state["none"]),
            "n_cells": len(total["code"]),
            "n_possible": math.prod(int(there.sum()) for there in fit.occurs),
            "confounded": fit.confounded,
            "n_groups": len(groups),
            "width": inputs.widths["x"],
            "r2_random": min(1.0, fit.degrees / (rows - 1)) if rows > 1 else None,
            "r2_unseen": unseen if config.parts == "least_squares" else None,
            "n_unpredictable": unpredictable,
            "cosine_random": factorisation.cosine_at_random(inputs.widths["x"]),
            "caveats": _caveats(fit, len(groups), config),
        }
    )
    directions = [factorisation.directions_for(part, 0.95) for part in fit.parts]
    arrays = {"cosine": whole.cosine, "variance": whole.variance}
    arrays |= {"directions_95": torch.tensor(directions, device=whole.cosine.device)}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Measured(NamedTuple):
    """Of some rows."""

    r2: float
    r2_whitened: float
    r2_cells: float
    linear_share: float
    cosine_across: float
    cosine_within: float
    cosine: Tensor
    variance: Tensor
    fit: factorisation.Additive


def _measured(state: State, sizes: tuple[int, ...], config: Config) -> _Measured:
    mean, w, value = state["mean"], state["w"], _values(state["code"], sizes)
    fit = getattr(factorisation, "additive" if config.parts == "least_squares" else "marginal")(
        mean, w, value, sizes
    )
    centre = w @ mean / w.sum()
    within = class_moments.scatter(state)
    root = w.sqrt()[:, None]
    apart, missed = root * (mean - centre), root * (mean - fit.fitted)
    between = float(apart.square().sum())
    all_of_it = float(within.trace()) + between
    white = collapse.whitening((within + apart.T @ apart) / w.sum(), centre)
    left = float(((white.T @ within) * white.T).sum()) + float((missed @ white).square().sum())
    explained = between - float(missed.square().sum())
    rank = white.shape[1]
    cosine, across, along = _cosines(fit)
    variance = [float((w * p[v].square().sum(1)).sum()) for p, v in zip(fit.parts, value.T, strict=True)]
    return _Measured(
        explained / all_of_it if all_of_it > 0 else math.nan,
        1 - left / (float(w.sum()) * rank) if rank else math.nan,
        between / all_of_it if all_of_it > 0 else math.nan,
        explained / between if between > 0 else math.nan,
        across,
        along,
        cosine,
        torch.tensor(variance, dtype=torch.float64, device=mean.device) / all_of_it,
        fit,
    )


def _cosines(fit: factorisation.Additive) -> tuple[Tensor, float, float]:
    """[concept, concept] mean |cosine|, and the mean over all pairs of parts across and within concepts."""
    n = len(fit.parts)
    found = fit.parts[0].new_full((n, n), math.nan)
    pools: dict[bool, list[Tensor]] = {False: [], True: []}
    there = [part[some] for part, some in zip(fit.parts, fit.occurs, strict=True)]
    for a in range(n):
        for b in range(a, n):
            cosine = factorisation.cosines(there[a], there[b])
            if a == b:
                cosine = cosine[torch.ones_like(cosine).triu(1) > 0]
            known = cosine[cosine.isfinite()]
            found[a, b] = found[b, a] = known.mean() if len(known) else math.nan
            pools[a == b].append(known)
    across, within = (torch.cat(pools[same]) if pools[same] else found.new_zeros(0) for same in (False, True))
    return found, float(across.mean()), float(within.mean())


def _unseen(state: State, fit: factorisation.Additive) -> tuple[float | None, int]:
    """How well each combination is predicted without it, by the identity residual / (1 - leverage)."""
    w, known = state["w"], fit.leverage < 1 - 1e-9
    if not bool(known.any()):
        return None, len(w)
    off = (state["mean"] - fit.fitted)[known] / (1 - fit.leverage[known])[:, None]
    centre = w @ state["mean"] / w.sum()
    spread = float((w[known] * (state["mean"][known] - centre).square().sum(1)).sum())
    error = float((w[known] * off.square().sum(1)).sum())
    return 1 - error / spread if spread > 0 else None, int((~known).sum())


def _values(code: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """[cell, concept] from codes of combinations."""
    columns: list[Tensor] = []
    for size in reversed(sizes):
        columns.append(code % size)
        code = code // size
    return torch.stack(columns[::-1], 1)


def _labels(inputs: Inputs, config: Config) -> tuple[str, ...]:
    """The concepts.

    Raises:
        MethodError: if one names no classes, or there is none.
    """
    if config.labels is None:
        class_label(inputs, None)
        return tuple(sorted(inputs.categories))
    if not config.labels:
        raise MethodError("labels is empty; name a label for each concept")
    return tuple(class_label(inputs, label) for label in config.labels)


def _caveats(fit: factorisation.Additive, groups: int, config: Config) -> tuple[str, ...]:
    notes = []
    if groups == 1:
        notes.append(
            "no intervals: means do not fit into 1 GiB once for each group, or samples fill one group"
        )
    else:
        notes.extend(grouped_moments.caveats(groups, config.groups))
    if len(fit.parts) == 1:
        notes.append("one concept: every mean is its own part, and nothing can be orthogonal to it")
    if fit.confounded:
        notes.append(
            f"{fit.confounded} differences between parts are not told apart: some concepts vary only together"
        )
    return tuple(notes)


def _cells(state: State) -> State:
    return {name: values for name, values in state.items() if name != "none"}
