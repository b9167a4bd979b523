"""deploy/: Dockerfiles, compose, Helm values and manifests, as far as a machine without a Docker engine can tell.

`make image-check` runs the Dockerfile's steps.
"""

import functools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines.cluster_file import load_cluster
from pipelines.forms import CaptureForm
from schemas.cluster import KubernetesCluster
from schemas.execution import Execution
from tests.replay_dockerfile import TOP, allowed, first_stage, instructions

DEPLOY = TOP / "deploy"
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.gpu"]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PINNED = re.compile(r"^[\w./-]+:(?!latest)[\w.-]*\d[\w.-]*$")
VARIABLE = re.compile(r"\$\{(\w+)(.*?)\}")
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_a_dockerfile_is_clean_and_runs_as_nobody_special(path: Path) -> None:
    hadolint = BIN / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
    lines = list(instructions(path))
    assert [rest for word, rest in lines if word == "USER"] == ["1000:1000"]
    assert all(PINNED.match(rest.split()[0]) for word, rest in lines if word == "FROM")
    assert lines[-1][0] == "CMD"
    assert lines[-1][1].startswith("[")  # exec form: signals reach the process
    assert "ENTRYPOINT" not in [
        word for word, _ in lines
    ]  # the Dask operator gives whole commands as arguments
    installs = [rest for word, rest in lines if word == "RUN" and "pip install" in rest]
    assert all("-c constraints.txt" in rest or "--no-deps" in rest for rest in installs)


def test_both_images_install_the_same() -> None:
    cpu, gpu = ([step for step in first_stage(path) if step[0] in ("COPY", "RUN")] for path in DOCKERFILES)
    assert cpu == gpu


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("tasks/unit.py", True),
        ("constraints.txt", True),
        ("examples/demo.yaml", True),
        ("deploy/prefect.yaml", True),
        ("deploy/.env", False),
        (".env", False),
        (".git/config", False),
        ("subspan-out/runs/x.json", False),
        ("tasks/__pycache__/unit.pyc", False),
        ("tests/helpers.py", False),
    ],
)
def test_what_goes_into_an_image(name: str, there: bool) -> None:
    assert allowed(name) == there


def test_every_copied_path_is_there() -> None:
    for path in DOCKERFILES:
        for word, rest in instructions(path):
            if word == "COPY" and not rest.startswith("--from"):
                *sources, _ = rest.split()
                for source in sources:
                    assert (TOP / source).exists()
                    assert allowed(source)


def texts(value: Any) -> Iterator[str]:
    """Every string in nested data."""
    if isinstance(value, Mapping):
        for child in value.values():
            yield from texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from texts(child)
    elif isinstance(value, str):
        yield value


