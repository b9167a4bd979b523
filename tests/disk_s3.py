"""A small S3 server over a folder, not atomic on purpose: `python -m tests.disk_s3 FOLDER PORT`.

It knows what this project asks of an object store, and no more: PUT (also with If-None-Match), GET with a range, HEAD,
DELETE, deletion of many, listing. Requests are not authenticated. `FOLDER/.dies_at` may hold a pattern: the first
PUT of a key that it is found in is stored by half, then the server is gone.
"""

import os
import re
import sys
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "DiskS3"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _path(self) -> Path:
        return self.server.folder / unquote(urlsplit(self.path).path).strip("/")

    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def do_PUT(self) -> None:
        """A bucket, or an object written in place."""
        path, body = self._path(), self._body()
        if path.parent == self.server.folder:
            path.mkdir(exist_ok=True)
            self._send(200)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.server.lock:
            if self.headers.get("If-None-Match") == "*" and path.exists():
                self._refuse(412, "PreconditionFailed")
                return
            if self.server.dies_at(unquote(self.path)):
                path.write_bytes(body[: len(body) // 2])
                os._exit(1)
            path.write_bytes(body)
        self._send(200, ETag='"0"')

    def do_GET(self) -> None:
        """An object, a part of it, or a listing."""
        if "list-type" in self._query():
            return self._list()
        path = self._path()
        if not path.is_file():
            return self._refuse(404, "NoSuchKey")
        data, asked = path.read_bytes(), self.headers.get("Range", "")
        stamp = formatdate(path.stat().st_mtime, usegmt=True)
        if not asked:
            return self._send(200, data, ETag='"0"', Last_Modified=stamp)
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= len(data):
            return self._refuse(416, "InvalidRange")
        span = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._send(206, data[start:stop], ETag='"0"', Last_Modified=stamp, Content_Range=span)

    def do_HEAD(self) -> None:
        """Size of an object."""
        path = self._path()
        if not path.is_file():
            return self._send(404)
        stat = path.stat()
        stamp = formatdate(stat.st_mtime, usegmt=True)
        return self._send(200, ETag='"0"', Last_Modified=stamp, Content_Length=str(stat.st_size))

    def do_DELETE(self) -> None:
        """Remove an object."""
        self._path().unlink(missing_ok=True)
        self._send(204)

    def do_POST(self) -> None:
        """Remove many objects."""
        for key in re.findall(r"<Key>(.*?)</Key>", self._body().decode()):
            path = self._path() / key
            if path.is_file():  # a prefix is named too
                path.unlink()
        self._send(200, b"<DeleteResult></DeleteResult>")

    def _list(self) -> None:
        query, bucket = self._query(), self._path()
        prefix = query.get("prefix", [""])[0]
        keys = sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file())
        keys = [key for key in keys if key.startswith(prefix)]
        folders: set[str] = set()
        if query.get("delimiter", [""])[0]:
            folders = {prefix + key[len(prefix) :].split("/")[0] for key in keys if "/" in key[len(prefix) :]}
            keys = [key for key in keys if "/" not in key[len(prefix) :]]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{(bucket / key).stat().st_size}</Size><ETag>0</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}/</Prefix></CommonPrefixes>" for name in folders
        )
        self._send(
            200,
            f"<ListBucketResult><KeyCount>{len(keys) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>"
            f"{contents}{common}</ListBucketResult>".encode(),
        )


class DiskS3(ThreadingHTTPServer):
    """The server."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder = folder
        self.lock = threading.Lock()
        """Objects are written one after the other, so that conditional PUTs hold."""

    def dies_at(self, key: str) -> bool:
        """Whether this is the PUT to die in."""
        rule = (self.folder / ".dies_at").read_text()
        return bool(rule) and re.search(rule, key) is not None


if __name__ == "__main__":
    DiskS3(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
