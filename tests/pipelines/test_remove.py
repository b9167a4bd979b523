"""`subspan rm` and `subspan gc`: what is needed, named or worked on stays; what goes leaves nothing behind, also when it is killed."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import execute
from pipelines import remove as module
from pipelines.cli import main
from pipelines.remove import garbage, removals, remove
from pipelines.serial import run_serial
from pipelines.status import find, root_status
from schemas.errors import OccupiedError, UnknownNameError
from schemas.outcome import RunOutcome
from tasks.store.lease import hold
from tasks.store.location import Location
from tests.pipelines.runs import vectors_run

STAGES = {
    "pca": {"method": "spectrum.pca", "sites": "last"},
    "project": {
        "method": "spectrum.project",
        "inputs": {"x": {"sites": "last"}, "basis": {"stage": "pca"}},
    },
}


def made(root: Path, **more: Any) -> RunOutcome:
    return run_serial(vectors_run(root, n=20, stages=STAGES, **more))


def ids(outcome: RunOutcome) -> dict[str, str]:
    return {a.stage: a.id for a in outcome.artifacts} | {"capture": outcome.captures[0].id}


def files_of(root: Path, name: str) -> list[str]:
    return [str(path) for path in root.rglob("*") if name in str(path) and path.is_file()]


def test_what_is_needed_or_named_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ids(made(tmp_path))
    assert main(["rm", found["pca"], "--root", str(tmp_path)]) == 1
    assert (
        f"made from what is to go: {found['project']}; remove them too with --dependents"
        in capsys.readouterr().err
    )
    assert main(["rm", "vectors", "--root", str(tmp_path), "--dependents"]) == 1
    assert "names open what is to go: vectors; remove them too with --names" in capsys.readouterr().err
    assert len(root_status(Location(str(tmp_path))).artifacts) == 2


def test_the_name_of_a_run_leads_to_its_id(tmp_path: Path) -> None:
    made(tmp_path)
    (run,) = root_status(Location(str(tmp_path))).runs
    with pytest.raises(UnknownNameError, match=f"nearest: {run.id}\\."):
        find(Location(str(tmp_path)), "-vectors")  # `vectors` is a capture too


def test_an_artifact_goes_and_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ids(made(tmp_path))
    given = ["rm", found["pca"], "--dependents", "--root", str(tmp_path)]
    assert main([*given, "--dry-run"]) == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert main([*given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["removed"]
    assert [one["id"] for one in told] == [found["project"], found["pca"]]
    assert all(one["bytes"] > 0 for one in told)
    assert not files_of(tmp_path / "artifacts", found["pca"]) + files_of(
        tmp_path / "artifacts", found["project"]
    )
    again = made(tmp_path)
    assert ids(again) == found
    assert all(a.computed for a in again.artifacts)
    assert not again.captures[0].computed


def test_a_capture_goes_with_its_states_and_its_name(tmp_path: Path) -> None:
    found = ids(made(tmp_path))
    given = ["rm", "vectors", "--dependents", "--names", "--root", str(tmp_path)]
    assert main(given) == 0
    assert {Path(file).relative_to(tmp_path).parts[0] for file in files_of(tmp_path, found["capture"])} <= {
        "runs"
    }
    assert not list((tmp_path / "names").iterdir())
    assert ids(made(tmp_path)) == found


def test_a_capture_that_is_worked_on_is_refused(tmp_path: Path) -> None:
    found, root = ids(made(tmp_path)), Location(str(tmp_path))
    target = [find(root, found["capture"])]
    with (
        hold(root, found["capture"]),
        pytest.raises(OccupiedError, match=rf"{found['capture']} is being worked on by process \d+"),
    ):
        removals(root, target, dependents=True, names=True)
    assert len(removals(root, target, dependents=True, names=True)) == 3


def test_a_removal_that_is_killed_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, root = ids(made(tmp_path)), Location(str(tmp_path))
    going = removals(root, [find(root, "vectors")], dependents=True, names=True)
    real, calls = Location.delete, 0

    def dies(self: Location, path: str, *, recursive: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        real(self, path, recursive=recursive)

    monkeypatch.setattr(module.Location, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        list(remove(root, going))
    monkeypatch.setattr(module.Location, "delete", real)
    assert [a.id for a in root_status(root).artifacts] == [found["pca"]]
    again = made(tmp_path)
    assert ids(again) == found
    assert {a.stage: a.computed for a in again.artifacts} == {"pca": False, "project": True}


def test_garbage_is_what_no_last_run_and_no_name_has(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    first = ids(made(tmp_path))
    assert garbage(root) == []
    second = ids(made(tmp_path, sites=["last"]))
    assert second["capture"] != first["capture"]
    root.write("reports/vectors-01234567/report.html", b"of an earlier run")
    going = garbage(root)
    assert [(one.kind, one.id) for one in going] == [
        ("artifact", first["project"]),
        ("artifact", first["pca"]),
        ("report", "vectors-01234567"),
        ("capture", first["capture"]),
    ]
    assert main(["gc", "--dry-run", "--root", str(tmp_path)]) == 0
    assert garbage(root) == going
    assert main(["gc", "--root", str(tmp_path)]) == 0
    assert garbage(root) == []
    assert {c.id for c in root_status(root).captures} == {second["capture"]}
    assert not made(tmp_path, sites=["last"]).captures[0].computed


def test_a_finished_run_that_is_run_again_is_the_last_one(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    first = ids(made(tmp_path))
    second = ids(made(tmp_path, sites=["last"]))
    assert ids(made(tmp_path)) == first
    assert len(root.ls("runs")) == 3
    assert {one.id for one in garbage(root)} == set(second.values())
    made(tmp_path)
    assert len(root.ls("runs")) == 3, "nothing new to say"


def test_partitions_lose_their_names_one_by_one(tmp_path: Path) -> None:
    from tests.pipelines.test_partitions import partitioned, varied_day

    for day in (1, 2):
        varied_day(tmp_path, day)
    outcome = run_serial(partitioned(tmp_path))
    place = tmp_path / "out"
    for day, left in ((1, {"day2.npy"}), (2, set[str]())):
        assert main(["rm", f"vectors/day{day}.npy", "--names", "--root", str(place)]) == 0
        names = [json.loads(f.read_text())["partitions"] for f in (place / "names").glob("*.json")]
        assert {part for found in names for part in found} == left
    assert len(outcome.captures) == 2


def test_a_capture_that_stages_read_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    stages = execute._Running.stages

    def beside(running: Any) -> Any:
        seen.append(len(garbage(Location(str(tmp_path)))))
        return stages(running)

    monkeypatch.setattr(execute._Running, "stages", beside)
    assert not made(tmp_path).stage_failures
    assert seen == [0]
