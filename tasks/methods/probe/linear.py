"""How well a label can be read off a site by a linear map: a softmax classifier, or ridge regression for numbers.

Samples are split into training and test by a hash of their number, so that rows of one sample never meet in both.
The first pass measures the features' scale on training rows, then come the epochs, and the last pass scores.
Arrays act on rows as they are stored: `weight` (output, feature) and `bias` (output); `train_rows` and `test_rows`
(output) count rows per class, `recall` (output) is the share of a class's test rows that was found.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError, UnknownNameError, nearest
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import linear_probe
from tasks.numerics.linear_probe import Optimiser
from tasks.numerics.proportions import grouped
from tasks.numerics.split import held_out

VERSION = 1
KIND = "sequential"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "weight": ("output", "feature"),
    "bias": ("output",),
    "train_rows": ("output",),
    "test_rows": ("output",),
    "recall": ("output",),
}
REFERENCE = "Alain, Bengio, ICLR workshop (2017): linear classifier probes. Kingma, Ba, ICLR (2015): Adam"
SEEDS = ()


class Config(Frozen):
    """What is predicted, and how the map is trained."""

    label: str | None = None
    """A label of the samples; None: the only one that has classes."""
    epochs: int = Field(default=5, ge=1)
    """Training passes over the rows; the step size falls linearly from one to the next."""
    batch_rows: int = Field(default=1024, ge=1)
    """Rows per step, test rows included."""
    optimiser: Optimiser = "adam"
    """Adam, or gradients with momentum 0.9."""
    rate: float = Field(default=0.01, gt=0)
    """Step size in the first epoch, on standardised features."""
    l2: float = Field(default=1e-4, ge=0)
    """Penalty l2 / 2 |weight|^2 beside the mean loss, on standardised features."""
    test_share: float = Field(default=0.25, gt=0, lt=1)
    """Expected share of the samples that is held out."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the accuracy's interval."""
    seed: int = Field(default=0, ge=0)
    """Of the split and of the order of rows."""


class Result(Frozen):
    """What the map gets right on samples it has not seen."""

    label: str
    task: str
    """`classify` or `regress`."""
    outputs: int
    """Classes; 1 for a number."""
    n_train_rows: int
    n_test_rows: int
    n_test_samples: int
    accuracy: float | None
    """Share of test rows whose class is found; None for a number."""
    accuracy_low: float | None
    """End of the interval, which allows rows of one sample to depend on each other."""
    accuracy_high: float | None
    baseline: float | None
    """Accuracy of always naming the class that is most frequent in training."""
    train_accuracy: float | None
    r2: float | None
    """1 - squared error / squared distance from the training mean, on test rows; None for classes."""
    train_loss: float | None
    """Mean loss over the last epoch, before the penalty; for a number, half the squared error over its variance."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if no label is named and it is not clear which is meant, or if there is a single class.
    """
    name = _label(inputs, config)
    if name in inputs.categories and len(inputs.categories[name]) < 2:
        raise MethodError(
            f"label {name!r} has {len(inputs.categories[name])} class, a probe needs at least 2"
        )


def passes(config: Config) -> int:
    """Scale, epochs, score."""
    return config.epochs + 2


def batch_rows(config: Config) -> int:
    """Rows per step."""
    return config.batch_rows


def start(inputs: Inputs, config: Config) -> State:
    """Zero weights and empty counts."""
    outputs = len(inputs.categories.get(_label(inputs, config), ("number",)))
    counts = {"samples.hits": inputs.n_samples, "samples.rows": inputs.n_samples}
    counts |= {f"{part}.{what}": outputs for part in ("train", "test") for what in ("rows", "hits")}
    state = linear_probe.start(inputs.widths["x"], outputs)
    state |= linear_probe.unscaled(inputs.widths["x"]) | linear_probe.unscaled(1, "target")
    state |= {name: torch.zeros(n, dtype=torch.int64) for name, n in counts.items()}
    sums = ("loss", "loss.rows", "test.error", "test.spread")
    state |= {name: torch.zeros((), dtype=torch.float64) for name in sums}
    return state | {"pass": torch.zeros((), dtype=torch.int64)}


def begin_pass(state: State, number: int, config: Config) -> State:
    """Note the pass; the loss is that of one epoch."""
    fresh = {"pass": torch.full_like(state["pass"], number)}
    if number <= config.epochs:
        fresh |= {name: torch.zeros_like(state[name]) for name in ("loss", "loss.rows")}
    return state | fresh


