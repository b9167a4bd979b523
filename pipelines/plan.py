"""RunSpec -> Plan: ids, units, bytes on disk and memory, before anything is computed.

Making a plan loads the network and tokenises the data. A run keeps the plan under `<root>/plans/`, named by everything
that went into it (the request, the weights' and the data's bytes, package versions, our own code), so that repeating a
finished run reads a few small files and imports neither torch nor transformers.
"""

import importlib.metadata
import os

from pydantic import ValidationError

from schemas.base import Frozen, canonical_json, content_id
from schemas.capture import CaptureRequest, CaptureSpec
from schemas.errors import DamageError, NotFoundError, OccupiedError
from schemas.execution import Execution
from schemas.outcome import place_of
from schemas.run import RunSpec
from schemas.stage import ResolvedStage
from tasks.store.edges import edges_ref
from tasks.store.location import Location
from tasks.store.paths import PLANS, capture_path, manifest_path
from tasks.store.seal import count_receipts, is_sealed
from tasks.versions import code_digest

PLANNING_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "zarr")


class CapturePlan(Frozen):
    """One capture (of one partition)."""

    name: str
    partition: str | None
    id: str
    spec: CaptureSpec
    n_units: int
    bytes: int
    """On disk, before compression."""
    worker_memory_bytes: int
    """Projected peak of one worker."""
    shared_memory_bytes: int
    """The part of it that workers which are threads of one process share: libraries and weights."""
    n_tokens: int
    """Tokens (or samples) that go through the network."""
    dry_run_seconds: float | None = None
    """For a token (or sample), in the dry run of a few samples on a CPU of the machine that planned."""
    sealed: bool = False
    units_done: int = 0


class StagePlan(Frozen):
    """One stage at one site."""

    name: str
    site: str
    id: str
    stage: ResolvedStage
    done: bool = False
    partition: str | None = None
    """Of the captures that it reads, where it runs for each."""

    @property
    def place(self) -> str:
        """The site, the one that it is measured against where that is another, and the partition."""
        return place_of(self.site, self.stage.partner, self.partition)


class Plan(Frozen):
    """What a run will do."""

    run: RunSpec
    request_id: str | None
    """Names the kept plan; None where a source has no cheap fingerprint."""
    captures: tuple[CapturePlan, ...]
    stages: tuple[StagePlan, ...]

    @property
    def execution(self) -> Execution:
        """How it is executed: a network that is spread over GPUs needs one worker that sees them all."""
        asked = self.run.execution
        gpus = asked.device != "cpu" and asked.cluster not in ("processes", "threads")
        spread = gpus and any(
            getattr(request.model, "device_map", "none") == "auto" for request in self.run.captures.values()
        )
        return asked.model_copy(update={"workers": 1}) if spread and asked.workers is None else asked

    @property
    def bytes_on_disk(self) -> int:
        """Bytes that are still to be written, before compression."""
        return sum(
            c.bytes * (c.n_units - c.units_done) // max(1, c.n_units) for c in self.captures if not c.sealed
        )

    @property
    def memory_bytes(self) -> int:
        """Projected peak of one worker in the captures that are still to be made; 0 if there are none."""
        return max((c.worker_memory_bytes for c in self.captures if not c.sealed), default=0)

    def threads_memory_bytes(self, n: int) -> int:
        """Projected peak of one process of which n threads run units of the captures that are still to be made."""
        todo = [(c, max(1, min(n, c.n_units - c.units_done))) for c in self.captures if not c.sealed]
        return max((k * c.worker_memory_bytes - (k - 1) * c.shared_memory_bytes for c, k in todo), default=0)

    @property
    def threads(self) -> int:
        """CPU threads of one worker."""
        return max(c.precision.threads for c in self.run.captures.values())

    @property
    def finished(self) -> bool:
        """Whether there is nothing to compute."""
        return all(c.sealed for c in self.captures) and all(s.done for s in self.stages)


