"""TransformerLens: run_with_cache of the blocks' residual streams per batch, and torch.save per batch.

TransformerLens has no store of its own. The network is a TransformerBridge, which forces eager attention, and which
cannot stop after the last block: the unembedding is computed, and thrown away, where the last block is wanted.
"""

from pathlib import Path

import numpy as np
import torch
from child import arguments, serve
from transformer_lens.model_bridge import TransformerBridge

options = arguments()
torch.set_num_threads(options["threads"])
network = TransformerBridge.boot_transformers(options["model"], device="cpu").eval()
ids = torch.from_numpy(np.load(options["ids"]))
blocks = options["blocks"]
names = [f"blocks.{block}.hook_resid_post" for block in blocks]
stop = max(blocks) + 1


def task(out: str) -> None:
    """One file per batch: hook name -> [sample, position, feature]."""
    Path(out).mkdir(parents=True)
    for number, batch in enumerate(ids.split(options["batch"])):
        with torch.inference_mode():
            _, cache = network.run_with_cache(
                batch, names_filter=names, stop_at_layer=stop, return_cache_object=False
            )
        torch.save({name: cache[name] for name in names}, f"{out}/{number:05d}.pt")


def read(out: str, to: str, samples: int) -> None:
    """Read back the files of the last run."""
    parts = [torch.load(path) for path in sorted(Path(out).glob("*.pt"))]
    np.save(to, np.stack([torch.cat([p[name] for p in parts])[:samples].numpy() for name in names]))


serve(task, read)
