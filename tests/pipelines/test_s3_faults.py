"""Whole runs on object stores that fail: 5 % of requests go wrong, or the server dies in a PUT. The bytes are those of a disk."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipelines.serial import run_serial
from pipelines.status import root_status
from schemas.errors import DamageError, StoreError
from schemas.outcome import RunOutcome
from schemas.run import RunSpec
from subspan import open_artifact, open_capture
from tasks.store import retry
from tasks.store.artifacts import verify_artifact
from tasks.store.location import Location
from tasks.store.verify import verify
from tests.faulty_s3 import Mixed, MortalS3, mixed, moto_process, s3_environment
from tests.pipelines.runs import artifact_bytes, store_bytes, vectors_run
from tests.pipelines.test_cluster import run_on_workers, with_execution

pytestmark = pytest.mark.alone
STAGES = {
    "pca": {"method": "spectrum.pca"},
    "rows": {"method": "spectrum.project", "inputs": {"basis": {"stage": "pca"}}},
    "rounds": {
        "method": "clustering.mixture",
        "config": {"clusters": 2, "starts": 1, "rounds": 3},
        "sites": "last",
    },
    "ready": {"method": "clustering.preparation", "sites": "last"},
    "pairs": {"method": "clustering.tsc", "config": {"entries": 5}, "sites": "last"},
}
SAMPLES = 60


def asked(root: Path | str, **more: Any) -> RunSpec:
    return vectors_run(root, n=SAMPLES, stages=STAGES, **more)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    """The same run on a disk."""
    root = tmp_path_factory.mktemp("disk")
    return root, run_serial(asked(root))


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of an S3 server in a process of its own."""
    with moto_process() as url, s3_environment(url, "captures"):
        yield url


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, and a server that is gone is given up soon."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(retry, "UNREACHABLE_SECONDS", 0.3)


def require_equal(disk: tuple[Path, RunOutcome], root: str, outcome: RunOutcome) -> None:
    """The arrays of captures and artifacts have the bytes of the run on the disk, and nothing is damaged."""
    here, local = disk
    for one in local.captures:
        assert store_bytes(here, one.id) == store_bytes(root, one.id)
        assert verify(Location(root), one.id) == []
    assert [a.id for a in local.artifacts] == [a.id for a in outcome.artifacts]
    for made in local.artifacts:
        assert artifact_bytes(here, made.id) == artifact_bytes(root, made.id)
        assert open_artifact(here, made.id).result == open_artifact(root, made.id).result
        assert verify_artifact(Location(root), made.id) == []


@pytest.mark.parametrize("cluster", ["serial", "threads", "workers"])
def test_five_percent_of_requests_go_wrong(moto: str, disk: tuple[Path, RunOutcome], cluster: str) -> None:
    fate, root = Mixed(0.05, seed=7), f"s3://captures/mixed-{cluster}"
    with mixed(moto, fate):
        if cluster == "workers":
            outcome = run_on_workers(asked(root))
        else:
            execution = {} if cluster == "serial" else {"cluster": "threads"}
            outcome = run_serial(with_execution(asked(root), **execution))
    require_equal(disk, root, outcome)
    assert sum(fate.faults.values()) > 20
    assert len(fate.faults) == 6, f"some faults never came: {fate.faults}"


DIES_AT = (
    r"captures/\w+\.zarr/zarr\.json",
    r"sites/last@out@0/activation/zarr\.json",
    r"samples/\w+/c/",
    r"sites/last@out@0/activation/c/2",
    r"\.receipts/sample-000001",
    r"artifacts/\w+/arrays\.zarr/",
)


class Died(NamedTuple):
    """A run whose server died in a PUT and left half of an object, and the same run on a disk."""

    server: MortalS3
    run: RunSpec
    disk: tuple[Path, RunOutcome]


def died(folder: Path, pattern: str) -> Died:
    """Let the server die in the first PUT of a key that the pattern is found in."""
    server, stages = MortalS3(folder), {"pca": STAGES["pca"]}
    quiet = folder / ".quiet"
    local = run_serial(vectors_run(quiet, n=SAMPLES, stages=stages))
    run = vectors_run("s3://captures/mortal", n=SAMPLES, stages=stages)
    with server.running(), s3_environment(server.url, "captures"):
        pass  # the bucket is there
    with server.running(dies_at=pattern) as process, s3_environment(server.url, "captures"):
        with pytest.raises(StoreError, match=r"cannot reach|kept failing"):
            run_serial(run)
        assert process.poll() is not None
    return Died(server, run, (quiet, local))


@pytest.mark.parametrize("pattern", DIES_AT)
def test_a_server_that_dies_in_a_put_leaves_nothing_that_is_believed(tmp_path: Path, pattern: str) -> None:
    """Half of an object stays; the run again makes what a quiet run makes."""
    server, run, disk = died(tmp_path, pattern)
    with server.running(), s3_environment(server.url, "captures"):
        require_equal(disk, run.root, run_serial(run))


@pytest.mark.parametrize("pattern", [r"\.manifest\.json", r"artifacts/\w+/artifact\.json"])
def test_half_of_what_seals_is_refused_by_name(tmp_path: Path, pattern: str) -> None:
    """Nothing tells half a seal from a damaged one: it is named with the cure, and after that the run is whole."""
    server, run, disk = died(tmp_path, pattern)
    with server.running(), s3_environment(server.url, "captures"):
        with pytest.raises(DamageError, match=r"remove its folder|capture again"):
            run_serial(run)
        place = Location(run.root)
        for path in place.walk():
            if re.search(pattern, path):
                place.delete(path)
        require_equal(disk, run.root, run_serial(run))


def test_requests_grow_with_units_and_no_shards_are_listed(moto: str) -> None:
    """What a capture, the same again, a read, a status and a verification ask, with 8 and with 16 units' shards."""
    seen: dict[int, dict[str, dict[str, int]]] = {}
    for samples in (128, 256):
        root, fate = f"s3://captures/counted-{samples}", Mixed()
        with mixed(moto, fate):
            outcome = run_serial(vectors_run(root, n=samples))
            capture = outcome.captures[0].id
            steps = {"capture": fate.counts()}
            for name, step in (
                ("again", lambda root=root, n=samples: run_serial(vectors_run(root, n=n))),
                ("status", lambda root=root: root_status(Location(root))),
                (
                    "read",
                    lambda root=root, c=capture: open_capture(root, c).site("last")["activation"].values,
                ),
                ("verify", lambda root=root, c=capture: verify(Location(root), c)),
            ):
                fate.requests.clear()
                step()
                steps[name] = fate.counts()
        seen[samples] = steps
    for name in ("again", "status", "read"):
        assert all("LIST" not in steps[name] for steps in seen.values())
    assert seen[128]["again"] == seen[256]["again"]
    few, many = (seen[n]["status"] for n in seen)
    assert many == {**few, "GET": few["GET"] + 8}, "one GET for the receipt of each unit"
    assert [seen[n]["capture"]["LIST"] for n in seen] == [2, 2]
    assert [seen[n]["verify"]["LIST"] for n in seen] == [2, 2]
    assert "HEAD" not in seen[128]["verify"]
