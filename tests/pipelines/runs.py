"""Run specs for tests."""

from pathlib import Path
from typing import Any

from schemas.run import RunSpec
from tasks.store.location import Location
from tasks.store.paths import capture_path


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
