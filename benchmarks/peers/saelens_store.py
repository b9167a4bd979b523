"""SAELens: ActivationsStore over several hooks in one forward, and torch.save per batch.

The several-hook store keeps activations in memory for training and writes nothing; the loop writes what a user would.
Forwards stop after the last wanted block.
"""

import logging
from pathlib import Path

import datasets
import numpy as np
import torch
from child import arguments, serve
from sae_lens.load_model import load_model
from sae_lens.training.activations_store import ActivationsStore

options = arguments()
torch.set_num_threads(options["threads"])
datasets.disable_progress_bars()
logging.disable(logging.WARNING)
ids = np.load(options["ids"])
names = [f"transformer.h.{block}" for block in options["blocks"]]
network = load_model("AutoModelForCausalLM", options["model"], "cpu", hook_names=names)
store = ActivationsStore.from_config_multi_hook(
    network,
    dataset=datasets.Dataset.from_dict({"input_ids": ids.tolist()}),
    hook_names=names,
    hook_d_ins=dict.fromkeys(names, options["width"]),
    streaming=False,
    context_size=ids.shape[1],
    total_training_tokens=ids.size,
    store_batch_size_prompts=options["batch"],
    prepend_bos=False,
)


def task(out: str) -> None:
    """One file per batch: hook name -> [sample, position, feature]."""
    Path(out).mkdir(parents=True)
    store.iterable_sequences = store._iterate_tokenized_sequences()
    with torch.inference_mode():
        for number in range(-(-len(ids) // options["batch"])):
            torch.save(store.get_multi_hook_activations(store.get_batch_tokens()), f"{out}/{number:05d}.pt")


def read(out: str, to: str, samples: int) -> None:
    """Read back the files of the last run."""
    parts = [torch.load(path) for path in sorted(Path(out).glob("*.pt"))]
    values = np.stack([torch.cat([p[name] for p in parts])[:samples].numpy() for name in names])
    np.save(to, values.reshape(len(names), -1, values.shape[-1]))


serve(task, read)