def test_compose_names_only_what_it_has() -> None:
    conditions = {"service_started", "service_healthy", "service_completed_successfully"}
    for name, service in SERVICES.items():
        for other, need in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} needs {other}"
            assert need["condition"] in conditions
            if need["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"
            if need["condition"] == "service_completed_successfully":
                assert SERVICES[other]["restart"] == "no", f"{other} would begin again and never be complete"
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        assert {c["source"] for c in service.get("configs", [])} <= set(COMPOSE["configs"])


def test_what_flows_make_outlives_their_container() -> None:
    """The root that the form offers is a volume, and the image has the folder: else the volume would belong to root."""
    root = f"/work/{CaptureForm.model_fields['root'].default}"
    assert f"results:{root}" in SERVICES["prefect-worker"]["volumes"]
    for path in DOCKERFILES:
        made = next(line for line in path.read_text().splitlines() if "install -d -o subspan" in line)
        assert root in made.split()


def test_compose_has_no_circle() -> None:
    left = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    while left:
        ready = [name for name, needs in left.items() if not needs & set(left)]
        assert ready, f"these wait for each other: {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in ready}


def test_compose_opens_no_port_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name, service in SERVICES.items():
        assert service.get("ports") or service["networks"] == ["inside"], f"{name} can reach the outside"
        assert not service.get("privileged")
        assert PINNED.match(service["image"]), f"{service['image']} is not pinned"


def test_secrets_have_no_defaults() -> None:
    found = {name: rest for text in texts(COMPOSE) for name, rest in VARIABLE.findall(text)}
    assert set(found) == {"POSTGRES_PASSWORD", "PREFECT_AUTH", "STORE_ACCESS_KEY", "STORE_SECRET_KEY"}
    assert all(rest.startswith(":?") for rest in found.values())
    example = (DEPLOY / ".env.example").read_text().splitlines()
    assert sorted(line for line in example if not line.startswith("#")) == sorted(
        f"{name}=" for name in found
    )
    ignored = subprocess.run(
        ["git", "check-ignore", "deploy/.env"], cwd=TOP, capture_output=True, check=False
    )
    assert ignored.returncode == 0


@functools.cache
def help_of(*command: str) -> str:
    """What a command says of itself."""
    asked = subprocess.run(
        [BIN / command[0], *command[1:], "--help"], capture_output=True, text=True, check=True, cwd=TOP
    )
    return asked.stdout


OWN = [name for name, service in SERVICES.items() if service["image"].startswith("subspan:")]
WORDS = {"subspan": 1, "dask": 1, "prefect": 2}
"""How many words choose the command of each program."""


def commands(service: Mapping[str, Any]) -> Iterator[list[str]]:
    """The program and arguments of a service, one by one where a shell runs several."""
    command: list[str] = service["command"]
    if command[:2] != ["sh", "-c"]:
        yield command
        return
    for part in command[2].split("&&"):
        yield part.split()


@pytest.mark.parametrize("name", OWN)
def test_commands_and_their_options_exist(name: str) -> None:
    for program, *rest in commands(SERVICES[name]):
        if program == "python":
            compile(rest[1], name, "exec")
            continue
        rest = [word for word in rest if word != "--no-prompt"]  # an option of prefect itself
        chosen = [word for word in rest[: WORDS[program]] if not word.startswith("-")]
        said = help_of(program, *chosen)
        for option in (word for word in rest if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", said), f"{program} {chosen} has no {option}"


def test_one_service_builds_the_image_of_all() -> None:
    built = [name for name in OWN if "build" in SERVICES[name]]
    assert len({SERVICES[name]["image"] for name in OWN}) == len(built) == 1
    place = SERVICES[built[0]]["build"]
    assert (DEPLOY / place["context"] / place["dockerfile"]).resolve() == DOCKERFILES[0]
    policies = {name: SERVICES[name]["pull_policy"] for name in OWN}
    assert policies == dict.fromkeys(OWN, "never") | {built[0]: "build"}


def test_a_misspelt_option_is_found() -> None:
    """The check above can fail."""
    assert "--nthread " not in help_of("dask", "worker")
    assert not re.search(r"(?<![\w-])--nthread(?![\w-])", help_of("dask", "worker"))


def test_workers_of_compose_are_those_of_a_run() -> None:
    """The same environment as workers that a run starts, and one Dask thread."""
    from pipelines.workers_here import worker_environment

    worker = SERVICES["dask-worker"]
    assert worker["command"][worker["command"].index("--nthreads") + 1] == "1"
    ours = worker_environment(1)
    given = {k: v for k, v in worker["environment"].items() if k in ours}
    assert given == {k: ours[k] for k in given}
    assert {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"} <= set(given)
    assert {k for k in ours if k.startswith("MALLOC")} <= set(given)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_a_manifest_is_valid(path: Path) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, "1.33", strict=True)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "subspan"


def test_manifests_values_and_cluster_files_speak_of_the_same_things() -> None:
    worker, server, operator = (
        yaml.safe_load((DEPLOY / "helm" / f"{name}.yaml").read_text())
        for name in ("prefect-worker", "prefect-server", "dask-operator")
    )
    account = next(d for path in MANIFESTS for d in documents(path) if d["kind"] == "ServiceAccount")
    assert worker["serviceAccount"]["name"] == account["metadata"]["name"]
    (shipped,) = [
        load_cluster(Execution(cluster="file", file=str(DEPLOY / "clusters" / "kubernetes.yaml"), workers=1))
    ]
    assert isinstance(shipped, KubernetesCluster)
    image = worker["worker"]["image"]
    assert f"{image['repository']}:{image['prefectTag']}" == shipped.image
    assert operator["kopfArgs"] == [f"--namespace={shipped.namespace}"]
    pins = dict(line.split("==") for line in (TOP / "constraints.txt").read_text().split() if "==" in line)
    assert server["global"]["prefect"]["image"]["prefectTag"].startswith(pins["prefect"] + "-")
    assert operator["image"]["tag"] == pins["dask-kubernetes"]


def test_values_of_the_operator_are_keys_of_its_chart() -> None:
    chart = files("dask_kubernetes").joinpath("operator/deployment/helm/dask-kubernetes-operator/values.yaml")
    known = yaml.safe_load(chart.read_text())
    mine = yaml.safe_load((DEPLOY / "helm" / "dask-operator.yaml").read_text())
    for key, value in mine.items():
        assert key in known
        if isinstance(value, dict) and known[key]:
            assert set(value) <= set(known[key])
