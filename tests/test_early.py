"""Sites that go to the writer while the forward of a shard's last batch goes on: the same store, whatever happens further on."""

from pathlib import Path

import pytest
from torch import Tensor

from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.run import RunSpec
from tasks.buffers import Shard, ShardBuffers
from tasks.store.location import Location
from tasks.store.manifest import read_manifest
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
    put, completes = UnitWriter.put, ShardBuffers.completes

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
    monkeypatch.setattr(ShardBuffers, "completes", lambda self, destination: not completes)
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
