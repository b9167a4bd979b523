"""Back ends that fail: a file system with injected errors, and a proxy before an S3 server."""

import errno
import random
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from fsspec.implementations.memory import MemoryFileSystem

FAULTS: list[Callable[[str], None]] = []
"""Called before each operation of `FlakyFileSystem` with its name; may raise."""


class FlakyFileSystem(MemoryFileSystem):
    """Files in memory whose operations fail as FAULTS say."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 - shared by instances, as in the parent
    pseudo_dirs = [""]  # noqa: RUF012

    def _fault(self, operation: str) -> None:
        for fault in FAULTS:
            fault(operation)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._fault("put")
        super().pipe_file(path, value, mode=mode, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._fault("get")
        return super().cat_file(path, start=start, end=end, **kwargs)

    def info(self, path, **kwargs):
        self._fault("head")
        return super().info(path, **kwargs)

    def find(self, path, **kwargs):
        self._fault("list")
        return super().find(path, **kwargs)


class EveryThird:
    """Fails every third operation, each time in another passing way."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, operation: str) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            errors = (
                TimeoutError("stalled"),
                ConnectionResetError("reset"),
                OSError(errno.EBUSY, "SlowDown"),
            )
            raise errors[self.calls // 3 % 3]


REFUSALS = {
    "503": b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>",
    "500": b"<Error><Code>InternalError</Code><Message>We encountered an internal error</Message></Error>",
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "FaultyProxy"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.fate(self.command, self.path)
        if fate == "stall":
            time.sleep(self.server.stall_seconds)
            self.close_connection = True
            return
        if fate in REFUSALS:
            self._answer(int(fate), {}, REFUSALS[fate])
            return
        if fate == "cut":
            self._cut(body)
            return
        if fate == "reset":
            self._reset()
            return
        if fate == "slow":
            time.sleep(self.server.slow_seconds)
        with closing(HTTPConnection(self.server.upstream, timeout=20)) as upstream:
            headers = {**self.headers, "Connection": "close"}
            upstream.request(self.command, self.path, body=body, headers=headers)
            response = upstream.getresponse()
            status, answered, content = response.status, dict(response.getheaders()), response.read()
        if fate == "reset after":
            self._reset()
        else:
            self._answer(status, answered, content, short=fate == "short")

    def _cut(self, body: bytes) -> None:
        """Store the first half of a PUT, as a server that is no real S3 may, then drop the connection."""
        if self.command == "PUT":
            self.server.put_half(self.path, body[: len(body) // 2])
        self.close_connection = True

    def _reset(self) -> None:
        """Close the connection so that the client sees a reset, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, short: bool = False) -> None:
        self.send_response(status)
        length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if short else body)
            self.close_connection = self.close_connection or short

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on


class FaultyProxy(ThreadingHTTPServer):
    """Stands before an S3 server and answers some requests badly."""

    daemon_threads = True
    request_queue_size = 128
    stall_seconds = 3.0
    slow_seconds = 0.05

    def __init__(self, upstream: str, fate: Callable[[str, str], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.fate = fate
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the game."""

    def put_half(self, path: str, body: bytes) -> None:
        """Store a truncated object."""
        import boto3

        bucket, _, key = unquote(urlsplit(path).path).strip("/").partition("/")
        boto3.client("s3", endpoint_url=f"http://{self.upstream}").put_object(
            Bucket=bucket, Key=key, Body=body
        )


def seeded_fate(share: float, kind: str, seed: int = 0) -> Callable[[str, str], str]:
    """A fate that hits a share of the requests, the same on every run with requests in order."""
    rng, lock = random.Random(seed), threading.Lock()

    def fate(command: str, path: str) -> str:
        with lock:
            return kind if rng.random() < share else "ok"

    return fate


@contextmanager
def proxy(upstream: str, fate: Callable[[str, str], str]) -> Iterator[FaultyProxy]:
    """A running proxy."""
    with FaultyProxy(upstream, fate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""

    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            time.sleep(30)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
