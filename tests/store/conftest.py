"""Places to store in: a local folder, memory, and an S3 server inside this process."""

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.store.location import Location

BUCKET = "captures"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server in memory."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch, s3_server: str) -> str:
    """Credentials and address in the environment, and a bucket."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": s3_server,
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=BUCKET)
    return s3_server


@pytest.fixture
def s3_root(s3_environment: str) -> Location:
    """A fresh prefix on the S3 server."""
    return Location(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture(params=["local", "memory", "s3"])
def any_root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Each kind of place in turn."""
    if request.param == "local":
        return Location(str(tmp_path / "root"))
    if request.param == "memory":
        return Location(f"memory://{uuid.uuid4().hex}")
    root: Location = request.getfixturevalue("s3_root")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Location:
    """A local folder that does not exist yet."""
    return Location(str(tmp_path / "root"))
