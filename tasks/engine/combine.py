"""Runs `combine` stages: artifacts in, one artifact out, without any rows."""

from collections.abc import Iterator, Sequence

from schemas.artifact import Artifact
from schemas.stage import ResolvedStage
from tasks.engine.call import Call
from tasks.engine.outcome import Used, write_outcome
from tasks.engine.prepare import StageJob, artifact_inputs, opened, single_artifacts


def run(call: Call, stages: Sequence[ResolvedStage]) -> Iterator[Artifact]:
    """Run stages to their artifacts, each as one job."""
    yield from call.run(solve, [call.job(stage) for stage in stages])


def solve(job: StageJob) -> Artifact:
    """Read the artifacts of a stage and run its method.

    Raises:
        MethodError: if the method cannot take them.
        NotFoundError: if one of them is not there.
    """
    module, config = opened(job)
    inputs = artifact_inputs(job, module, single_artifacts(job, module))
    if hasattr(module, "check"):
        module.check(inputs, config)
    result, arrays = module.solve(inputs, config)
    return write_outcome(job, result, arrays, Used(rows=0, dropped=0))
