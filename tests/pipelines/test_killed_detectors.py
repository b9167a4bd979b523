"""Real Dask workers that die while a reference is made and while rows are scored: no byte of any artifact differs."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipelines.cluster import DaskDriver, open_client
from schemas.artifact import Artifact
from schemas.execution import Execution
from schemas.stage import ResolvedStage
from tasks.drive import Driver, serial
from tasks.engine import run_stages
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.pipelines.runs import artifact_bytes

pytestmark = pytest.mark.alone
ROWS, WIDTH, SHARD = 60_000, 128, 8192


class Fatal(NamedTuple):
    """A function whose first call takes its worker with it, before or after the work is done and stored."""

    function: Callable[[Any], Any]
    folder: str
    after: bool

    def __call__(self, item: Any) -> Any:
        dies = self._is_first()
        if dies and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        made = self.function(item)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    def _is_first(self) -> bool:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        try:
            Path(self.folder, f"{self.function.__module__}.{name}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Dangerous(NamedTuple):
    """A driver of such functions."""

    driver: DaskDriver
    folder: str
    after: bool

    def __call__(
        self, function: Callable[[Any], Any], items: Sequence[Any], on_done: Callable[[Any], None]
    ) -> None:
        self.driver(Fatal(function, self.folder, self.after), items, on_done)


def made(root: Path, driver: Driver) -> dict[str, Artifact]:
    """A reference, two detectors and a calibration."""
    location, refs = Location(str(root)), []
    for seed, n in ((0, ROWS), (1, 600)):
        rows = np.random.default_rng(seed).standard_normal((n, WIDTH)) * np.geomspace(3, 0.1, WIDTH)
        spec = make_capture(
            location, {"a": rows}, shard_rows=SHARD, chunk_rows=2048, unit_shards=1, name=str(seed)
        )
        refs.append(rows_ref(spec))
    basis = stage_of("spectrum.pca", {"x": refs[0]}, components=WIDTH)
    normal = stage_of("anomaly.reference", {"x": refs[0]})
    stages: list[ResolvedStage] = [basis, normal]
    for method, port, fit in (
        ("anomaly.residual", "basis", basis),
        ("anomaly.mahalanobis", "reference", normal),
    ):
        scores, others = (stage_of(method, {"x": ref}, {port: fit.id}) for ref in refs)
        stages += [scores, others]
    given = {"scores": stages[2].id, "calibration": stages[3].id}
    stages.append(stage_of("anomaly.calibrated", {"x": refs[0]}, given))
    return run_stages(location, stages, driver)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("after", [False, True])
def test_workers_that_die_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """States are kept by the shards that they are of: a unit that is done twice counts once."""
    expected, died = made(tmp_path / "quiet", serial), tmp_path / "died"
    died.mkdir()
    execution = Execution(cluster="processes", workers=2, retries=20)
    with open_client(execution, 1, "cpu") as client:
        found = made(tmp_path / "killed", Dangerous(DaskDriver(client), str(died), after))
    names = {path.name for path in died.iterdir()}
    assert {f"tasks.engine.rowwise.{name}" for name in ("begin", "fill_shards", "finish")} < names
    assert len(names) >= 5
    assert found.keys() == expected.keys()
    for name, artifact in expected.items():
        assert found[name].result == artifact.result
        assert artifact_bytes(tmp_path / "killed", name) == artifact_bytes(tmp_path / "quiet", name)
