"""Files of deployments as Prefect itself loads them: every flow, pool, schedule and form is there.

Kinds of pool whose package is not installed are compared with what that package takes, as far as files tell.
"""

import io
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.cli.deploy._config import _load_deploy_configs_and_actions
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.cli.deploy._schedules import _construct_schedules
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import import_object
from rich.console import Console

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
FILES = {"prefect.yaml": "local", "prefect.docker.yaml": "docker", "prefect.kubernetes.yaml": "kubernetes"}
FLOWS = {
    "pipelines.run:run",
    "pipelines.capture:capture",
    "pipelines.analyse:analyse",
    "pipelines.watch:watch",
}
TAKEN = {
    "local": set(),
    "docker": {"image", "image_pull_policy", "volumes", "auto_remove", "env", "shm_size", "networks", "mem_limit"},
    "kubernetes": {
        "image", "image_pull_policy", "namespace", "service_account_name", "finished_job_ttl",
        "job_watch_timeout_seconds", "env",
    },
}  # fmt: skip
"""Pool to the variables of its jobs that are used here."""


def loaded(name: str) -> list[dict[str, Any]]:
    told = io.StringIO()
    found, actions = _load_deploy_configs_and_actions(DEPLOY / name, console=Console(file=told))
    assert told.getvalue() == ""
    assert [list(step) for step in actions["pull"]] == [["prefect.deployments.steps.set_working_directory"]]
    return found


def flow_of(entrypoint: str) -> Flow[Any, Any]:
    found = import_object(entrypoint)
    assert isinstance(found, Flow)
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_flow_is_deployed(name: str) -> None:
    PrefectYamlModel.model_validate(yaml.safe_load((DEPLOY / name).read_text()))
    found = loaded(name)
    assert {one["entrypoint"] for one in found} == FLOWS
    names = [one["name"] for one in found]
    assert len(set(names)) == len(names)
    for one in found:
        assert one["description"].endswith(".")
        assert "subspan" in one["tags"]
        limit = one["concurrency_limit"]
        assert (limit["limit"] if isinstance(limit, dict) else limit) == 1
        assert one["work_pool"]["name"] == FILES[name]
        assert set(one["work_pool"].get("job_variables", {})) <= TAKEN[FILES[name]]


@pytest.mark.parametrize("name", FILES)
def test_schedules_are_off_and_forms_are_right(name: str) -> None:
    for one in loaded(name):
        schema = parameter_schema(flow_of(one["entrypoint"])).model_dump()
        given = [one["parameters"]] if one.get("parameters") else []
        for schedule in _construct_schedules(one, {}, console=Console(), is_interactive=lambda: False):
            assert schedule["active"] is False
            assert schedule["slug"]
            given += [schedule["parameters"]] if schedule.get("parameters") else []
        for parameters in given:
            jsonschema.validate(parameters, schema)
            assert (DEPLOY.parent / parameters["form"]["run_file"]).is_file()


def test_flows_of_one_kind_have_one_name() -> None:
    assert {flow_of(entrypoint).name for entrypoint in FLOWS} == {
        "subspan-run", "subspan-capture", "subspan-analyse", "subspan-watch",
    }  # fmt: skip
