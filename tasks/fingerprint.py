"""What equal bytes depend on beside the spec: versions, device, threads, processor."""

import importlib.metadata
import os
import platform
import socket
import sys
from functools import cache

from schemas.receipts import Fingerprint

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "zarr", "numcodecs", "pillow")


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages whose code makes stored bytes."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def fingerprint(device: str) -> Fingerprint:
    """The fingerprint of this process on a device (`cpu`, `cuda`, `cuda:1`)."""
    import torch

    name = "cpu" if device == "cpu" else torch.cuda.get_device_name(torch.device(device))
    return Fingerprint(
        packages=package_versions(),
        device=name,
        threads=torch.get_num_threads(),
        python=".".join(map(str, sys.version_info[:3])),
        machine=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    )


def differences(others: Fingerprint, own: Fingerprint) -> str:
    """What is not the same, in words; empty where nothing differs."""
    old, new = others.model_dump(), own.model_dump()
    return ", ".join(f"{key} {new[key]!r} (others {old[key]!r})" for key in old if old[key] != new[key])


def worker_name() -> str:
    """host:pid, as receipts and leases name a process."""
    return f"{socket.gethostname()}:{os.getpid()}"
