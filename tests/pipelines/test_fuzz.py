"""Run files and sealed files that were changed at random are refused with one message, and write nothing."""

from pathlib import Path

from tests.fuzz import fuzz_files, fuzz_runs


def test_changed_run_files_are_planned_or_refused(tmp_path: Path) -> None:
    assert fuzz_runs(tmp_path, 400, seed=7) == []


def test_changed_sealed_files_are_refused(tmp_path: Path) -> None:
    assert fuzz_files(tmp_path, 400, seed=7) == []
