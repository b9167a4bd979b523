"""What a state before the next word holds: effective dimension, entropy of the word to come, and how well a label can be read off it.

For the last hidden states. Entropy needs the unembedding, or rows that are logits. A label of two classes, such as whether the answer was
right, is read by a linear discriminant that each group of samples is left out of, in a second round, and is judged by the area under the
ROC curve, which knows no majority class; the same is told of the entropy alone. All with intervals by leaving samples out. Array:
`direction` (feature), the discriminant of all rows, of length 1; NaN without a label.
"""

import math
from functools import reduce
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import class_groups, grouped_moments
from tasks.methods.classes import class_code, class_label
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import class_moments, ranking, spectrum
from tasks.numerics.split import spread

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {"direction": ("feature",)}
REFERENCE = (
    "Intention collapse: intention-level metrics for reasoning in language models (2026), reconstructed from its abstract: entropy in "
    "bits, effective dimension (here the participation ratio), recoverability as the area under the ROC curve of a linear probe (here "
    "Fisher's discriminant with a ridge, cross-fitted)"
)
SEEDS = (117,)
REACH = 12.0
"""Standard deviations to which scores are told apart."""
TILE = 1 << 22
"""Logits that are held at once."""


class Config(Frozen):
    """What is read off the rows."""

    label: str | None = None
    """Label of the samples with two classes; None: the first such label, or none."""
    positive: str | None = None
    """The class that scores point to; None: the second."""
    unembedding: str | None = None
    """Name of the network's parameter [tokens, features] that makes logits of rows, such as `lm_head.weight`; None: no entropy of hidden
    states."""
    rows: Literal["hidden", "logits"] = "hidden"
    """Whether rows are hidden states or logits already."""
    ridge: float = Field(default=0.01, gt=0)
    """Added to variances inside classes, in their mean over features."""
    groups: int = Field(default=20, ge=3, le=200)
    """Groups that samples are dealt into, for the discriminant and the intervals; one, without either, where covariances take more than
    1 GiB."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""


class Result(Frozen):
    """What was found; None where it was not asked for, or rows do not determine it."""

    label: str | None
    positive: str | None
    n_rows: int
    n_negative: int
    n_positive: int
    """Other rows have no class, and count in dimension and entropy alone."""
    n_groups: int
    """That hold rows; 1: no intervals."""
    width: int
    """Features."""
    dimension: Interval | None
    """Participation ratio of the covariance; too low where rows are few, less so `corrected`."""
    entropy: Interval | None
    """Mean over rows, in bits."""
    entropy_uniform: float | None
    """Of all tokens alike: the most."""
    entropy_area: Interval | None
    """Chance that a positive row has less entropy than a negative one: 0.5 if entropy says nothing."""
    recoverability: Interval | None
    """Chance that a positive row scores higher than a negative one, both of samples that the discriminant has not seen; 0.5 for none."""
    ties: float | None
    """Share of pairs whose scores are not told apart: recoverability is exact within half of it."""
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """The unembedding, where it is named."""
    return () if config.unembedding is None else (config.unembedding,)


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for a label without two classes, or an unembedding that does not fit.
    """
    label = _label(inputs, config)
    if label is not None:
        if len(inputs.categories[label]) != 2:
            raise MethodError(f"label {label!r} has {len(inputs.categories[label])} classes, expected 2")
        class_code(inputs, label, config.positive, 1)
    weight = inputs.weights.get(config.unembedding or "")
    if config.unembedding is not None and config.rows == "logits":
        raise MethodError(
            "rows are logits and an unembedding is named; leave one of `rows` and `unembedding` out"
        )
    if weight is not None and (weight.ndim != 2 or weight.shape[1] != inputs.widths["x"]):
        raise MethodError(
            f"{config.unembedding!r} has shape {tuple(weight.shape)}, expected (tokens, {inputs.widths['x']}): the last hidden state"
        )


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on, beside the carry."""
    return config.model_dump(mode="json")


def start(inputs: Inputs, config: Config) -> State:
    """The class, the unembedding, and how many groups fit into memory."""
    label, width = _label(inputs, config), inputs.widths["x"]
    fits = 8 * width * config.groups * (3 + width) <= class_groups.MOST_GROUPED_BYTES
    carry = {"groups": torch.tensor(config.groups if fits else 1)}
    if label is not None:
        code = class_code(inputs, label, config.positive, 1)
        carry |= {
            "label": torch.tensor(list(label.encode()), dtype=torch.uint8),
            "positive": torch.tensor(code),
        }
    weight = inputs.weights.get(config.unembedding or "")
    if weight is not None:
        carry["weight"] = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
    return carry


def partial(block: Block, carry: State, config: Config) -> State:
    """Moments of both classes and of other rows in each group, and entropies; in the second round, scores.

    Raises:
        MethodError: for rows that are not finite.
    """
    groups = int(carry["groups"])
    group, code = spread(block.sample, groups), _codes(block, carry)
    if "fold" in carry:
        fold = carry["fold"][group]
        score = (block["x"].double() * fold[:, 1:]).sum(1) - fold[:, 0]
        return {"score": ranking.histogram(score, group * 3 + code, 3 * groups, -REACH, REACH)}
    state = class_groups.partial(block["x"], code, block, groups)
    entropy = _entropy(block["x"], carry, config)
    if entropy is not None:
        counted = torch.zeros(groups, dtype=torch.float64, device=code.device)
        state["entropy.sum"] = counted.index_add(0, group, entropy)
        state["entropy.rows"] = torch.bincount(group, minlength=groups)
        most = math.log2(_tokens(block["x"].shape[1], carry))
        state["entropy.counts"] = ranking.histogram(
            -entropy, group * 3 + code, 3 * groups, -max(most, 1e-9), 0.0
        )
    return state


def merge(a: State, b: State) -> State:
    """The moments and counts of both."""
    added = {name: a[name] + b[name] for name in a if name.startswith(("entropy", "score"))}
    if "score" in added:
        return added
    return class_groups.merge(_classes(a), _classes(b)) | added


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """After the first round, a discriminant for each group from all others; none without both classes in some of them."""
    if "fold" in carry or "label" not in carry:
        return None
    first = carry | {f"first.{name}": values for name, values in state.items()}
    groups, width = int(carry["groups"]), inputs.widths["x"]
    held = [{n: state[f"{g}.{n}"] for n in [*class_moments.PER_CLASS, "g"]} for g in range(groups)]
    fold = torch.full((groups, 1 + width), math.nan, dtype=torch.float64, device=state["0.g"].device)
    for g, rest in enumerate(grouped_moments.leaving_out(held, class_moments.merge) if groups > 1 else ()):
        found = _discriminant(rest, config.ridge)
        if found is not None:
            fold[g] = found
    return None if bool(fold.isnan().any()) else first | {"fold": fold}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All numbers.

    Raises:
        MethodError: without two rows.

    Cost: O(groups feature^3).
    """
    first = {n.removeprefix("first."): v for n, v in carry.items() if n.startswith("first.")} or state
    groups, width = class_groups.groups_of(_classes(first)), inputs.widths["x"]
    total = reduce(class_moments.merge, groups, class_moments.empty(width, first["0.mean"].device))
    if int(total["n"].sum()) < 2:
        raise MethodError(f"found {int(total['n'].sum())} rows, expected 2 or more; capture more samples")
    label = _label(inputs, config)
    rests = list(grouped_moments.leaving_out(groups, class_moments.merge)) if len(groups) > 1 else []
    counts = {int(c): int(n) for c, n in zip(total["code"], total["n"], strict=True)}
    dimension = grouped_moments.interval(
        _participation(total), [_participation(r) for r in rests], config.confidence
    )
    recovered = _area(state["score"], config) if "score" in state else (None, None)
    direction = _discriminant(total, config.ridge) if label is not None else None
    result = Result(
        label=label,
        positive=None if label is None else inputs.categories[label][int(carry["positive"])],
        n_rows=int(total["n"].sum()),
        n_negative=counts.get(0, 0),
        n_positive=counts.get(1, 0),
        n_groups=len(groups),
        width=width,
        dimension=dimension,
        entropy=_mean_entropy(first, config),
        entropy_uniform=math.log2(_tokens(width, carry)) if "entropy.sum" in first else None,
        entropy_area=_area(first["entropy.counts"], config, pooled=True)[0]
        if "entropy.sum" in first
        else None,
        recoverability=recovered[0],
        ties=recovered[1],
        caveats=_caveats(
            label, recovered[0], "entropy.sum" in first, len(groups), int(total["n"].sum()), width
        ),
    )
    along = torch.full((width,), math.nan, dtype=torch.float64)
    if direction is not None:
        along = torch.nn.functional.normalize(direction[1:], dim=0)
    return result, {"direction": Array(along, ARRAYS["direction"])}


