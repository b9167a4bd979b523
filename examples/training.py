"""Trains the network of `networks.py` on scikit-learn's digits and records how: `python -m examples.training [root] [steps]`.

Then `subspan run examples/training.yaml` looks at the recording, and at the curvature at four moments of the training.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import subspan
from examples.networks import DigitsNet

NAME = "digits-training"
PARAMETERS = ("readout.*", "second.0.weight")


def moments(steps: int) -> dict[int, str]:
    """When weights are kept beside the recording, with their names."""
    return {0: "begin", max(1, steps // 10): "early", max(2, steps // 3): "middle", steps: "end"}


def main(root: str = "subspan-out", steps: int = 300) -> Path:
    """Train with plain gradient descent and record every step; returns the folder of the kept weights."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    net = DigitsNet(channels=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    recorder = subspan.Recorder(root, NAME, net, PARAMETERS, quantities=("weight", "update", "gradient"))
    folder, kept = Path(root) / NAME, moments(steps)
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(steps + 1):
        if step in kept:
            torch.save(net.state_dict(), folder / f"{kept[step]}.pt")
        if step == steps:
            break
        chosen = torch.randint(0, len(images), (64,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(net(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        recorder.before_step()
        optimizer.step()
        recorder.record(step, loss=loss.item())
    return folder


def at(path: str) -> nn.Module:
    """The network with weights that were kept."""
    net = DigitsNet(channels=8)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "subspan-out", int(sys.argv[2]) if len(sys.argv) > 2 else 300)
