"""Recipes: every one is a run, alone and together."""

import pytest

from pipelines.recipes import RECIPES, recipe_stages
from tasks.methods.contract import ArtifactPort, load_method


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_methods_take_their_options_and_find_what_they_read(recipe: str) -> None:
    stages = recipe_stages([recipe])  # type: ignore[list-item]
    methods = {stage.method for stage in stages.values()}
    for stage in stages.values():
        module = load_method(stage.method)
        module.Config.model_validate(stage.config)
        for port in module.READS.values():
            assert not isinstance(port, ArtifactPort) or methods & set(port.makers)


def test_stages_of_all_recipes_read_one_another_without_doubt() -> None:
    """A port whose maker is not named takes the only stage of that method."""
    stages = recipe_stages(list(RECIPES))  # type: ignore[arg-type]
    makers = [stage.method for stage in stages.values()]
    for stage in stages.values():
        for port in load_method(stage.method).READS.values():
            if isinstance(port, ArtifactPort):
                assert sum(maker in port.makers for maker in makers) == 1
