"""How well a detector's scores tell anomalous rows from normal ones, where a label knows which they are.

Larger scores are more anomalous. Numbers whose papers differ in what counts as positive carry it in their name. All are exact while the
distinct scores are at most `bins`, ties included; of more, scores are rounded down by as few bits as make them fit, and `auroc_bound` says
how far that moves the area. Array: `roc` (point, share): false alarms and found anomalies at falling thresholds, at most 513 of them, from
(0, 0) to (1, 1).
"""

import math
from typing import Literal

import torch
from pydantic import Field
from scipy.special import expit, logit, ndtri
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.anomaly_scores import scores_of, scores_port
from tasks.methods.classes import carried, class_code, class_label, codes_of
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import detection, score_bins
from tasks.numerics.detection import Counts

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(values=False, labels=True), "scores": scores_port(aligned=True)}
ARRAYS = {"roc": ("point", "share")}
REFERENCE = (
    "Hanley, McNeil, Radiology 143 (1982) 29: the area under the ROC curve; DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988) 837: its "
    "standard error. Hendrycks, Gimpel, ICLR (2017): AUPR both ways, and false alarms at 95 % found (after Liang, Li, Srikant, ICLR (2018))"
)
SEEDS = ()
FOUND = 0.95
"""Share of positives at which false alarms are told."""
POINTS = 513
FEW = 30
"""Rows of a class below which figures are said to rest on few."""


class Config(Frozen):
    """What counts as anomalous."""

    label: str | None = None
    """A label of the samples with classes; None: the first."""
    anomalous: tuple[str, ...] = ()
    """Names of its classes that are anomalies; all others are normal."""
    bins: int = Field(default=1 << 16, ge=16, le=1 << 24)
    """Distinct scores that are told apart; a state takes 24 bytes for each."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the interval."""


class Result(Frozen):
    """What was found. A score is the larger the more anomalous a row is."""

    label: str
    anomalous: tuple[str, ...]
    """Classes that count as anomalies."""
    larger_is: Literal["anomalous"] = "anomalous"
    """What a larger score means."""
    n_rows: int
    """That have a class; of pooled scores, samples."""
    n_anomalous: int
    n_normal: int
    n_unlabelled: int
    """Rows without a class, left out."""
    distinct: int
    """Scores, or bins of them."""
    exact: bool
    """Whether no scores were rounded."""
    auroc: Interval
    """Chance that an anomalous row scores higher than a normal one, ties counted half. The interval is DeLong's, of its logit, for
    independent rows; without bounds where no rows of the classes overlap or a class has one row."""
    auroc_bound: float
    """How far rounding may have moved it: half of the pairs that share a bin; 0 where exact."""
    aupr_anomalous_positive: float
    """Average precision in finding anomalies, often called AUPR-out. Chance is their share."""
    aupr_normal_positive: float
    """Average precision in finding normal rows by their low scores, often called AUPR-in. Chance is their share."""
    fpr95_anomalous_positive: float
    """Share of normal rows that score as high as the threshold that finds 95 % of anomalies."""
    fpr95_normal_positive: float
    """Share of anomalies that score as low as the threshold that keeps 95 % of normal rows: the other convention, that of OpenOOD."""
    best_f1: float
    """Largest F1 in finding anomalies over all thresholds: the threshold was chosen with the labels in sight, on other rows it is lower."""
    best_f1_threshold: float | None
    """A row with a score as large, or larger, is told anomalous; None where it is infinite."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label or class, or no class is anomalous or none normal.
    """
    label = class_label(inputs, config.label)
    names = ", ".join(map(repr, inputs.categories[label]))
    codes = {class_code(inputs, label, name, 0) for name in config.anomalous}
    if not 0 < len(codes) < len(inputs.categories[label]):
        raise MethodError(
            f"`anomalous` names {len(codes)} of the classes of label {label!r}, which are {names}; name some of them, not all"
        )


