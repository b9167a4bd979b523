"""A whole run on a real HTTP object store: the same bytes as on a disk, read back through our readers and plain xarray."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import xarray as xr
from moto.server import ThreadedMotoServer

from pipelines.serial import run_serial
from subspan import open_artifact, open_capture
from tasks.store.location import Location
from tasks.store.verify import verify
from tests.pipelines.runs import store_bytes, vectors_run
from tests.pipelines.test_cluster import run_on_workers

STAGES = {"summary": {"method": "spectrum.summary"}}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    old = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket="captures")
    yield "s3://captures"
    server.stop()
    os.environ.clear()
    os.environ.update(old)


def test_a_run_on_s3_has_the_bytes_of_a_run_on_disk(bucket: str, tmp_path: Path) -> None:
    local = run_serial(vectors_run(tmp_path, n=60, stages=STAGES))
    remote = run_serial(vectors_run(f"{bucket}/a", n=60, stages=STAGES))
    capture = local.captures[0].id
    assert store_bytes(tmp_path, capture) == store_bytes(f"{bucket}/a", capture)
    for one, two in zip(local.artifacts, remote.artifacts, strict=True):
        assert open_artifact(tmp_path, one.id).result == open_artifact(f"{bucket}/a", two.id).result
    assert verify(Location(f"{bucket}/a"), capture) == []
    rows = np.asarray(open_capture(f"{bucket}/a", capture).site("last")["activation"])
    plain = xr.open_zarr(f"{bucket}/a/captures/{capture}.zarr", group="sites/last@out@0", consolidated=False)
    assert np.array_equal(rows, plain["activation"].values)


def test_workers_write_to_s3(bucket: str) -> None:
    outcome = run_on_workers(vectors_run(f"{bucket}/b", n=60))
    assert outcome.captures[0].rows == {"sample": 60}
    assert run_serial(vectors_run(f"{bucket}/b", n=60)).forwards == 0


def test_a_run_leaves_the_role_of_its_machine_in_use() -> None:
    """docs/storage.md promises it; importing the flow must not switch it off."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    asked = "import os, pipelines.run; print(*(k for k in os.environ if k.startswith('AWS_')))"
    told = subprocess.run(
        [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == []
