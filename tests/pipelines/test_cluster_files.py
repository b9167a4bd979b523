"""Cluster files: each that is shipped, the job script or pods that come of it, what is refused, and a run by jobs that a stand-in for
SLURM's commands starts here, as real processes from the real script.
"""

import copy
import os
import shlex
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import jsonschema
import kubernetes_validate
import psutil
import pytest
import torch
import yaml

from pipelines.cluster import DaskDriver, back_seconds, open_client
from pipelines.cluster_file import load_cluster
from pipelines.execute import execute
from pipelines.kube import dask_cluster
from pipelines.plan import make_plan
from pipelines.preflight import check_plan, workers_of
from pipelines.progress import Quiet
from pipelines.run import execute_plan
from pipelines.serial import PlainSteps, run_serial
from pipelines.slurm import certificates, make_slurm
from pipelines.workers_here import AT_ONCE, worker_environment
from schemas.cluster import KubernetesCluster, SlurmCluster
from schemas.errors import NotFoundError, ResourceError, SpecError
from schemas.execution import Execution
from schemas.run import RunSpec
from tests.pipelines.outside import wait_until
from tests.pipelines.runs import store_bytes, vectors_run

pytestmark = pytest.mark.alone
SHIPPED = sorted(Path("deploy/clusters").glob("*.yaml"))
CRD = "operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
"""As it is installed: the one it is made from refers to other files."""
SLURM: dict[str, Any] = {"kind": "slurm", "memory_bytes": 2 << 30, "interface": "lo", "wait_minutes": 1}


def of_file(path: Path | str, **execution: Any) -> SlurmCluster | KubernetesCluster:
    return load_cluster(Execution(cluster="file", file=str(path), workers=2, **execution))


def written(folder: Path, **content: Any) -> str:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def with_file(run: RunSpec, file: str, **changes: Any) -> RunSpec:
    given = {"cluster": "file", "file": file, "workers": 2, "device": "cpu", **changes}
    return run.model_copy(update={"execution": Execution.model_validate(given)})


@pytest.mark.parametrize("path", [p for p in SHIPPED if "slurm" in p.name], ids=lambda p: p.name)
def test_the_job_script_of_a_shipped_file(path: Path, tmp_path: Path) -> None:
    found = of_file(path)
    assert isinstance(found, SlurmCluster)
    found = found.model_copy(update={"shared_directory": str(tmp_path)})
    with certificates(found) as security, make_slurm(found, "subspan-x", 3, security) as cluster:
        assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob(".subspan-tls-*")] == [0o700]
        lines = cluster.job_script().splitlines()
        assert cluster.scheduler_address.startswith("tls://")
    assert "#SBATCH --cpus-per-task=3" in lines
    assert f"#SBATCH --mem={found.memory_bytes >> 30}G" in lines
    assert f"#SBATCH -t {found.walltime_minutes // 60:02d}:{found.walltime_minutes % 60:02d}:00" in lines
    assert ("#SBATCH --gres=gpu:1" in lines) == bool(found.gpus)
    assert (f"#SBATCH -p {found.queue}" in lines) == bool(found.queue)
    for key, value in worker_environment(3).items():
        assert f"export {key}={shlex.quote(value)}" in lines
    words = shlex.split(lines[-1])
    given = dict(pairwise(words))
    assert (given["--nthreads"], given["--memory-limit"]) == ("1", f"{found.memory_bytes >> 30}.00GiB")
    assert "--nanny" in words
    assert "--no-nanny" not in words
    ends = float(given["--lifetime"][:-1]) + float(given["--lifetime-stagger"][:-1])
    assert ends < found.walltime_minutes * 60
    assert given["--tls-key"].startswith(str(tmp_path))


def operator_schema() -> dict[str, Any]:
    """The DaskCluster schema of the operator: pods are whatever it takes, unknown keys are refused."""
    crd = yaml.safe_load(files("dask_kubernetes").joinpath(CRD).read_text())
    return closed(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], top=True)


def closed(schema: Any, top: bool = False) -> Any:
    """Kubernetes drops keys that a schema does not name; here they are mistakes."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or top
    if isinstance(schema.get("properties"), dict) and not free and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    return made


def pods(resource: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pods that the operator makes of a resource."""
    return {
        role: {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": role},
            "spec": resource["spec"][role]["spec"],
        }
        for role in ("worker", "scheduler")
    }


