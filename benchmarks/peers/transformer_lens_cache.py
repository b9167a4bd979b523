"""TransformerLens: run_with_cache of the blocks' residual streams per batch, and torch.save per batch.

TransformerLens has no store of its own. The network is a TransformerBridge, which forces eager attention, and which
cannot stop after the last block: the unembedding is computed, and thrown away, where the last block is wanted. Batches are padded
on the right to their longest sample, which causal attention does not see; only rows of real tokens are saved.
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
lengths = torch.from_numpy(np.load(options["lengths"]))
blocks = options["blocks"]
names = [f"blocks.{block}.hook_resid_post" for block in blocks]
stop = max(blocks) + 1


def task(out: str) -> None:
    """One file per batch: hook name -> [row, feature]."""
    Path(out).mkdir(parents=True)
    size = options["batch"]
    for number, (batch, real) in enumerate(zip(ids.split(size), lengths.split(size), strict=True)):
        longest = int(real.max())
        with torch.inference_mode():
            _, cache = network.run_with_cache(
                batch[:, :longest], names_filter=names, stop_at_layer=stop, return_cache_object=False
            )
        keep = torch.arange(longest) < real[:, None]
        rows = {name: cache[name].flatten(0, 1) if keep.all() else cache[name][keep] for name in names}
        torch.save(rows, f"{out}/{number:05d}.pt")


def read(out: str, to: str, samples: int) -> None:
    """Read back the files of the last run."""
    parts = [torch.load(path) for path in sorted(Path(out).glob("*.pt"))]
    n_rows = int(lengths[:samples].sum())
    np.save(to, np.stack([torch.cat([p[name] for p in parts])[:n_rows].numpy() for name in names]))


serve(task, read)
