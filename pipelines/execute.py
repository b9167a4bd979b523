"""A plan, executed: captures, then stages, then the report. The same order with Prefect and without."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

from pipelines.account import Account
from pipelines.metrics import exported
from pipelines.plan import CapturePlan, Plan, StagePlan, keep_plan
from pipelines.preflight import check_plan
from pipelines.progress import Progress
from schemas.alert import Alert
from schemas.artifact import Artifact
from schemas.base import canonical_json, content_id
from schemas.errors import SubspanError
from schemas.outcome import ArtifactOutcome, CaptureOutcome, RunOutcome, StageFailure
from tasks.store.artifacts import read_artifact
from tasks.store.events import tell, within
from tasks.store.lease import drop_left
from tasks.store.location import Location
from tasks.store.manifest import read_manifest
from tasks.store.names import NAMES, name_path
from tasks.store.paths import ARTIFACTS, CAPTURES, PLANS, RUNS

LOG = logging.getLogger(__name__)
SHARED = (RUNS, NAMES, PLANS, CAPTURES, ARTIFACTS)
"""Folders that several runs write into at once: what a killed one left there goes when it is old."""
PAGE = "report.html"
"""The page inside the folder of a report."""


class Steps(Protocol):
    """How the three kinds of step are called: plainly, or as Prefect tasks."""

    def capture(self, label: str, **arguments: Any) -> CaptureOutcome:
        """Calls tasks.produce.run_capture."""

    def stages(self, label: str, **arguments: Any) -> dict[str, Artifact]:
        """Calls tasks.engine.run_stages."""

    def report(self, label: str, **arguments: Any) -> str:
        """Calls tasks.page.write_report."""


def finished_outcome(plan: Plan) -> RunOutcome | None:
    """The outcome of a run whose captures, artifacts and report all exist; None if anything is missing."""
    root = Location(plan.run.root)
    folder = report_folder(plan)
    if not plan.finished or (folder is not None and not root.exists(f"{folder}/{PAGE}")):
        return None
    captures = tuple(_sealed_outcome(root, capture) for capture in plan.captures)
    _point(root, captures)
    return RunOutcome(
        run=plan.run.name,
        root=plan.run.root,
        captures=captures,
        artifacts=tuple(_artifact_outcome(read_artifact(root, s.id), s, computed=False) for s in plan.stages),
        report=None if folder is None else root.child(folder, PAGE).url,
    )


def finished_again(plan: Plan) -> RunOutcome | None:
    """`finished_outcome`, recorded where the last record of a run of this name is of something else: last records say what `gc` keeps."""
    outcome, root = finished_outcome(plan), Location(plan.run.root)
    if outcome is not None and _made(outcome.model_dump(mode="json")) != _last_made(root, plan.run.name):
        _record(root, plan, outcome)
    return outcome


def _made(outcome: Mapping[str, Any]) -> set[str]:
    """Ids of captures and artifacts, and the report's folder, of an outcome as it is recorded."""
    page = outcome["report"]
    return {one["id"] for one in (*outcome["captures"], *outcome["artifacts"])} | (
        {page.rsplit("/", 2)[-2]} if page else set()
    )


def _last_made(root: Location, run: str) -> set[str] | None:
    """That of the last record of a run of this name; None where there is none that can be read."""
    records = [name for name in root.ls(RUNS) if name.partition("-")[2] == f"{run}.json"]
    with suppress(ValueError, KeyError, TypeError):
        return _made(json.loads(root.read(f"{RUNS}/{max(records)}"))["outcome"])
    return None


