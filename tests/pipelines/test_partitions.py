"""The name of a partitioned capture: opens the only partition, or says which there are and how to open one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.plan import make_plan
from pipelines.serial import run_serial
from pipelines.status import find
from schemas.errors import SpecError, UnknownNameError
from schemas.run import RunSpec
from subspan import open_capture
from tasks.store.artifacts import read_artifact
from tasks.store.location import Location
from tests.pipelines.runs import vectors_run


def partitioned(folder: Path) -> RunSpec:
    data = {
        "source": {"kind": "arrays", "path": str(folder / "day*.npy")},
        "partition_by": "file",
    }
    return vectors_run(folder / "out", data=data)


def add_day(folder: Path, day: int) -> None:
    np.save(folder / f"day{day}.npy", np.full((8, 8), day, dtype=np.float32))


def test_the_only_partition_opens_by_the_name_alone(tmp_path: Path) -> None:
    add_day(tmp_path, 1)
    made = run_serial(partitioned(tmp_path)).captures[0]
    assert open_capture(tmp_path / "out", "vectors").id == made.id
    assert open_capture(tmp_path / "out", "vectors/day1.npy").id == made.id
    for name in ("vectors", "vectors/day1.npy"):
        assert find(Location(str(tmp_path / "out")), name) == ("capture", made.id)


def test_several_partitions_are_listed_and_open_one_by_one(tmp_path: Path) -> None:
    add_day(tmp_path, 1)
    run_serial(partitioned(tmp_path))
    add_day(tmp_path, 2)
    outcome = run_serial(partitioned(tmp_path))
    root = tmp_path / "out"
    for made in outcome.captures:
        assert open_capture(root, f"vectors/{made.partition}").id == made.id
    with pytest.raises(UnknownNameError, match=r"stands for 2 partitions.*day1\.npy, day2\.npy") as caught:
        open_capture(root, "vectors")
    assert "open_capture(root, 'vectors/day1.npy')" in str(caught.value)
    with pytest.raises(UnknownNameError, match=r"no partition 'day3\.npy'.*day1\.npy, day2\.npy"):
        open_capture(root, "vectors/day3.npy")
    assert find(Location(str(root)), "vectors/day2.npy")[1] in {c.id for c in outcome.captures}
    with pytest.raises(UnknownNameError, match="'vectors' begins 2 ids"):
        find(Location(str(root)), "vectors")
    pointer = json.loads((root / "names" / "vectors.json").read_text())
    assert pointer == {"partitions": {c.partition: c.id for c in outcome.captures}}


def stages_of_each(**more: Any) -> dict[str, Any]:
    first = {"sites": "first"}
    return {
        "basis": {"method": "spectrum.pca", "inputs": {"x": first}},
        "pca": {"method": "spectrum.pca", "inputs": {"x": first}, "partitions": "each"},
        "scores": {
            "method": "anomaly.residual",
            "inputs": {"x": first, "basis": {"stage": "pca"}},
            "config": {"components": 1},
            "partitions": "each",
        },
        "moves": {"method": "geometry.subspace_distances", "inputs": {"pca": {"stage": "pca"}}},
        **more,
    }


def varied_day(folder: Path, day: int) -> None:
    np.save(folder / f"day{day}.npy", np.random.default_rng(day).standard_normal((24, 8)).astype(np.float32))


def with_stages(folder: Path, report: bool = False, **stages: Any) -> RunSpec:
    run = partitioned(folder).model_dump(mode="json")
    return RunSpec.model_validate({**run, "stages": stages, "report": {} if report else None})


def test_a_stage_of_each_partition_makes_one_more_for_a_new_file(tmp_path: Path) -> None:
    for day in (1, 2):
        varied_day(tmp_path, day)
    run = with_stages(tmp_path, report=True, **stages_of_each())
    before = {a.id: a for a in run_serial(run).artifacts}
    parts = {(a.stage, a.partition) for a in before.values()}
    days = {"day1.npy", "day2.npy"}
    assert parts == {(s, d) for s in ("pca", "scores") for d in days} | {("basis", None), ("moves", None)}
    varied_day(tmp_path, 3)
    outcome = run_serial(run)
    new = [a for a in outcome.artifacts if a.id not in before]
    assert {(a.stage, a.partition) for a in new} == {
        ("pca", "day3.npy"), ("scores", "day3.npy"), ("basis", None), ("moves", None)
    }  # fmt: skip
    kept = [a for a in outcome.artifacts if a.id in before]
    assert len(kept) == 4
    assert not any(a.computed for a in kept)
    captures = {c.partition: c.id for c in outcome.captures}
    for made in outcome.artifacts:
        stage = read_artifact(Location(str(tmp_path / "out")), made.id).stage
        if made.partition is not None:
            assert {capture for capture, _ in stage.places} == {captures[made.partition]}
            assert made.place == f"{made.site} ({made.partition})"
        if made.stage == "scores":
            basis = next(a for a in outcome.artifacts if (a.stage, a.partition) == ("pca", made.partition))
            assert stage.artifacts["basis"].artifact == basis.id
    page = Path(str(outcome.report)).read_text()
    for day in (1, 2, 3):
        assert f"vectors/day{day}.npy" in page


def test_what_runs_for_each_partition_fits_together(tmp_path: Path) -> None:
    for day in (1, 2):
        varied_day(tmp_path, day)
    first = {"sites": "first"}
    mixed = {
        "method": "anomaly.residual",
        "inputs": {"x": first, "basis": {"stage": "pca"}},
        "config": {"components": 1},
    }
    with pytest.raises(SpecError, match="'pca' runs for each partition, and for none of these rows"):
        make_plan(with_stages(tmp_path, **stages_of_each(mixed=mixed)))
    mean = {"method": "geometry.flag_mean", "partitions": "each"}
    with pytest.raises(SpecError, match=r"'mean' .* reads artifacts alone"):
        make_plan(with_stages(tmp_path, **stages_of_each(mean=mean)))
    whole = vectors_run(tmp_path / "out", stages={"pca": {"method": "spectrum.pca", "partitions": "each"}})
    with pytest.raises(SpecError, match=r"no capture that it reads is partitioned: .* `partition_by: file`"):
        make_plan(whole)
