"""What a worker must have in common with the process that plans, and jobs that look at it before they begin."""

import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar

from schemas.base import sha256
from schemas.errors import FingerprintError
from tasks.fingerprint import PACKAGES, worker_name

T = TypeVar("T")
R = TypeVar("R")

TALK = ("python", "dask", "distributed", "cloudpickle", "msgpack")
"""What takes jobs and results from one process to another: never mixed."""
CURE = "give workers the environment of this process (the same constraints.txt, or the same image), then run again; finished units are kept"
MISSING = "none"


@cache
def own_versions() -> dict[str, str]:
    """Versions in this process, without what tells a build for CPU from one for GPU. Costs milliseconds, once."""
    names = dict.fromkeys((*TALK[1:], "subspan", *PACKAGES))
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: _version(name) for name in names},
        "code of subspan": code_digest()[:12],
    }


@cache
def code_digest() -> str:
    """The content of all our source files."""
    top = Path(__file__).resolve().parent.parent
    files = sorted(p for part in ("schemas", "tasks", "pipelines") for p in (top / part).rglob("*.py"))
    return sha256(b"".join(p.read_bytes() for p in files))


def expected_versions(mix: bool = False) -> dict[str, str]:
    """What workers must have: all of ours, or with `mix` only what jobs travel by."""
    return {name: version for name, version in own_versions().items() if not mix or name in TALK}


def skew(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What is not the same, with both versions; empty where nothing differs."""
    return ", ".join(
        f"{name} {found.get(name, MISSING)} (here {version})"
        for name, version in expected.items()
        if found.get(name, MISSING) != version
    )


def run_checked(expected: Mapping[str, str], function: Callable[[T], R], item: T) -> R:
    """`function(item)` on a worker, also one that joined in mid-run, if it has what is expected.

    Raises:
        FingerprintError: if it has not, with both versions; nothing was computed.
        Exception: what the function raises.
    """
    if wrong := skew(expected, own_versions()).replace("(here", "(where the run was started"):
        raise FingerprintError(f"worker {worker_name()} has {wrong}: {CURE}")
    return function(item)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return MISSING
