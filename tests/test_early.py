"""Sites that go to the writer while the forward of a shard's last batch goes on: the same store, whatever happens further on."""

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.errors import StoreError
from schemas.run import RunSpec
from tasks.buffers import Shard, ShardBuffers
from tasks.store.location import PARTIAL, Location
from tasks.store.manifest import read_manifest
from tasks.store.paths import capture_path
from tasks.store.shards import ShardWriter, Staged
from tasks.writer import UnitWriter
from tests.factories import Squares
from tests.pipelines.runs import store_bytes, vectors_run

SITES = ("first:out:0", "act:out:0", "last:out:0")


def run_of(root: Path, dtype: str) -> RunSpec:
    """Shards of eight rows, each of one batch; sample 7 makes the first raise, sample 11 is NaN at the second's last site."""
    return vectors_run(
        root, n=30, network={"fragile": True}, store={"shard_rows": 8, "chunk_rows": 4, "dtype": dtype}, batch_samples=8
    )  # fmt: skip


def raises_half_way(self: Squares, x: Tensor) -> Tensor:
    """As the network, but sample 11 raises where it would give NaN."""
    hidden = self.act(self.first(x) * 70000.0)  # more than float16 holds
    if bool((x[:, 0] == 11.0).any()):
        raise ValueError("no elevens")
    out: Tensor = self.last(hidden)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("how", ["gives NaN", "raises"])
def test_the_store_is_that_of_shards_handed_over_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, how: str
) -> None:
    if how == "raises":
        monkeypatch.setattr(Squares, "forward", raises_half_way)
    spec = make_plan(run_of(tmp_path / "early", dtype)).captures[0].spec
    taken: list[Shard] = []
    put = UnitWriter.put

    def note(self: UnitWriter, shard: Shard) -> None:
        taken.append(shard)
        put(self, shard)

    monkeypatch.setattr(UnitWriter, "put", note)
    run_serial(run_of(tmp_path / "early", dtype))
    assert [set(shard.early) for shard in taken] == [
        set(SITES) if how == "raises" else set(),  # sample 7
        set(),  # sample 11: recalled
        set(SITES),
        set(SITES),
    ]
    monkeypatch.setattr(ShardBuffers, "completes", lambda self, destination: False)
    taken.clear()
    run_serial(run_of(tmp_path / "whole", dtype))
    assert not any(shard.early for shard in taken)
    early, whole = (store_bytes(tmp_path / name, spec.id) for name in ("early", "whole"))
    assert early == whole
    one, other = (read_manifest(Location(str(tmp_path / name)), spec.id) for name in ("early", "whole"))
    assert one.files == other.files
    assert one.saturated == other.saturated
    assert bool(one.saturated) == (how == "raises" and dtype == "float16")
    assert [failure.sample for failure in one.failures] == ([11] if how == "raises" else [7, 11])


def test_what_is_recalled_never_had_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker may have written the same shard and its receipt by then."""
    place = Location(str(tmp_path)).child(
        capture_path(make_plan(run_of(tmp_path, "float32")).captures[0].spec.id)
    )
    writers: list[UnitWriter] = []
    put_early, recall, seen = UnitWriter.put_early, ShardBuffers.recall, []

    def note(self: UnitWriter, shard: int, site: str, rows: Tensor) -> None:
        writers.append(self)
        put_early(self, shard, site, rows)

    def look(self: ShardBuffers) -> None:
        if self._early:
            for staged in writers[-1]._early.values():
                staged.result()
            there = [path for path in place.walk("sites") if f"/c/{self._number}/" in path]
            seen.append({path.endswith(PARTIAL) for path in there})
        recall(self)

    monkeypatch.setattr(UnitWriter, "put_early", note)
    monkeypatch.setattr(ShardBuffers, "recall", look)
    monkeypatch.setattr(Location, "sweep", lambda self, folder: None)
    run_serial(run_of(tmp_path, "float32"))
    assert seen == [{True}], "of the shard with sample 11: two sites, staged"
    assert not any(path.endswith(PARTIAL) for path in place.walk()), "dropped, not left to the seal"


@pytest.mark.parametrize("shard", [1, 2])
def test_a_failed_early_write_matters_only_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    """Shard 1 is recalled; shard 2 is not."""
    stage = ShardWriter.stage

    def refuse(self: ShardWriter, path: str, number: int, block: np.ndarray) -> Staged:
        if number == shard:
            raise StoreError("the disk is away")
        return stage(self, path, number, block)

    monkeypatch.setattr(ShardWriter, "stage", refuse)
    spec = make_plan(run_of(tmp_path / "short", "float32")).captures[0].spec
    if shard == 2:
        with pytest.raises(StoreError, match="the disk is away"):
            run_serial(run_of(tmp_path / "short", "float32"))
        monkeypatch.setattr(ShardWriter, "stage", stage)
    run_serial(run_of(tmp_path / "short", "float32"))
    run_serial(run_of(tmp_path / "quiet", "float32"))
    assert store_bytes(tmp_path / "short", spec.id) == store_bytes(tmp_path / "quiet", spec.id)
