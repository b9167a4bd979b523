"""Where a recorded training left its way: the rule of the live monitor, over what goes with the recorded steps.

Connect at x a site of a capture of a recording. What is watched are labels of its steps: `loss`, and what `subspan.TrainingMonitor`
measured beside it. A recording without a monitor has its loss alone, and what is missing is said: alignments and ranks cannot be had from
weights without the layers' inputs. At a site of gradients (`name:grad`) the length of each row, the norm of that parameter's gradient, is
watched too. On the numbers of a monitor, with its limits, the events are those that it told, as long as every reading was recorded.

A series is gradient norm, loss over its running minimum, not-finite share, and alignment and effective rank of each layer. Arrays, of
steps in order (reading) and series: `step` (reading) its number; `value`; `threshold`, beyond which a value adds to the excess; `excess`,
which exceeds `limit` where something begins; `raised` 1 from there until it is 0 again. NaN where nothing was measured.

Steps that failed, as where a recorded parameter is not finite, have no rows and are not seen here: the live monitor tells of them. Memory:
the rows, and some hundred bytes for each step and series.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from schemas.training import Limits, Monitor, TrainingEvent
from tasks.methods import steps
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.training_watch import GRADES, LOSS, NORM, NOT_FINITE, Reading, Series, TrainingWatch
from tasks.numerics import moments

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {"step": ("reading",)} | dict.fromkeys(
    ("value", "threshold", "excess", "raised"), ("reading", "series")
)
REFERENCE = (
    "Spectral Alignment as an early sign of loss explosion in pretraining (2025): the share of rows on one side of a weight's leading "
    "direction. Page, Biometrika 41 (1954) 100: cumulative sums. Roy, Vetterli, EUSIPCO 2007: the effective rank"
)
SEEDS = (76,)
MAX_ROWS = 100_000
TIMES = 3.0
"""A loss so many times that of the beginning has left: of ten classes from 2.3 to 6.9."""


class Config(Limits):
    """When something is told, as for the live monitor."""

    loss: str = "loss"
    """Label that holds the loss."""
    lost: float | None = Field(default=None, gt=0)
    """Loss above which the training is lost, from which leads are counted; None: three times the first loss."""


class Watched(Frozen):
    """A series."""

    monitor: Monitor
    layer: str | None
    """Path of the module, or name of the parameter; None: the whole training."""
    readings: int
    """Steps with a number."""
    first: int | None
    """Step of the first event."""
    lead: int | None
    """Steps from there to the step at which the loss had left or something was not finite; negative where it came later."""


class Result(Frozen):
    """What was told."""

    n_steps: int
    series: tuple[Watched, ...]
    """In the order of the arrays."""
    events: tuple[TrainingEvent, ...]
    """In the order of steps."""
    n_alarms: int
    n_notices: int
    first_alarm: int | None
    """Step."""
    lost_above: float | None
    """Loss from which a training counts as lost; None without losses."""
    lost_at: int | None
    """First step with such a loss, or with numbers that are not finite."""
    lead: int | None
    """Steps from the first alarm to there."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Steps that are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Go through the steps in order.

    Raises:
        MethodError: for steps whose numbers do not rise, and rows that are not finite.

    Cost: two sorts of `window` numbers for each step and series.
    """
    columns, number = _columns(block, inputs, config)
    watch = TrainingWatch(config)
    readings: list[list[Reading]] = []
    events: list[TrainingEvent] = []
    for row, step in enumerate(number):
        some, told = watch.take(step, {name: float(values[row]) for name, values in columns.items()})
        readings.append(some)
        events += told
    return _result(columns, number, readings, events, inputs.n_samples, config), _arrays(number, readings)


def _columns(block: Block, inputs: Inputs, config: Config) -> tuple[dict[str, Tensor], list[int]]:
    """Label to numbers, and the number of each step, in order; one row of each sample."""
    if not bool(block["x"].isfinite().all()):
        moments.refuse_not_finite(block["x"])
    order = torch.argsort(block.index)
    sample = block.sample[order]
    first = torch.ones_like(sample, dtype=torch.bool)
    first[1:] = sample[1:] != sample[:-1]
    order = order[first]
    number = steps.of_rows(block)[order].cpu()
    if bool(number.isnan().all()):
        number = torch.arange(len(order), dtype=torch.float64)
    if not bool((number[1:] > number[:-1]).all()):
        raise MethodError(
            f"the numbers of the {len(order)} steps, label {steps.LABEL!r}, do not rise; connect a capture of one recording"
        )
    columns = {
        name: values[order].cpu().double()
        for name, values in block.labels.items()
        if values.is_floating_point() and name not in (steps.LABEL, LOSS, config.loss)
    }
    if config.loss in block.labels and block.labels[config.loss].is_floating_point():
        columns[LOSS] = block.labels[config.loss][order].cpu().double()
    site = inputs.sites.get("x", "")
    if site.endswith(":grad"):
        lengths = torch.linalg.vector_norm(block["x"][order].double(), dim=1)
        columns[f"{NORM}.{site.removesuffix(':grad')}"] = lengths.cpu()
    return columns, [int(n) for n in number]


def _arrays(number: list[int], readings: list[list[Reading]]) -> Arrays:
    def grid(field: str) -> Tensor:
        values = [[float(getattr(reading, field)) for reading in some] for some in readings]
        return torch.tensor(values, dtype=torch.float64).reshape(
            len(readings), len(readings[0]) if readings else 0
        )

    found = {name: grid(name) for name in ("value", "threshold", "excess")}
    found |= {"step": torch.tensor(number, dtype=torch.int64), "raised": grid("raised").to(torch.uint8)}
    return {name: Array(found[name], dims) for name, dims in ARRAYS.items()}


def _result(
    columns: dict[str, Tensor],
    number: list[int],
    readings: list[list[Reading]],
    events: list[TrainingEvent],
    n_samples: int,
    config: Config,
) -> Result:
    above = _lost_above(columns.get(LOSS), config)
    lost_at = _lost_at(columns.get(LOSS), number, events, above)
    alarms = [event for event in events if event.grade == "alarm"]
    first = alarms[0].step if alarms else None
    return Result(
        n_steps=len(number),
        series=tuple(
            _watched(k, reading.series, readings, events, lost_at)
            for k, reading in enumerate(readings[0] if readings else ())
        ),
        events=tuple(events),
        n_alarms=len(alarms),
        n_notices=len(events) - len(alarms),
        first_alarm=first,
        lost_above=above,
        lost_at=lost_at,
        lead=None if first is None or lost_at is None else lost_at - first,
        caveats=_caveats(columns, events, len(number), n_samples, config),
    )


def _watched(
    k: int, series: Series, readings: list[list[Reading]], events: list[TrainingEvent], lost_at: int | None
) -> Watched:
    at = [e.step for e in events if (e.monitor, e.layer) == (series.monitor, series.layer)]
    return Watched(
        monitor=series.monitor,
        layer=series.layer,
        readings=sum(not math.isnan(some[k].value) for some in readings),
        first=at[0] if at else None,
        lead=lost_at - at[0] if at and lost_at is not None else None,
    )


def _lost_above(loss: Tensor | None, config: Config) -> float | None:
    if config.lost is not None or loss is None:
        return config.lost
    known = loss[loss.isfinite()][:1].tolist()
    return TIMES * known[0] if known and known[0] > 0 else None


def _lost_at(
    loss: Tensor | None, number: list[int], events: list[TrainingEvent], above: float | None
) -> int | None:
    steps_lost = [event.step for event in events if event.monitor == NOT_FINITE]
    if loss is not None and above is not None:
        steps_lost += [number[k] for k in torch.nonzero(loss > above).flatten()[:1].tolist()]
    return min(steps_lost, default=None)


def _caveats(
    columns: dict[str, Tensor], events: list[TrainingEvent], n_steps: int, n_samples: int, config: Config
) -> tuple[str, ...]:
    notes = []
    missing = [name for name in (LOSS, NORM, NOT_FINITE) if name not in columns]
    if missing:
        notes.append(
            f"the steps have no {', '.join(missing)}, which are not watched; record what subspan.TrainingMonitor gives with each step"
        )
    if n_steps < n_samples:
        notes.append(
            f"{n_samples - n_steps} of {n_samples} steps failed, as those with parameters that are not finite do, and are not seen here"
        )
    if n_steps <= config.warmup:
        notes.append(
            f"{n_steps} steps are no more than the {config.warmup} of the beginning: only what is not finite is told"
        )
    if events and all(GRADES[event.monitor] == "notice" for event in events):
        notes.append(
            "there are notices and no alarm: alignments and ranks that change are no evidence of a failure by themselves"
        )
    return tuple(notes)
