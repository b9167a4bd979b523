"""How far rows have collapsed onto the means of their classes, and whether these means and the classifier form an even frame (NC1 to NC4).

Classes are a label of the samples, or the rows' own `token` or `next_token`. One pass gives all but the shares of nearest class means,
which take another. Measures have intervals by leaving samples out where the classes' means fit into memory once for each group. Classes
of one row have a mean but no variance: they are counted, and take no part in what is divided by degrees of freedom. Rows without a class
are counted and left out.

Arrays, over the classes that occur: `code` (of the label, or token id), `rows`, `variance` (sum of squares about the mean, over degrees
of freedom; NaN for one row), `norm` (of the class's mean about the mean of class means) and `alignment` (cosine with the classifier's
weight, NaN without one). `cdnv_quantile` holds percentiles 0 to 100 of the distance variance over pairs of classes.
"""

import math
from functools import reduce
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import class_groups, classifier, grouped_moments, label_deals, nearest_means
from tasks.methods.classes import carried, codes_of, row_class_label
from tasks.methods.collapse_measures import Numbers, measured, moved, same_classes, same_pairs, variance_of
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import class_moments, collapse

VERSION = 3
KIND = "reduce"
READS = {"x": RowsPort(labels=True, tokens=True)}
ARRAYS = {
    "code": ("class",),
    "rows": ("class",),
    "variance": ("class",),
    "norm": ("class",),
    "alignment": ("class",),
    "cdnv_quantile": ("percentile",),
}
REFERENCE = (
    "Papyan, Han, Donoho, PNAS 117 (2020) 24652: NC1 to NC4. Galanti, Gyorgy, Hutter, ICLR (2022): distance variance (CDNV). Xu, Liu, "
    "Quantifying the variability collapse of neural networks, ICML (2023): VCI. Wu, Papyan, Linguistic collapse, NeurIPS (2024): tokens as "
    "classes, logarithmic distances, uniform duality. Dang et al., Neural collapse in deep linear networks, ICML (2023): orthogonal means "
    "of imbalanced classes. Tirer, Huang, Niles-Weed, Perturbation analysis of neural collapse, ICML (2023): NC1 over depth"
)
SEEDS = (4, 20, 44, 45, 67, 91)
FEW_PAIRS = 100_000
"""Of classes, for the intervals."""
CHANCE = ("vci_chance", "vci_chance_spread", "nc1_chance", "nc1_chance_spread")


