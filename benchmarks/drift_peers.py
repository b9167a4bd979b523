"""`anomaly.alarms` beside river's detectors of drift: false alarms, delays and alarms for one change, and seconds.

    python -m benchmarks.drift_peers [--pairs 3] [--streams 10]

Streams of 2,000 normal scores in control and 2,000 whose mean is larger by 0.65 or 2.5 standard deviations, 1,000 scores of calibration
for ours, seeds 0, 1, ...; all with their default options, one thread each. Where SUBSPAN_DATA names a folder with ADBench's
adbench_cv_resnet18, the same of real scores: distances from the normal subspace of one class of images, then of another. Results go to
benchmarks/results/drift_peers.json.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.children import child, scratch_folder
from benchmarks.protocol import ROOT, environment, pairs, peer_python, ratio, save, timed
from tasks.methods.anomaly import alarms
from tasks.numerics.change_alarms import watched

PEERS = ROOT / "benchmarks" / "peers"
DETECTORS = ("ADWIN", "PageHinkley")
BEFORE, CALIBRATION = 2000, 1000
SHIFTS = (0.65, 2.5)
DATA = os.environ.get("SUBSPAN_DATA", "")
CLASSES = ("CIFAR10_4", "SVHN_0")


class Streams(NamedTuple):
    """Scores whose level changes once, after `BEFORE` of them."""

    scores: np.ndarray
    """float64 [stream, score]"""
    calibration: np.ndarray
    """float64 [stream, score]"""


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--streams", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with threadpool_limits(1), tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        for name, streams in _kinds(options.streams):
            found[name] = _compared(streams, Path(folder) / "streams.npy", options.pairs)
            print(json.dumps({name: found[name]}, indent=1), flush=True)
    save("drift_peers", {"found": found, "environment": environment(1)})


def _kinds(n: int) -> Iterator[tuple[str, Streams]]:
    for shift in SHIFTS:
        drawn = [np.random.default_rng(seed).standard_normal(2 * BEFORE + CALIBRATION) for seed in range(n)]
        scores = np.stack(drawn)[:, : 2 * BEFORE]
        scores[:, BEFORE:] += shift
        yield f"normal, {shift:g} standard deviations", Streams(scores, np.stack(drawn)[:, 2 * BEFORE :])
    for name in CLASSES if DATA else ():
        yield f"ResNet-18, {name}", _images(name, n)


def _images(name: str, n: int) -> Streams:
    """Log squared distances from the subspace that holds 0.9 of 2,000 rows of CIFAR10_0."""
    normal, other = _rows("CIFAR10_0"), _rows(name)
    scores, calibration = [], []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        fit, known, calm = np.split(normal[rng.permutation(len(normal))[: 4000 + CALIBRATION]], [2000, 3000])
        values, vectors = np.linalg.eigh(np.cov(fit.T))
        outside = vectors[:, np.cumsum(values) <= 0.1 * values.sum()]
        stream, alone = (
            np.log(np.square((x - fit.mean(0)) @ outside).sum(1))
            for x in (np.concatenate([calm, rng.permutation(other)[:BEFORE]]), known)
        )
        scores.append((stream - alone.mean()) / alone.std())
        calibration.append((alone - alone.mean()) / alone.std())
    return Streams(np.stack(scores), np.stack(calibration))


def _rows(name: str) -> np.ndarray:
    with np.load(Path(DATA) / "adbench_cv_resnet18" / f"{name}.npz") as stored:
        rows: np.ndarray = stored["X"][stored["y"] == 0].astype(np.float64)
    return rows


def _compared(streams: Streams, path: Path, n: int) -> dict[str, Any]:
    np.save(path, streams.scores)
    lines = (PEERS / "river.txt").read_text().splitlines()
    python = peer_python("river", lines)
    found: dict[str, Any] = {"ours": _told(_ours(streams))}
    for detector in DETECTORS:
        given = {"streams": str(path), "detector": detector, "threads": 1}
        with child([str(PEERS / "river_alarms.py")], given, 1, python) as other:
            ours, theirs = pairs(lambda: timed(lambda: _ours(streams)), other.run, n)
            found[detector] = _told(other.values(len(streams.scores)) > 0)
        found[detector]["seconds_over_ours"] = ratio(theirs, ours)._asdict()
        found["ours"]["seconds"] = float(np.median([run.seconds for run in ours]))
    return found


def _ours(streams: Streams) -> np.ndarray:
    """bool [stream, score]"""
    told = np.zeros(streams.scores.shape, dtype=bool)
    length = alarms.Config().run_length
    for number, (scores, known) in enumerate(zip(*streams, strict=True)):
        uniform = np.random.default_rng([number, 1]).random(len(scores))
        made = watched(*map(torch.from_numpy, (scores, known, uniform)), length, False)
        told[number, [alarm.at for alarm in made.alarms]] = True
    return told


def _told(told: np.ndarray) -> dict[str, Any]:
    """Means over streams; delays of those in which the change was told."""
    after = told[:, BEFORE:]
    delays = after.argmax(1)[after.any(1)] + 1
    return {
        "early": float(told[:, :BEFORE].sum(1).mean()),
        "after": float(after.sum(1).mean()),
        "told_once": int((after.sum(1) == 1).sum()),
        "missed": int((~after.any(1)).sum()),
        "delay": float(delays.mean()) if len(delays) else None,
        "longest_delay": int(delays.max()) if len(delays) else None,
    }


if __name__ == "__main__":
    main()