def execute(
    plan: Plan,
    driver: Any,
    device: str,
    steps: Steps,
    progress: Progress,
    serial: bool = False,
    account: Account | None = None,
) -> RunOutcome:
    """Run what is missing of a plan.

    A stage that fails is recorded and the others go on; a capture that fails as a whole raises.

    Args:
        plan: what to run.
        driver: runs units, here or on workers.
        device: `cpu` or `cuda`, where units run.
        steps: how captures, stages and the report are called.
        progress: told what happens.
        serial: whether the driver does all the work in this process.
        account: where the cost of its steps is put down; its `measured` has made the driver.

    Raises:
        ResourceError: if disk, memory or device do not suffice; before anything is created.
        SubspanError: if a capture cannot be made.
    """
    check_plan(plan, serial)
    keep_plan(plan)
    account = account or Account(plan.run.name)
    with within(run=plan.run.name), exported(account):
        tell(
            LOG,
            "run.begin",
            root=plan.run.root,
            device=device,
            captures=len(plan.captures),
            stages=len(plan.stages),
        )
        try:
            outcome = _execute(_Running(plan, driver, device, steps, progress, account))
        except BaseException as error:  # one that is cancelled has an end too
            tell(LOG, "run.failed", logging.ERROR, reason=_reason(error))
            raise
        account.finished = True
        tell(LOG, "run.done", seconds=outcome.seconds, failures=outcome.failures, report=outcome.report)
    return outcome


def _execute(running: "_Running") -> RunOutcome:
    plan, account = running.plan, running.account
    begun = account.look()
    captures = tuple(running.capture(capture) for capture in plan.captures)
    _point(running.root, captures)  # before stages read them: what a name opens is not removed meanwhile
    artifacts, failures = running.stages()
    outcome = RunOutcome(
        run=plan.run.name,
        root=plan.run.root,
        captures=captures,
        artifacts=artifacts,
        stage_failures=failures,
        forwards=running.forwards,
        shards_read=running.shards,
        device=running.device,
        price_per_worker_hour=plan.execution.price_per_worker_hour,
    )
    folder = report_folder(plan)
    if folder is not None:
        outcome = _with_work(outcome, account, begun)
        step = account.begin("report", "report", 1)
        page = running.steps.report(
            "report", root=running.root, outcome=outcome, plan=plan, path=f"{folder}/{PAGE}"
        )
        step.end()
        outcome = outcome.model_copy(update={"report": page})
    outcome = _with_work(outcome, account, begun)
    _record(running.root, plan, outcome)
    return outcome


def _with_work(outcome: RunOutcome, account: Account, begun: float) -> RunOutcome:
    """The outcome with what it took so far."""
    took = {"seconds": account.look() - begun, "worker_seconds": account.there_seconds}
    return outcome.model_copy(update={**took, "work": account.work(), "workers": account.most_workers})


def report_folder(plan: Plan) -> str | None:
    """Where the report of a run lies below the root; None if none is asked for."""
    if plan.run.report is None:
        return None
    parts = (
        [c.id for c in plan.captures],
        [s.id for s in plan.stages],
        plan.run.report.model_dump(mode="json"),
    )
    return f"reports/{plan.run.name}-{content_id(parts)[:8]}"


