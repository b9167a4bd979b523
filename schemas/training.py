"""What is told of a training that goes wrong."""

from typing import Literal

from pydantic import Field

from schemas.base import Frozen

Monitor = Literal["not_finite", "loss", "gradient_norm", "alignment", "rank"]
Grade = Literal["notice", "alarm"]


class TrainingEvent(Frozen):
    """Something began at a step."""

    step: int
    monitor: Monitor
    layer: str | None = None
    """Path of the module that it is about; None: the whole training."""
    grade: Grade
    """`notice`: what also healthy trainings show now and then, and which nobody should act on alone."""
    value: float | None
    """What was measured; None where it is not finite."""
    threshold: float | None
    """What it exceeded, or fell below."""
    reason: str
    """In words."""


class Limits(Frozen):
    """When something of a training is told."""

    window: int = Field(default=50, ge=5)
    """Readings before a reading that it is set against: their median, and their spread (1.4826 MAD)."""
    warmup: int = Field(default=20, ge=5)
    """Readings before the first that is judged."""
    limit: float = Field(default=8.0, gt=0)
    """Of the sum of spreads by which readings exceed their past by more than 1.5; each adds 2.5 at most, so that with 8 four readings in a
    row exceed it at the earliest and no outlier alone does."""
    aligned: float = Field(default=0.95, gt=0.5, le=1)
    """Share of rows on one side that a layer must have, beside leaving its past, for a notice."""
