"""The name of a partitioned capture: opens the only partition, or says which there are and how to open one."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.serial import run_serial
from pipelines.status import find
from schemas.errors import UnknownNameError
from schemas.run import RunSpec
from subspan import open_capture
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
