"""The reports server over real HTTP: what a run registered is served, nothing else is."""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipelines.reports import FOLDER, Handler, register, serving
from schemas.errors import NotFoundError, SpecError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A page below a root, with a figure; beside it what must not be seen."""
    folder = tmp_path / "root" / "reports" / "one-12345678"
    (folder / "figures").mkdir(parents=True)
    (folder / "report.html").write_text("<h1>one</h1>")
    (folder / "figures" / "spectra.png").write_bytes(PNG)
    (folder / "run.yaml").write_text("name: one")
    (folder / "secret.key").write_text("secret")
    (folder / "figures" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "outside.png").write_bytes(b"secret")
    (folder.parent / "other.html").write_text("secret")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def base(home: Path) -> Iterator[str]:
    with serving("127.0.0.1", 0, home) as url:
        yield url


def ask(base: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request as it is: no client tidies its path."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_a_registered_report_is_served(base: str, home: Path, report: Path) -> None:
    path = register(home, str(report / "report.html"))
    assert register(home, str(report / "report.html")) == path
    status, headers, body = ask(base, path)
    assert (status, body) == (200, b"<h1>one</h1>")
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "script-src" not in headers["content-security-policy"]
    folder = path.rpartition("/")[0]
    status, headers, body = ask(base, f"{folder}/figures/spectra.png")
    assert (status, headers["content-type"], body) == (200, "image/png", PNG)
    status, headers, body = ask(base, path, "HEAD")
    assert (status, headers["content-length"], body) == (200, "12", b"")


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/figures", "/figures/", "/secret.key", "/../other.html", "/figures/../../other.html", "/%2e%2e/other.html",
        "/figures/%2e%2e/%2e%2e/other.html", "//etc/passwd", "/figures/link.png", "/report.html%00.png", "/none.html",
    ],
)  # fmt: skip
def test_nothing_else_is(base: str, home: Path, report: Path, path: str) -> None:
    folder = register(home, str(report / "report.html")).rpartition("/")[0]
    status, _, body = ask(base, folder + path)
    assert status == 404
    assert b"secret" not in body


@pytest.mark.parametrize(
    "path", ["/", "/reports", "/../../etc/passwd", "/0123456789abcdef/report.html", "//[/"]
)
def test_no_list_and_no_stranger(base: str, home: Path, report: Path, path: str) -> None:
    register(home, str(report / "report.html"))
    assert ask(base, path)[0] == 404


def test_nothing_is_written_and_no_other_name_leads_here(base: str, home: Path, report: Path) -> None:
    path = register(home, str(report / "report.html"))
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(base, path, method)[0] == 501
    assert ask(base, path, Host="rebound.example:80")[0] == 421
    port = urlsplit(base).port
    assert ask(base, path, Host=f"localhost:{port}")[0] == 200


def test_a_connection_that_says_nothing_is_closed(
    base: str, home: Path, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Handler.timeout
    monkeypatch.setattr(Handler, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", urlsplit(base).port or 0), timeout=10) as silent:
        assert silent.recv(1) == b""
    assert ask(base, register(home, str(report / "report.html")))[0] == 200


def test_only_reports_are_registered(home: Path, report: Path) -> None:
    for wrong in (report / "secret.key", report.parent.parent / "report.html"):
        with pytest.raises(SpecError, match="only reports are served"):
            register(home, str(wrong))
    with pytest.raises(NotFoundError, match="no report"):
        register(home, str(report.parent / "gone-1" / "report.html"))
    assert not (home / FOLDER).exists()


def test_a_removed_report_and_a_broken_record_say_so(base: str, home: Path, report: Path) -> None:
    path = register(home, str(report / "report.html"))
    (report / "report.html").unlink()
    assert ask(base, path)[0] == 404
    (home / FOLDER / f"{path.split('/')[1]}.json").write_text(json.dumps({"folder": 1}))
    assert ask(base, path)[0] == 502
