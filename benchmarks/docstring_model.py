"""A small language model of docstrings, trained on the spot and kept below .bench/: parts of the texts, tokens, network.

Docstrings of the standard library are dealt into parts by whole packages, in an order drawn once: a tenth of the characters is judged,
another tenth is for calibration, the rest trains. Tokens are pairs of bytes that were merged on the training part. Nothing here has an
option: what is trained follows from `SETTINGS` and the interpreter's library, so that the folder's name is their digest.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.protocol import ROOT
from schemas.data import Data
from tasks.extract.data import open_source

PARTS = {"judged": 0.1, "calibration": 0.1, "train": 0.8}
"""Shares of the characters, in the order in which packages fill them."""
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "vocabulary": 1024,
    "length": 128,
    "width": 192,
    "blocks": 4,
    "heads": 6,
    "dropout": 0.1,
    "steps": 600,
    "batch": 16,
    "rate": 2e-3,
    "warm_up": 0.1,
    "decay": 0.1,
}
BEGIN, PAD = "<begin>", "<pad>"


def made(settings: dict[str, Any] = SETTINGS) -> Path:
    """A folder with `judged.jsonl`, `calibration.jsonl`, `train.jsonl`, the network with its tokenizer in `model`, and `training.json`."""
    source = open_source(Data.model_validate({"source": {"kind": "stdlib-docstrings"}}))
    texts = parts(source, settings["seed"])
    told = json.dumps([settings, PARTS, texts], sort_keys=True)
    folder = ROOT / ".bench" / "docstring_model" / hashlib.sha256(told.encode()).hexdigest()[:16]
    if (folder / "training.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    tokenizer = _tokenizer(texts["train"], settings)
    codes = torch.tensor([code for text in texts["train"] for code in tokenizer(text)["input_ids"]])
    network, losses = trained(codes, len(tokenizer), settings)
    tokenizer.save_pretrained(folder / "model")
    network.save_pretrained(folder / "model")  # type: ignore[operator]
    found = {
        "texts": {name: len(some) for name, some in texts.items()},
        "characters": {name: sum(map(len, some)) for name, some in texts.items()},
        "training_tokens": len(codes),
        "parameters": sum(p.numel() for p in network.parameters()),
        "last_training_loss": float(np.mean(losses[-50:])),
    }
    (folder / "training.json").write_text(json.dumps(found, indent=1) + "\n")
    return folder


def parts(source: Any, seed: int) -> dict[str, list[str]]:
    """Texts of each part; all of a package are in one."""
    packages: dict[str, list[str]] = {}
    for number in range(len(source)):
        sample = source[number]
        packages.setdefault(sample.labels["package"], []).append(sample.value)
    names = sorted(packages)
    sizes = {name: sum(map(len, packages[name])) for name in names}
    whole, filled, number = sum(sizes.values()), 0, 0
    limits = np.cumsum(list(PARTS.values()))
    dealt: dict[str, list[str]] = {part: [] for part in PARTS}
    for place in np.random.default_rng(seed).permutation(len(names)):
        while number < len(PARTS) - 1 and filled >= limits[number] * whole:
            number += 1
        dealt[list(PARTS)[number]] += packages[names[place]]
        filled += sizes[names[place]]
    return dealt


def trained(codes: Tensor, vocabulary: int, settings: dict[str, Any]) -> tuple[nn.Module, list[float]]:
    """A network of GPT-2's architecture in evaluation mode, and its losses.

    Args:
        codes: int64 [token], all texts end to end.
        vocabulary: how many tokens there are.
        settings: see `SETTINGS`.
    """
    import transformers

    length, steps, rng = settings["length"], settings["steps"], torch.Generator()
    rng.manual_seed(settings["seed"])
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        network: nn.Module = transformers.GPT2LMHeadModel(_architecture(vocabulary, settings)).train()
        optimizer = torch.optim.AdamW(network.parameters(), settings["rate"], weight_decay=settings["decay"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps, settings))
        losses = []
        for _ in range(steps):
            starts = torch.randint(len(codes) - length, (settings["batch"],), generator=rng)
            batch = codes[starts[:, None] + torch.arange(length)]
            loss = network(input_ids=batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return network.eval(), losses


def _rate(done: float, settings: dict[str, Any]) -> float:
    """Share of the highest rate after a share of the steps: a line up, then half a cosine down to a tenth."""
    if done < settings["warm_up"]:
        return done / float(settings["warm_up"])
    left = (done - settings["warm_up"]) / (1 - settings["warm_up"])
    return 0.1 + 0.45 * (1 + math.cos(math.pi * left))


def _architecture(vocabulary: int, settings: dict[str, Any]) -> Any:
    import transformers

    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), settings["dropout"])
    return transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=settings["length"],
        n_embd=settings["width"],
        n_layer=settings["blocks"],
        n_head=settings["heads"],
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        loss_type="ForCausalLM",
        **drops,
    )


def _tokenizer(texts: list[str], settings: dict[str, Any]) -> Any:
    """Merged pairs of bytes, with a token at the beginning of each text."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings["vocabulary"],
        special_tokens=[BEGIN, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=BEGIN, pad_token=PAD
    )
