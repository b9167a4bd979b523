"""Row-aligned arrays come with the rows: of several captures, without failed rows, and never of other rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.plan import CapturePlan
from pipelines.stages import resolve_stages
from schemas.capture import CaptureSpec, MethodCall
from schemas.errors import MethodError, SpecError
from schemas.run import RunSpec
from schemas.stage import PortInput, ResolvedStage, StageRequest
from tasks.drive import Threads, serial
from tasks.engine import run_stage, run_stages
from tasks.engine.aligned import check_aligned
from tasks.engine.fusable import check_fusable
from tasks.engine.prepare import open_source
from tasks.engine.source import Part, read, take
from tasks.methods.contract import ArtifactPort
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.test_engine import Progress, dying, rows_of, stored_bytes, travelling

SUM, COPY = "tests.aligned_sum", "tests.aligned_copy"
FAILED = (0, 4, 7)


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


def captures(root: Location) -> list[CaptureSpec]:
    """Two, of 24 and 33 rows in samples of uneven length, with failed samples."""
    specs = []
    for seed, n in ((1, 24), (2, 33)):
        sample = np.sort(np.random.default_rng(seed).integers(0, n // 3, n - n // 3))
        sample = np.sort(np.concatenate([sample, np.arange(n // 3)]))
        specs.append(
            make_capture(
                root,
                {"a": rows_of(seed, n), "b": rows_of(seed + 5, n)},
                sample,
                failed=FAILED,
                name=str(seed),
            )
        )
    return specs


def neighbours(specs: list[CaptureSpec], site: str = "a", k: int = 2) -> ResolvedStage:
    return stage_of("geometry.neighbours", {"x": [rows_ref(s, site) for s in specs]}, k=k)


def over(method: str, specs: list[CaptureSpec], made: ResolvedStage, site: str = "a") -> ResolvedStage:
    return stage_of(method, {"x": [rows_ref(s, site) for s in specs]}, {"near": made.id})


def near(root: Location, specs: list[CaptureSpec], made: ResolvedStage, name: str) -> list[np.ndarray]:
    """The neighbours of each capture's rows, failed ones included."""
    arrays = artifact_arrays(root, made.id)
    return [arrays[name if len(specs) == 1 else f"{spec.id}/{name}"] for spec in specs]


def expected_sum(root: Location, specs: list[CaptureSpec], made: ResolvedStage) -> np.ndarray:
    total = np.zeros(3)
    for spec, distance, index in zip(
        specs, near(root, specs, made, "distance"), near(root, specs, made, "index"), strict=True
    ):
        part = Part(root, rows_ref(spec))
        sample, position = part.column("sample"), part.column("position")
        for row in np.flatnonzero(part.ok[sample]):
            weight = sample[row] * 1000 + position[row] + 1
            total += weight * np.array([distance[row, 0], index[row, 0], 1])
    return total


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("driver", [serial, travelling])
def test_a_reduction_gets_each_good_row_its_own(root: Location, several: bool, driver: Any) -> None:
    specs = captures(root)[: 2 if several else 1]
    made = neighbours(specs)
    stage = over(SUM, specs, made)
    found = run_stages(root, [made, stage], driver, allowed=("tests",))[stage.id]
    total = artifact_arrays(root, found.id)["total"]
    np.testing.assert_allclose(total, expected_sum(root, specs, made), rtol=1e-13)
    assert found.rows_dropped > 0
    assert found.result == {"width": 5, "artifacts": [], "k": 2}


