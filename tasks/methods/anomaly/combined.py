"""Several detectors as one: p-values of the same rows, merged so that they stay p-values however detectors depend on each other.

Connect at x the rows and at `p_values` stages of `anomaly.calibrated` over them, one of each detector. Arrays: `p_value` (row), which holds
for any dependence and is therefore large: no smaller than the least of a row's p-values; `score` (row), minus the logarithm of what is
merged, larger for stranger rows; `first` (row), 1 where there are both, 0 where only another row of the sample has them. For a p-value
that is as small as it may be, calibrate the score again, with rows that none of the detectors was calibrated by: that is exact whatever
the rule.

One monitor can be evaded by a network that learns to move what it watches; of several kinds of detectors at several sites all must be.
"""

from typing import Literal

import torch
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import anomaly_scores
from tasks.methods.anomaly_scores import OUTPUTS
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics.merged_p_values import FACTORS, merged

VERSION = 1
KIND = "map"
READS = {
    "x": RowsPort(values=False),
    "p_values": ArtifactPort("anomaly.calibrated", several=True, aligned=True, least=2),
}
ARRAYS = {"score": ("row",), "p_value": ("row",), "first": ("row",)}
REFERENCE = (
    "Vovk, Wang, Combining p-values via averaging, Biometrika 107 (2020) 791: means of p-values times a factor, for any dependence. "
    "Fisher, Statistical methods for research workers (1932): the product. Neural Chameleons: language models can learn to hide their "
    "thoughts from unseen activation monitors (2025), from its abstract: ensembles hold better than one monitor"
)
SEEDS = (209,)
ALPHA = 0.05


class Config(Frozen):
    """How p-values are merged."""

    rule: Literal["least", "harmonic", "geometric", "mean"] = "harmonic"
    """least: Bonferroni, for what one detector alone sees; harmonic: nearly so, but several count; geometric: Fisher's product; mean: for
    what all see a little of."""


class Result(Frozen):
    """Merged p-values of all rows."""

    n_rows: int
    detectors: tuple[str, ...]
    """Whose p-values they are."""
    factor: float
    """What the mean of p-values is multiplied by to be one under any dependence."""
    flagged: float | None
    """Share of rows whose merged p-value is at most 0.05."""
    mean: float | None
    spread: float | None
    """Standard deviation of scores."""
    largest: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for p-values of rows and of samples together, or that do not tell all rows, because they are by class.
    """
    of = {member.result["of"] for member in inputs.series["p_values"]}
    if len(of) > 1:
        raise MethodError(
            "some p-values are of rows and some of samples; pool the scores of every detector, or of none"
        )
    for member in inputs.series["p_values"]:
        if member.result["n_unlabelled"]:
            raise MethodError(
                f"{member.result['n_unlabelled']} rows have no p-value of {member.result['detector']}, as they have no class of "
                f"{member.config['by_class']!r}; calibrate without `by_class`, or capture only samples that have one"
            )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS | {"p_value": RowOutput("float64"), "first": RowOutput("uint8")}


def start(inputs: Inputs, config: Config) -> State:
    """Nothing."""
    return {}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Of each row by itself."""
    ports = sorted((name for name in block.aligned if name.startswith("p_values.")), key=_number)
    p = torch.stack([block.aligned[name]["p_value"].double() for name in ports], 1)
    found = merged(p, config.rule)
    return {
        "score": -found.log(),
        "p_value": found.clamp_max(1.0),
        "first": (~found.isnan()).to(torch.uint8),
    }


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores, and rows with a small p-value; rows that have none are left out."""
    there = ~outputs["score"].isnan()
    flagged = (outputs["p_value"] <= ALPHA).sum()
    return anomaly_scores.partial(outputs["score"][there]) | {"flagged": flagged}


def merge(a: State, b: State) -> State:
    """Of both sets of rows."""
    return anomaly_scores.merge(a, b) | {"flagged": a["flagged"] + b["flagged"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A summary."""
    members = inputs.series["p_values"]
    summary = anomaly_scores.summary(state)
    names = [member.result["detector"] for member in members]
    notes = []
    if len({_detector(inputs, n) for n in range(len(members))}) < len(members):
        notes.append("a detector is there more than once, with the same options: it counts as often")
    each = torch.tensor(
        [[1 / (member.result["n_calibration"] + 1) for member in members]], dtype=torch.float64
    )
    least = float(merged(each, config.rule))
    if least > ALPHA:
        notes.append(
            f"the least p-value that can come out is {least:.3g}: calibrate with more rows, or calibrate the score again"
        )
    n = summary["n_rows"] or 0
    return Result(
        detectors=tuple(names),
        factor=FACTORS[config.rule](len(members)),
        flagged=int(state["flagged"]) / n if n else None,
        caveats=tuple(notes),
        **summary,
    ), {}


def _detector(inputs: Inputs, n: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Method and options that gave the scores of a member, and what they were made with."""
    reads = inputs.made[f"p_values.{n}"].reads
    return tuple((name, ids) for name, ids in sorted(reads.items()) if name.partition(".")[0] == "scores")


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])
