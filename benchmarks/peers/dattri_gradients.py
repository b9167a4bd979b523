"""dattri: LoGra with 16 x 16 for every linear layer of the blocks, without curvature, kept in memory."""

from pathlib import Path

from child import arguments, serve

options = arguments()

import numpy as np  # noqa: E402  (the process is bound to its cores first)
import torch  # noqa: E402
from dattri.algorithm.logra import LoGraAttributor  # noqa: E402
from dattri.task import AttributionTask  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

torch.set_num_threads(options["threads"])
network = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32).eval()
layers = [n for n, m in network.named_modules() if ".layers." in n and n.endswith("proj")]
ids = torch.from_numpy(np.load(options["ids"]))
rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
loader = DataLoader(rows, batch_size=options["batch"], shuffle=False)


def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], device: str) -> torch.Tensor:
    """The mean over the batch, which LoGra multiplies by the batch."""
    sequences = batch["input_ids"].to(device)
    logits = model(input_ids=sequences, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), sequences[:, 1:].flatten(), reduction="sum") / len(
        sequences
    )


def task(out: str) -> None:
    """One cache."""
    made = AttributionTask(loss_func=loss, model=network, checkpoints=network.state_dict())
    attributor = LoGraAttributor(
        made, layer_names=layers, hessian="Identity", proj_dim=256, offload="cpu", device="cpu"
    )  # its offloading to disk wants memory pinned for a GPU
    attributor.cache(loader)
    Path(out).mkdir(parents=True)


def read(out: str, to: str, samples: int) -> None:
    """Nothing is compared here."""


serve(task, read)
