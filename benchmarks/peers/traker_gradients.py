"""traker: vmap of grad over functional_call, as its gradient computer does, and BasicProjector to 512 dimensions; saved per batch."""

from pathlib import Path

from child import arguments, serve

options = arguments()

import numpy as np  # noqa: E402  (the process is bound to its cores first)
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from trak.projectors import BasicProjector, ProjectionType  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

torch.set_num_threads(options["threads"])
network = AutoModelForCausalLM.from_pretrained(
    options["model"], dtype=torch.float32, attn_implementation="eager"
).eval()
names = [n for n, _ in network.named_parameters() if ".layers." in n and n.endswith("proj.weight")]
weights = {n: p.detach() for n, p in network.named_parameters() if n in names}
others = {n: p.detach() for n, p in network.named_parameters() if n not in names}
ids = torch.from_numpy(np.load(options["ids"]))
total = sum(w.numel() for w in weights.values())
projector = BasicProjector(total, 512, 0, ProjectionType.rademacher, "cpu", block_size=100)


def loss(chosen: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
    """Of one sequence."""
    out = torch.func.functional_call(
        network, (chosen, others), (), {"input_ids": sample[None], "use_cache": False}
    )
    return F.cross_entropy(out.logits[0, :-1], sample[1:], reduction="sum")


gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")


def task(out: str) -> None:
    """One file per batch."""
    Path(out).mkdir(parents=True)
    for number, batch in enumerate(ids.split(options["batch"])):
        found = gradients(weights, batch)
        rows = torch.cat([found[name].flatten(1) for name in names], dim=1)
        torch.save(projector.project(rows, model_id=0).clone(), f"{out}/{number:05d}.pt")


def read(out: str, to: str, samples: int) -> None:
    """Nothing is compared here."""


serve(task, read)
