"""Angles of many subspaces: every two of 100 of dimension 64 in 4096 features, without projectors.

`python -m benchmarks.geometry [--members N] [--near]`: with `--near` each differs from the next by small angles only, which is the
dearer case. A peer that forms projectors would need 100 x 4096 x 4096 numbers, 13 GB.
"""

import argparse
import time

import numpy as np
import scipy.linalg
import torch

from tasks.numerics.angles import pairwise_angles

TARGET_SECONDS = 30.0
PEER_PAIRS = 20


def bases(members: int, k: int, width: int, near: bool) -> list[torch.Tensor]:
    """Random subspaces, or a chain of which neighbours are near."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.linalg.qr(torch.randn(width, k, generator=generator, dtype=torch.float64)).Q]
    for _ in range(members - 1):
        drawn = torch.randn(width, k, generator=generator, dtype=torch.float64)
        found.append(torch.linalg.qr(found[-1] + 1e-5 * drawn if near else drawn).Q)
    return [columns.T.contiguous() for columns in found]


def peer(found: list[torch.Tensor]) -> float:
    """Seconds that `scipy.linalg.subspace_angles` takes for a pair."""
    begun = time.perf_counter()
    for k in range(min(PEER_PAIRS, len(found) - 1)):
        scipy.linalg.subspace_angles(found[k].T.numpy(), found[k + 1].T.numpy())
    return (time.perf_counter() - begun) / min(PEER_PAIRS, len(found) - 1)


def main() -> int:
    """Print target, figure and peer; 1 if the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geometry", description=__doc__)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--near", action="store_true")
    parser.add_argument("--pairs", type=int, default=0, help="not used; one run is enough")
    options = parser.parse_args()
    found = bases(options.members, options.components, options.width, options.near)
    begun = time.perf_counter()
    largest = [float(theta[-1]) for _, _, theta in pairwise_angles(found)]
    seconds = time.perf_counter() - begun
    n = len(largest)
    beside = peer(found)
    print(
        f"{options.members} subspaces of {options.components} in {options.width}, {torch.get_num_threads()} threads: {n} pairs in "
        f"{seconds:.1f} s ({1000 * seconds / n:.2f} ms a pair), target {TARGET_SECONDS:.0f} s; scipy {1000 * beside:.1f} ms a pair "
        f"({beside * n:.0f} s for all), largest angles {np.mean(largest):.4f} on average"
    )
    return int(seconds > TARGET_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
