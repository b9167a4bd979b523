"""A small network of our own, trained on the spot: shows how any `torch.nn.Module` enters a run."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class DigitsNet(nn.Module):
    """Two convolutions and a linear read-out for 1 x 8 x 8 digits, with the in-place operations that real code has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(inplace=True))
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=4), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(channels * 16, 64)
        self.readout = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """[sample, 1, 8, 8] -> [sample, class]"""
        hidden = self.first(images)
        hidden = hidden + self.second(hidden)
        features = torch.relu(self.hidden(self.pool(hidden).flatten(1)))
        logits: Tensor = self.readout(features)
        return logits


def digits_net(channels: int = 16, epochs: int = 8, seed: int = 0) -> nn.Module:
    """The network, trained on scikit-learn's digits for a few seconds; the same weights for the same arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(digits.target)
        net = DigitsNet(channels)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
                optimizer.step()
    return net.eval()
