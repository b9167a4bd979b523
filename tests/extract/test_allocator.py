"""The allocator's settings are there before a network runs, and a user's own are left."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, resource
from tasks.extract.allocator import keep_memory
import torch
print(keep_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(4_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_large_tensors_reuse_their_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    settings, faults = done.stdout.split("\n")[:2]
    assert settings == "True"
    assert (
        int(faults) < 4_000
    )  # 16 MB are 4,000 pages; without the setting each of 50 tensors faults them all


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    """What was faulted in between two blocks that stay is resident until it is given back."""
    code = (
        "import ctypes, torch\n"
        "from tasks.extract.allocator import give_back, keep_memory\n"
        "keep_memory()\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "gap = torch.ones(20_000_000); stays = torch.ones(100_000); del gap\n"
        "before = rss(); give_back(); print(before - rss())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 70_000_000
