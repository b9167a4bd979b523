"""Small language models of characters, trained for some seconds on docstrings of the standard library."""

import importlib
import inspect
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

MODULES = (
    "argparse",
    "collections",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "inspect",
    "json",
)
MODULES += (
    "logging",
    "pathlib",
    "pickle",
    "random",
    "shutil",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
)
MODULES += ("textwrap", "threading", "uuid", "zipfile")
LENGTH, VOCABULARY = 48, 128
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": LENGTH,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "llama": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 160,
        "max_position_embeddings": LENGTH,
    },
}


@cache
def texts() -> dict[str, Tensor]:
    """int64 [text, character] each of `train`, `seen` (for statistics) and `new`, shuffled."""
    docs: dict[str, None] = {}
    for name in MODULES:
        for thing in vars(importlib.import_module(name)).values():
            for part in (thing, *vars(thing).values()) if inspect.isclass(thing) else (thing,):
                if (
                    callable(part)
                    and isinstance(part.__doc__, str)
                    and getattr(part, "__module__", name) == name
                ):
                    docs[inspect.cleandoc(part.__doc__)] = None
    codes = torch.tensor(list("\n\n".join(docs).encode("ascii", "replace")))
    cut = codes[: len(codes) // LENGTH * LENGTH].reshape(-1, LENGTH)
    cut = cut[torch.randperm(len(cut), generator=torch.Generator().manual_seed(0))]
    n = len(cut)
    return {"train": cut[: n * 8 // 10], "seen": cut[n * 8 // 10 : n * 9 // 10], "new": cut[n * 9 // 10 :]}


@cache
def trained(family: str, steps: int = 250) -> nn.Module:
    """A network of a family, in evaluation mode; not to be changed."""
    import transformers

    config, made = {
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[family]
    rng = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Module = made(config(vocab_size=VOCABULARY, loss_type="ForCausalLM", **SIZES[family]))
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    train = texts()["train"]
    for _ in range(steps):
        batch = train[torch.randint(len(train), (16,), generator=rng)]
        loss = net(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def perplexity(net: nn.Module) -> float:
    """On new texts."""
    new = texts()["new"]
    return math.exp(sum(float(net(input_ids=b, labels=b).loss) * len(b) for b in new.split(64)) / len(new))


@torch.no_grad()
def inputs_of(net: nn.Module, paths: tuple[str, ...], some: Tensor) -> list[Tensor]:
    """[row, feature]: what modules are given for texts."""
    got: dict[str, Tensor] = {}
    hooks = [
        net.get_submodule(path).register_forward_hook(
            lambda _module, given, _output, path=path: got.update({path: given[0].flatten(0, -2)})
        )
        for path in paths
    ]
    net(input_ids=some)
    for hook in hooks:
        hook.remove()
    return [got[path] for path in paths]


class Texts(torch.utils.data.Dataset[dict[str, Any]]):
    """Some texts as inputs of a network."""

    def __init__(self, part: str, n: int) -> None:
        self.codes = texts()[part][:n]
        self.fingerprint = f"trained-text-{part}-{n}"

    def __len__(self) -> int:
        return len(self.codes)

    def keys(self) -> list[str]:
        """Their places."""
        return [str(number) for number in range(len(self))]

    def __getitem__(self, index: int) -> dict[str, Any]:
        codes = self.codes[index]
        return {"key": str(index), "input_ids": codes, "attention_mask": torch.ones_like(codes)}


def some_texts(part: str, n: int) -> Texts:
    """A data set: the first `n` of `seen` or `new`."""
    return Texts(part, n)
