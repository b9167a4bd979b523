"""The networks and data that the benchmarks run on, made here from fixed seeds or taken from an installed package."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

VOCABULARY = 5000
POSITIONS = 128
WIDTH = 384
BLOCKS = 6
HEADS = 6


class TokenRows:
    """A data set of rows of token ids, all of one length."""

    def __init__(self, ids: np.ndarray) -> None:
        """Keep int64 [sample, position]."""
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.ids[index]}


def token_rows(path: str) -> TokenRows:
    """The factory that a capture names: rows of an npy file."""
    return TokenRows(np.load(path))


class Fixture(NamedTuple):
    """A network and its inputs on disk."""

    model: Path
    """A folder that transformers loads."""
    ids: Path
    """npy, int64 [sample, position]."""


def write_gpt2(folder: Path, n_samples: int, seed: int = 0) -> Fixture:
    """A GPT-2 of 6 blocks and width 384 with random weights, a tokenizer of whole words, and random token ids."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    words = {f"w{index}": index for index in range(VOCABULARY - 1)} | {"<end>": VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<end>")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=POSITIONS, **special
    ).save_pretrained(folder)
    end = VOCABULARY - 1
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=WIDTH, n_layer=BLOCKS, n_head=HEADS,
        bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder)
    ids = np.random.default_rng(seed).integers(0, end, (n_samples, POSITIONS))
    np.save(folder / "ids.npy", ids)
    return Fixture(folder, folder / "ids.npy")


def reference(fixture: Fixture, blocks: list[int], samples: int) -> np.ndarray:
    """float32 [block, sample, position, feature]: outputs of blocks, by one plain hook and a clone each."""
    import torch
    from transformers import AutoModel

    network = AutoModel.from_pretrained(fixture.model).eval()
    found: dict[int, np.ndarray] = {}

    def keep(block: int, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        found[block] = tensor.clone().numpy()

    for block in blocks:
        network.h[block].register_forward_hook(lambda _m, _i, output, block=block: keep(block, output))
    with torch.no_grad():
        network(torch.from_numpy(np.load(fixture.ids)[:samples]))
    return np.stack([found[block] for block in blocks])
