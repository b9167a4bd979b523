"""A method's answer -> a finished artifact."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
from pydantic import BaseModel

from schemas.artifact import Artifact
from schemas.capture import SCHEMA_VERSION
from tasks.engine.prepare import StageJob
from tasks.fingerprint import fingerprint
from tasks.methods.contract import Array, Arrays
from tasks.store.artifacts import write_artifact


class Used(BaseModel):
    """Rows that went into an artifact."""

    rows: int
    dropped: int


def artifact_of(job: StageJob, result: BaseModel, used: Used) -> Artifact:
    """The artifact without its arrays and digests. NaN and infinities of the result become null."""
    return Artifact(
        schema_version=SCHEMA_VERSION,
        id=job.stage.id,
        stage=job.stage,
        result=json.loads(result.model_dump_json()),
        arrays={},
        rows_used=used.rows,
        rows_dropped=used.dropped,
        seconds=max(0.0, time.time() - job.begun),
        fingerprint=fingerprint(job.device),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def write_outcome(job: StageJob, result: BaseModel, arrays: Arrays, used: Used) -> Artifact:
    """Write what a method found; the artifact exists when this returns."""
    return write_artifact(job.root, artifact_of(job, result, used), as_numpy(arrays), {})


def as_numpy(arrays: Mapping[str, Array]) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """Arrays with their axes, in memory of the CPU."""
    return {
        name: (a.values.detach().cpu().contiguous().numpy(), a.dims) for name, a in sorted(arrays.items())
    }
