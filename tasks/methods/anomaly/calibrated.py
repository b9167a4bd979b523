"""Scores as p-values, with a threshold for a wanted rate of false alarms and what is discovered at a false discovery rate.

Connect at `scores` a detector's stage over the rows at x, and at `calibration` a stage of the same detector, with the same options and the
same reference, over other normal rows: neither those that the reference was made of nor those at x. p is then the chance that a normal row
scores as high, whatever the detector and the rows are, as long as normal rows and calibration rows are exchangeable.

Arrays: `p_value` (row) = (1 + calibration scores at least as large) / (n + 1), in (0, 1], float64 so that it is that quotient rounded once
and gives back the count; `flagged` (row) 1 where p is at most `alpha`. A row without a class of `by_class` has NaN and 0, as have rows of
failed samples and, where scores are of samples, all rows of a sample but its first. For each class of `by_class`, or all rows as one:
`code`, -1 for all; `calibration_rows`; `threshold`, which a flagged row's score exceeds, infinite where calibration rows are too few;
`rate_low` and `rate_high`, the interval of the rate at which normal rows are flagged; `rows` and `flagged_rows`.

Calibration scores lie in memory; a state takes 8 bytes for each of them.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.alert import Alert
from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import anomaly_calibration
from tasks.methods.anomaly_scores import scores_of, scores_port
from tasks.methods.classes import carried, class_label, codes_of
from tasks.methods.contract import (
    Array,
    Arrays,
    Block,
    Inputs,
    RowOutput,
    RowsPort,
    State,
)
from tasks.numerics import conformal
from tasks.numerics.conformal import Procedure

VERSION = 2
KIND = "map"
READS = {
    "x": RowsPort(values=False, labels=True),
    "scores": scores_port(aligned=True),
    "calibration": scores_port(aligned=False),
}
OF_CLASSES = (
    "code",
    "calibration_rows",
    "threshold",
    "rate_low",
    "rate_high",
    "rows",
    "flagged_rows",
)
ARRAYS = {"p_value": ("row",), "flagged": ("row",)} | dict.fromkeys(OF_CLASSES, ("class",))
REFERENCE = (
    "Bates, Candes, Lei, Romano, Sesia, Testing for outliers with conformal p-values, Annals of Statistics 51 (2023) 149. Vovk, Gammerman, "
    "Shafer, Algorithmic learning in a random world (2005): p-values, also by class (Mondrian). Vovk, ACML (2012): the law of a "
    "threshold's rate. Benjamini, Hochberg, JRSS B 57 (1995) 289; Benjamini, Yekutieli, Annals of Statistics 29 (2001) 1165"
)
SEEDS = ()
UNLABELLED, NO_SCORE = -1, -2
"""In the place of a row's class."""


class Config(Frozen):
    """Which errors are allowed."""

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Wanted share of normal rows that are flagged."""
    q: float = Field(default=0.1, gt=0, lt=1)
    """Wanted share of normal rows among discoveries, in expectation; where all rows are normal, the chance of any, and so of that alert."""
    procedure: Procedure = "bh"
    """bh: Benjamini-Hochberg, which holds for p-values of one calibration of independent rows; by: Benjamini-Yekutieli, for rows that
    depend on each other in any way, with a level that is smaller by the harmonic number of the rows."""
    by_class: str | None = None
    """A label with classes, each of which has calibration rows and a threshold of its own; None: all rows as one."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the interval of a threshold's rate of false alarms."""
    alert_at: float = Field(default=0.001, gt=0, lt=1)
    """So many flagged rows, or more, are an alert where normal rows give them with no larger chance."""


