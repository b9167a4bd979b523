"""What figures of a training take from artifacts, and the words that they share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks import training_figures as draw
from tasks.figures import Vector, short
from tasks.measures import StageArtifact
from tasks.training_figures import Panel

MOST_PANELS = 4

Artifacts = Sequence[StageArtifact]


def has_arrays(a: StageArtifact, names: Sequence[str]) -> bool:
    """Whether an artifact has arrays, none of them empty."""
    return all(name in a.arrays and a.arrays[name].size for name in names)


def by_site(artifacts: Artifacts) -> dict[str, list[StageArtifact]]:
    """The first few sites."""
    groups: dict[str, list[StageArtifact]] = {}
    for a in artifacts:
        groups.setdefault(a.site, []).append(a)
    return dict(list(groups.items())[:MOST_PANELS])


def vector_of(a: StageArtifact, name: str) -> Vector:
    """An array in float64."""
    return np.asarray(a.arrays[name], dtype=np.float64)


def steps_of(a: StageArtifact) -> Vector | None:
    """The steps of an artifact's rows, where they have some that rise."""
    if not has_arrays(a, ("step",)):
        return None
    step = vector_of(a, "step")
    known = step[np.isfinite(step)]
    return step if len(known) and bool((np.diff(known) > 0).all()) else None


def counted(a: StageArtifact) -> str:
    """What is on the axis of steps."""
    return "row" if steps_of(a) is None else "step"


def smoothing(panels: Sequence[Panel]) -> str:
    """What to say where running medians are drawn."""
    some = any(draw.is_smoothed(line.values) for panel in panels for line in panel.lines)
    return " Thin: each row; thick: their running median." if some else ""


def result_of(a: StageArtifact) -> dict[str, Any]:
    """An artifact's result."""
    return a.artifact.result


def left_out(artifacts: Artifacts, drawn: int) -> str:
    """What to say of results that have no place in a figure."""
    more = len(artifacts) - drawn
    return f" {more} further results are in the tables." if more > 0 else ""


def mean_text(values: Vector) -> str:
    """Of what is a number."""
    known = values[np.isfinite(values)]
    return short(float(known.mean())) if len(known) else "nothing"
