"""An S3 endpoint for tests that misbehaves: a proxy that mixes faults by a seed and counts requests, and a server that dies."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.store.faulty import FaultyProxy, proxy

KEY, SECRET = "AKIAQDISTINCTIVEKEY7", "s3cr3tQdistinctiveSecretOfTests7"
FAULTS = ("503", "500", "reset", "reset after", "slow", "short")
START_SECONDS = 60


class Mixed:
    """A fate for `FaultyProxy`: a share of the requests meets one of the faults; every request is counted."""

    def __init__(self, share: float = 0.0, seed: int = 0, slow: bool = False) -> None:
        self.share, self.slow = share, slow
        self.requests: list[tuple[str, str]] = []
        """Kind (GET, PUT, HEAD, LIST, DELETE, POST) and the key or prefix, in order."""
        self.faults: Counter[str] = Counter()
        self._rng, self._lock = random.Random(seed), threading.Lock()

    def __call__(self, command: str, path: str) -> str:
        with self._lock:
            self.requests.append(request_of(command, path))
            if self._rng.random() >= self.share:
                return "slow" if self.slow else "ok"
            fault = self._rng.choice(FAULTS)
            self.faults[fault] += 1
        return fault

    def counts(self, part: str = "") -> dict[str, int]:
        """Kind to number of requests whose key or prefix holds a part."""
        return dict(Counter(kind for kind, key in self.requests if part in key))

    def listed(self) -> list[str]:
        """Prefixes that were listed with everything below."""
        return [key for kind, key in self.requests if kind == "LIST"]


def request_of(command: str, path: str) -> tuple[str, str]:
    """Kind and key: a listing of one level is `DIR`, of everything below a prefix `LIST`."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    key = unquote(parts.path).strip("/").partition("/")[2]
    if command == "GET" and "list-type" in query:
        return ("DIR" if query.get("delimiter", [""])[0] else "LIST"), query.get("prefix", [""])[0]
    return command, key


@contextmanager
def mixed(upstream: str, fate: Mixed) -> Iterator[FaultyProxy]:
    """A proxy with this fate, which the environment names as the endpoint."""
    with proxy(upstream, fate) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def free_port() -> int:
    """A port of loopback that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with {process.returncode} at its start")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server took no connection in {START_SECONDS} s")


@contextmanager
def served(*command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A server as a process of its own; the last word is its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(int(command[-1]), process)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def moto_process() -> Iterator[str]:
    """The address of a moto server in its own process; it keeps objects in memory."""
    port = free_port()
    with served("moto.server", "-H", "127.0.0.1", "-p", str(port)):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def s3_environment(url: str, bucket: str, key: str = KEY, secret: str = SECRET) -> Iterator[str]:
    """Credentials and address in the environment, and a bucket that exists; gives its URL."""
    import boto3

    old = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield f"s3://{bucket}"
    finally:
        os.environ.clear()
        os.environ.update(old)


class MortalS3:
    """A server that keeps objects as files and writes them in place, so that dying in a PUT leaves half of one (`tests/disk_s3.py`)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self, dies_at: str = "") -> Iterator["subprocess.Popen[bytes]"]:
        """Serve; with a pattern, die half way through the first PUT of a key that it is found in."""
        (self.folder / ".dies_at").write_text(dies_at)
        with served("tests.disk_s3", str(self.folder), str(self.port)) as process:
            yield process
