"""Run files and sealed files that were changed at random are refused with one message, and write nothing."""

from pathlib import Path

import yaml

from tests.fuzz import fuzz_files, fuzz_runs, told
from tests.pipelines.runs import vectors_run


def test_changed_run_files_are_planned_or_refused(tmp_path: Path) -> None:
    assert fuzz_runs(tmp_path, 400, seed=7) == []


def test_changed_sealed_files_are_refused(tmp_path: Path) -> None:
    assert fuzz_files(tmp_path, 400, seed=7) == []


def test_infinite_numbers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    data = vectors_run(tmp_path / "out", n=20).model_dump(mode="json")
    data["captures"]["vectors"]["rows"]["outlier_multiple"] = float("inf")
    file.write_text(yaml.safe_dump(data))
    code, error = told(["plan", str(file), "--serial"])
    assert code == 1
    assert "outlier_multiple" in error
    assert "unexpected" not in error


def test_a_root_that_no_folder_can_be_called_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(vectors_run("x" * 5000).model_dump(mode="json")))
    code, error = told(["plan", str(file), "--serial"])
    assert code == 1
    assert "File name too long" in error
    assert "unexpected" not in error