class _Running:
    """A plan with what executes it, and what it cost so far."""

    def __init__(
        self, plan: Plan, driver: Any, device: str, steps: Steps, progress: Progress, account: Account
    ) -> None:
        self.root = Location(plan.run.root)
        self.account = account
        self.plan, self.driver, self.device, self.steps, self.progress = plan, driver, device, steps, progress
        self.forwards = 0
        self.shards = 0
        self.failed: dict[str, StageFailure] = {}
        """Artifact that is not there to what failed first on the way to it."""

    def capture(self, capture: CapturePlan) -> CaptureOutcome:
        """One capture, made or found."""
        if capture.sealed:
            return _sealed_outcome(self.root, capture)
        from pipelines.resolve import sample_table
        from pipelines.stages import allowed_packages

        label = capture.name if capture.partition is None else f"{capture.name} {capture.partition}"
        request = self.plan.run.captures[capture.name]
        execution = self.plan.run.execution

        step = self.account.begin(label, "capture", capture.n_units, capture.units_done)

        def on_unit(done: Any) -> None:
            step.unit(done)
            self.forwards += done.forwards
            self.progress.advance(label, tokens=done.receipt.tokens)

        self.progress.begin(label, capture.n_units, capture.units_done)
        outcome = self.steps.capture(
            label,
            root=self.root,
            spec=capture.spec,
            table=lambda: sample_table(request, capture.partition),
            driver=self.driver,
            device=self.device,
            fuse=request.fuse,
            allowed=allowed_packages(),
            mix_fingerprints=execution.mix_fingerprints,
            take_over_lease=execution.take_over_lease,
            on_unit=on_unit,
        )
        step.end()
        self.progress.end(label)
        return outcome.model_copy(update={"name": capture.name, "partition": capture.partition})

    def stages(self) -> tuple[tuple[ArtifactOutcome, ...], tuple[StageFailure, ...]]:
        """Every stage at every site, those that can share a read together."""
        artifacts: dict[str, ArtifactOutcome] = {}
        failures: list[StageFailure] = []
        for group in stage_groups(self.plan.stages):
            for stage in group:
                if (cause := self._cause(stage)) is not None:
                    self._failed(stage, _behind(cause), artifacts, failures)
            if ready := [stage for stage in group if self._cause(stage) is None]:
                self._group(ready, artifacts, failures)
        ordered = tuple(
            artifacts[s.id].model_copy(
                update={"stage": s.name, "site": s.site, "partner": s.stage.partner, "partition": s.partition}
            )
            for s in self.plan.stages
            if s.id in artifacts
        )
        return ordered, tuple(failures)

    def _group(
        self, group: list[StagePlan], artifacts: dict[str, ArtifactOutcome], failures: list[StageFailure]
    ) -> None:
        label = " + ".join(dict.fromkeys(stage.name for stage in group))
        self.progress.begin(label, 1)
        try:
            self._run(label, group, artifacts)
        except Exception as error:  # noqa: BLE001  a method may raise anything: the other stages and sites go on
            if len(group) == 1:
                self._failed(group[0], _reason(error), artifacts, failures)
            else:
                for stage in group:
                    self._alone(stage, artifacts, failures)
        self.progress.end(label)

    def _alone(
        self, stage: StagePlan, artifacts: dict[str, ArtifactOutcome], failures: list[StageFailure]
    ) -> None:
        try:
            self._run(f"{stage.name} {stage.place}", [stage], artifacts)
        except Exception as error:  # noqa: BLE001  see _group
            self._failed(stage, _reason(error), artifacts, failures)

    def _cause(self, stage: StagePlan) -> StageFailure | None:
        """The failure that leaves a stage without an artifact that it reads."""
        return next((self.failed[need] for need in stage.stage.needs if need in self.failed), None)

    def _failed(
        self,
        stage: StagePlan,
        reason: str,
        artifacts: dict[str, ArtifactOutcome],
        failures: list[StageFailure],
    ) -> None:
        """Record a failure, unless another run of the same stage has ended meanwhile: its result is this one's too."""
        from tasks.engine.stages import finished

        made = finished(self.root, stage.id)
        if made is None:
            failures.append(StageFailure(stage=stage.name, site=stage.place, reason=reason))
            self.account.stage_failures += 1
            tell(LOG, "stage.failed", logging.ERROR, stage=stage.name, site=stage.place, reason=reason)
            self.failed[stage.id] = self._cause(stage) or failures[-1]
        else:
            artifacts[stage.id] = _artifact_outcome(made, stage, computed=False)

    def _run(self, label: str, group: Sequence[StagePlan], artifacts: dict[str, ArtifactOutcome]) -> None:
        from pipelines.stages import allowed_packages

        before, step = self.shards, self.account.begin(label, "stages", 0)

        def on_progress(done: int, total: int, shards: int) -> None:
            self.shards, step.shards_read, step.total = before + shards, shards, total
            self.progress.at(label, done, total)

        try:
            made = self.steps.stages(
                label,
                root=self.root,
                stages=[stage.stage for stage in group],
                driver=self.driver,
                device=self.device,
                allowed=allowed_packages(),
                on_progress=on_progress,
            )
        finally:
            step.end()
        tell(LOG, "stages.done", stages=label, seconds=step.elapsed, jobs=step.done, shards=step.shards_read)
        for stage in group:
            artifacts[stage.id] = _artifact_outcome(made[stage.id], stage, computed=not stage.done)


