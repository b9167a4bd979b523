"""Names of captures and stages become names of files."""

import pytest
from pydantic import ValidationError

from schemas.run import RunSpec

CAPTURE = {
    "model": {"kind": "factory", "factory": "a:b"},
    "data": {"source": {"kind": "digits"}},
    "sites": ["0"],
}


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "a b", "", ".hidden", "x" * 65])
def test_names_that_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        RunSpec.model_validate({"name": "run", "captures": {name: CAPTURE}})
    with pytest.raises(ValidationError, match="pattern"):
        RunSpec.model_validate(
            {"name": "run", "captures": {"base": CAPTURE}, "stages": {name: {"method": "spectrum.pca"}}}
        )


@pytest.mark.parametrize("name", ["base", "layer-5_v1.2", "x" * 64])
def test_plain_names_are_taken(name: str) -> None:
    assert list(RunSpec.model_validate({"name": name, "captures": {name: CAPTURE}}).captures) == [name]