@pytest.mark.parametrize("path", [p for p in SHIPPED if "kubernetes" in p.name], ids=lambda p: p.name)
def test_the_resource_of_a_shipped_file(path: Path) -> None:
    found = of_file(path)
    assert isinstance(found, KubernetesCluster)
    resource = dask_cluster(found, "subspan-x", 2, 5)
    resource["metadata"]["namespace"] = found.namespace
    jsonschema.validate({k: resource[k] for k in ("spec",)}, operator_schema())
    for pod in pods(resource).values():
        kubernetes_validate.validate(copy.deepcopy(pod), "1.33", strict=True)
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    kubernetes_validate.validate(
        service | {"spec": resource["spec"]["scheduler"]["service"]}, "1.33", strict=True
    )
    assert resource["spec"]["worker"]["replicas"] == 5
    (worker,) = resource["spec"]["worker"]["spec"]["containers"]
    assert worker["image"] == found.image
    assert worker["args"][:4] == ["dask", "worker", "--nthreads", "1"]
    assert worker["resources"]["limits"]["memory"] == str(found.memory_bytes)
    assert worker["resources"]["limits"].get("nvidia.com/gpu", "0") == str(found.gpus)
    environment = {entry["name"]: entry["value"] for entry in worker["env"]}
    expected = {k: v for k, v in worker_environment(2).items() if k != "PYTHONPATH"} | found.environment
    assert {key: environment[key] for key in expected} == expected
    assert "PYTHONPATH" not in environment
    (scheduler,) = resource["spec"]["scheduler"]["spec"]["containers"]
    assert {entry["name"].rpartition("__")[2]: entry["value"] for entry in scheduler["env"]} == {
        "TARGET_DURATION": AT_ONCE,
        "ALLOWED_FAILURES": str(dask.config.get("distributed.scheduler.allowed-failures")),
    }
    assert [entry["secretRef"]["name"] for entry in worker["envFrom"]] == list(found.secrets)


def test_a_resource_with_a_misspelt_key_is_not_valid() -> None:
    """The check above can fail."""
    resource = dask_cluster(KubernetesCluster(memory_bytes=1 << 30, image="i"), "x", 1, 1)
    resource["spec"]["worker"]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate({"spec": resource["spec"]}, operator_schema())
    pod = pods(dask_cluster(KubernetesCluster(memory_bytes=1 << 30, image="i"), "x", 1, 1))["worker"]
    pod["spec"]["containers"][0]["imagee"] = "i"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.33", strict=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("kind: slurm\nmemory_bytes: 8589934592\nwalltime: 60\n", r"cluster.yaml:3: walltime: "),
        ("kind: slurm\n", r"cluster.yaml:1: memory_bytes: "),
        ("kind: pbs\nmemory_bytes: 8589934592\n", r"cluster.yaml:1: .*'slurm', 'kubernetes'"),
        ("- kind\n", r"found a list of 1, expected a mapping with at least `kind`"),
        (
            "kind: slurm\nmemory_bytes: 8589934592\nprologue: ['a\n\n  b']\n",
            r"cluster.yaml:3: prologue.0: .*pattern",
        ),
        (
            "kind: slurm\nmemory_bytes: 8589934592\nshared_directory: ''\n",
            r"cluster.yaml:3: shared_directory: .*at least 1",
        ),
        (
            "kind: kubernetes\nimage: x\nmemory_bytes: 8589934592\nclaims:\n  disk: data\n",
            r"cluster.yaml:5: claims.disk: .*pattern",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "cluster.yaml").write_text(content)
    with pytest.raises(SpecError, match=says):
        of_file(tmp_path / "cluster.yaml")


def test_what_is_missing_is_said_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match=r"there is no cluster file"):
        of_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ResourceError, match=r"device is cuda and workers of .* have gpus: 0"):
        of_file("deploy/clusters/slurm.yaml", device="cuda")
    monkeypatch.setattr("pipelines.cluster_file.NEEDED", {"slurm": ("not_there", "dask-jobqueue")})
    with pytest.raises(
        ResourceError, match=r"dask-jobqueue, which is not installed: pip install 'subspan\[slurm\]'"
    ):
        of_file("deploy/clusters/slurm.yaml")


