"""The log: lines of JSON from every process, with what they happened within, and no secrets."""

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import SpecError
from tasks.log import OURS, VARIABLE, JsonLines, LogFile, _begin, begin_log
from tasks.store.events import adopt, surroundings, tell, within
from tasks.store.retry import retried

TOP = Path(__file__).resolve().parent.parent
LOG = logging.getLogger("tasks.test_log")


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Begins the log of this process, and reads its lines; afterwards there is none."""
    path = tmp_path / "log"
    monkeypatch.setenv(VARIABLE, str(path))
    before = {name: logging.getLogger(name).level for name in OURS}
    _begin.cache_clear()
    begin_log()
    yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
    for name, level in before.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        for handler in [h for h in logger.handlers if isinstance(h.formatter, JsonLines)]:
            logger.removeHandler(handler)
            handler.close()
    _begin.cache_clear()


def test_a_line_has_the_event_its_facts_and_what_it_happened_within(lines: Any) -> None:
    with within(run="r", capture="c"), within(unit="u"):
        tell(LOG, "unit.done", seconds=1.5, rows=3)
    tell(LOG, "later", logging.WARNING)
    LOG.warning("plain words with a %s", "value")
    done, later, plain = lines()
    assert {k: done[k] for k in ("event", "level", "logger", "run", "capture", "unit", "seconds", "rows")} == {
        "event": "unit.done", "level": "info", "logger": "tasks.test_log", "run": "r", "capture": "c", "unit": "u",
        "seconds": 1.5, "rows": 3,
    }  # fmt: skip
    assert done["time"].endswith("+00:00")
    assert done["process"].endswith(f":{os.getpid()}")
    assert (later["event"], later["level"], "run" in later) == ("later", "warning", False)
    assert plain["message"] == "plain words with a value"


def test_begun_twice_it_says_everything_once(lines: Any) -> None:
    begin_log()
    tell(LOG, "once")
    assert len(lines()) == 1


def test_threads_that_adopt_are_in_the_same_unit(lines: Any) -> None:
    with within(unit="u"):
        pool = ThreadPoolExecutor(1, "adopting", adopt, (surroundings(),))
    with pool:
        pool.submit(tell, LOG, "written").result()
    assert lines()[0]["unit"] == "u"


def test_no_secret_gets_in(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    tell(LOG, "one", url="s3://bucket/x", reason="signed with wJalrXUtnFEMI")
    tell(LOG, "two", url="https://user:pass@host/x")
    tell(
        LOG,
        "three",
        url="https://host/x?sv=1&sig=Ab12%3D&se=2, s3://AKIA:Ab/12@bucket/x, zip://a.txt::https://u:Ab12@host/x",
    )
    error = ValueError("wJalrXUtnFEMI")
    LOG.error("it was wJalrXUtnFEMI", exc_info=error)
    text = json.dumps(lines())
    assert "wJalr" not in text
    assert "user:pass" not in text
    assert "Ab" not in text
    assert "https://host/x?sv=1&sig=***&se=2" in text
    assert "zip://a.txt::https://***@host/x" in text
    assert "s3://bucket/x" in text
    assert text.count("***") >= 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    handler = LogFile("/dev/full", encoding="utf-8")
    for _ in range(3):
        handler.handle(logging.makeLogRecord({"msg": "one"}))
    with suppress(OSError):
        handler.close()
    assert capsys.readouterr().err.splitlines() == [
        f"{VARIABLE}: /dev/full cannot be written (No space left on device); lines are missing from here on"
    ]


def test_a_retried_request_is_told_with_its_reason(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.store.retry.FIRST_PAUSE_SECONDS", 0.001)
    answers = iter([TimeoutError("stalled"), ConnectionResetError("gone"), None])

    def action() -> str:
        error = next(answers)
        if error is not None:
            raise error
        return "done"

    with within(unit="u"):
        assert retried(action, "s3://bucket/key") == "done"
    found = [(line["event"], line["unit"], line["url"], line["reason"]) for line in lines()]
    assert found == [
        ("store.retry", "u", "s3://bucket/key", "TimeoutError: stalled"),
        ("store.retry", "u", "s3://bucket/key", "ConnectionResetError: gone"),
    ]


@pytest.mark.parametrize("name", ["nowhere/log", "pipe"])
def test_a_file_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv(VARIABLE, str(tmp_path / name))
    _begin.cache_clear()
    with pytest.raises(SpecError, match=rf"SUBSPAN_LOG is .*{name}"):
        begin_log()


def test_without_a_listener_nothing_is_said_on_stderr() -> None:
    code = "import logging; from tasks.store.events import tell; tell(logging.getLogger('tasks.x'), 'e', logging.ERROR)"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True)
    assert done.stderr == ""
