"""Seconds of two networks on the same batches of a capture, in turn."""

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from tasks.engine.network import CapturedNetwork, NetworkPart
from tasks.extract.batches import Batch
from tasks.extract.collect import forward, running
from tasks.extract.models import Network, network
from tasks.readers import ArtifactView

SAMPLES, ROUNDS = 64, 9


class Timed(NamedTuple):
    """Medians over rounds, and how many times as long the first took, with quartiles."""

    samples: int
    threads: int
    before_seconds: float
    after_seconds: float
    ratio: float
    low: float
    high: float


def compare(view: ArtifactView, compressed: nn.Module) -> Timed:
    """Forwards of a capture's network and of a compressed one, alternating, after one of each that is not counted.

    Args:
        view: an artifact over a network.
        compressed: on the CPU.
    """
    (ref,) = view.artifact.stage.rows["network"]
    part = NetworkPart(view.root, ref)
    samples = np.flatnonzero(part.ok)[:SAMPLES]
    request = part.spec.request
    net = network(request.model, "cpu", request.precision.threads, part.spec.weights)
    batches = [batch for _, batch in CapturedNetwork(part, samples, "cpu").encoded()]
    nets = (net, net._replace(module=compressed))
    seconds = np.array([[_seconds(one, batches, part) for one in nets] for _ in range(ROUNDS + 1)])[1:]
    before, after = np.median(seconds, axis=0)
    low, ratio, high = np.percentile(seconds[:, 0] / seconds[:, 1], [25, 50, 75])
    return Timed(
        len(samples),
        request.precision.threads,
        float(before),
        float(after),
        float(ratio),
        float(low),
        float(high),
    )


def _seconds(net: Network, batches: list[Batch], part: NetworkPart) -> float:
    began = time.perf_counter()
    for batch in batches:
        with torch.no_grad(), running(net, batch, part.spec.request.precision):
            forward(net, batch)
    return time.perf_counter() - began
