"""nnsight: a trace per batch that saves the outputs of blocks, and torch.save per batch, as its users write it.

nnsight has no store of its own. The network is the bare GPT2Model (no unembedding), in inference mode. Batches are padded on the
right to their longest sample, which causal attention does not see; only rows of real tokens are saved.
"""

from pathlib import Path

import numpy as np
import torch
from child import arguments, serve
from nnsight import NNsight, save
from transformers import AutoModel

options = arguments()
torch.set_num_threads(options["threads"])
network = NNsight(AutoModel.from_pretrained(options["model"]).eval())
ids = torch.from_numpy(np.load(options["ids"]))
lengths = torch.from_numpy(np.load(options["lengths"]))
blocks = options["blocks"]


def task(out: str) -> None:
    """One file per batch: block -> [row, feature]."""
    Path(out).mkdir(parents=True)
    size = options["batch"]
    for number, (batch, real) in enumerate(zip(ids.split(size), lengths.split(size), strict=True)):
        longest = int(real.max())
        with torch.inference_mode(), network.trace(batch[:, :longest], use_cache=False):
            saved = save([network.h[block].output for block in blocks])
        keep = torch.arange(longest) < real[:, None]
        torch.save(
            {block: _rows(value, keep) for block, value in zip(blocks, saved, strict=True)},
            f"{out}/{number:05d}.pt",
        )


def _rows(value: object, keep: torch.Tensor) -> torch.Tensor:
    tensor = value[0] if isinstance(value, tuple) else value
    return tensor.flatten(0, 1) if keep.all() else tensor[keep]


def read(out: str, to: str, samples: int) -> None:
    """Read back the files of the last run."""
    parts = [torch.load(path) for path in sorted(Path(out).glob("*.pt"))]
    n_rows = int(lengths[:samples].sum())
    np.save(to, np.stack([torch.cat([p[block] for p in parts])[:n_rows].numpy() for block in blocks]))


serve(task, read)
