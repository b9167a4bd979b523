"""What files of strangers cannot do: run code, leave their folder, or be heard outside this machine.

Run files are code: they name functions. Stores, data and the folders of networks are not.
"""

import ast
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml

from pipelines.cli import main
from pipelines.cluster import open_client
from pipelines.serial import run_serial
from schemas.capture import CaptureRequest
from schemas.errors import DamageError, ModelError, SpecError, StoreError, SubspanError
from schemas.execution import Execution
from schemas.model import TransformersModel
from schemas.run import RunSpec
from subspan import open_artifact, open_capture
from tasks.extract import pretrained
from tasks.extract.weights import weights_digest
from tasks.store.location import Location
from tasks.store.states import load_state
from tests.pipelines.runs import vectors_run

TOP = Path(__file__).resolve().parent.parent
OURS = [
    path for folder in ("tasks", "pipelines", "schemas", "subspan") for path in (TOP / folder).rglob("*.py")
]
FORBIDDEN = {
    "eval",
    "exec",
    "pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "unsafe_load",
    "full_load",
}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text())
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def told(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def test_nothing_that_unpickles_or_evaluates_is_called() -> None:
    """`model.eval()` takes no argument; the built-in one would."""
    for path in OURS:
        for name, call in calls(path):
            parts = set(name.split("."))
            harmless = name.endswith(".eval") and not call.args
            assert harmless or not parts & FORBIDDEN, f"{path}: {name}"
            if name in ("np.load", "numpy.load"):
                assert told(call, "allow_pickle") is False, path
            if name == "torch.load":
                assert told(call, "weights_only") is True, path


def test_every_load_of_transformers_says_whether_code_may_run() -> None:
    found = [call for path in OURS for name, call in calls(path) if name.endswith(".from_pretrained")]
    assert len(found) >= 4
    assert all("trust_remote_code" in {keyword.arg for keyword in call.keywords} for call in found)


def planned(tmp_path: Path, **request: Any) -> int:
    run = vectors_run(tmp_path / "out", **request).model_dump(mode="json")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return main(["plan", str(tmp_path / "run.yaml"), "--serial"])


@pytest.mark.parametrize("name", ["rows.npy", "rows.npz"])
def test_arrays_that_are_pickles_are_refused(
    tmp_path: Path, mark: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = np.array([Trap(mark)] * 3, dtype=object)
    (np.savez if name.endswith("z") else np.save)(tmp_path / name, evil)
    source = {"kind": "arrays", "path": str(tmp_path / name)}
    assert planned(tmp_path, data={"source": source}) == 1
    assert name in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("dtype", ["|O", "<f4"])
@pytest.mark.parametrize("where", ["filters", "compressor"])
def test_a_zarr_with_a_pickle_codec_is_refused(tmp_path: Path, mark: Path, dtype: str, where: str) -> None:
    folder = tmp_path / "rows.zarr"
    folder.mkdir()
    codec: Any = {"id": "pickle"}
    metadata = {
        "zarr_format": 2,
        "shape": [3, 4],
        "chunks": [3, 4],
        "dtype": dtype,
        "order": "C",
        "fill_value": None,
    }
    metadata |= {"filters": None, "compressor": None, where: [codec] if where == "filters" else codec}
    (folder / ".zarray").write_text(json.dumps(metadata))
    (folder / "0.0").write_bytes(pickle.dumps(Trap(mark)))
    assert planned(tmp_path, data={"source": {"kind": "arrays", "path": str(folder)}}) == 1
    assert not mark.exists()


def test_checkpoints_that_hold_more_than_tensors_are_refused(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": torch.zeros(2, 2), "more": Trap(mark)}, tmp_path / "step-1.pt")
    source = {"kind": "checkpoints", "path": str(tmp_path / "step-*.pt")}
    assert planned(tmp_path, model={"kind": "recorded"}, data={"source": source}, sites=[]) == 1
    assert "tensors alone" in capsys.readouterr().err
    assert not mark.exists()


def test_a_state_that_is_a_pickle_is_as_if_absent(tmp_path: Path, mark: Path) -> None:
    with (tmp_path / "state.npz").open("wb") as file:
        np.savez(file, evil=np.array([Trap(mark)], dtype=object))
    assert load_state(Location(str(tmp_path)), "state.npz") is None
    assert not mark.exists()


OWN_CODE = """
import pathlib
import torch
from transformers import PretrainedConfig, PreTrainedModel

pathlib.Path({mark!r}).touch()


class OwnConfig(PretrainedConfig):
    model_type = "of-their-own"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(4, 4)
        self.post_init()

    def forward(self, x):
        return self.layer(x)
"""


@pytest.fixture
def own_code(tmp_path: Path, mark: Path) -> Path:
    """A network's folder with Python files of its own."""
    from safetensors.torch import save_file

    folder = tmp_path / "their_network"
    folder.mkdir()
    config = {
        "model_type": "of-their-own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "modelling.OwnConfig", "AutoModel": "modelling.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modelling.py").write_text(OWN_CODE.format(mark=str(mark)))
    tensors = {"layer.weight": torch.eye(4), "layer.bias": torch.zeros(4)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_code_beside_weights_is_not_run(tmp_path: Path, own_code: Path, mark: Path) -> None:
    """Nor is it asked for at the terminal, where transformers would take a `y`."""
    np.save(tmp_path / "rows.npy", np.ones((3, 4), np.float32))
    run = vectors_run(
        tmp_path / "out",
        model={"kind": "transformers", "name": str(own_code)},
        data={"source": {"kind": "arrays", "path": str(tmp_path / "rows.npy")}},
        sites=["layer"],
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json")))
    command = [sys.executable, "-m", "subspan", "run", str(tmp_path / "run.yaml"), "--serial"]
    done = subprocess.run(command, input="y\n" * 20, capture_output=True, text=True, cwd=TOP, timeout=300)
    assert done.returncode == 1
    assert "set model.trust_remote_code to true" in done.stderr
    assert not mark.exists()


def test_code_beside_weights_runs_where_it_is_trusted(own_code: Path, mark: Path) -> None:
    trusted = TransformersModel(name=str(own_code), trust_remote_code=True, attention="eager")
    loaded = pretrained.load(trusted, torch.device("cpu"))
    assert mark.exists()
    assert torch.equal(loaded.module(torch.ones(1, 4)), torch.ones(1, 4))
    before = weights_digest(trusted)
    with (own_code / "modelling.py").open("a") as file:
        file.write("\n# changed\n")
    assert weights_digest(trusted) != before, "the code is part of what the network is"


def test_the_identity_of_networks_without_code_is_what_it_was() -> None:
    dumped = TransformersModel(name="x").model_dump(mode="json")
    assert "trust_remote_code" not in dumped
    assert TransformersModel.model_validate(dumped) == TransformersModel(name="x")
    trusted = TransformersModel(name="x", trust_remote_code=True)
    assert TransformersModel.model_validate(trusted.model_dump(mode="json")) == trusted


def test_weights_that_are_pickles_are_refused(own_code: Path, mark: Path) -> None:
    (own_code / "model.safetensors").unlink()
    (own_code / "modelling.py").unlink()
    (own_code / "config.json").write_text(
        json.dumps({"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2})
    )
    torch.save({"weight": torch.zeros(2), "more": Trap(mark)}, own_code / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load"):
        pretrained.load(TransformersModel(name=str(own_code)), torch.device("cpu"))
    assert not mark.exists()


def test_every_kind_of_code_in_a_request_is_named() -> None:
    run = vectors_run("out", loss={"kind": "factory", "function": "my.losses:cross"})
    assert run.captures["vectors"].code == (
        "tests.factories:squares",
        "tests.factories:vectors",
        "my.losses:cross",
    )
    theirs = {
        "model": {"name": "x", "trust_remote_code": True},
        "data": {"source": {"kind": "digits"}},
        "sites": ["**"],
    }
    assert CaptureRequest.model_validate(theirs).code == ("the Python files of x",)
    assert CaptureRequest.model_validate(theirs | {"model": {"name": "x"}}).code == ()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A root with a capture of a factory's network and a detector that reads its weights."""
    root = tmp_path_factory.mktemp("store")
    stages = {
        "standard": {"method": "anomaly.standard_components", "sites": "last:in", "config": {}},
        "scores": {
            "method": "anomaly.neco",
            "inputs": {"x": {"sites": "last:in"}, "normal": {"stage": "standard"}},
            "config": {"components": 4},
        },
    }
    outcome = run_serial(vectors_run(root, n=40, sites=["first", "last:in"], stages=stages))
    assert not outcome.stage_failures, outcome.stage_failures
    scores = next(a.id for a in outcome.artifacts if a.stage == "scores")
    return root, outcome.captures[0].id, scores


def test_code_that_a_store_names_is_not_run_unasked(
    store: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, capture, scores = store
    verify = ["verify", capture, "--root", str(root), "--recompute"]
    assert main(verify) == 1
    assert "tests.factories:squares" in (said := capsys.readouterr().err)
    assert "give --trust-code" in said
    assert main([*verify, "--trust-code"]) == 0
    rows = np.ones((3, 16), np.float32)
    with pytest.raises(SpecError, match=r"tests.factories:squares.*trust_code=True"):
        open_artifact(root, scores).score(rows)
    assert open_artifact(root, scores).score(rows, trust_code=True).sizes == {"row": 3}


OUT = ["../outside", "../../etc", "/etc/passwd", "a/../../b", "..", "x\0y"]


@pytest.mark.parametrize("name", OUT)
def test_no_path_leads_out_of_a_root(store: tuple[Path, str, str], tmp_path: Path, name: str) -> None:
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    (tmp_path / "deep" / "outside").write_text("theirs")
    place = Location(str(root))
    for act in (place.read, place.exists, place.ls, place.walk, place.digest, place.delete, place.child):
        with pytest.raises(StoreError, match="expected one below its folder"):
            act(name)
    for write in (place.write, place.create, place.stage):
        with pytest.raises(StoreError, match="expected one below its folder"):
            write(name, b"ours")
    with pytest.raises(StoreError, match="expected one below its folder"):
        place.delete(name, recursive=True)
    assert (tmp_path / "deep" / "outside").read_text() == "theirs"
    for opened in (open_capture, open_artifact):
        with pytest.raises(SubspanError):
            opened(store[0], name)


@pytest.mark.parametrize("command", ["show", "verify", "rm", "report"])
def test_no_command_follows_an_id_out_of_its_root(
    store: tuple[Path, str, str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(store[0].rglob("*"))
    for name in OUT[:-1]:
        assert main([command, name, "--root", str(store[0])]) == 1
        assert "Traceback" not in capsys.readouterr().err
    assert sorted(store[0].rglob("*")) == before


def test_records_and_names_that_lead_out_are_refused(
    store: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record whose page lies elsewhere, a name whose capture does, and a manifest that lists a file outside."""
    import shutil

    root = tmp_path / "deep" / "root"
    shutil.copytree(store[0], root)
    record = next((root / "runs").glob("*.json"))
    data = json.loads(record.read_text())
    data["outcome"]["root"] = str(root)
    data["outcome"]["report"] = f"{root}/../../stolen/report.html"
    record.write_text(json.dumps(data))
    assert main(["report", record.stem, "--root", str(root)]) == 1
    assert "expected one below its folder" in capsys.readouterr().err
    assert not (tmp_path / "stolen").exists()
    (root / "names" / "evil.json").write_text(json.dumps({"capture": "../../../secret"}))
    with pytest.raises(SubspanError):
        open_capture(root, "evil")
    manifest = root / "captures" / f"{store[1]}.manifest.json"
    manifest.write_text(manifest.read_text().replace('"zarr.json"', '"../../../secret"'))
    with pytest.raises(DamageError):
        open_capture(root, store[1])
    assert main(["verify", "all", "--root", str(root)]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


EVIL = '"><img src=x onerror=alert(1)><script>alert(2)'


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.slow
def test_a_page_shows_strings_as_they_are(tmp_path: Path) -> None:
    """Labels, keys, module names, titles and reasons come from strangers."""
    rng = np.random.default_rng(0)
    labels = np.array([EVIL if n % 2 else "plain" for n in range(60)])
    file = tmp_path / f"{EVIL}.npz"
    np.savez(file, x=rng.standard_normal((60, 8)).astype(np.float32), kind=labels)
    run = vectors_run(
        tmp_path / "out",
        data={
            "source": {
                "kind": "arrays",
                "path": str(file),
                "array": "x",
                "labels": {EVIL: "kind"},
            }
        },
        stages={
            "pca": {"method": "spectrum.pca"},
            "clusters": {"method": "clustering.k_subspaces", "sites": "last", "config": {}},
            "reference": {"method": "anomaly.reference", "sites": "last", "config": {"label": EVIL}},
        },
    )
    titled = RunSpec.model_validate(run.model_dump(mode="json") | {"report": {"title": EVIL}})
    outcome = run_serial(titled)
    html = Path(str(outcome.report)).read_text()
    found = Tags(html)
    assert EVIL in "".join(_text(html))
    assert "script" not in {tag for tag, _ in found.tags}
    assert not [
        attributes for _, attributes in found.tags if any(name.startswith("on") for name in attributes)
    ]
    assert "<img src=x" not in html


def _text(html: str) -> list[str]:
    class Text(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[str] = []

        def handle_data(self, data: str) -> None:
            self.parts.append(data)

    reader = Text()
    reader.feed(html)
    return reader.parts


@pytest.mark.alone
def test_workers_and_scheduler_listen_to_this_machine_alone() -> None:
    with open_client(Execution(workers=1, device="cpu", cluster="processes"), 1, "cpu"):
        here = psutil.Process()
        ports = [
            c
            for p in (here, *here.children(recursive=True))
            for c in p.net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        ]
        assert len(ports) >= 2
        assert {c.laddr.ip for c in ports} == {"127.0.0.1"}