@pytest.mark.parametrize("several", [False, True])
def test_a_map_gives_back_what_it_was_given(root: Location, several: bool) -> None:
    specs = captures(root)[: 2 if several else 1]
    made = neighbours(specs)
    stage = over(COPY, specs, made)
    run_stages(root, [made, stage], serial, allowed=("tests",))
    for name in ("distance", "index"):
        for ours, theirs in zip(near(root, specs, stage, name), near(root, specs, made, name), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_threads_agree(root: Location, tmp_path: Path) -> None:
    kept = []
    for place in (root, Location(str(tmp_path / "elsewhere"))):
        specs = captures(place)
        made = neighbours(specs)
        stage = over(SUM, specs, made)
        with Threads(2) as threads:
            driver = serial if place is root else threads
            kept.append(
                stored_bytes(place, run_stages(place, [made, stage], driver, allowed=("tests",))[stage.id])
            )
    assert kept[0] == kept[1]


def test_rows_that_are_not_needed_are_not_read(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = captures(root)
    made = neighbours(specs)
    run_stage(root, made, serial)

    def refuse(*_: Any) -> None:
        raise AssertionError("the method reads distances only")

    monkeypatch.setattr(Part, "values", refuse)
    run_stage(root, over(SUM, specs, made), serial, allowed=("tests",))


def test_shards_are_read_once_and_not_whole(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes with a shard is of its rows; methods over the same artifact share the read."""
    spec = captures(root)[1]
    made = neighbours([spec])
    run_stage(root, made, serial)
    from tasks.engine import aligned

    sizes: list[int] = []
    real = aligned.replace
    monkeypatch.setattr(
        aligned, "replace", lambda rows, **new: sizes.append(len(rows.index)) or real(rows, **new)
    )
    progress = Progress()
    run_stage(root, over(SUM, [spec], made), serial, allowed=("tests",), on_progress=progress)
    assert progress.shards == len(sizes) == spec.layout.spaces[0].n_shards
    assert max(sizes) <= 8


def test_states_of_another_artifact_are_not_taken(root: Location) -> None:
    """The same method over the same rows, with the neighbours of another k: another state, though options are equal."""
    spec = captures(root)[0]
    for k in (2, 3):
        made = neighbours([spec], k=k)
        stage = over(SUM, [spec], made)
        progress = Progress()
        found = run_stages(root, [made, stage], serial, allowed=("tests",), on_progress=progress)[stage.id]
        assert found.result["k"] == k
    both = [over(SUM, [spec], neighbours([spec], k=k)) for k in (4, 5)]
    run_stages(root, [neighbours([spec], k=4), neighbours([spec], k=5)], serial)
    made_both = run_stages(root, both, serial, allowed=("tests",))
    assert [made_both[s.id].result["k"] for s in both] == [4, 5]
    folders = {path.split("/")[0] for path in root.walk("states") if path.endswith("whole.npz")}
    assert len(folders) == 4


@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_stage_goes_on_where_it_was(
    root: Location, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tasks.engine.spans.LEAST_BYTES", 1
    )  # small captures have one span, large ones several
    monkeypatch.setattr("tasks.engine.spans.ROWS_PER_FEATURE", 0)
    specs = captures(root)
    made = neighbours(specs)
    stage, first, second = over(SUM, specs, made), Progress(), Progress()
    run_stage(root, made, serial)
    with pytest.raises(KeyboardInterrupt):
        run_stage(root, stage, dying(after), allowed=("tests",), on_progress=first)
    found = run_stage(root, stage, serial, allowed=("tests",), on_progress=second)
    assert first.shards + second.shards == sum(s.layout.spaces[0].n_shards for s in specs)
    fresh = Location(str(tmp_path / "fresh"))
    again = run_stages(fresh, [made, over(SUM, captures(fresh), made)], serial, allowed=("tests",))[stage.id]
    assert stored_bytes(root, found) == stored_bytes(fresh, again)


@pytest.mark.parametrize("method", [SUM, COPY])
def test_other_rows_are_refused_with_both_named(root: Location, method: str) -> None:
    one, two = captures(root)
    made = neighbours([one, two])
    run_stages(root, [made, neighbours([one], "b")], serial)
    a, b = one.id[:8], two.id[:8]
    for specs, wanted in (
        ([two, one], f"{b} a:out:0 \\+ {a} a:out:0.*made over {a} a:out:0 \\+ {b} a:out:0"),
        ([one], f"reads {a} a:out:0, .*made over {a} a:out:0 \\+ {b} a:out:0"),
    ):
        with pytest.raises(MethodError, match=wanted):
            run_stage(root, over(method, specs, made), serial, allowed=("tests",))
    with pytest.raises(MethodError, match=r"reads .* a:out:0, .*made over .* b:out:0"):
        run_stage(root, over(method, [one], neighbours([one], "b")), serial, allowed=("tests",))


def test_rows_over_two_captures_are_read_together(root: Location) -> None:
    """As whole and sequential methods read them: pieces of captures laid end to end, then some of their rows."""
    specs = captures(root)
    made = neighbours(specs)
    run_stage(root, made, serial)
    refs = (tuple(rows_ref(spec, "a") for spec in specs),)
    opened = open_source(root, refs, labels=False, aligned={"near": made.id})
    rows = read(opened, 15, 40)
    index = np.concatenate(near(root, specs, made, "index"))
    np.testing.assert_array_equal(rows.aligned["near"]["index"], index[rows.index])
    some = take(rows, np.array([3, 0]))
    np.testing.assert_array_equal(some.aligned["near"]["index"], index[rows.index[[3, 0]]])
    assert len(rows.index) < 25


def test_an_artifact_of_joined_rows_is_refused(root: Location) -> None:
    """Rows without a partner have nothing there."""
    spec = captures(root)[0]
    made = run_stage(root, neighbours([spec]), serial)
    joined = made.stage.model_copy(update={"rows": {"x": made.stage.rows["x"], "y": made.stage.rows["x"]}})
    with pytest.raises(MethodError, match="made over joined rows"):
        check_aligned(
            over(SUM, [spec], made.stage),
            "near",
            ArtifactPort("geometry.neighbours", aligned=True),
            made.model_copy(update={"stage": joined}),
        )


def test_a_maker_that_gives_rows_nothing_is_refused(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import aligned_sum

    spec = captures(root)[0]
    made = stage_of("spectrum.pca", {"x": rows_ref(spec, "a")})
    run_stage(root, made, serial)
    monkeypatch.setitem(aligned_sum.READS, "near", ArtifactPort("spectrum.pca", aligned=True))
    with pytest.raises(MethodError, match=r"spectrum.pca gives rows nothing"):
        run_stage(root, over(SUM, [spec], made), serial, allowed=("tests",))


def test_it_cannot_be_fused() -> None:
    with pytest.raises(MethodError, match="cannot be fused, because it takes an artifact"):
        check_fusable(MethodCall(method=SUM), ("tests",))


def test_planning_refuses_other_rows(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is captured."""
    monkeypatch.setenv("SUBSPAN_METHOD_PACKAGES", "tests")
    specs = dict(zip("pq", captures(root), strict=True))
    plans = [
        CapturePlan.model_construct(name=name, partition=None, id=spec.id, spec=spec)
        for name, spec in specs.items()
    ]

    def planned(order: str, ours: str = "pq") -> list[ResolvedStage]:
        stages = {
            "near": StageRequest(
                method="geometry.neighbours", inputs={"x": PortInput(captures=tuple(order), sites="a")}
            ),
            "sum": StageRequest(method=SUM, inputs={"x": PortInput(captures=tuple(ours), sites="a")}),
        }
        run = RunSpec(name="r", captures={n: s.request for n, s in specs.items()}, stages=stages)
        return [plan.stage for plan in resolve_stages(run, plans)]

    near_stage, sum_stage = planned("pq")
    assert sum_stage.artifacts["near"].artifact == near_stage.id
    for order in ("qp", "p"):
        with pytest.raises(SpecError, match=r"same captures in the same order; found .* \+ .* here and"):
            planned(order)