class Config(Frozen):
    """What the classes are, and what is compared with them."""

    label: str | None = None
    """A label of the samples with classes, or `token` or `next_token` of the rows; None: the first label with classes."""
    degrees: Literal["unbiased", "rows"] = "unbiased"
    """What scatter inside classes is divided by, for NC1 and distance variance: rows - classes, and rows - 1 of each class, or rows, as
    most papers do. The latter makes classes of few rows look collapsed."""
    pairs: int = Field(default=2_000_000, ge=1)
    """Most pairs of classes that are compared; of more classes so many are drawn. Intervals rest on at most 100,000 of them, which makes
    them rather too wide."""
    classifier: str | None = None
    """Name of the network's parameter whose rows are the classes' weights, such as `lm_head.weight`; None: classes are not compared with
    one. A token's row is its id; that of a label whose classes are whole numbers is this number; else labels are taken in sorted order."""
    bias: str | None = None
    """Name of the parameter that the classifier adds, for what it says of rows."""
    nearest: bool = True
    """Read the rows once more, for whose class mean is nearest (NC4); costs 2 classes * features flops for each row."""
    groups: int = Field(default=20, ge=2, le=200)
    """Groups that samples are dealt into for the intervals; one, without intervals, where the classes' means do not fit into 1 GiB once for
    each."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""
    deals: int = Field(default=20, ge=2, le=1000)
    """Deals of the label to samples at random, for what chance gives."""
    seed: int = Field(default=0, ge=0)
    """Of the pairs and deals that are drawn."""


class Result(Frozen):
    """What was found; None where the rows do not determine a number. `_rows` marks classes weighed by their rows rather than alike.
    VCI weighs them so too."""

    label: str
    n_rows: int
    """That have a class."""
    n_unlabelled: int
    """Rows without one, left out."""
    n_classes: int
    """That occur."""
    n_single: int
    """Classes of one row."""
    smallest: int
    """Rows of the smallest class."""
    largest: int
    """Rows of the largest class."""
    n_groups: int
    """That hold rows; 1: no intervals."""
    width: int
    """Features."""
    rank: int
    """Directions in which class means differ by more than the rounding of rows (float32, for rows of 16 bits too): at most classes - 1, and
    features. NC1 is of these."""
    rank_rows: int
    """The same, with classes weighed by their rows: those of `nc1_rows`."""
    n_pairs: int
    """Pairs of classes compared."""
    every_pair: bool
    """Whether these are all."""
    n_equal: int
    """Pairs of classes with equal means, left out of distance variance and logarithms."""
    nc1: Interval | None
    """tr(W B^+) / classes: scatter within over scatter between classes, where class means differ. Falls to 0 in collapse. W is of all rows
    alike, B of classes alike. B^+ is that of B's leading `rank` directions, so that variants by pseudo-inverse and by leading singular
    vectors agree."""
    nc1_chance: float | None
    """Mean over deals of the label to samples at random, all rows of a sample together."""
    nc1_chance_spread: float | None
    """Its standard deviation over deals."""
    nc1_rows: Interval | None
    """The same W, with classes in B weighed by their rows."""
    nc1_quotient: Interval | None
    """tr W / tr B, with W the mean over classes of theirs."""
    nc1_quotient_rows: Interval | None
    """tr W / tr B, with W of all rows alike and classes in B weighed by their rows."""
    vci: Interval | None
    """Variability collapse index, 1 - tr(T^+ B) / rank B: 0 in collapse, and no invertible map changes it."""
    vci_chance: float | None
    """Mean over deals of the label to samples at random, all rows of a sample together; None for labels of rows, or too many classes."""
    vci_chance_spread: float | None
    """Its standard deviation over deals."""
    vci_random: float | None
    """Of as many independent rows whose labels say nothing: what deals give where every sample has one row."""
    cdnv: Interval | None
    """Distance variance, mean over pairs of classes of (variance + variance) / (2 distance^2)."""
    cdnv_rows: Interval | None
    cdnv_median: float | None
    equinorm: Interval | None
    """NC2: standard deviation over mean of the norms of class means about their mean: 0 for equal norms."""
    equinorm_rows: Interval | None
    """About the mean of all rows, classes weighed by theirs."""
    cosine_spread: Interval | None
    """NC2: standard deviation of cosines between class means about their mean."""
    cosine_error: Interval | None
    """NC2: mean |cosine + 1 / (classes - 1)|: 0 where class means are as far apart as can be."""
    etf_distance: Interval | None
    """NC2: distance of the class means' scaled Gram matrix to that of a simplex equiangular tight frame, up to sqrt(2)."""
    orthogonality: Interval | None
    """Mean |cosine| between class means about the origin: 0 for the orthogonal frame that imbalanced classes without a bias go to."""
    log_distance: Interval | None
    """Generalised NC2: mean -ln(distance) between directions of class means, for more classes than features + 1."""
    log_distance_spread: Interval | None
    """Standard deviation of the same over pairs."""
    log_distance_uniform: float | None
    """Of uniform directions."""
    duality: Interval | None
    """NC3: distance of scaled weights to scaled class means, both about their mean: 0 if they agree, sqrt(2) for unrelated ones."""
    alignment: Interval | None
    """NC3: mean cosine between a class's weight and its mean; about 0 for unrelated ones. None if it is not positive everywhere."""
    alignment_spread: Interval | None
    """Uniform duality: standard deviation of these cosines; about 1 / sqrt(features) for unrelated ones."""
    nearest_is_label: float | None
    """NC4: share of rows whose nearest class mean is that of their own class (unweighted)."""
    nearest_is_label_low: float | None
    nearest_is_label_high: float | None
    nearest_is_label_classes: float | None
    """The same, mean over classes."""
    nearest_is_classifier: float | None
    """NC4: share of rows whose nearest class mean is that of the class that the classifier names."""
    nearest_is_classifier_low: float | None
    nearest_is_classifier_high: float | None
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """The classifier, where one is named."""
    return tuple(name for name in (config.classifier, config.bias) if name is not None)


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: without a label of at least two classes, for too many of them, or for a classifier that does not fit.
    """
    label = row_class_label(inputs, config.label)
    names = inputs.categories.get(label)
    if names is not None and len(names) < 2:
        raise MethodError(f"label {label!r} has {len(names)} class, comparing classes takes at least 2")
    class_groups.check(inputs, None if names is None else len(names), inputs.widths["x"])
    if config.bias is not None and config.classifier is None:
        raise MethodError(f"bias {config.bias!r} is given without a `classifier`; name its weight")
    weight = inputs.weights.get(config.classifier or "")
    if weight is None:
        return
    if weight.ndim != 2 or weight.shape[1] != inputs.widths["x"]:
        raise MethodError(
            f"classifier {config.classifier!r} has shape {tuple(weight.shape)}, expected (classes, {inputs.widths['x']}): choose the site "
            "that the classifier reads"
        )
    if names is not None:
        classifier.rows_of(torch.arange(len(names)), names, len(weight), str(config.classifier))


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on, beside the carry."""
    return {"label": config.label, "groups": config.groups, "weight_label": config.weight_label}


