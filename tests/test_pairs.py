"""Pairs methods that look at all rows several times: groups of rows, prepared blocks, and rows that do not stay in memory."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import pairs, run_stages
from tasks.engine.pairs import Method, Others, rows_of
from tasks.methods.contract import Block, Inputs
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import rows_of as some_rows
from tests.methods.expressed import block_of

LOOKS = 3


def module(seen: list[tuple[int, int]], most: int | None = None) -> Any:
    """Adds the sums of all other rows, times how often they were looked at."""

    def pair(state: dict[str, Tensor], block: Block, other: Block, *_: Any) -> dict[str, Tensor]:
        seen.append((int(block.index[0]), int(other.index[0])))
        return state | {"sum": state["sum"] + other["x"].sum()}

    def again(state: dict[str, Tensor], *_: Any) -> tuple[dict[str, Tensor], bool]:
        state = state | {"looks": state["looks"] + 1}
        return state, int(state["looks"]) < LOOKS

    made = SimpleNamespace(
        outputs=lambda inputs, config: {"total": None},
        prepared=lambda block, carry, config: rows_of(
            Block({"x": block["x"] * 2}, block.sample, block.position, block.index), slice(0, len(block))
        ),
        begin=lambda block, *_: {
            "sum": torch.zeros(len(block), dtype=torch.float64),
            "looks": torch.tensor(0),
        },
        pair=pair,
        again=again,
        conclude=lambda state, block, *_: {"total": state["sum"] + block["x"][:, 0]},
    )
    if most is not None:
        made.at_once = lambda inputs, config: most
    return made


@pytest.mark.parametrize("most", [None, 1, 4, 100])
@pytest.mark.parametrize("bytes_kept", [1 << 20, 100, 0])
def test_all_looks_at_all_blocks_for_every_group(most: int | None, bytes_kept: int) -> None:
    x = torch.arange(20, dtype=torch.float64).reshape(10, 2)
    blocks = cases.cut(block_of(x.numpy()), [3, 3, 7])
    seen: list[tuple[int, int]] = []
    method = Method(module(seen, most), Frozen(), Inputs({}, 10, 10), {})
    reads: list[Callable[[], Block]] = [partial(method.prepared, block) for block in blocks]
    others = Others(reads, bytes_kept)
    found = method.outputs(method.prepared(block_of(x.numpy())), others)["total"]
    torch.testing.assert_close(found, LOOKS * 2 * x.sum() + 2 * x[:, 0])
    groups = -(-10 // (most or 10))
    assert len(seen) == groups * LOOKS * 3  # an empty block is not looked at
    assert others.read == (4 if bytes_kept > 160 else 4 * groups * LOOKS)


def test_no_rows_give_no_outputs() -> None:
    seen: list[tuple[int, int]] = []
    method = Method(module(seen, 4), Frozen(), Inputs({}, 0, 0), {})
    block = rows_of(block_of(torch.ones(5, 2).numpy()), slice(0, 0))
    assert len(method.outputs(block, Others([], 0))["total"]) == 0
    assert seen == []


def test_rows_beyond_memory_are_read_again_with_the_same_answer(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, found = [], []
    for folder, most in (("kept", pairs.MOST_BYTES), ("read", 0)):
        monkeypatch.setattr("tasks.engine.rowwise.MOST_BYTES", most)
        root = Location(str(tmp_path / folder))
        ref = rows_ref(make_capture(root, {"a": some_rows(0).numpy()}, shard_rows=32, chunk_rows=16))
        ready = stage_of("clustering.preparation", {"x": ref})
        graph = stage_of("clustering.ssc_omp", {"x": ref}, {"preparation": ready.id}, entries=3)
        read: list[int] = []
        run_stages(root, [ready], serial)
        made = run_stages(root, [graph], serial, on_progress=lambda done, total, n, read=read: read.append(n))
        shards.append(read[-1])
        found.append(made[graph.id].result)
    assert found[0] == found[1]
    assert shards[1] > 2 * shards[0]


def test_a_port_takes_artifacts_of_the_methods_that_it_names(tmp_path: Any) -> None:
    root = Location(str(tmp_path))
    ref = rows_ref(make_capture(root, {"a": some_rows(0).numpy()}))
    ready = stage_of("clustering.preparation", {"x": ref})
    graphs = [
        stage_of(f"clustering.{name}", {"x": ref}, {"preparation": ready.id}) for name in ("tsc", "lsr")
    ]
    parts = [stage_of("clustering.partition", {"x": ref}, {"graph": g.id}, clusters=2) for g in graphs]
    assert len(run_stages(root, [ready, *graphs, *parts], serial)) == 5
    wrong = stage_of("clustering.partition", {"x": ref}, {"graph": ready.id}, clusters=2)
    with pytest.raises(
        MethodError, match=r"found an artifact of clustering\.preparation, expected one of .*ssc_omp"
    ):
        run_stages(root, [wrong], serial)
