"""Captures on a GPU: the values of the CPU to a tolerance, in this process and with one worker per GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.serial import run_serial
from schemas.run import RunSpec
from subspan import open_capture
from tests.pipelines.runs import vectors_run
from tests.pipelines.test_cluster import run_on_workers

pytestmark = pytest.mark.gpu


def on_gpu(run: RunSpec, cluster: str) -> RunSpec:
    execution = run.execution.model_copy(update={"device": "cuda", "cluster": cluster, "workers": 1})
    return run.model_copy(update={"execution": execution})


@pytest.mark.parametrize("cluster", ["processes", "gpus"])
def test_a_gpu_gives_what_the_cpu_gives(tmp_path: Path, cluster: str) -> None:
    cpu = run_serial(vectors_run(tmp_path / "cpu"))
    run = on_gpu(vectors_run(tmp_path / "gpu", stages={"pca": {"method": "spectrum.pca"}}), cluster)
    gpu = run_serial(run) if cluster == "processes" else run_on_workers(run)
    one, two = (open_capture(tmp_path / x, o.captures[0].id) for x, o in (("cpu", cpu), ("gpu", gpu)))
    assert one.id == two.id
    for site in one.sites:
        assert np.allclose(one.site(site)["activation"], two.site(site)["activation"], atol=1e-5)


def test_receipts_name_the_gpu(tmp_path: Path) -> None:
    from tasks.store.location import Location
    from tasks.store.receipts import read_receipts

    outcome = run_serial(on_gpu(vectors_run(tmp_path, n=20), "processes"))
    receipts = read_receipts(Location(str(tmp_path)), outcome.captures[0].id).values()
    assert {receipt.fingerprint.device for receipt in receipts} == {torch.cuda.get_device_name(0)}
