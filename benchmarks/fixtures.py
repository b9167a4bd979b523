"""The networks and data that the benchmarks run on, made here from fixed seeds or taken from an installed package."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

VOCABULARY = 5000
POSITIONS = 128
WIDTH = 384
BLOCKS = 6
HEADS = 6


class TokenRows:
    """A data set of rows of token ids."""

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Keep int64 [sample, position] and int64 [sample]: how many of a row's ids are real."""
        self.ids = ids
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.ids[index, : self.lengths[index]]}


def token_rows(path: str, lengths: str) -> TokenRows:
    """The factory that a capture names: rows of an npy file, and their lengths of another."""
    return TokenRows(np.load(path), np.load(lengths))


class Fixture(NamedTuple):
    """A network and its inputs on disk."""

    model: Path
    """A folder that transformers loads."""
    ids: Path
    """npy, int64 [sample, position]; what lies past a sample's length is padding."""
    lengths: Path
    """npy, int64 [sample]."""
    n_tokens: int
    """Real ones."""


def docstring_lengths(n_samples: int, seed: int = 0) -> np.ndarray:
    """int64 [sample]: words and signs of docstrings of the standard library in random order, 128 at most."""
    from schemas.data import Data, StdlibDocstrings
    from tasks.extract.data import open_source

    source = open_source(Data(source=StdlibDocstrings()), None)
    chosen = np.random.default_rng(seed).permutation(len(source))[:n_samples]
    words = re.compile(r"\w+|[^\w\s]")
    return np.array([min(POSITIONS, max(1, len(words.findall(source[int(n)].value)))) for n in chosen])


def write_gpt2(folder: Path, n_samples: int, seed: int = 0, mixed: bool = False) -> Fixture:
    """A GPT-2 of 6 blocks and width 384 with random weights, a tokenizer of whole words, and random token ids.

    Args:
        folder: to be made.
        n_samples: sequences.
        seed: of weights and ids.
        mixed: lengths of real texts; else all are as long as the network takes.
    """
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
    lengths = docstring_lengths(n_samples) if mixed else np.full(n_samples, POSITIONS)
    ids[np.arange(POSITIONS) >= lengths[:, None]] = end
    np.save(folder / "ids.npy", ids)
    np.save(folder / "lengths.npy", lengths)
    return Fixture(folder, folder / "ids.npy", folder / "lengths.npy", int(lengths.sum()))


def write_llama(folder: Path, n_samples: int, seed: int = 0) -> Fixture:
    """A Llama of 6 blocks and width 384 with random weights, and random token ids; all sequences are 128 tokens long."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, (n_samples, POSITIONS))
    np.save(folder / "ids.npy", ids)
    np.save(folder / "lengths.npy", np.full(n_samples, POSITIONS))
    return Fixture(folder, folder / "ids.npy", folder / "lengths.npy", ids.size)


def reference(fixture: Fixture, blocks: list[int], samples: int) -> np.ndarray:
    """float32 [block, row, feature]: outputs of blocks for each sample alone, by one plain hook and a clone each."""
    import torch
    from transformers import AutoModel

    network = AutoModel.from_pretrained(fixture.model).eval()
    found: dict[int, list[np.ndarray]] = {block: [] for block in blocks}

    def keep(block: int, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        found[block].append(tensor.clone().numpy().reshape(-1, WIDTH))

    for block in blocks:
        network.h[block].register_forward_hook(lambda _m, _i, output, block=block: keep(block, output))
    ids, lengths = torch.from_numpy(np.load(fixture.ids)), np.load(fixture.lengths)
    with torch.no_grad():
        for n in range(samples):
            network(ids[n : n + 1, : lengths[n]])
    return np.stack([np.concatenate(found[block]) for block in blocks])
