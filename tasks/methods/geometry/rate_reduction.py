"""How many nats fewer rows take when coded class by class: coding rate, rate reduction, and the same less what is not sparse.

Rows are scaled to length 1 unless asked otherwise. Classes are a label of the samples; without any, the rate of all rows and their
sparsity are found. Beside classes, or in their place, rows may be coded in the subspaces of attention heads. Rate reduction is never
negative and grows where classes have few rows, so what random labels give stands beside it. Arrays: `class_rate` and `class_rows` (class),
in the order of the label's codes; NaN for a class without rows.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments, label_deals
from tasks.methods.classes import carried, class_label, codes_of
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics.coding_rate import rate, rate_of_part
from tasks.numerics.split import spread
from tasks.numerics.symmetric import add_gram, full

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {"class_rate": ("class",), "class_rows": ("class",)}
REFERENCE = (
    "Yu, Chan, You, Song, Ma, Learning diverse and discriminative representations via the principle of maximal coding rate reduction, "
    "NeurIPS (2020): rate reduction. Yu et al., White-box transformers via sparse rate reduction (2023): less a multiple of the number of "
    "entries that are not zero, with subspaces of heads or with classes. Random labels: free compression of the Gram matrix"
)
SEEDS = (248,)
DEALT_WIDTH, DEALS = 64, 50
"""Most features of rows whose second moments are kept in bundles of samples, and deals of the label to these."""


class Config(Frozen):
    """What the classes are, and how exactly rows are coded."""

    label: str | None = None
    """A label of the samples with classes; None: the first, or no classes where there is none."""
    rows: Literal["directions", "stored"] = "directions"
    """Rows scaled to length 1, or as they are; the distortion must fit."""
    distortion: float = Field(default=0.5, gt=0)
    """Root mean square error that a code of the rows may have."""
    penalty: float = Field(default=0.1, ge=0)
    """Of sparse rate reduction: nats for an entry in every row that is not zero, times features; that is, for a density of 1."""
    threshold: float = Field(default=0.0, ge=0, lt=1)
    """Entries up to this share of the largest of their row count as zero: networks without hard thresholds have none that are."""
    subspaces: str | None = None
    """Name of the network's parameter whose rows span the subspaces of heads, one head after the other, such as `{module}.qkv.weight` of
    a network whose queries, keys and values are one; taken as it is. None: no such rate."""
    heads: int = Field(default=1, ge=1)
    """Into how many subspaces of equal size its rows are cut."""
    groups: int = Field(default=20, ge=2, le=200)
    """Groups that samples are spread into for the intervals; one, without intervals, where classes' moments take more than 2 GiB."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found, in nats a row; None where there are no classes, or rows do not determine a number."""

    label: str | None
    n_rows: int
    """Coded."""
    n_zero: int
    """Rows of length zero, which have no direction and are left out."""
    n_unlabelled: int
    """Rows without a class, left out."""
    n_classes: int
    """That hold rows."""
    n_groups: int
    """That hold rows; 1: no intervals."""
    width: int
    """Features."""
    rate: Interval | None
    """Of all rows together."""
    rate_classes: Interval | None
    """Mean over rows of their class's rate."""
    rate_reduction: Interval | None
    """Rate of all less that of classes: how far classes fill different directions."""
    rate_reduction_chance: float | None
    """Mean over deals of the label to samples at random, all rows of a sample together; None beyond 64 features, where bounds are below."""
    rate_reduction_random: float | None
    """Of labels that say nothing, for rows that do not depend on each other, by a law of many features: of directions it is too high by
    about one part in as many as there are features."""
    rate_reduction_random_samples: float | None
    """The same where all rows of a sample are alike; the truth of tokens lies between both."""
    density: float
    """Share of entries that are not zero."""
    sparse_rate_reduction: float | None
    """Rate reduction - penalty * density."""
    rate_heads: Interval | None
    """Sum over heads of the rate of the rows' coordinates in their subspaces; None without `subspaces`."""
    sparse_rate_reduction_heads: float | None
    """Rate - rate_heads - penalty * density: what white-box transformers raise from layer to layer."""
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """The subspaces, where they are named."""
    return () if config.subspaces is None else (config.subspaces,)


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for a label that names no classes or one, or moments of more than 2 GiB.
    """
    label, classes, width = _label(inputs, config), _n_classes(inputs, config), inputs.widths["x"]
    if label is not None and classes < 2:
        raise MethodError(f"label {label!r} has {classes} class, rate reduction takes at least 2")
    needed = 8 * classes * width**2
    if needed > grouped_moments.MOST_BYTES:
        raise MethodError(
            f"second moments of {classes} classes of {width} features take {needed:,} bytes, at most {grouped_moments.MOST_BYTES:,} are "
            "used; project the site first, or choose a label with fewer classes"
        )
    weight = inputs.weights.get(config.subspaces or "")
    if weight is not None and (weight.ndim != 2 or weight.shape[1] != width or len(weight) % config.heads):
        raise MethodError(
            f"subspaces {config.subspaces!r} have shape {tuple(weight.shape)}, expected ({config.heads} heads of equal size, {width})"
        )


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on, beside the carry."""
    names = {"label", "rows", "threshold", "weight_label"}
    return {name: value for name, value in config.model_dump(mode="json").items() if name in names}