def start(inputs: Inputs, config: Config) -> State:
    """The label, and which of its classes are anomalous."""
    label = class_label(inputs, config.label)
    anomalous = torch.tensor([name in config.anomalous for name in inputs.categories[label]])
    return {"label": carried(label), "anomalous": anomalous}


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on, beside the carry."""
    return {"bins": config.bins}


def partial(block: Block, carry: State, config: Config) -> State:
    """Rows of both classes at each score.

    Raises:
        MethodError: for a score that is NaN.
    """
    score, code = scores_of(block), codes_of(block, carry["label"])
    scored = ~score.isnan()
    there = (code >= 0) & scored
    found = score_bins.of_rows(score[there], carry["anomalous"][code[there]], config.bins)
    return found | {"unlabelled": (scored & ~there).sum()}


def merge(a: State, b: State) -> State:
    """Of both."""
    return score_bins.merge(a, b) | {"unlabelled": a["unlabelled"] + b["unlabelled"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All numbers from the counts.

    Raises:
        MethodError: without rows of both kinds.
    """
    counts, label = score_bins.counts(state), class_label(inputs, config.label)
    counts = Counts(*(values.cpu() for values in counts))
    n, m, exact = int(counts.anomalous.sum()), int(counts.normal.sum()), not int(state["dropped"])
    if not n or not m:
        raise MethodError(
            f"found {n} anomalous and {m} normal rows by label {label!r}, both are needed; look at `anomalous`, and at which samples failed"
        )
    others, best = detection.turned(counts), detection.best_f1(counts)
    area, bound = detection.auroc(counts), 0.0 if exact else detection.rounding(counts)
    result = Result(
        label=label,
        anomalous=config.anomalous,
        n_rows=n + m,
        n_anomalous=n,
        n_normal=m,
        n_unlabelled=int(state["unlabelled"]),
        distinct=len(counts.score),
        exact=exact,
        auroc=_interval(area, detection.auroc_error(counts), config.confidence),
        auroc_bound=bound,
        aupr_anomalous_positive=detection.average_precision(counts),
        aupr_normal_positive=detection.average_precision(others),
        fpr95_anomalous_positive=detection.false_alarms(counts, FOUND),
        fpr95_normal_positive=detection.false_alarms(others, FOUND),
        best_f1=best.f1,
        best_f1_threshold=best.threshold if math.isfinite(best.threshold) else None,
        caveats=_caveats(inputs, n + m + int(state["unlabelled"]), area, min(n, m), exact),
    )
    return result, {"roc": Array(_curve(counts), ARRAYS["roc"])}


def _interval(area: float, error: float, confidence: float) -> Interval:
    """By the logit, so that it lies in (0, 1)."""
    if not error > 0 or not 0 < area < 1:
        return Interval(value=area, corrected=None, low=None, high=None)
    reach = float(ndtri(0.5 + confidence / 2)) * error / (area * (1 - area))
    low, high = (float(expit(logit(area) + side * reach)) for side in (-1, 1))
    return Interval(value=area, corrected=None, low=low, high=high)


def _curve(counts: Counts) -> Tensor:
    """float64 [point, 2]."""
    found, false = (
        torch.cat([v.new_zeros(1), v.flip(0).cumsum(0)]).double() for v in (counts.anomalous, counts.normal)
    )
    curve = torch.stack([false / false[-1], found / found[-1]], 1)
    places = torch.linspace(0, len(curve) - 1, min(len(curve), POINTS), dtype=torch.float64)
    return curve[places.round().long()]


def _caveats(inputs: Inputs, scored: int, area: float, least: int, exact: bool) -> tuple[str, ...]:
    notes = []
    if scored > inputs.n_samples:
        notes.append(
            f"{scored} rows are of {inputs.n_samples} samples, which are alike: the interval, for independent rows, is too narrow; make "
            "one score of each sample with anomaly.pooled"
        )
    if least < FEW:
        notes.append(f"a class has {least} rows: figures rest on few")
    if area < 0.5:
        notes.append(
            "anomalous rows score lower than normal ones: are the classes of `anomalous` the wrong ones?"
        )
    if not exact:
        notes.append(
            "scores were rounded down to bins: thresholds are edges of bins, and numbers of thresholds are those of the edges"
        )
    return tuple(notes)
