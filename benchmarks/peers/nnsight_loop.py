"""nnsight: a trace per batch that saves the outputs of blocks, and torch.save per batch, as its users write it.

nnsight has no store of its own. The network is the bare GPT2Model (no unembedding), in inference mode.
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
blocks = options["blocks"]


def task(out: str) -> None:
    """One file per batch: block -> [sample, position, feature]."""
    Path(out).mkdir(parents=True)
    for number, batch in enumerate(ids.split(options["batch"])):
        with torch.inference_mode(), network.trace(batch, use_cache=False):
            saved = save([network.h[block].output for block in blocks])
        torch.save(
            {block: _tensor(value) for block, value in zip(blocks, saved, strict=True)},
            f"{out}/{number:05d}.pt",
        )


def _tensor(value: object) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def read(out: str, to: str, samples: int) -> None:
    """Read back the files of the last run."""
    parts = [torch.load(path) for path in sorted(Path(out).glob("*.pt"))]
    np.save(to, np.stack([torch.cat([p[block] for p in parts])[:samples].numpy() for block in blocks]))


serve(task, read)