def start(inputs: Inputs, config: Config) -> State:
    """The label, its classes, and how many groups fit into memory."""
    classes, label = _n_classes(inputs, config), _label(inputs, config)
    fits = 8 * config.groups * classes * inputs.widths["x"] ** 2 <= grouped_moments.MOST_BYTES
    counts = {"classes": torch.tensor(classes), "groups": torch.tensor(config.groups if fits else 1)}
    width, few = inputs.widths["x"], label is not None and inputs.widths["x"] <= DEALT_WIDTH
    counts |= label_deals.carried(classes if few else None, width * (width + 1) // 2, inputs)
    return counts if label is None else counts | {"label": carried(label)}


def partial(block: Block, carry: State, config: Config) -> State:
    """Second moments of each group's classes, and what is counted.

    Raises:
        MethodError: for weights that are negative, or rows without the label.
    """
    groups, classes = int(carry["groups"]), int(carry["classes"])
    x = block["x"].double()
    code = codes_of(block, carry["label"]) if "label" in carry else torch.zeros_like(block.sample)
    weight = torch.ones_like(x[:, 0]) if block.weight is None else block.weight.double()
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        raise MethodError("weights must be finite and not negative; found others")
    largest = x.abs().amax(1) if len(x) else x[:, 0]
    zero = (largest == 0) & (config.rows == "directions")
    keep = ~zero & (code >= 0) & (weight > 0)
    state = _empty(groups, classes, x.shape[1], x.device)
    counted = (
        (x[keep].abs() > config.threshold * largest[keep][:, None]).double().sum(1) * weight[keep]
    ).sum()
    state |= {"nonzero": counted, "zero": zero.sum(), "none": (~zero & (code < 0)).sum()}
    x, weight, sample, place = (
        x[keep],
        weight[keep],
        block.sample[keep],
        (spread(block.sample, groups) * classes + code)[keep],
    )
    if config.rows == "directions":
        x = x / largest[keep][:, None]
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    state |= label_deals.partial(_products(x) if int(carry["bundles"]) else x[:, :0], sample, weight, carry)
    x = x * weight.sqrt()[:, None]
    for k in torch.unique(place).tolist():
        here = place == k
        group, which = divmod(k, classes)
        add_gram(state["g"][group, which], x[here])
        state["n"][group, which] = here.sum()
        state["w"][group, which] = weight[here].sum()
        state["w2"] += weight[here].square().sum()
    return state | {"g": torch.triu(state["g"])}


def merge(a: State, b: State) -> State:
    """The moments of both."""
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Rates of all rows and classes, and of all but each group's.

    Raises:
        MethodError: without rows, or with rows of one class only.

    Cost: O(groups classes feature^3 / 3).
    """
    label, n = _label(inputs, config), state["n"].sum(0)
    filled = int((n > 0).sum())
    if filled < (1 if label is None else 2):
        raise MethodError(
            f"label {label!r}: {int(n.sum())} rows fall into {filled} classes, rate reduction takes at least 2; capture samples of more "
            "classes"
        )
    total_g, total_w, heads = state["g"].sum(0), state["w"].sum(0), _heads(inputs, config)
    whole = _measured(total_g, total_w, heads, config.distortion)
    groups = (state["n"].sum(1) > 0).nonzero().flatten().tolist()
    left = (n - state["n"]) > 0  # what remains of a class without a group is nothing, not rounding
    without = [
        _measured(total_g - state["g"][k], (total_w - state["w"][k]) * left[k], heads, config.distortion)
        for k in (groups if len(groups) > 1 else ())
    ]
    found = {
        name: grouped_moments.interval(
            getattr(whole, name), [getattr(w, name) for w in without], config.confidence
        )
        for name in ("rate", "rate_classes", "rate_reduction", "rate_heads")
    }
    rows = float(total_w.sum().square() / state["w2"])
    density = float(state["nonzero"]) / (float(total_w.sum()) * inputs.widths["x"])
    random = _random(total_g, total_w, (rows, min(rows, float(inputs.n_samples))), config.distortion)
    chance = _chance(state, total_w, whole.rate, config.distortion)
    of_classes = {
        "rate_reduction_chance": chance,
        "rate_classes": found["rate_classes"],
        "rate_reduction": found["rate_reduction"],
        "rate_reduction_random": random[0],
        "rate_reduction_random_samples": random[1],
        "sparse_rate_reduction": whole.rate_reduction - config.penalty * density,
    }
    result = Result.model_validate(
        {
            **(of_classes if label is not None else dict.fromkeys(of_classes)),
            "label": label,
            "n_rows": int(n.sum()),
            "n_zero": int(state["zero"]),
            "n_unlabelled": int(state["none"]),
            "n_classes": filled if label is not None else 0,
            "n_groups": len(groups),
            "width": inputs.widths["x"],
            "rate": found["rate"],
            "density": density,
            "rate_heads": found["rate_heads"],
            "sparse_rate_reduction_heads": _known(whole.rate - whole.rate_heads - config.penalty * density),
            "caveats": _caveats(inputs, n, int(carry["groups"]), len(groups), config),
        }
    )
    arrays = {"class_rate": whole.of_class, "class_rows": n}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Measured(NamedTuple):
    """Of some rows."""

    rate: float
    rate_classes: float
    rate_reduction: float
    rate_heads: float
    of_class: Tensor


def _measured(g: Tensor, w: Tensor, heads: Tensor | None, distortion: float) -> _Measured:
    """From sums of weights and of products of each class's rows, upper triangles; heads are [head, coordinate, feature]."""
    second = full(g.sum(0)) / w.sum()
    total = rate(second, distortion)
    of_heads = [rate(u @ second @ u.T, distortion) for u in heads] if heads is not None else [math.nan]
    rates = [rate(full(g[k]) / w[k], distortion) if float(w[k]) > 0 else math.nan for k in range(len(w))]
    of_class = torch.tensor(rates, dtype=torch.float64, device=g.device)
    classes = float((of_class.nan_to_num() * w).sum() / w.sum())
    return _Measured(total, classes, max(0.0, total - classes), sum(of_heads), of_class)


def _random(
    g: Tensor, w: Tensor, counts: tuple[float, float], distortion: float
) -> tuple[float | None, float | None]:
    """Rate reduction of labels that say nothing, for so many independent rows each."""
    second = full(g.sum(0)) / w.sum()
    values = torch.linalg.eigvalsh(second).clamp(min=0)
    total, shares = rate(second, distortion), (w / w.sum())[w > 0].tolist()
    rank = int((values > 1e-12 * values.max()).sum())
    found: list[float | None] = []
    for n in counts:
        parts = (
            [share * rate_of_part(values, n, share, distortion) for share in shares]
            if n > rank
            else [math.nan]
        )
        found.append(max(0.0, total - sum(parts)) if math.isfinite(sum(parts)) else None)
    return found[0], found[1]


def _products(x: Tensor) -> Tensor:
    """[row, pair of features]: of each row with itself."""
    first, second = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return x[:, first] * x[:, second]


def _chance(state: State, w: Tensor, total: float, distortion: float) -> float | None:
    """Rate reduction of the label dealt to samples at random."""
    width = state["g"].shape[-1]
    first, second = torch.triu_indices(width, width, device=w.device)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([0, 2])))
    found = []
    for means, weight in label_deals.dealt(state, (w / w.sum())[w > 0], DEALS, rng):
        upper = means.new_zeros((len(means), width, width))
        upper[:, first, second] = means
        rates = means.new_tensor([rate(full(one), distortion) for one in upper])
        found.append(total - float((rates * weight).sum() / weight.sum()))
    return sum(found) / len(found) if found else None


