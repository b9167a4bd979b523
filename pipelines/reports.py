"""Reports over HTTP, read-only and on loopback: a `file://` link does not open from the page of a run, which comes over HTTP.

Nothing is served but files of reports that a run registered: one JSON file each, below PREFECT_HOME.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipelines.execute import PAGE
from schemas.base import Frozen, canonical_json, content_id
from schemas.errors import NotFoundError, SpecError, SubspanError
from tasks.store.location import Location

URL = "SUBSPAN_REPORTS_URL"
"""The variable that says where reports are served; `make ui` sets it for its worker."""

FOLDER = "reports"
"""Below PREFECT_HOME."""

FILE = re.compile(r"/([0-9a-f]{16})/((?:figures/)?[A-Za-z0-9_][A-Za-z0-9_.-]*)")
"""A report and one of its files: no other path is looked at."""

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".pdf": "application/pdf",
    ".yaml": "text/plain; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""A page has no scripts: none runs, whatever a text in it says."""


class Registered(Frozen):
    """A report that may be read."""

    folder: str
    """Local path or URL."""


def register(home: Path, page: str) -> str:
    """Let a page be served, with what lies beside it; the path of its link, the same each time.

    Args:
        home: PREFECT_HOME.
        page: path or URL of the page that a run has just written.

    Raises:
        SpecError: if that is no page of a report below a root.
        NotFoundError: if it is not there.
    """
    folder = Location(page.rpartition("/")[0])
    if not page.endswith(f"/{PAGE}") or folder.url.split("/")[-2:-1] != ["reports"]:
        raise SpecError(f"found {page!r}, expected <root>/reports/<run>/{PAGE}: only reports are served")
    if not folder.exists(PAGE):
        raise NotFoundError(f"there is no report {page!r} to serve")
    name = content_id([folder.url])[:16]
    Location(str(home)).write(
        f"{FOLDER}/{name}.json", canonical_json(Registered(folder=folder.url).model_dump())
    )
    return f"/{name}/{PAGE}"


def read_file(home: Path, path: str) -> tuple[str, bytes]:
    """Content type and bytes of what the path of a request asks for.

    Raises:
        NotFoundError: if it is no file of a registered report.
        StoreError: if the storage refuses.
    """
    found = FILE.fullmatch(path)
    kind = TYPES.get(os.path.splitext(path)[1])
    if found is None or kind is None:
        raise NotFoundError(f"{path!r} is no file of a report")
    record = Location(str(home)).read(f"{FOLDER}/{found[1]}.json")
    folder = Location(Registered.model_validate_json(record).folder)
    if folder.is_local and not _inside(Path(folder.url), found[2]):
        raise NotFoundError(f"{path!r} leads out of its report")
    return kind, folder.read(found[2])


def _inside(folder: Path, path: str) -> bool:
    return (folder / path).resolve().is_relative_to(folder.resolve())


class ReportsServer(ThreadingHTTPServer):
    """Serves what is registered below a home."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], home: Path) -> None:
        super().__init__(address, Handler)
        self.home = home
        self.hosts = {f"{name}:{self.server_port}" for name in (address[0], "localhost")}
        """What a browser may call it: a name of somebody's own that leads to loopback is refused."""


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of one file."""

    server: ReportsServer
    timeout = 30.0
    """Seconds that a connection may say nothing: each has a thread."""
    server_version = "subspan"
    sys_version = ""

    def do_GET(self) -> None:
        """The file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """What GET says of the file."""
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal belongs to the worker's log."""

    def _answer(self, body: bool) -> None:
        status, kind, data = self._found()
        self.send_response(status)
        for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _found(self) -> tuple[HTTPStatus, str, bytes]:
        plain = "text/plain; charset=utf-8"
        if self.headers.get("Host") not in self.server.hosts:
            return HTTPStatus.MISDIRECTED_REQUEST, plain, b"this server is for loopback only\n"
        try:
            path = unquote(urlsplit(self.path).path)
        except ValueError:  # such as //[/
            path = ""
        try:
            return HTTPStatus.OK, *read_file(self.server.home, path)
        except NotFoundError:
            return HTTPStatus.NOT_FOUND, plain, b"no such report: it was removed, or never registered\n"
        except (SubspanError, ValueError):
            return HTTPStatus.BAD_GATEWAY, plain, b"the storage of this report does not answer\n"


@contextmanager
def serving(host: str, port: int, home: Path) -> Iterator[str]:
    """Serve in a thread of this process; the URL that links begin with.

    Raises:
        OSError: if the port is taken.
    """
    server = ReportsServer((host, port), home)
    threading.Thread(target=server.serve_forever, args=(0.1,), name="reports", daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