class Result(Frozen):
    """What was found; of a threshold None with `by_class`, whose thresholds are arrays."""

    detector: str
    """That gave the scores."""
    larger_is: Literal["anomalous"] = "anomalous"
    """What a larger score means."""
    of: Literal["row", "sample"]
    """What has a score: every row, or every sample, at its first row. Counts of rows below are counts of these."""
    n_rows: int
    """That have a p-value."""
    n_unlabelled: int
    """Rows without a class of `by_class`, left out."""
    n_calibration: int
    """Rows; those of failed samples, and without a class, are left out."""
    smallest_calibration: int
    """Of a class; all, without."""
    threshold: float | None
    """A flagged row's score is larger; None too where it is infinite, as where calibration rows are too few for any to be
    flagged."""
    rate_low: float | None
    """Interval of the share of normal rows that the threshold flags, by the draw of the calibration rows: its chance is Beta(l, n + 1 - l)
    with l = floor(alpha (n + 1)), and smaller where scores tie."""
    rate_high: float | None
    flagged: float | None
    """Share of rows; None without rows."""
    chance: float | None
    """That as many normal rows or more would be flagged, by the draw of rows and of calibration rows (beta-binomial; of classes the least,
    times their number); None without rows, and where rows of one sample are alike."""
    discovered: int
    """Rows found anomalous at the false discovery rate."""
    threshold_p: float
    """The largest p-value among them; 0 where there are none."""
    least_p: float
    """The smallest that a p-value can be; with classes, of that with fewest calibration rows."""
    fewest_discoveries: int
    """Rows that must have the smallest p-value together for any to be discovered, by the class with fewest calibration rows."""
    alerts: tuple[Alert, ...]
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the calibration is of another detector, of other options, of another reference or at another site; if it has no
            rows; if there is no such label, or one of its classes has no calibration rows.
    """
    anomaly_calibration.check(inputs)
    if config.by_class is None:
        return
    class_label(inputs, config.by_class)
    names = inputs.categories[config.by_class]
    rows = torch.bincount(_calibration(inputs, config.by_class).code, minlength=len(names))
    if missing := [name for name, n in zip(names, rows.tolist(), strict=False) if not n]:
        known = ", ".join(repr(name) for name, n in zip(names, rows.tolist(), strict=False) if n) or "none"
        raise MethodError(
            f"no calibration row has the class {' or '.join(map(repr, missing))} of label {config.by_class!r}, there are rows of: {known}; "
            "calibrate with rows of every class, or leave `by_class` out"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {"p_value": RowOutput("float64"), "flagged": RowOutput("uint8")}


def start(inputs: Inputs, config: Config) -> State:
    """Calibration scores, ascending in each class, the classes one after the other."""
    found = _calibration(inputs, config.by_class)
    order = torch.argsort(found.score)
    order = order[torch.argsort(found.code[order], stable=True)]
    classes = 1 if config.by_class is None else len(inputs.categories[config.by_class])
    label = {} if config.by_class is None else {"label": carried(config.by_class)}
    return label | {"score": found.score[order], "size": torch.bincount(found.code, minlength=classes)}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Of each row by itself.

    Raises:
        MethodError: for a score that is NaN.
    """
    score, code = scores_of(block), _codes(block, carry)
    code[score.isnan()] = NO_SCORE
    p = torch.full_like(score, torch.nan)
    for number, calibration in enumerate(_by_class(carry)):
        p[code == number] = conformal.p_values(score[code == number], calibration)
    return {"p_value": p, "flagged": (p <= config.alpha).to(torch.uint8)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Rows at each value that p can take, in each class."""
    p, code = outputs["p_value"], _codes(block, carry)
    code[scores_of(block).isnan()] = NO_SCORE
    counts = [conformal.counted(p[code == number], n) for number, n in enumerate(carry["size"].tolist())]
    return {"rows": torch.cat(counts), "unlabelled": (code == UNLABELLED).sum()}


def merge(a: State, b: State) -> State:
    """Of both."""
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Thresholds from the calibration, discoveries from the counts."""
    size, by_class = carry["size"].cpu(), config.by_class is not None
    counts = torch.split(state["rows"].cpu(), (size + 1).tolist())
    p = [conformal.values(n) for n in size.tolist()]
    found = [
        conformal.threshold(scores.cpu(), config.alpha, config.confidence) for scores in _by_class(carry)
    ]
    flagged = [int(rows[values <= config.alpha].sum()) for rows, values in zip(counts, p, strict=True)]
    rows = [int(of_class.sum()) for of_class in counts]
    together = conformal.discoveries(torch.cat(p), torch.cat(counts), config.q, config.procedure)
    n, least = sum(rows), int(size.min())
    fewest = conformal.fewest_discoveries(n, least, config.q, config.procedure)
    only = None if by_class else found[0]
    counted = f"{n} {'samples' if anomaly_calibration.of_samples(inputs) else 'rows'}"
    chance = (
        None
        if anomaly_calibration.rows_alike(inputs) or not n
        else _chance(flagged, rows, found, size.tolist())
    )
    result = Result(
        detector=inputs.made["scores"].method,
        of="sample" if anomaly_calibration.of_samples(inputs) else "row",
        n_rows=n,
        n_unlabelled=int(state["unlabelled"]),
        n_calibration=int(size.sum()),
        smallest_calibration=least,
        threshold=only.value if only is not None and math.isfinite(only.value) else None,
        rate_low=None if only is None else only.low,
        rate_high=None if only is None else only.high,
        flagged=sum(flagged) / n if n else None,
        chance=chance,
        discovered=together.n,
        threshold_p=together.threshold,
        least_p=1 / (least + 1),
        fewest_discoveries=fewest,
        alerts=(*_too_many(sum(flagged), counted, chance, config), *_discovered(together, counted, config)),
        caveats=(
            *_too_few(least, n, fewest, together.n, config),
            *_not_exchangeable(inputs),
        ),
    )
    code = torch.arange(len(size)) if by_class else torch.tensor([-1])
    columns = [
        code,
        size,
        *(torch.tensor([float(one[part]) for one in found], dtype=torch.float64) for part in (0, 2, 3)),
        torch.tensor(rows),
        torch.tensor(flagged),
    ]
    arrays = dict(zip(OF_CLASSES, columns, strict=True))
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Calibration(NamedTuple):
    score: Tensor
    """float64 [row]"""
    code: Tensor
    """int64 [row]: as the rows at x count classes; 0 without."""


def _calibration(inputs: Inputs, label: str | None) -> _Calibration:
    """Rows that have a class of the rows at x.

    Raises:
        MethodError: if they have no such label, or a score is NaN.
    """
    over, (score, there) = anomaly_calibration.over_of(inputs), anomaly_calibration.scored(inputs)
    if label is None:
        return _Calibration(score, torch.zeros_like(score, dtype=torch.int64))
    if label not in over.categories:
        raise MethodError(
            f"the calibration rows have no label {label!r} with classes, found {', '.join(over.categories) or 'none'}; capture them with it"
        )
    ours = {name: code for code, name in enumerate(inputs.categories[label])}
    table = torch.tensor([ours.get(name, -1) for name in over.categories[label]] + [-1])
    code = table.to(score.device)[over.block.labels[label][there]]
    return _Calibration(score[code >= 0], code[code >= 0])


def _codes(block: Block, carry: State) -> Tensor:
    return codes_of(block, carry["label"]).clone() if "label" in carry else torch.zeros_like(block.index)


def _by_class(carry: State) -> tuple[Tensor, ...]:
    return torch.split(carry["score"], carry["size"].tolist())


def _chance(flagged: list[int], rows: list[int], found: list[conformal.Threshold], sizes: list[int]) -> float:
    """Bonferroni's, over classes."""
    parts = zip(flagged, rows, found, sizes, strict=True)
    return min(1.0, len(rows) * min(conformal.chance_of(k, m, t.rank, n) for k, m, t, n in parts))


def _too_many(flagged: int, rows: str, chance: float | None, config: Config) -> tuple[Alert, ...]:
    if chance is None or chance > config.alert_at:
        return ()
    told = f"{flagged} of {rows} are flagged at alpha {config.alpha:g}, normal ones would with a chance of {chance:.2g}"
    return (Alert(kind="flagged", message=told, value=chance, threshold=config.alert_at),)


def _discovered(found: conformal.Discoveries, rows: str, config: Config) -> tuple[Alert, ...]:
    if not found.n:
        return ()
    told = f"{found.n} of {rows} are anomalous at a false discovery rate of {config.q:g}"
    return (Alert(kind="discoveries", message=told, value=found.threshold, threshold=config.q),)


def _too_few(least: int, rows: int, fewest: int, discovered: int, config: Config) -> tuple[str, ...]:
    """What cannot be found with so few calibration rows."""
    notes, of = [], " in the smallest class" if config.by_class else ""
    if not conformal.rank(config.alpha, least):
        notes.append(
            f"{least} calibration rows{of} flag nothing at alpha {config.alpha:g}: {conformal.least_rows(config.alpha)} or more would"
        )
    if rows and not discovered and fewest > 1:
        whole, one = (conformal.rows_to_discover(r, rows, config.q, config.procedure) for r in (rows, 1))
        what = "nothing can" if fewest > rows else f"less than {fewest} rows together cannot"
        notes.append(
            f"with {least} calibration rows{of} {what} be discovered at q {config.q:g}: {max(whole, 1)} or more are needed where all rows "
            f"are anomalous, {one} for a single one of {rows}"
        )
    return tuple(notes)


def _not_exchangeable(inputs: Inputs) -> tuple[str, ...]:
    """Why p-values may be too small, as far as is known."""
    alike = anomaly_calibration.rows_alike(inputs)
    notes = (
        f"{alike}: rows of one sample are alike, so that the rate of false alarms spreads more than its interval says and "
        "Benjamini-Hochberg may not hold; make one score of each sample with anomaly.pooled, or take `by`",
    )
    return (notes if alike else ()) + anomaly_calibration.not_others(inputs, "`alpha`")