def step(block: Block, state: State, config: Config) -> State:
    """Measure, train on or score a batch, as the pass says."""
    x, target, sample = _labelled(block, config)
    test = held_out(sample, config.test_share, config.seed)
    number = int(state["pass"])
    if number == 0:
        return _measure(state, x[~test], target[~test])
    if number <= config.epochs:
        rate = config.rate * (1 - (number - 1) / config.epochs)
        return _train(state, x[~test], target[~test], rate, config)
    return _score(state, x, target, sample, test)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The scores of the last pass.

    Raises:
        MethodError: if training or test have no rows.
    """
    label = _label(inputs, config)
    n_train, n_test = int(state["train.rows"].sum()), int(state["test.rows"].sum())
    if n_train == 0 or n_test == 0:
        raise MethodError(
            f"label {label!r}: found {n_train} rows to train on and {n_test} to test with; "
            "capture more samples, or change test_share"
        )
    classify = label in inputs.categories
    loss_rows = float(state["loss.rows"])
    result = Result(
        label=label,
        task="classify" if classify else "regress",
        outputs=len(state["bias"]),
        n_train_rows=n_train,
        n_test_rows=n_test,
        n_test_samples=int((state["samples.rows"] > 0).sum()),
        train_loss=_finite(float(state["loss"]) / loss_rows) if loss_rows else None,
        **(_accuracies(state, config) if classify else _fit(state)),
        caveats=_caveats(state),
    )
    return result, _arrays(state, classify)


def _label(inputs: Inputs, config: Config) -> str:
    if config.label is not None:
        return config.label
    if len(inputs.categories) != 1:
        raise MethodError(
            f"found {len(inputs.categories)} labels with classes ({', '.join(sorted(inputs.categories)) or 'none'}); "
            "name the one to predict in `label`"
        )
    return next(iter(inputs.categories))


def _labelled(block: Block, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose label is known, their labels and samples."""
    labels = dict(block.labels)
    coded = [name for name, column in labels.items() if not column.is_floating_point()]
    name = config.label or (coded[0] if len(coded) == 1 else "")
    if name not in labels:
        raise UnknownNameError(f"the captures have no label {name!r}; nearest: {nearest(name, labels)}")
    target = labels[name]
    known = torch.isfinite(target) if target.is_floating_point() else target >= 0
    if bool(known.all()):
        return block["x"], target, block.sample
    return block["x"][known], target[known], block.sample[known]


def _measure(state: State, x: Tensor, target: Tensor) -> State:
    state = linear_probe.observe(state, x)
    if not target.is_floating_point() or len(target) == 0:
        return state
    return linear_probe.observe(state, target[:, None], "target")


def _train(state: State, x: Tensor, target: Tensor, rate: float, config: Config) -> State:
    if len(x) == 0:
        return state
    z = linear_probe.standardised(state, x)
    error, loss = _error(state, linear_probe.scores(state, z), target)
    state = linear_probe.descend(state, z, error, rate, config.l2, config.optimiser)
    return state | {"loss": state["loss"] + loss, "loss.rows": state["loss.rows"] + len(x)}


def _error(state: State, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if target.is_floating_point():
        return linear_probe.square_error(scores, _unit(state, target))
    return linear_probe.softmax_error(scores, target)


def _score(state: State, x: Tensor, target: Tensor, sample: Tensor, test: Tensor) -> State:
    scores = linear_probe.scores(state, linear_probe.standardised(state, x))
    if target.is_floating_point():
        return _score_numbers(state, scores, target, sample, test)
    hit = (scores.argmax(dim=1) == target).to(torch.int64)
    counted = {name: state[name].clone() for name in state if name.endswith((".rows", ".hits"))}
    for part, chosen in (("train", ~test), ("test", test)):
        counted[f"{part}.rows"].index_add_(0, target[chosen], torch.ones_like(hit[chosen]))
        counted[f"{part}.hits"].index_add_(0, target[chosen], hit[chosen])
    counted["samples.rows"].index_add_(0, sample[test], torch.ones_like(hit[test]))
    counted["samples.hits"].index_add_(0, sample[test], hit[test])
    return state | counted


def _score_numbers(state: State, scores: Tensor, target: Tensor, sample: Tensor, test: Tensor) -> State:
    unit = _unit(state, target[test]).double()
    rows = state["samples.rows"].clone()
    rows.index_add_(0, sample[test], torch.ones_like(sample[test]))
    return state | {
        "test.error": state["test.error"] + (scores[test].double() - unit).square().sum(),
        "test.spread": state["test.spread"] + unit.square().sum(),
        "train.rows": state["train.rows"] + (~test).sum(),
        "test.rows": state["test.rows"] + test.sum(),
        "samples.rows": rows,
    }


def _unit(state: State, target: Tensor) -> Tensor:
    """Numbers with mean 0 and deviation 1 over training rows, as a column."""
    return linear_probe.standardised(state, target[:, None], "target")


def _accuracies(state: State, config: Config) -> dict[str, Any]:
    found = grouped(state["samples.hits"], state["samples.rows"], config.confidence)
    most = int(state["train.rows"].argmax())
    return {
        "accuracy": found.value,
        "accuracy_low": found.low,
        "accuracy_high": found.high,
        "baseline": float(state["test.rows"][most]) / float(state["test.rows"].sum()),
        "train_accuracy": float(state["train.hits"].sum()) / float(state["train.rows"].sum()),
        "r2": None,
    }


def _fit(state: State) -> dict[str, Any]:
    spread = float(state["test.spread"])
    r2 = 1 - float(state["test.error"]) / spread if spread > 0 else math.nan
    none = ("accuracy", "accuracy_low", "accuracy_high", "baseline", "train_accuracy")
    return {**dict.fromkeys(none), "r2": _finite(r2)}


def _caveats(state: State) -> tuple[str, ...]:
    notes = ["a label that can be read off is not thereby used by the network"]
    samples = int((state["samples.rows"] > 0).sum())
    if samples < 30:
        notes.append(f"{samples} test samples: the interval is rough")
    absent = int((state["train.rows"] == 0).sum())
    if absent:
        notes.append(f"{absent} classes have no training rows")
    return tuple(notes)


def _arrays(state: State, classify: bool) -> Arrays:
    weight, bias = linear_probe.original(state)
    if not classify:
        scale = linear_probe.deviation(state, "target")
        weight, bias = weight * scale, bias * scale + state["target.mean"]
    recall = state["test.hits"].double() / state["test.rows"]
    arrays = {
        "weight": weight,
        "bias": bias,
        "train_rows": state["train.rows"],
        "test_rows": state["test.rows"],
        "recall": recall if classify else torch.full_like(recall, math.nan),
    }
    return {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
