"""Scores of calibration rows, that they are of the same detector as those they are compared with, and how far they are exchangeable."""

from typing import NamedTuple

import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.anomaly_scores import checked_scores, rows_of
from tasks.methods.contract import Inputs, Made, MadeOver

PORT = "calibration"
"""Of `anomaly_scores.scores_port(aligned=False)`."""


class Scored(NamedTuple):
    """Calibration rows that have a score."""

    score: Tensor
    """float64 [scored]"""
    there: Tensor
    """bool [row]: which of the rows of `over_of` these are; where scores are of samples, one of each."""


def scored(inputs: Inputs) -> Scored:
    """The scores at the port.

    Raises:
        MethodError: for a score that is NaN.
    """
    score = checked_scores(_arrays(inputs), over_of(inputs).block.index)
    there = ~score.isnan()
    return Scored(score[there], there)


def _arrays(inputs: Inputs) -> dict[str, Tensor]:
    return rows_of(inputs.made[PORT], inputs.artifacts[PORT])


def over_of(inputs: Inputs) -> MadeOver:
    """The rows at the port."""
    over = inputs.made[PORT].over
    assert over is not None  # its port asks for it
    return over


def check(inputs: Inputs) -> None:
    """Refuse a calibration without rows, or of scores that are not of the same function of a row.

    Raises:
        MethodError: with what differs.
    """
    _same(inputs.made["scores"], inputs.made[PORT], inputs.sites.get("x", ""))
    if not len(scored(inputs).score):
        raise MethodError(
            "found no calibration rows; connect at `calibration` the detector's stage over rows that did not fail"
        )


def _same(scores: Made, calibration: Made, site: str) -> None:
    differ = {
        "method": (scores.method, calibration.method),
        "version": (scores.version, calibration.version),
        "site": (site or scores.site, calibration.site),
        **{
            f"option {name!r}": (scores.config.get(name), calibration.config.get(name))
            for name in sorted({*scores.config, *calibration.config})
        },
        **{
            f"port {name!r}": (
                "+".join(scores.reads.get(name, ())) or None,
                "+".join(calibration.reads.get(name, ())) or None,
            )
            for name in sorted({*scores.reads, *calibration.reads})
        },
    }
    if found := [f"{name}: {a} and {b}" for name, (a, b) in differ.items() if a != b]:
        raise MethodError(
            f"the scores and their calibration are not of one detector, found {'; '.join(found)}; connect at `calibration` a stage of the "
            "method, options and artifacts that `scores` is of, at the same site, over other rows"
        )


def of_samples(inputs: Inputs) -> bool:
    """Whether scores are of samples, not of each of their rows."""
    first = _arrays(inputs).get("first")
    return first is not None and not bool(first.all())


def rows_alike(inputs: Inputs) -> str | None:
    """How many rows are of how many samples, where each row has a score and some samples have several."""
    over = over_of(inputs)
    samples = len(torch.unique(over.block.sample))
    single = len(over.block) == samples and inputs.n_rows == inputs.n_samples
    if single or of_samples(inputs):
        return None
    return f"{len(over.block)} calibration rows are of {samples} samples, {inputs.n_rows} rows of {inputs.n_samples}"


def not_others(inputs: Inputs, promised: str) -> tuple[str, ...]:
    """Samples that calibration rows should not have been of.

    Args:
        inputs: of the method.
        promised: what says how often false alarms come.
    """
    notes, over = [], over_of(inputs)
    if over.shared:
        notes.append(
            f"{over.shared} of the calibration's samples are among those that are judged: calibrate with others"
        )
    if over.reference:
        notes.append(
            f"the detector's reference was made from {over.reference} of the calibration's samples, whose scores are too small for others: "
            f"false alarms come more often than {promised}"
        )
    return tuple(notes)
