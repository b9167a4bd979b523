"""Artifacts of methods about trainings, made by hand, and what their figures hold."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.measures import StageArtifact
from tasks.training_illustrations import training_illustrations
from tests.pages import artifact

STEPS = 40

X = np.arange(STEPS) / STEPS


def trajectory(site: str = "a.weight:weight", **more: np.ndarray) -> StageArtifact:
    null = 0.5 ** np.arange(1.0, 6)
    arrays = more | {
        "share": 0.4 ** np.arange(1.0, 6), "null_share": null, "null_low": 0.8 * null, "null_high": 1.2 * null,
        "projection": np.stack([np.cos(np.pi * X), -np.cos(2 * np.pi * X)], 1),
    }  # fmt: skip
    return artifact("path", "gradients.trajectory", site, {}, arrays)


def overlap(stage: str, share: float, site: str = "a.weight:grad", **more: np.ndarray) -> StageArtifact:
    result = {"null": 0.01, "share": share, "components": 10}
    return artifact(
        stage, "gradients.hessian_overlap", site, result, {"share": np.full(STEPS, share), **more}
    )


def dominant(**more: np.ndarray) -> StageArtifact:
    arrays = more | {"adjacent": np.full(STEPS - 1, 0.9), "to_first": 1 - X, "to_last": X}
    result = {"null": 0.2, "null_std": 0.05}
    return artifact("frozen", "gradients.dominant_overlap", "a.weight:grad", result, arrays)


def updates(site: str = "a.weight:update", effective: float = 3.0, side: int = 10) -> StageArtifact:
    arrays = {
        "rank": np.full(STEPS, float(side)), "effective_rank": effective + X,
        "rank_null": np.full(STEPS, float(side)), "effective_rank_null": np.full(STEPS, 8.0),
    }  # fmt: skip
    result = {"rows": side, "columns": 3 * side, "effective_rank": effective, "effective_rank_null": 8.0}
    return artifact("rank", "gradients.update_structure", site, result, arrays)


def modules(n: int) -> list[StageArtifact]:
    return [updates(f"layer.{k}.weight:update", 1.0 + k) for k in range(n)]


def activations() -> StageArtifact:
    arrays = {"overlap": np.full(STEPS, 0.6), "null": np.full(STEPS, 0.3), "energy": np.full(STEPS, 0.9)}
    result = {"energy_null": 0.25}
    return artifact("acts", "gradients.update_activation_overlap", "a.weight:update", result, arrays)


def early() -> StageArtifact:
    arrays = {"overlap": X, "concentration": 1 - X / 2, "norm": np.arange(STEPS, dtype=float)}
    return artifact("final", "gradients.early_final", "a.weight:weight", {"overlap_null": 0.25}, arrays)


def hessian(stage: str = "curvature") -> StageArtifact:
    arrays = {"eigenvalue": np.array([5.0, -2.0, 1.0]), "residual": np.array([0.01, 0.02, 0.03])}
    return artifact(stage, "gradients.hessian", "network", {"largest": 5.0}, arrays)


def density() -> StageArtifact:
    grid = np.linspace(-1, 1, 50)
    arrays = {"grid": grid, "density": np.exp(-(grid**2)), "density_error": np.full(50, 0.01)}
    return artifact(
        "bulk", "gradients.spectral_density", "network", {"trace": 3.0, "trace_error": 0.1}, arrays
    )


def dimension(**changes: Any) -> StageArtifact:
    result = {
        "start": 0.1, "full": 0.95, "target": 0.85, "dimension": 30, "n_parameters": 5000, "dimension_above": 3,
        "dimension_most": 100, "measure": "accuracy",
    }  # fmt: skip
    arrays = {
        "dimension": np.array([3, 30, 100]), "performance": np.array([0.3, 0.87, 0.93]),
        "performance_error": np.full(3, 0.02),
    }  # fmt: skip
    return artifact("size", "gradients.intrinsic_dimension", "network", result | changes, arrays)


EVERY = (
    trajectory(),
    overlap("begin", 0.3),
    overlap("end", 0.8),
    dominant(),
    *modules(5),
    activations(),
    early(),
    hessian(),
    density(),
    dimension(),
)


def drawn(*some: StageArtifact, name: str | None = None) -> tuple[Figure, str, str]:
    """The only figure of some artifacts (or that of a name), its caption and description."""
    (made,) = (m for m in training_illustrations(some) if name in (None, m.name))
    return made.figure, made.caption, made.description


def band_of(collection: Any) -> tuple[float, float]:
    """The lowest and highest that a filled band reaches."""
    heights = np.concatenate([path.vertices[:, 1] for path in collection.get_paths()])
    return float(heights.min()), float(heights.max())


def legend_of(figure: Figure) -> list[str]:
    """The labels above all panels."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def across(axes: Axes) -> dict[str, np.ndarray]:
    """Label to where points lie from left to right."""
    return {
        str(line.get_label()): np.asarray(line.get_xdata(), dtype=np.float64) for line in axes.get_lines()
    }


def lines(axes: Axes) -> dict[str, np.ndarray]:
    """Label to what is drawn, unnamed lines left out."""
    return {
        str(line.get_label()): np.asarray(line.get_ydata(), dtype=np.float64)
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }
