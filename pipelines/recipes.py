"""Named sets of stages, for the short form and for people who do not want to write stages."""

from typing import Literal

from schemas.stage import StageRequest

Recipe = Literal["subspaces", "subspaces-fast", "geometry", "classes", "neighbours", "clusters"]

RECIPES: dict[str, dict[str, StageRequest]] = {
    "subspaces": {
        "pca": StageRequest(method="spectrum.pca"),
        "summary": StageRequest(method="spectrum.summary"),
    },
    "subspaces-fast": {
        "pca": StageRequest(method="spectrum.pca", config={"precision": "float32"}),
        "summary": StageRequest(method="spectrum.summary", config={"precision": "float32"}),
    },
    "geometry": {
        "summary": StageRequest(method="spectrum.summary"),
        "intervals": StageRequest(method="spectrum.jackknife"),
        "evenness": StageRequest(method="geometry.uniformity"),
        "neighbours": StageRequest(method="geometry.neighbours", config={"other_samples": True}),
        "dimension": StageRequest(method="geometry.dimension"),
    },
    "classes": {
        "collapse": StageRequest(method="geometry.neural_collapse"),
        "rate": StageRequest(method="geometry.rate_reduction"),
    },
    "neighbours": {"neighbours": StageRequest(method="geometry.neighbours")},
    "clusters": {"clusters": StageRequest(method="clustering.spectral")},
}
"""Recipe -> the stages it stands for. `geometry` tells the layers' dimension, linear and intrinsic, and how even directions are, with
intervals; its search for neighbours takes time with the square of the rows. `classes` needs a label with classes."""


def recipe_stages(recipes: list[Recipe]) -> dict[str, StageRequest]:
    """The stages of several recipes together, over the capture named `capture`."""
    stages: dict[str, StageRequest] = {}
    for recipe in recipes:
        for name, stage in RECIPES[recipe].items():
            stages[name] = stage
    return stages
