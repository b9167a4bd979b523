"""Run specs for tests, what lies in their stores, and parts that workers import."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schemas.capture import CaptureSpec
from schemas.layout import UnitRef
from schemas.run import RunSpec
from tasks.store.location import Location
from tasks.store.paths import all_units, capture_path, receipt_path, unit_files
from tasks.unit import UnitDone, UnitJob, run_unit


def vectors_run(
    root: Path | str,
    n: int = 100,
    network: dict[str, Any] | None = None,
    store: dict[str, Any] | None = None,
    stages: dict[str, Any] | None = None,
    **request: Any,
) -> RunSpec:
    """A run over `tests.factories:vectors`; small shards, so that there are several units."""
    return RunSpec.model_validate(
        {
            "name": "vectors",
            "root": str(root),
            "captures": {
                "vectors": {
                    "model": {
                        "kind": "factory",
                        "factory": "tests.factories:squares",
                        "arguments": network or {},
                    },
                    "data": {
                        "source": {
                            "kind": "factory",
                            "factory": "tests.factories:vectors",
                            "arguments": {"n": n},
                        }
                    },
                    "sites": ["first", "act", "last"],
                    "store": {"shard_rows": 16, "chunk_rows": 8, **(store or {})},
                    "batch_samples": 4,
                    **request,
                }
            },
            "stages": stages or {},
            "execution": {"device": "cpu", "cluster": "processes", "workers": 2},
            "report": None,
        }
    )


def store_bytes(root: Path | str, capture: str) -> dict[str, bytes]:
    """Arrays and their metadata: path below the capture's folder to bytes."""
    place = Location(str(root)).child(capture_path(capture))
    return {path: place.read(path) for path in place.walk()}


def artifact_bytes(root: Path | str, artifact: str) -> dict[str, bytes]:
    """Arrays of an artifact and their metadata: path below its Zarr folder to bytes."""
    place = Location(str(root)).child("artifacts", artifact, "arrays.zarr")
    return {path: place.read(path) for path in place.walk()}


def finished(root: Path, spec: CaptureSpec) -> dict[str, tuple[int, int]]:
    """Shards of units that have a receipt: path to inode and time of change."""
    base = root / capture_path(spec.id)
    stats = {
        path: (base / path).stat() for unit in _units(root, spec, True) for path in unit_files(spec, unit)
    }
    return {path: (s.st_ino, s.st_mtime_ns) for path, s in stats.items()}


def half_done(root: Path, spec: CaptureSpec) -> list[str]:
    """Names of units with shards but without a receipt."""
    base = root / capture_path(spec.id)
    return [
        unit.name
        for unit in _units(root, spec, False)
        if any((base / path).exists() for path in unit_files(spec, unit))
    ]


def _units(root: Path, spec: CaptureSpec, done: bool) -> list[UnitRef]:
    return [unit for unit in all_units(spec) if (root / receipt_path(spec.id, unit)).exists() == done]


class UnitLog(NamedTuple):
    """`run_unit` that also notes in a file when it begins and ends: tells what ran where, and how often."""

    path: str

    def __call__(self, job: UnitJob) -> UnitDone:
        """Run a unit on a worker."""
        self._note("begin", job)
        done = run_unit(job)
        self._note("skip" if done.skipped else "end", job)
        return done

    def _note(self, event: str, job: UnitJob) -> None:
        with open(self.path, "a") as file:  # one short line is appended in one step
            file.write(f"{event} {job.unit.name} {os.getpid()}\n")

    def events(self) -> list[tuple[str, str, int]]:
        """(`begin`, `end` or `skip`; unit; process id), in order."""
        path = Path(self.path)
        lines = path.read_text().splitlines() if path.exists() else []
        return [(event, unit, int(pid)) for event, unit, pid in map(str.split, lines)]

    def open_units(self) -> dict[int, str]:
        """Process id to the unit that it has begun and not ended."""
        last = {pid: (event, unit) for event, unit, pid in self.events()}
        return {pid: unit for pid, (event, unit) in last.items() if event == "begin"}

    def produced(self) -> dict[str, int]:
        """Unit to how often it was begun, without the times that found it done."""
        counts: dict[str, int] = {}
        for event, unit, _ in self.events():
            counts[unit] = counts.get(unit, 0) + {"begin": 1, "end": 0, "skip": -1}[event]
        return counts


TOKEN_LENGTHS = [
    5, 1, 12, 7, 7, 3, 20, 9, 2, 11, 6, 4, 15, 8, 10, 13, 1, 14, 16, 18, 3, 2, 5, 3, 2, 6, 4, 9, 8, 1, 7, 10,
]  # fmt: skip
TOKEN_VOCABULARY = 60
LEAST_TOKEN = 3
"""Smaller ids are padding and special."""


def tokens_of(number: int) -> Tensor:
    """The ids of sample `number`, the same wherever it stands in the data."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(LEAST_TOKEN, TOKEN_VOCABULARY, (TOKEN_LENGTHS[number],), generator=generator)


class Tokens(torch.utils.data.Dataset[dict[str, Any]]):
    """Token sequences as the keyword inputs of a network; sample n is called `n`."""

    def __init__(self, order: str, side: str) -> None:
        numbers = range(len(TOKEN_LENGTHS))
        shuffled = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(5)).tolist()
        by_length = sorted(numbers, key=TOKEN_LENGTHS.__getitem__)
        self.numbers: list[int] = {"given": list(numbers), "sorted": by_length, "shuffled": shuffled}[order]
        self.side = side
        self.fingerprint = f"tokens-{order}-{side}"

    def keys(self) -> list[str]:
        """The samples' names, in order."""
        return [str(number) for number in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.numbers[index]
        ids = tokens_of(number)
        pads = 0 if self.side == "none" else number % 4  # some samples have none
        before, after = (pads, 0) if self.side == "left" else (0, pads)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (before, after))
        position = (mask.cumsum(0) - 1).clamp(min=0)
        padded = torch.nn.functional.pad(ids, (before, after))
        return {"key": f"{number}", "input_ids": padded, "attention_mask": mask, "position_ids": position}


def token_sequences(order: str = "given", side: str = "none") -> Tokens:
    """The data set: in `given` order, `sorted` by length or `shuffled`; with padding of its own on one side or `none`."""
    return Tokens(order, side)