def make_plan(run: RunSpec, refresh: bool = False) -> Plan:
    """The plan of a run.

    Args:
        run: the run.
        refresh: plan anew even where a kept plan fits.

    Raises:
        SubspanError: for a wrong site, method, option, source or network; see the subclasses.
    """
    root = Location(run.root)
    if root.is_local and os.path.isfile(root.url.removeprefix("file://")):
        raise OccupiedError(
            f"the root {run.root} is a file; expected a folder, or a place where one can be made"
        )
    request_id = request_identity(run)
    kept = None if refresh or request_id is None else _read_kept(root, request_id)
    if kept is None:
        from pipelines.resolve import resolve_run

        captures, stages = resolve_run(run)
    else:
        captures, stages = kept.captures, kept.stages
    plan = Plan(run=run, request_id=request_id, captures=captures, stages=stages)
    return with_progress(plan)


def keep_plan(plan: Plan) -> None:
    """Keep a plan, so that the same run need not be planned again."""
    if plan.request_id is not None:
        Location(plan.run.root).write(f"{PLANS}/{plan.request_id}.json", canonical_json(plan))


def with_progress(plan: Plan) -> Plan:
    """The plan with what is done already, read from the store."""
    root = Location(plan.run.root)
    captures = tuple(_capture_progress(root, capture) for capture in plan.captures)
    stages = tuple(
        s.model_copy(update={"done": root.exists(f"artifacts/{s.id}/artifact.json")}) for s in plan.stages
    )
    return plan.model_copy(update={"captures": captures, "stages": stages})


def request_identity(run: RunSpec) -> str | None:
    """Names everything that a plan depends on, without loading a network; None if that is not possible."""
    captures = {}
    for name, request in run.captures.items():
        prints = _source_prints(request)
        if prints is None:
            return None
        captures[name] = {"request": request.model_dump(mode="json"), **prints}
    stages = {name: stage.model_dump(mode="json") for name, stage in run.stages.items()}
    files = {given.edges for stage in run.stages.values() for given in stage.inputs.values() if given.edges}
    if any(stage.method.partition(".")[0] in _allowed() for stage in run.stages.values()):
        return None  # a method of another package: its version is known only once it is imported
    versions = {name: importlib.metadata.version(name) for name in PLANNING_PACKAGES}
    asked: dict[str, object] = {
        "captures": captures,
        "stages": stages,
        "versions": versions,
        "code": code_digest(),
    }
    return content_id(asked | {"edges": {url: edges_ref(url).model_dump() for url in sorted(files)}})


def _allowed() -> list[str]:
    return [name for name in os.environ.get("SUBSPAN_METHOD_PACKAGES", "").split(",") if name]


def _source_prints(request: CaptureRequest) -> dict[str, object] | None:
    from tasks.extract.data import fingerprint, partitions
    from tasks.extract.weights import tokenizer_digest, weights_digest

    weights = weights_digest(request.model)
    data = {partition: fingerprint(request.data, partition) for partition in partitions(request.data)}
    if weights is None or None in data.values():
        return None
    return {"weights": weights, "tokenizer": tokenizer_digest(request.model), "data": data}


def _read_kept(root: Location, request_id: str) -> Plan | None:
    try:
        return Plan.model_validate_json(root.read(f"{PLANS}/{request_id}.json"))
    except (NotFoundError, ValidationError):
        return None


def _capture_progress(root: Location, capture: CapturePlan) -> CapturePlan:
    if is_sealed(root, capture.id):
        if not root.exists(f"{capture_path(capture.id)}/zarr.json"):
            raise DamageError(
                f"capture {capture.id} is sealed and its folder {root.url}/{capture_path(capture.id)} is gone: restore it, or remove "
                f"{manifest_path(capture.id)} and run again"
            )
        return capture.model_copy(update={"sealed": True, "units_done": capture.n_units})
    return capture.model_copy(update={"sealed": False, "units_done": count_receipts(root, capture.id)})
