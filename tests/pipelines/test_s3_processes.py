"""Whole commands on an object store: a run killed in the middle, two runs at once, a report, removal. The bytes are those of a disk."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from pipelines.cli import main
from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.run import RunSpec
from tasks.store.location import Location
from tasks.store.verify import verify
from tests.faulty_s3 import MortalS3, s3_environment
from tests.pipelines.outside import wait_until
from tests.pipelines.runs import finished, store_bytes, vectors_run

pytestmark = [pytest.mark.alone, pytest.mark.slow]
ROOT = "s3://captures/out"
SLOW: dict[str, Any] = {"n": 320, "network": {"pause": 0.05}}
"""Twenty units of 0.2 seconds."""
STAGES = {
    "pca": {"method": "spectrum.pca", "sites": "last"},
    "rows": {
        "method": "spectrum.project",
        "inputs": {"x": {"sites": "last"}, "basis": {"stage": "pca"}},
    },
}


class Store(NamedTuple):
    """A server that keeps objects as files."""

    bucket: Path
    folder: Path
    """For run files and logs."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    server = MortalS3(tmp_path / "objects")
    server.folder.mkdir()
    with server.running(), s3_environment(server.url, "captures"):
        yield Store(server.folder / "captures" / "out", tmp_path)


def started(store: Store, run: RunSpec, name: str = "run") -> "subprocess.Popen[bytes]":
    """`subspan run` of a file, as a process of its own."""
    file = store.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    variables = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    with (store.folder / f"{name}.log").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "subspan", "run", str(file), "--serial"],
            stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=variables,
        )  # fmt: skip


def receipts(store: Store) -> int:
    return len(list(store.bucket.glob("captures/*.receipts/sample-*.json")))


def require_quiet(tmp_path: Path, run: RunSpec) -> None:
    """What lies in the store are the bytes of a run on a disk, without a fault, and nobody holds a lease."""
    local = run_serial(run.model_copy(update={"root": str(tmp_path / "quiet")}))
    for capture in local.captures:
        assert store_bytes(ROOT, capture.id) == store_bytes(tmp_path / "quiet", capture.id)
        assert verify(Location(ROOT), capture.id) == []
    assert not Location(ROOT).ls(f"captures/{local.captures[0].id}.lease")


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_goes_on(tmp_path: Path, store: Store, blow: signal.Signals) -> None:
    run = vectors_run(ROOT, **SLOW)
    first = started(store, run)
    wait_until(lambda: receipts(store) >= 4, 120)
    first.send_signal(blow)
    assert first.wait(60) != 0
    kept = finished(store.bucket, make_plan(run).captures[0].spec)
    assert 4 * 3 <= len(kept) < 20 * 3
    again = started(store, run)
    assert again.wait(120) == 0, (store.folder / "run.log").read_text()
    after = finished(store.bucket, make_plan(run).captures[0].spec)
    assert {path: after[path] for path in kept} == kept, "finished shards were written again"
    require_quiet(tmp_path, run)


def test_of_two_runs_at_once_one_is_refused(tmp_path: Path, store: Store) -> None:
    run = vectors_run(ROOT, **SLOW)
    first = started(store, run, "first")
    wait_until(lambda: receipts(store) >= 1, 120)
    second = started(store, run, "second")
    assert second.wait(60) == 1
    assert f"is being worked on by process {first.pid} on" in (store.folder / "second.log").read_text()
    assert first.wait(120) == 0
    require_quiet(tmp_path, run)


def test_a_report_its_record_and_their_removal(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    run = vectors_run(ROOT, n=20, stages=STAGES).model_copy(
        update={"report": RunSpec.model_fields["report"].default}
    )
    process = started(store, run)
    assert process.wait(120) == 0, (store.folder / "run.log").read_text()
    place = Location(ROOT)
    page = next(path for path in place.walk("reports") if path.endswith(".html"))
    assert f"{ROOT}/reports/{page}" in (store.folder / "run.log").read_text()
    assert b"spectrum.pca" in place.read(f"reports/{page}")
    assert place.ls("runs")
    assert main(["gc", "--dry-run", "--root", ROOT]) == 0
    assert "spectrum" not in capsys.readouterr().out, "all of it is named or of the last run"
    for command in ("status", "ls"):
        assert main([command, "--root", ROOT]) == 0
        assert "vectors" in capsys.readouterr().out
    assert main(["rm", "vectors", "--root", ROOT]) == 1, "artifacts are made of it"
    assert main(["rm", "vectors", "--dependents", "--names", "--root", ROOT]) == 0
    assert main(["gc", "--root", ROOT]) == 0
    assert {path.split("/")[0] for path in place.walk()} == {"runs", "reports"}, "of the last run"
