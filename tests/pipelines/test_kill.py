"""The flow's own process is killed again and again; what it finished stays, and the end is that of a quiet run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.plan import make_plan
from pipelines.serial import run_serial
from tasks.store.location import Location
from tasks.store.verify import verify
from tests.pipelines.runs import finished, half_done, store_bytes, vectors_run

pytestmark = pytest.mark.alone
NETWORK = {"pause": 0.05}
SAMPLES = 3200

WITHOUT_PREFECT = """
import sys
from pathlib import Path
from pipelines.cluster import DaskDriver, open_client
from pipelines.execute import execute
from pipelines.plan import make_plan
from pipelines.progress import Quiet
from pipelines.runfile import load_run
from pipelines.serial import PlainSteps

if __name__ == "__main__":
    plan = make_plan(load_run(Path(sys.argv[1])))
    with open_client(plan.run.execution, 1, "cpu") as client:
        execute(plan, DaskDriver(client, 2), "cpu", PlainSteps(), Quiet())
"""


def receipts(root: Path, capture: str) -> int:
    folder = root / "captures" / f"{capture}.receipts"
    return len(list(folder.glob("sample-*.json"))) if folder.exists() else 0


def kill_after_progress(command: list[str], root: Path, capture: str, wait: float) -> bool:
    """Start a run, let it finish at least one more unit, kill it `wait` seconds later. False if it ended by itself."""
    before = receipts(root, capture)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and receipts(root, capture) == before:
        time.sleep(0.02)
    end = time.monotonic() + wait
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    if process.poll() is not None:
        return False
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "multiprocessing" in " ".join(child.cmdline())]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert workers
    assert not alive, "workers outlived their flow"
    for child in children:  # Prefect's temporary server does not notice that its parent was killed
        if child.is_running():
            child.kill()
    return True


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_flow_killed_ten_times_ends_like_a_quiet_one(tmp_path: Path) -> None:
    quiet = vectors_run(tmp_path / "quiet", n=SAMPLES, network=NETWORK, batch_samples=16)
    capture = run_serial(quiet).captures[0].id
    root = tmp_path / "killed"
    run = vectors_run(root, n=SAMPLES, network=NETWORK, batch_samples=16)
    spec = make_plan(run).captures[0].spec
    file, script = tmp_path / "run.yaml", tmp_path / "without_prefect.py"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    script.write_text(WITHOUT_PREFECT)
    plain = [sys.executable, str(script), str(file)]
    prefect = [sys.executable, "-m", "subspan", "run", str(file)]
    chance = random.Random(0)
    kept: dict[str, tuple[int, int]] = {}
    left: set[str] = set()
    kills = 0
    for attempt in range(10):
        command = prefect if attempt % 5 == 4 else plain
        kills += kill_after_progress(command, root, capture, chance.uniform(0.0, 0.8))
        half = set(half_done(root, spec))
        assert len(half - left) <= 2, "more than one unit per worker is lost"
        left = half  # a unit that a kill left half done may wait for its worker while another begins
        now = finished(root, spec)
        assert {path: now[path] for path in kept} == kept, "something finished was touched"
        kept = now
    assert kills == 10
    subprocess.run(plain, check=True, timeout=600)
    assert store_bytes(tmp_path / "quiet", capture) == store_bytes(root, capture)
    assert verify(Location(str(root)), capture) == []