def _codes(block: Block, carry: State) -> Tensor:
    """0 and 1 for the classes, 2 for rows without one."""
    if "label" not in carry:
        return torch.full_like(block.sample, 2)
    value = block.labels[bytes(carry["label"].tolist()).decode()]
    return torch.where(value < 0, 2, (value == carry["positive"].to(value.device)).long())


def _entropy(x: Tensor, carry: State, config: Config) -> Tensor | None:
    """Bits of each row's distribution."""
    weight = carry.get("weight")
    if weight is None and config.rows != "logits":
        return None
    found = [x.new_zeros(0, dtype=torch.float64)]
    for piece in torch.split(x.double(), max(1, TILE // _tokens(x.shape[1], carry))) if len(x) else ():
        logits = piece if weight is None else piece @ weight.double().T
        found.append(torch.special.entr(logits.softmax(1)).sum(1) / math.log(2))
    return torch.cat(found)


def _discriminant(state: State, ridge: float) -> Tensor | None:
    """Threshold and weights, in standard deviations inside classes; None without both classes and a degree of freedom.

    Rows without a class count in the scatter, about their own mean.
    """
    kept = state["code"] < 2
    if int(kept.sum()) < 2 or float(class_moments.degrees(state)[kept].sum()) <= 0:
        return None
    scatter = class_moments.scatter(state) / float(class_moments.degrees(state).sum())
    spread = float(scatter.diagonal().mean())
    mean = state["mean"][kept]
    if not spread > 0:
        return None
    scatter.diagonal().add_(ridge * spread)
    along = torch.linalg.solve(scatter, mean[1] - mean[0])
    scale = float((along @ scatter @ along).clamp(min=0).sqrt())
    along = along / scale if scale > 0 else along
    return torch.cat([(along @ mean.mean(0))[None], along])


def _participation(state: State) -> float:
    """Of the covariance of all rows."""
    w = state["w"]
    z = state["mean"] - (w[:, None] * state["mean"]).sum(0) / w.sum()
    covariance = class_moments.scatter(state) + (w[:, None] * z).T @ z
    return spectrum.participation_ratio(torch.linalg.eigvalsh(covariance).clamp(min=0))


def _mean_entropy(first: State, config: Config) -> Interval | None:
    if "entropy.sum" not in first:
        return None
    rows, sums = first["entropy.rows"].double(), first["entropy.sum"]
    there = rows > 0
    without = ((sums.sum() - sums) / (rows.sum() - rows))[there].tolist()
    return grouped_moments.interval(
        float(sums.sum() / rows.sum()), without if len(without) > 1 else [], config.confidence
    )


def _area(counts: Tensor, config: Config, pooled: bool = False) -> tuple[Interval | None, float | None]:
    """From pairs inside groups, or of all rows."""
    folds = counts.view(-1, 3, ranking.BINS)

    def of(some: Tensor) -> ranking.Area:
        return ranking.area(some.sum(0, keepdim=True) if pooled else some)

    whole = of(folds)
    there = torch.nonzero(folds.sum((1, 2)) > 0).flatten().tolist()
    without = [of(torch.cat([folds[:g], folds[g + 1 :]])).value for g in there] if len(there) > 1 else []
    found = grouped_moments.interval(whole.value, without, config.confidence, 1.0)
    return found, whole.tied if found is not None else None


def _tokens(width: int, carry: State) -> int:
    return len(carry["weight"]) if "weight" in carry else width


def _label(inputs: Inputs, config: Config) -> str | None:
    if config.label is not None:
        return class_label(inputs, config.label)
    return min((name for name, names in inputs.categories.items() if len(names) == 2), default=None)


def _classes(state: State) -> State:
    return {name: values for name, values in state.items() if not name.startswith("entropy")}


def _caveats(
    label: str | None, found: Interval | None, entropy: bool, groups: int, n: int, width: int
) -> tuple[str, ...]:
    notes = []
    if label is None:
        notes.append("no label of two classes: recoverability is not known")
    elif found is None:
        notes.append(
            "recoverability is not known: each class needs rows in and out of every group of samples"
        )
    if not entropy:
        notes.append("entropy needs `unembedding`, or rows that are logits")
    if groups == 1:
        notes.append("no intervals: samples fill one group, or covariances do not fit into memory for more")
    if n < 10 * width:
        notes.append(f"{n} rows for {width} features: the effective dimension is too low; read `corrected`")
    return tuple(notes)
