"""Twenty scenarios of `make chaos`: whatever happened to a run, its store ends as that of a quiet one."""

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.law import broken, quiet
from tests.chaos.scenario import EXECUTIONS, KINDS, drawn, run_of
from tests.chaos.suite import live

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(400)]
SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_scenario_loses_nothing(seed: int, tmp_path: Path) -> None:
    verdict = live(drawn(seed), tmp_path)
    assert verdict.wrong == [], f"{verdict}; again: python -m tests.chaos --scenarios 1 --seed {seed}"


def test_the_law_sees_what_is_lost(tmp_path: Path) -> None:
    """A byte of a shard, a result and a receipt, a lease and a file half written."""
    from pipelines.serial import run_serial

    run_serial(run_of(tmp_path, 0))
    assert broken(tmp_path, 0) == []
    shard = next(path for path in sorted(tmp_path.glob("captures/*/**/c/**/*")) if path.is_file())
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "captures" / "x.lease").mkdir()
    (next(tmp_path.glob("artifacts/*/")) / "a.partial").touch()
    text = "; ".join(broken(tmp_path, 0))
    assert all(word in text for word in ("differs", "verify answered", "x.lease", "a.partial"))
    next(tmp_path.glob("artifacts/*/artifact.json")).unlink()
    assert "is missing" in "; ".join(broken(tmp_path, 0))


def test_200_seeds_draw_every_execution_and_kind() -> None:
    drawn_kinds = Counter(fault.kind for seed in range(200) for fault in drawn(seed).faults)
    wanted = {kind for kinds in KINDS.values() for kind in kinds}
    assert set(drawn_kinds) == wanted - (set() if os.geteuid() == 0 else {"disk full"})
    assert {drawn(seed).execution for seed in range(200)} == set(EXECUTIONS)
    assert len({name.split("/")[1] for name in quiet(1)}) >= 4
