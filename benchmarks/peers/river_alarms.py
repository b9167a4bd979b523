"""river: a drift detector with its default options over streams of scores, each by a detector of its own."""

from pathlib import Path

import numpy as np
from child import arguments, serve
from river import drift

options = arguments()
streams = np.load(options["streams"])
found: list[list[int]] = []


def alarms(stream: np.ndarray) -> list[int]:
    """Places of the scores with which drift was told."""
    detector, told = getattr(drift, options["detector"])(), []
    for place, score in enumerate(stream.tolist()):
        detector.update(score)
        if detector.drift_detected:
            told.append(place)
    return told


def task(out: str) -> None:
    """All streams; nothing is written."""
    Path(out).mkdir(parents=True)
    found[:] = [alarms(stream) for stream in streams]


def read(out: str, to: str, samples: int) -> None:
    """[stream, score], 1 at an alarm."""
    told = np.zeros(streams.shape, dtype=np.float32)
    for row, places in zip(told, found, strict=True):
        row[places] = 1
    np.save(to, told)


serve(task, read)
