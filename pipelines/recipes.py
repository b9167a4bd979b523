"""Named sets of stages, for the short form and for people who do not want to write stages."""

from typing import Literal

from schemas.stage import StageRequest

Recipe = Literal["subspaces", "subspaces-fast", "neighbours", "clusters"]

RECIPES: dict[str, dict[str, StageRequest]] = {
    "subspaces": {
        "pca": StageRequest(method="spectrum.pca"),
        "summary": StageRequest(method="spectrum.summary"),
    },
    "subspaces-fast": {
        "pca": StageRequest(method="spectrum.pca", config={"precision": "float32"}),
        "summary": StageRequest(method="spectrum.summary", config={"precision": "float32"}),
    },
    "neighbours": {"neighbours": StageRequest(method="geometry.neighbours")},
    "clusters": {"clusters": StageRequest(method="clustering.spectral")},
}
"""Recipe -> the stages it stands for."""


def recipe_stages(recipes: list[Recipe]) -> dict[str, StageRequest]:
    """The stages of several recipes together, over the capture named `capture`."""
    stages: dict[str, StageRequest] = {}
    for recipe in recipes:
        for name, stage in RECIPES[recipe].items():
            stages[name] = stage
    return stages
