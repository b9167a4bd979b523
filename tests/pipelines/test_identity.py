"""A capture holds what its id says: one network, one state of the data; and the same question has one id."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tasks.unit
from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.errors import DataError, MethodError, ModelError, UnitError
from schemas.run import RunSpec
from subspan import open_capture
from tests.pipelines.runs import store_bytes, vectors_run
from tests.pipelines.test_cluster import run_on_workers


def array_run(root: Path, path: Path, **store: Any) -> RunSpec:
    data = {"source": {"kind": "arrays", "path": str(path)}}
    return vectors_run(root, data=data, store={"shard_rows": 4, "chunk_rows": 4, **store})


def save(path: Path, value: float) -> Path:
    np.save(path, np.full((16, 8), value, dtype=np.float32))
    return path


def test_workers_with_another_network_are_refused(tmp_path: Path) -> None:
    run = vectors_run(
        tmp_path, n=40, model={"kind": "factory", "factory": "tests.factories:unseeded"}, sites=["0"]
    )
    with pytest.raises(ModelError, match="gives another network each time"):
        run_on_workers(run)
    assert not list((tmp_path / "captures").glob("*.manifest.json"))


def test_data_that_change_in_mid_run_are_refused(tmp_path: Path) -> None:
    run = array_run(tmp_path / "out", save(tmp_path / "x.npy", 0.0))
    plan = make_plan(run)
    from pipelines.execute import execute
    from pipelines.progress import Quiet
    from pipelines.serial import PlainSteps

    def driver(function: Any, items: Any, on_done: Any) -> None:
        for n, item in enumerate(items):
            if n == 2:
                save(tmp_path / "x.npy", 1.0)
            on_done(function(item))

    with pytest.raises(DataError, match="changed data are another capture"):
        execute(plan, driver, "cpu", PlainSteps(), Quiet())
    other = run_serial(run).captures[0].id
    assert other != plan.captures[0].id
    assert np.ptp(open_capture(tmp_path / "out", other).site("first")["activation"].values, axis=0).max() == 0


def test_data_that_change_between_plan_and_run_are_another_capture(tmp_path: Path) -> None:
    run = array_run(tmp_path / "out", save(tmp_path / "x.npy", 0.0))
    first = make_plan(run).captures[0].id
    save(tmp_path / "x.npy", 1.0)
    assert run_serial(run).captures[0].id != first


def test_the_same_data_elsewhere_are_the_same_capture(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = run_serial(array_run(tmp_path / "out", save(tmp_path / "a" / "x.npy", 3.0)))
    shutil.copy(tmp_path / "a" / "x.npy", tmp_path / "b" / "x.npy")
    two = run_serial(array_run(tmp_path / "out", tmp_path / "b" / "x.npy"))
    assert two.captures[0].id == one.captures[0].id
    assert not two.captures[0].computed
    spelled = array_run(tmp_path / "out", tmp_path / "b" / "x.npy", unit_shards=1)
    assert make_plan(spelled).captures[0].id == one.captures[0].id


def test_other_code_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "from torch import nn\nclass N(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Identity()\n"
        "    def forward(self, x):\n        return self.a(FACTOR * x)\ndef make():\n    return N()\n"
    )
    ids = []
    for factor in (1, 2):
        name = f"scaled_{factor}"
        (tmp_path / f"{name}.py").write_text(f"FACTOR = {factor}\n" + code)
        run = vectors_run(
            tmp_path / "out", n=8, model={"kind": "factory", "factory": f"{name}:make"}, sites=["a"]
        )
        ids.append(make_plan(run).captures[0].spec.weights)
    assert ids[0] != ids[1]


def test_a_network_that_counts_its_forwards_is_refused(tmp_path: Path) -> None:
    run = vectors_run(
        tmp_path, n=8, model={"kind": "factory", "factory": "tests.factories:counter"}, sites=["first"]
    )
    with pytest.raises(ModelError, match="buffer 'calls'"):
        run_serial(run)


def test_a_name_opens_the_capture_of_the_last_run(tmp_path: Path) -> None:
    ids = {}
    for dtype in ("float32", "bfloat16", "float32"):
        ids[dtype] = run_serial(vectors_run(tmp_path, n=8, store={"dtype": dtype})).captures[0].id
        assert open_capture(tmp_path, "vectors").id == ids[dtype]


def test_a_disk_error_is_no_fault_of_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = vectors_run(tmp_path, n=40)
    forward = tasks.unit._forward

    def failing(context: Any, tally: Any, batch: list[int], *early: Any) -> Any:
        if context.job.unit.index == 1:
            raise DataError("sample 17 cannot be read") from OSError(errno.EIO, "Input/output error")
        return forward(context, tally, batch, *early)

    monkeypatch.setattr(tasks.unit, "_forward", failing)
    with pytest.raises(DataError, match="cannot be read"):
        run_serial(run)
    monkeypatch.undo()
    outcome = run_serial(run)
    assert outcome.captures[0].failures == ()


def test_a_unit_in_which_everything_raises_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(tasks.unit, "collect", broken)
    with pytest.raises(UnitError, match=r"all 16 samples.*driver is gone"):
        run_serial(vectors_run(tmp_path, n=16))


def test_a_lost_shard_is_made_again_by_one_run(tmp_path: Path) -> None:
    run = vectors_run(tmp_path)
    capture = run_serial(run).captures[0].id
    whole = store_bytes(tmp_path, capture)
    (
        tmp_path / "captures" / f"{capture}.zarr" / "sites" / "last@out@0" / "activation" / "c" / "2" / "0"
    ).unlink()
    (tmp_path / "captures" / f"{capture}.manifest.json").unlink()
    assert run_serial(run).captures[0].computed
    assert store_bytes(tmp_path, capture) == whole


def test_a_method_that_raises_anything_costs_only_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.methods.spectrum.summary as summary

    def broken(*_: Any) -> Any:
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(summary, "finish", broken)
    stages = {"summary": {"method": "spectrum.summary"}, "pca": {"method": "spectrum.pca"}}
    outcome = run_serial(vectors_run(tmp_path, stages=stages))
    assert {failure.stage for failure in outcome.stage_failures} == {"summary"}
    assert "did not converge" in outcome.stage_failures[0].reason
    assert len([a for a in outcome.artifacts if a.stage == "pca"]) == 3
    assert outcome.exit_code == 2
    assert not issubclass(np.linalg.LinAlgError, MethodError)


def test_a_stage_behind_a_failed_one_names_it_and_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site whose maker did not fail goes on; what needs all sites does not."""
    import tasks.methods.spectrum.pca as pca

    made = pca.finish

    def broken(state: Any, carry: Any, inputs: Any, config: Any) -> Any:
        if inputs.widths["x"] == 16:
            raise ValueError("too wide today\nand more lines")
        return made(state, carry, inputs, config)

    monkeypatch.setattr(pca, "finish", broken)
    stages = {
        "reduced": {"method": "spectrum.project", "sites": "*st"},
        "axes": {"method": "spectrum.pca", "sites": "*st"},
        "distances": {"method": "geometry.subspace_distances"},
    }
    outcome = run_serial(vectors_run(tmp_path, stages=stages))
    reasons = {(f.stage, f.site): f.reason for f in outcome.stage_failures}
    told = (
        "not run: it needs what stage 'axes' at first:out:0 makes, which failed: ValueError: too wide today"
    )
    assert reasons.pop(("axes", "first:out:0")) == "ValueError: too wide today\nand more lines"
    assert reasons == {("reduced", "first:out:0"): told, ("distances", "first:out:0 | last:out:0"): told}
    assert [(a.stage, a.site) for a in outcome.artifacts] == [
        ("reduced", "last:out:0"),
        ("axes", "last:out:0"),
    ]


def test_a_damaged_file_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.cli import main

    outcome = run_serial(vectors_run(tmp_path, n=8, stages={"summary": {"method": "spectrum.summary"}}))
    lost, *others = (artifact.id for artifact in outcome.artifacts)
    record = tmp_path / "artifacts" / lost / "artifact.json"
    record.write_bytes(record.read_bytes()[:100])
    assert main(["ls", "--json", "--root", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["damaged"]) == [lost]
    assert sorted(artifact["id"] for artifact in found["artifacts"]) == sorted(others)