def _heads(inputs: Inputs, config: Config) -> Tensor | None:
    weight = inputs.weights.get(config.subspaces or "")
    return None if weight is None else weight.double().reshape(config.heads, -1, weight.shape[1])


def _empty(groups: int, classes: int, width: int, device: torch.device) -> State:
    number = {"dtype": torch.float64, "device": device}
    state = {"w": torch.zeros((groups, classes), **number), "w2": torch.zeros((), **number)}  # type: ignore[call-overload]
    state["g"] = torch.zeros((groups, classes, width, width), dtype=torch.float64, device=device)
    return state | {"n": torch.zeros((groups, classes), dtype=torch.int64, device=device)}


def _label(inputs: Inputs, config: Config) -> str | None:
    return None if config.label is None and not inputs.categories else class_label(inputs, config.label)


def _n_classes(inputs: Inputs, config: Config) -> int:
    label = _label(inputs, config)
    return 1 if label is None else len(inputs.categories[label])


def _caveats(inputs: Inputs, n: Tensor, asked: int, filled: int, config: Config) -> tuple[str, ...]:
    notes = []
    if filled < 2 or asked < config.groups:
        notes.append(
            "no intervals: classes' moments in groups do not fit into 2 GiB, or samples fill one group"
        )
    else:
        notes.extend(grouped_moments.caveats(filled, asked))
    few = int(((n > 0) & (n < inputs.widths["x"])).sum())
    if few and len(n) > 1:
        notes.append(
            f"{few} classes have fewer rows than features: their rates are low for that alone, as those of random labels are"
        )
    if len(n) > 1 and inputs.n_rows > inputs.n_samples:
        notes.append(
            "samples have several rows: what random labels give lies between rate_reduction_random and its value for samples; "
            "rate_reduction_chance, where it is given, is of whole samples"
        )
    return tuple(notes)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