def stage_groups(stages: Sequence[StagePlan]) -> Iterator[list[StagePlan]]:
    """Stages in an order that honours artifact ports; those that are ready at the same time come together."""
    wanted = {stage.id for stage in stages}
    made: set[str] = set()
    rest = list(stages)
    while rest:
        ready = [
            s for s in rest if all(artifact in made or artifact not in wanted for artifact in s.stage.needs)
        ]
        yield ready
        made |= {stage.id for stage in ready}
        rest = [stage for stage in rest if stage.id not in made]


def _reason(error: BaseException) -> str:
    return (
        str(error)
        if isinstance(error, SubspanError)
        else f"{type(error).__name__}: {error}".removesuffix(": ")
    )


def _behind(cause: StageFailure) -> str:
    """Why a stage is not run that needs what another one failed to make."""
    maker = " at ".join(filter(None, (f"stage {cause.stage!r}", cause.site)))
    return f"not run: it needs what {maker} makes, which failed: {cause.reason.strip().partition(chr(10))[0]}"


def _artifact_outcome(artifact: Artifact, stage: StagePlan, computed: bool) -> ArtifactOutcome:
    told = {k: v["value"] if isinstance(v, dict) and "value" in v else v for k, v in artifact.result.items()}
    scalars = {k: v for k, v in told.items() if v is None or isinstance(v, bool | int | float | str)}
    return ArtifactOutcome(
        stage=stage.name,
        site=stage.site,
        partner=stage.stage.partner,
        partition=stage.partition,
        id=artifact.id,
        method=artifact.stage.method,
        result={**scalars, **({"caveats": list(told["caveats"])} if told.get("caveats") else {})},
        alerts=tuple(map(Alert.model_validate, artifact.result.get("alerts") or ())),
        computed=computed,
        bytes=sum(digest.bytes for digest in artifact.files.values()),
        seconds=artifact.seconds,
    )


def _sealed_outcome(root: Location, capture: CapturePlan) -> CaptureOutcome:
    manifest = read_manifest(root, capture.id)
    drop_left(root, capture.id)
    return CaptureOutcome(
        name=capture.name,
        partition=capture.partition,
        id=capture.id,
        rows=manifest.rows,
        failures=manifest.failures,
        truncated=manifest.truncated,
        saturated=manifest.saturated,
        computed=False,
    )


def _point(root: Location, captures: Sequence[CaptureOutcome]) -> None:
    """Let `names/<name>.json` open the capture that a run file calls so, or name the captures of its partitions."""
    for name in dict.fromkeys(capture.name for capture in captures):
        path = name_path(name)
        content = canonical_json(_pointer([c for c in captures if c.name == name]))
        if not (root.exists(path) and root.read(path) == content):
            root.write(path, content)


def _pointer(captures: Sequence[CaptureOutcome]) -> dict[str, Any]:
    partitions = {c.partition: c.id for c in captures if c.partition is not None}
    return {"partitions": partitions} if partitions else {"capture": captures[0].id}


def _record(root: Location, plan: Plan, outcome: RunOutcome) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    record = {"run": plan.run.model_dump(mode="json"), "outcome": outcome.model_dump(mode="json")}
    root.write(f"{RUNS}/{stamp}-{plan.run.name}.json", canonical_json(record))
    for folder in SHARED:
        root.sweep_old(folder)
