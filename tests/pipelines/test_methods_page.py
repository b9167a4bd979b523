"""docs/methods.md is what the method files say."""

import pytest

from pipelines.methods_page import PAGE, describe_method, methods_page
from schemas.errors import UnknownNameError
from tasks.methods.contract import list_methods


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == methods_page(), "run `python -m pipelines.methods_page`"


@pytest.mark.parametrize("method", list(list_methods()))
def test_every_option_and_result_has_a_meaning(method: str) -> None:
    found = describe_method(method)
    assert found.summary.endswith((".", ":"))
    assert found.reference
    assert all(option.meaning for option in found.options), [o.name for o in found.options if not o.meaning]


def test_ports_and_options_are_those_of_the_file() -> None:
    found = describe_method("spectrum.pca")
    assert found.reads == {"x": "rows of a site, of one or several captures"}
    options = {option.name: option for option in found.options}
    assert options["components"].default == "none"
    assert options["center"].type == "bool"
    assert found.arrays["components"] == ("component", "feature")


def test_null_is_told_from_an_option_called_none() -> None:
    options = {option.name: option for option in describe_method("anomaly.reference").options}
    assert options["shrinkage"].type == "Literal['ledoit_wolf', 'oracle', 'none'] | None"
    assert options["shrinkage"].default == "null"
    assert options["label"].default == "none"


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"spectrum\.pca"):
        describe_method("spectrum.pac")