@pytest.mark.parametrize(
    ("execution", "says"),
    [
        ({"cluster": "file"}, "give both"),
        ({"cluster": "file", "file": "x.yaml"}, "execution.workers is None"),
        ({"file": "x.yaml"}, "set cluster to file"),
        ({"cluster": "threads", "least_workers": 1, "workers": 2}, "do not come and go"),
        ({"cluster": "processes", "least_workers": 3, "workers": 2}, "at least as many"),
        ({"cluster": "processes", "least_workers": 3}, "give workers"),
    ],
)
def test_what_belongs_together_in_a_run_file(execution: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Execution.model_validate(execution)


def test_a_plan_looks_at_the_file_early(tmp_path: Path) -> None:
    run = vectors_run(tmp_path / "root")
    small = make_plan(with_file(run, written(tmp_path, kind="slurm", memory_bytes=1 << 28)))
    assert workers_of(small) == ("cpu", 2)
    with pytest.raises(ResourceError, match=r"needs about \d+ MiB, a worker has 256 MiB.*memory_bytes in "):
        check_plan(small)
    with pytest.raises(NotFoundError):
        check_plan(make_plan(with_file(run, str(tmp_path / "nowhere.yaml"))))
    plan = make_plan(
        with_file(run, written(tmp_path, kind="slurm", memory_bytes=4 << 30, gpus=1), device="auto")
    )
    check_plan(plan)
    assert workers_of(plan).device == "cuda"
    assert not (tmp_path / "root" / "captures").exists()


SBATCH = """#!/bin/bash
[ "$1" = --test-only ] && exit 0
cp "$1" {jobs}/job.$$.sh
setsid bash {jobs}/job.$$.sh >{jobs}/job.$$.out 2>&1 </dev/null &
echo $! >> {jobs}/pids
echo "Submitted batch job $!"
"""
SCANCEL = "#!/bin/bash\nkill -TERM -- -$1\n"


@contextmanager
def slurm_here(folder: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str = SBATCH) -> Iterator[Path]:
    """`sbatch` and `scancel` that run job scripts as processes of this machine; yields where job numbers are noted."""
    (folder / "bin").mkdir(parents=True)
    for name, text in (("sbatch", sbatch.format(jobs=folder)), ("scancel", SCANCEL)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    try:
        yield folder / "pids"
    finally:
        for pid in jobs_of(folder / "pids"):
            if psutil.pid_exists(pid):
                os.killpg(pid, signal.SIGKILL)


def jobs_of(pids: Path) -> list[int]:
    return [int(line) for line in pids.read_text().split()] if pids.exists() else []


def variables(names: list[str]) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


def test_jobs_write_what_one_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real job script, run by bash; one job is lost in mid-run, and another takes its place."""
    monkeypatch.setattr("pipelines.workers_elsewhere.LOST_SECONDS", "1s")
    monkeypatch.setattr("pipelines.slurm.KEEP_SECONDS", 1)
    slow: dict[str, Any] = {"n": 480, "network": {"pause": 0.03}}
    with monkeypatch.context() as patch:
        patch.setattr("tests.factories.time", SimpleNamespace(sleep=lambda _: None))
        capture = run_serial(vectors_run(tmp_path / "quiet", **slow)).captures[0].id
    run = vectors_run(tmp_path / "jobs", **slow)
    file = written(tmp_path, **SLURM, shared_directory=str(tmp_path / "shared"), environment={"MINE": "a b"})
    run = with_file(run, file)
    plan = make_plan(run)
    with slurm_here(tmp_path / "slurm", monkeypatch) as pids:
        with open_client(run.execution, 1, "cpu", plan.memory_bytes) as client:
            names = [*worker_environment(1), "MINE"]
            for found in client.run(variables, names).values():
                assert found == worker_environment(1) | {"MINE": "a b"}
            done: list[Any] = []

            def lose_one(_: Any) -> None:
                done.append(_)
                if len(done) == 3:
                    os.killpg(jobs_of(pids)[0], signal.SIGKILL)

            progress = Quiet()
            monkeypatch.setattr(progress, "advance", lambda *a, **k: lose_one(a))
            made = execute(plan, DaskDriver(client, 2), "cpu", PlainSteps(), progress)
            wait_until(lambda: len(jobs_of(pids)) >= 3, 30)
        wait_until(lambda: not any(map(psutil.pid_exists, jobs_of(pids))), 30)
    assert store_bytes(tmp_path / "jobs", made.captures[0].id) == store_bytes(tmp_path / "quiet", capture)
    assert made.captures[0].id == capture
    assert made.captures[0].rows == {"sample": 480}
    assert list((tmp_path / "shared").glob(".subspan-tls*")) == []


def test_the_flow_runs_on_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own way to a cluster, with plain steps for Prefect's; a GPU that workers do not have is refused when they are there."""
    monkeypatch.setattr("pipelines.run.PrefectSteps", PlainSteps)
    file = written(tmp_path, **SLURM, shared_directory=str(tmp_path / "shared"))
    run = with_file(vectors_run(tmp_path / "root", n=48), file, device="auto")
    with slurm_here(tmp_path / "slurm", monkeypatch):
        assert execute_plan(make_plan(run), Quiet()).captures[0].rows == {"sample": 48}
        if torch.cuda.is_available():
            return
        written(tmp_path, **SLURM, shared_directory=str(tmp_path / "shared"), gpus=1)
        run = with_file(vectors_run(tmp_path / "root", n=49), file, device="auto")
        with pytest.raises(ResourceError, match=r"workers at .*cluster.yaml see no CUDA device"):
            execute_plan(make_plan(run), Quiet())


def test_a_job_that_slurm_refused_for_a_moment_is_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.slurm.KEEP_SECONDS", 1)
    file = written(tmp_path, **SLURM, shared_directory=str(tmp_path / "shared"))
    execution = with_file(vectors_run(tmp_path), file).execution
    busy = '[ "$1" != --test-only ] && mkdir {jobs}/busy 2>/dev/null && exit 1'
    begin, rest = SBATCH.split("\n", 1)
    with (
        slurm_here(tmp_path / "slurm", monkeypatch, f"{begin}\n{busy}\n{rest}") as pids,
        open_client(execution, 1, "cpu") as client,
    ):
        client.wait_for_workers(2, timeout=50)
        assert len(jobs_of(pids)) == 2
    assert (tmp_path / "slurm" / "busy").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"interface": "no0"}, "no network interface no0, only .*set interface in the cluster file"),
        ({"shared_directory": "/proc/no"}, "below shared_directory /proc/no .*the nodes share"),
    ],
)
def test_what_this_machine_lacks_for_slurm_is_told(
    wrong: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, **(SLURM | {"shared_directory": str(tmp_path)} | wrong))
    execution = with_file(vectors_run(tmp_path), file).execution
    with (
        slurm_here(tmp_path / "slurm", monkeypatch),
        pytest.raises(ResourceError, match=told),
        open_client(execution, 1, "cpu"),
    ):
        pass


def test_units_wait_for_jobs_in_a_queue_as_long_as_the_file_allows(tmp_path: Path) -> None:
    run = vectors_run(tmp_path)
    for minutes, seconds in ((1, 600), (60, 3600)):
        file = written(tmp_path, **(SLURM | {"wait_minutes": minutes}))
        assert back_seconds(with_file(run, file).execution) == seconds
    assert back_seconds(run.execution) == 600


def test_what_sbatch_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, **SLURM, shared_directory=str(tmp_path / "shared"))
    execution = with_file(vectors_run(tmp_path), file).execution
    refuses = "#!/bin/bash\necho 'invalid partition specified: fast' >&2\nexit 1\n"
    with (
        slurm_here(tmp_path / "slurm", monkeypatch, refuses),
        pytest.raises(ResourceError, match=r"SLURM takes no such job: invalid partition specified: fast"),
        open_client(execution, 1, "cpu"),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match="found no sbatch"), open_client(execution, 1, "cpu"):
        pass


def test_kubernetes_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    execution = Execution(cluster="file", file="deploy/clusters/kubernetes.yaml", workers=1)
    with (
        pytest.raises(ResourceError, match="made no cluster in namespace subspan"),
        open_client(execution, 1, "cpu"),
    ):
        pass
