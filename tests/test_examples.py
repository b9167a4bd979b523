"""The example run files run, at a small size, and find what they should."""

from pathlib import Path

import pytest

from examples import training
from pipelines.runfile import load_run
from pipelines.serial import run_serial
from schemas.outcome import RunOutcome

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.yaml"))


def run_example(name: str, root: Path, *overrides: str) -> RunOutcome:
    path = next(p for p in EXAMPLES if p.stem == name)
    return run_serial(load_run(path, [f"root={root}", *overrides]))


def test_every_example_is_covered() -> None:
    assert [p.stem for p in EXAMPLES] == ["compare", "demo", "digits", "partitions", "training"]


def test_digits(tmp_path: Path) -> None:
    outcome = run_example("digits", tmp_path)
    assert outcome.exit_code == 0
    assert set(outcome.captures[0].rows.values()) == {1797, 1797 * 64}
    probe = next(a for a in outcome.artifacts if a.stage == "probe")
    assert float(probe.result["accuracy"]) > 0.9


def test_partitions(tmp_path: Path) -> None:
    outcome = run_example("partitions", tmp_path)
    assert [c.partition for c in outcome.captures] == ["day1.jsonl", "day2.jsonl"]
    assert outcome.shards_read == 0  # its states were fused


def test_training(tmp_path: Path) -> None:
    weights = training.main(str(tmp_path), steps=80)
    outcome = run_example(
        "training",
        tmp_path,
        f"captures.path.data.source.path={tmp_path}/recordings/{training.NAME}",
        f"captures.network.model.arguments.path={weights}",
    )
    assert outcome.exit_code == 0
    results = {(a.stage, a.site): a.result for a in outcome.artifacts}
    overlap = results["overlap", "readout.weight:grad"]
    assert float(overlap["share"]) > 10 * float(overlap["null"])
    assert results["trajectory", "readout.weight:weight"]["n_rows"] == 80
    assert results["curvature", "network"]["converged"]


@pytest.mark.slow
def test_compare(tmp_path: Path) -> None:
    outcome = run_example(
        "compare", tmp_path, *(f"captures.{c}.data.subset.max_tokens=3000" for c in ("exact", "half"))
    )
    assert len(outcome.artifacts) == 6
    assert all(0.99 < float(a.result["cka"]) <= 1.0 + 1e-12 for a in outcome.artifacts)
