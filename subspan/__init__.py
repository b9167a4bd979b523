"""Open what subspan made: captures as lazy arrays or training batches, artifacts as typed results.

>>> import subspan
>>> capture = subspan.open_capture("subspan-out", "3f2a")       # doctest: +SKIP
>>> capture.site("encoder.layer.3").activation.mean("row")       # doctest: +SKIP
"""

import importlib.metadata

from schemas.run import RunSpec
from tasks.readers import (
    ArtifactView,
    Capture,
    list_artifacts,
    list_captures,
    open_artifact,
    open_capture,
)

try:
    __version__ = importlib.metadata.version("subspan")
except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0+source"

__all__ = [
    "ArtifactView",
    "Capture",
    "RunSpec",
    "__version__",
    "list_artifacts",
    "list_captures",
    "open_artifact",
    "open_capture",
]