def start(inputs: Inputs, config: Config) -> State:
    """The label, and how many groups fit into memory."""
    label = row_class_label(inputs, config.label)
    classes = len(inputs.categories[label]) if label in inputs.categories else None
    groups = class_groups.n_groups(inputs, classes, config.groups, inputs.widths["x"])
    bundles = label_deals.carried(classes, inputs.widths["x"], inputs)
    return {"label": carried(label), "groups": torch.tensor(groups)} | bundles


def partial(block: Block, carry: State, config: Config) -> State:
    """The classes' moments in each group; in the second round, which rows are nearest to the right class mean.

    Raises:
        MethodError: for rows or weights that are not finite, or without the label.
    """
    code = codes_of(block, carry["label"])
    if "mean" in carry:
        return nearest_means.counted(block, code, carry, config.groups)
    state = class_groups.partial(block["x"], code, block, int(carry["groups"]))
    weight = torch.ones_like(code, dtype=torch.float64) if block.weight is None else block.weight.double()
    keep = (code >= 0) & (weight > 0)
    bundles = label_deals.partial(block["x"][keep], block.sample[keep], weight[keep], carry)
    return state | bundles | {"none": (code < 0).sum(), "eps": _rounding(block["x"])}


def merge(a: State, b: State) -> State:
    """The moments of both, or the counts."""
    if "group.rows" in a:
        return {name: a[name] + b[name] for name in a}
    added = {name: a[name] + b[name] for name in ("none", "bundle.sum", "bundle.w")}
    return class_groups.merge(_classes(a), _classes(b)) | added | {"eps": torch.maximum(a["eps"], b["eps"])}


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """After the first round, what it found, with the class means for the second.

    Raises:
        MethodError: for less than two classes, or a classifier that has no row for one.
    """
    if "mean" in carry or not config.nearest:
        return None
    return carry | _found(state, inputs, config)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All measures.

    Raises:
        MethodError: for less than two classes.

    Cost: O(groups (feature^3 + class feature^2 + pair feature)).
    """
    found = carry if "mean" in carry else _found(state, inputs, config)
    counts = state if "group.rows" in state else None
    whole, without = Numbers(*found["numbers"].tolist()), found["without"]
    intervals = {
        name: _interval(name, value, without[:, n].tolist(), config.confidence)
        for n, (name, value) in enumerate(whole._asdict().items())
        if name in Result.model_fields
    }
    sizes = found["n"]
    result = Result.model_validate(
        {
            **intervals,
            **nearest_means.shares(counts, config.confidence, inputs.n_samples / inputs.n_rows),
            **{name: _known(v) for name, v in zip(CHANCE, found["chance"].tolist(), strict=True)},
            "label": row_class_label(inputs, config.label),
            "n_rows": int(sizes.sum()),
            "n_unlabelled": int(found["none"]),
            "n_classes": len(sizes),
            "n_single": int((sizes == 1).sum()),
            "smallest": int(sizes.min()),
            "largest": int(sizes.max()),
            "n_groups": int(found["filled"]),
            "width": inputs.widths["x"],
            "rank": int(whole.rank_of_means),
            "rank_rows": int(whole.rank_of_means_rows),
            "n_pairs": int(whole.n_pairs),
            "every_pair": bool(found["every"]),
            "n_equal": int(whole.n_equal),
            "vci_random": _known(whole.vci_random),
            "cdnv_median": _known(float(found["quantile"][50])),
            "log_distance_uniform": _known(collapse.log_distance_at_random(inputs.widths["x"])),
            "caveats": _caveats(found, inputs, config),
        }
    )
    names = {"code": "code", "rows": "n", "variance": "variance", "norm": "norm", "alignment": "alignment"}
    arrays = {name: found[key] for name, key in names.items()} | {"cdnv_quantile": found["quantile"]}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _found(state: State, inputs: Inputs, config: Config) -> State:
    """What the first round found, as a state can carry it."""
    groups = class_groups.groups_of(_classes(state))
    total = reduce(class_moments.merge, groups, class_moments.empty(inputs.widths["x"], state["none"].device))
    code, device = total["code"], total["code"].device
    if len(code) < 2:
        raise MethodError(
            f"rows have {len(code)} class of {row_class_label(inputs, config.label)!r}, and {int(state['none'])} rows have none; comparing "
            "classes takes at least 2: capture samples of more classes"
        )
    chosen = collapse.pairs(len(code), config.pairs, config.seed, device)
    weight, eps = classifier.weights(code, inputs, config), float(state["eps"])
    whole, distances = measured(total, chosen, weight, config.degrees, eps)
    few = (
        chosen
        if len(chosen.first) <= FEW_PAIRS
        else collapse.pairs(len(code), FEW_PAIRS, config.seed + 1, device)
    )
    base = whole if few is chosen else measured(total, few, weight, config.degrees, eps)[0]
    without = []
    for rest in grouped_moments.leaving_out(groups, class_moments.merge) if len(groups) > 1 else ():
        left, theirs = same_pairs(few, code, rest["code"]), same_classes(weight, code, rest["code"])
        without.append(moved(measured(rest, left, theirs, config.degrees, eps)[0], base, whole))
    centred = total["mean"] - total["mean"].mean(0)
    norm = torch.linalg.vector_norm(centred, dim=1)
    carry = {"mean": total["mean"], "code": code, "n": total["n"], "none": state["none"], "norm": norm}
    carry |= {"numbers": torch.tensor(whole, dtype=torch.float64, device=device)}
    carry |= {"without": torch.tensor(without, dtype=torch.float64, device=device).reshape(-1, len(whole))}
    carry |= {"variance": variance_of(total, "unbiased"), "alignment": classifier.alignment(weight, centred)}
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, 2])))
    dealt = label_deals.chance(state, total, config.degrees, eps, config.deals, rng)
    carry["chance"] = torch.tensor(dealt, dtype=torch.float64, device=device)
    finite = distances[distances.isfinite()]
    steps = torch.linspace(0, 1, 101, dtype=torch.float64, device=device)
    carry["quantile"] = torch.quantile(finite, steps) if len(finite) else torch.full_like(steps, math.nan)
    counts = {"every": int(chosen.every), "filled": len(groups)}
    carry |= {name: torch.tensor(value, device=device) for name, value in counts.items()}
    return carry | classifier.carried(code, inputs, config)


def _interval(name: str, value: float, without: list[float], confidence: float) -> Interval | None:
    """Of a number that is positive, or that is a logarithm itself."""
    if name != "log_distance":
        most = 1.0 if name in ("vci", "orthogonality", "cosine_spread") else math.inf
        return grouped_moments.interval(value, without, confidence, most)
    found = grouped_moments.interval(math.exp(value), [math.exp(v) for v in without], confidence)
    if found is None:
        return None
    bounds = {key: None if v is None else math.log(v) for key, v in found.model_dump().items()}
    return Interval.model_validate(bounds | {"value": value})


def _caveats(found: State, inputs: Inputs, config: Config) -> tuple[str, ...]:
    sizes, groups = found["n"], int(found["filled"])
    notes = []
    label = row_class_label(inputs, config.label)
    if inputs.n_rows > inputs.n_samples and label in inputs.categories:
        cure = "vci_random is for independent rows"
        if bool(found["chance"][0].isfinite()):
            cure = "compare with vci_chance and nc1_chance"
        notes.append(
            f"rows of one sample have one class: those that are alike look collapsed by any label of samples; {cure}"
        )
    if groups == 1:
        notes.append(
            "no intervals: the classes' means do not fit into 1 GiB once for each group, or samples fill one group"
        )
    else:
        notes.extend(grouped_moments.caveats(groups, config.groups))
    single = int((sizes == 1).sum())
    if single:
        notes.append(f"{single} of {len(sizes)} classes have one row: a mean, but no variance")
    if int(sizes.sum()) < 10 * len(sizes):
        notes.append(
            "less than ten rows per class: class means hold noise, which counts as difference between classes"
        )
    if not bool(found["every"]):
        notes.append(f"pairs of classes were drawn with seed {config.seed}")
    if len(sizes) > found["mean"].shape[1] + 1:
        notes.append(
            "more classes than features + 1 cannot be equally far apart: compare log_distance instead of angles"
        )
    return tuple(notes)


def _classes(state: State) -> State:
    return {name: values for name, values in state.items() if name[0].isdigit()}


def _rounding(x: Tensor) -> Tensor:
    """To which rows are rounded. Of 16-bit rows that is scatter inside classes, which means average out: float32's counts there."""
    eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    return torch.tensor(eps, dtype=torch.float64, device=x.device)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
