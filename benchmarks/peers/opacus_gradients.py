"""opacus: GradSampleModule gives whole gradients of each sample, projected to 16 x 16 and saved as its user would."""

from pathlib import Path

from child import arguments, serve

options = arguments()

import numpy as np  # noqa: E402  (the process is bound to its cores first)
import torch  # noqa: E402
from opacus import GradSampleModule  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

torch.set_num_threads(options["threads"])
plain = AutoModelForCausalLM.from_pretrained(
    options["model"], dtype=torch.float32
).train()  # its hooks want training mode
names = [n for n, _ in plain.named_parameters() if ".layers." in n and n.endswith("proj.weight")]
for name, parameter in plain.named_parameters():
    parameter.requires_grad_(name in names)
network = GradSampleModule(plain, loss_reduction="sum", strict=False)
ids = torch.from_numpy(np.load(options["ids"]))
maps = {
    name: [torch.randint(0, 2, (16, n)).float().mul(2).sub(1) / 4 for n in plain.get_parameter(name).shape]
    for name in names
}


def task(out: str) -> None:
    """One file per batch."""
    Path(out).mkdir(parents=True)
    for number, batch in enumerate(ids.split(options["batch"])):
        logits = network(input_ids=batch, use_cache=False).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").backward()
        found = {}
        for name in names:
            parameter = plain.get_parameter(name)
            left, right = maps[name]
            found[name] = left @ parameter.grad_sample @ right.T
            parameter.grad_sample = None
            parameter.grad = None
        torch.save(found, f"{out}/{number:05d}.pt")


def read(out: str, to: str, samples: int) -> None:
    """Nothing is compared here."""


serve(task, read)
