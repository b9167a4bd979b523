"""Open what subspan made: captures as lazy arrays or training batches, artifacts as typed results.

>>> import subspan
>>> capture = subspan.open_capture("subspan-out", "3f2a")       # doctest: +SKIP
>>> capture.site("encoder.layer.3").activation.mean("row")       # doctest: +SKIP
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from schemas.run import RunSpec
from tasks.readers import (
    ArtifactView,
    Capture,
    list_artifacts,
    list_captures,
    open_artifact,
    open_capture,
)

if TYPE_CHECKING:
    from tasks.compressed.files import load_compressed
    from tasks.monitor import TrainingMonitor
    from tasks.record import Recorder
    from tasks.trainer import MonitorCallback, RecorderCallback

_LAZY = {
    "MonitorCallback": "tasks.trainer",
    "Recorder": "tasks.record",
    "RecorderCallback": "tasks.trainer",
    "TrainingMonitor": "tasks.monitor",
    "load_compressed": "tasks.compressed.files",
}
"""What needs torch or transformers, and where it is."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


try:
    __version__ = importlib.metadata.version("subspan")
except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0+source"

__all__ = [
    "ArtifactView",
    "Capture",
    "MonitorCallback",
    "Recorder",
    "RecorderCallback",
    "RunSpec",
    "TrainingMonitor",
    "__version__",
    "list_artifacts",
    "list_captures",
    "load_compressed",
    "open_artifact",
    "open_capture",
]
