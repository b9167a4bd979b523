"""bergson: collect_gradients with two-sided projections to 16 x 16 of every linear layer in the blocks, written to its memory map."""

import shutil

from child import arguments, serve

options = arguments()

import numpy as np  # noqa: E402  (the process is bound to its cores first)
import torch  # noqa: E402
from bergson import GradientProcessor, IndexConfig, collect_gradients  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

torch.set_num_threads(options["threads"])
network = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32).eval()
for parameter in network.parameters():
    parameter.requires_grad_(False)
network.get_input_embeddings().requires_grad_(True)
ids = np.load(options["ids"])
data = Dataset.from_dict({"input_ids": ids.tolist(), "length": [ids.shape[1]] * len(ids)})
size = options["batch"]
batches = [list(range(first, min(first + size, len(ids)))) for first in range(0, len(ids), size)]


def task(out: str) -> None:
    """One index."""
    processor = GradientProcessor(projection_dim=16, projection_type="rademacher")
    config = IndexConfig(run_path=out, loss_reduction="sum")
    collect_gradients(network, data, processor, config, batches=batches)
    shutil.move(config.partial_run_path, out)  # what its own build does at the end


def read(out: str, to: str, samples: int) -> None:
    """Nothing is compared here."""


serve(task, read)
