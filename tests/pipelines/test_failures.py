"""What happens when things go wrong, line by line: done twice, two runs at once, a device without memory."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.execute import execute
from pipelines.plan import make_plan
from pipelines.progress import Quiet
from pipelines.serial import PlainSteps, run_serial
from schemas.errors import LeaseError, ResourceError, UnitError
from schemas.run import RunSpec
from tasks.unit import UnitJob, run_unit
from tests.factories import Squares
from tests.pipelines.runs import finished, store_bytes, vectors_run

TOP = Path(__file__).resolve().parent.parent.parent


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its inode and time of change."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


class _Stop(Exception):
    """Ends a run before its first unit."""


def jobs_of(run: RunSpec) -> Sequence[UnitJob]:
    """The units of a capture that is begun, and given up before the first of them."""
    found: list[UnitJob] = []

    def driver(function: object, items: Sequence[Any], on_done: object) -> None:
        found.extend(items)
        raise _Stop

    with pytest.raises(_Stop):
        execute(make_plan(run), driver, "cpu", PlainSteps(), Quiet())
    return found


def test_a_finished_unit_that_runs_again_returns_its_receipt_and_touches_nothing(tmp_path: Path) -> None:
    job = jobs_of(vectors_run(tmp_path, n=40))[1]
    first = run_unit(job)
    before = files(tmp_path)
    assert not first.skipped
    assert first.forwards > 0
    assert any(job.unit.name in path for path in before)
    again = run_unit(job)
    assert again.skipped
    assert again.forwards == 0
    kept, made = (done.receipt.model_dump(exclude={"digest"}) for done in (again, first))
    assert kept == made
    assert files(tmp_path) == before


SLOW_RUN = """
import sys
from pipelines.progress import Quiet
from pipelines.serial import run_serial
from tests.pipelines.runs import vectors_run

class Gate(Quiet):
    def advance(self, label, tokens=0):
        print("a unit is done", flush=True)
        sys.stdin.readline()

run_serial(vectors_run(sys.argv[1], n=40), Gate())
"""
"""A run that waits for a line after each of its three units."""


def test_the_second_run_of_a_capture_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    run = vectors_run(tmp_path, n=40)
    capture = make_plan(run).captures[0].id
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(tmp_path)], cwd=TOP, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "a unit is done\n"
        before = files(tmp_path / "captures")
        held = rf"process {other.pid} on {socket.gethostname()} since 20\S+; wait until it ends"
        with pytest.raises(LeaseError, match=held):
            run_serial(run)
        now = files(tmp_path / "captures")
        assert {p: s for p, s in now.items() if ".lease" not in p} == {
            p: s for p, s in before.items() if ".lease" not in p
        }
        other.communicate("\n\n\n", timeout=300)
        assert other.returncode == 0
    assert other.pid != os.getpid()
    assert not (tmp_path / f"captures/{capture}.lease").exists()
    assert run_serial(run).forwards == 0
    run_serial(vectors_run(tmp_path / "quiet", n=40))
    assert store_bytes(tmp_path, capture) == store_bytes(tmp_path / "quiet", capture)


@pytest.mark.parametrize("device", ["cuda", "other"])
def test_a_device_without_memory_fails_the_unit_and_never_splits_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """One batch of four does not fit: that is the unit's one and last forward, and the next run does it again.

    `other`: the memory is not that of the network's own CUDA device, so nothing can be asked about it.
    """
    root, batches = tmp_path / "short", []

    def forward(_: Squares, x: Tensor) -> Tensor:
        batches.append(len(x))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    first, second, *_ = jobs_of(vectors_run(root, n=40))
    run_unit(first)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Squares, "forward", forward)
        if device == "cuda":
            patch.setattr("torch.cuda.mem_get_info", lambda device: (1 << 20, 1 << 30))
        with pytest.raises((ResourceError, UnitError), match=r"memory.*lower batch_tokens or batch_samples"):
            run_unit(second)
    assert batches == [4]
    left = files(tmp_path)
    assert {path: left[path] for path in before} == before
    assert not any(second.unit.name in path for path in left), "a receipt"
    spec = make_plan(vectors_run(root, n=40)).captures[0].spec
    done = finished(root, spec)
    assert run_serial(vectors_run(root, n=40)).captures[0].failures == ()
    assert {path: finished(root, spec)[path] for path in done} == done != {}
    run_serial(vectors_run(tmp_path / "quiet", n=40))
    assert store_bytes(root, spec.id) == store_bytes(tmp_path / "quiet", spec.id)
