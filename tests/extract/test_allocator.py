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
