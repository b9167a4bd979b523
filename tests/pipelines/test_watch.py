"""A watch: new files are judged by a reference that is there, alerts are told once, and a reference that changed is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.alerts import FOLDER, Raised, raised, tell_new
from pipelines.cli import main
from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.alert import Alert
from schemas.errors import SubspanError
from schemas.outcome import ArtifactOutcome, CaptureOutcome, RunOutcome
from schemas.run import RunSpec
from tests.pipelines.runs import vectors_run
from tests.pipelines.served import free_port

SEALED = ("normal", "known", "basis", "known_scores")


def write_day(folder: Path, day: int, shift: float = 0.0) -> None:
    rows = np.random.default_rng(day).standard_normal((60, 8)).astype(np.float32)
    rows[:20] += shift
    np.save(folder / f"day{day}.npy", rows)


def write_reference(folder: Path, seed: int = 100) -> None:
    for name, k in (("normal", seed), ("known", seed + 1)):
        np.save(folder / f"{name}.npy", np.random.default_rng(k).standard_normal((400, 8)).astype(np.float32))


def watched(folder: Path, **stages: Any) -> RunSpec:
    whole = vectors_run(folder / "out").model_dump(mode="json")
    one = whole["captures"]["vectors"] | {"sites": ["first"]}

    def of(pattern: str, **data: Any) -> dict[str, Any]:
        source = {"kind": "arrays", "path": str(folder / pattern)}
        return one | {"data": {"source": source, **data}}

    captures = {
        "normal": of("normal.npy"),
        "known": of("known.npy"),
        "new": of("day*.npy", partition_by="file"),
    }
    x = {name: {"captures": [name]} for name in captures}
    scores = {"method": "anomaly.mahalanobis"}
    made = {
        "basis": {"method": "anomaly.reference", "inputs": {"x": x["normal"]}},
        "known_scores": {**scores, "inputs": {"x": x["known"], "reference": {"stage": "basis"}}},
        "scores": {
            **scores,
            "inputs": {"x": x["new"], "reference": {"stage": "basis"}},
            "partitions": "each",
        },
        "judged": {
            "method": "anomaly.calibrated",
            "inputs": {
                "x": x["new"],
                "scores": {"stage": "scores"},
                "calibration": {"stage": "known_scores"},
            },
            "partitions": "each",
        },
        **stages,
    }
    run = {**whole, "name": "daily", "captures": captures, "stages": made, "watch": {"sealed": SEALED}}
    return RunSpec.model_validate(run)


def file_of(folder: Path) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(watched(folder).model_dump(mode="json")))
    return str(path)


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((folder / "out" / FOLDER / "daily").glob("*.json"))]


def test_new_files_are_judged_and_alerts_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reference(tmp_path)
    write_day(tmp_path, 1)
    file = file_of(tmp_path)
    assert main(["watch", file, "--serial"]) == 1  # there is no reference yet
    assert "'normal' is not there: capture" in capsys.readouterr().err
    assert not (tmp_path / "out" / "captures").exists()
    run_serial(watched(tmp_path))
    assert main(["watch", file, "--serial"]) == 0
    assert "No new alerts" in capsys.readouterr().out
    write_day(tmp_path, 2, shift=6.0)
    assert main(["watch", file, "--serial"]) == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ALERT")]
    assert len(lines) == len(told(tmp_path)) == 2
    assert all("judged at first:out:0 (day2.npy): " in line for line in lines)
    assert {one["alert"]["kind"] for one in told(tmp_path)} == {"flagged", "discoveries"}
    assert main(["watch", file, "--serial"]) == 0
    write_day(tmp_path, 3)
    capsys.readouterr()
    assert main(["watch", file, "--serial", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["alerts"] == []
    by_day = {a["partition"]: len(a["alerts"]) for a in answer["artifacts"] if a["stage"] == "judged"}
    assert by_day == {"day1.npy": 0, "day2.npy": 2, "day3.npy": 0}


def test_a_reference_that_changed_is_refused_with_its_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reference(tmp_path)
    write_day(tmp_path, 1)
    run_serial(watched(tmp_path))
    file = file_of(tmp_path)
    write_reference(tmp_path, seed=200)
    wanted = next(c.id for c in make_plan(watched(tmp_path)).captures if c.name == "normal")
    assert main(["watch", file, "--serial"]) == 1
    assert f"'normal' is not there: capture {wanted}" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "captures").glob(f"{wanted}*"))


def test_a_name_that_is_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_reference(tmp_path)
    write_day(tmp_path, 1)
    run = watched(tmp_path).model_dump(mode="json") | {"watch": {"sealed": ["norml"]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert main(["watch", str(tmp_path / "run.yaml"), "--serial"]) == 1
    assert "no capture or stage 'norml'; nearest: normal" in capsys.readouterr().err


def test_alerts_that_no_answer_told_are_told_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where stdout is a file on a disk that is full."""
    write_reference(tmp_path)
    write_day(tmp_path, 1, shift=6.0)
    file = file_of(tmp_path)
    run_serial(watched(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.terminal.write_json", refuse)
        assert main(["watch", file, "--serial", "--json"]) == 1
    assert told(tmp_path) == []
    capsys.readouterr()
    assert main(["watch", file, "--serial", "--json"]) == 3
    assert len(json.loads(capsys.readouterr().out)["alerts"]) == len(told(tmp_path)) == 2


def refuse(_: Any) -> None:
    raise OSError("no space left")


def changes_told(folder: Path) -> int:
    return len([one for one in told(folder) if one["stage"] == "changes"])


def test_a_change_is_told_once_and_another_at_its_place_is_told(tmp_path: Path) -> None:
    """Of the files of some days, of which the first goes where another comes."""
    x, reference = {"captures": ["new"]}, {"stage": "basis"}
    in_order = {"method": "anomaly.mahalanobis", "inputs": {"x": x, "reference": reference}}
    inputs = {"x": x, "scores": {"stage": "in_order"}, "calibration": {"stage": "known_scores"}}
    run = watched(tmp_path, in_order=in_order, changes={"method": "anomaly.alarms", "inputs": inputs})
    write_reference(tmp_path)

    def write(day: int, seed: int, shift: float) -> None:
        rows = np.random.default_rng(seed).standard_normal((60, 8)) + shift
        np.save(tmp_path / f"day{day}.npy", rows.astype(np.float32))

    counts = []
    for change in (
        lambda: [write(1, 1, 0), write(2, 2, 0), write(3, 3, 4.0)],
        lambda: write(3, 33, 4.0),  # other rows, and the change is at the same place
        lambda: [(tmp_path / "day1.npy").unlink(), write(4, 4, 4.0)],  # the same rows at another place
    ):
        change()
        tell_new(run_serial(run), lambda one: None)
        counts.append(changes_told(tmp_path))
    assert counts == [1, 2, 2]


def outcome(root: Path, artifact: str, key: str = "") -> RunOutcome:
    alert = Alert(kind="change", message="it changed", value=2.0, threshold=1.0, key=key)
    made = ArtifactOutcome(stage="s", site="x", id=artifact, method="anomaly.alarms", alerts=(alert,))
    return RunOutcome(run="daily", root=str(root), artifacts=(made,))


def test_what_has_a_key_is_told_once_though_artifacts_change(tmp_path: Path) -> None:
    heard: list[Raised] = []
    for artifact, key in (("a", "sample 7"), ("b", "sample 7"), ("b", ""), ("b", ""), ("c", "")):
        tell_new(outcome(tmp_path, artifact, key), heard.append)
    assert [(one.artifact, one.alert.key) for one in heard] == [("a", "sample 7"), ("b", ""), ("c", "")]
    assert len({one.event_id for one in heard}) == 3


def test_alerts_call_captures_by_their_names(tmp_path: Path) -> None:
    days = [
        CaptureOutcome(name="days", partition=f"{n}.npy", id=f"{n}234567{n}" + "0" * 12, rows={})
        for n in (1, 2)
    ]
    message = "rows of 12345671 + 22345672 first are not of 99999999"
    alert = Alert(kind="drift", message=message, value=0.01, threshold=0.05, key="12345671 first")
    plain = outcome(tmp_path, "a")
    made = plain.artifacts[0].model_copy(update={"alerts": (alert,)})
    (told,) = raised(plain.model_copy(update={"artifacts": (made,), "captures": tuple(days)}))
    assert told.line == "s at x: rows of days / 1.npy + days / 2.npy first are not of 99999999"
    assert told.id == Raised(**told.model_dump() | {"alert": alert}).id  # names do not tell it anew


def test_an_event_that_no_server_takes_was_not_told(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from pipelines import watch

    with (
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}),
        pytest.raises(
            SubspanError,
            match=r"Prefect did not take the event of the alert 's at x: it changed' .*tells it again",
        ),
    ):
        tell_new(outcome(tmp_path, "a"), watch.send_event)
    assert not told(tmp_path)


def test_an_alert_that_could_not_be_told_is_told_again_under_its_id(tmp_path: Path) -> None:
    heard: list[Raised] = []

    def tell(one: Raised) -> None:
        heard.append(one)
        if len(heard) == 1:
            raise ConnectionError("no server")

    with pytest.raises(ConnectionError):
        tell_new(outcome(tmp_path, "a"), tell)
    assert len(tell_new(outcome(tmp_path, "a"), tell)) == 1
    assert heard[0].event_id == heard[1].event_id
