"""The engine: what is shared, what is resumed, what is refused, and that it reads nothing twice."""

import gc
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial as bind
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.artifact import Artifact
from schemas.capture import CaptureSpec, MethodCall
from schemas.errors import MethodError, NotFoundError, SpecError, StoreError, UnknownNameError
from schemas.layout import Space, UnitRef
from schemas.receipts import FileDigest
from schemas.stage import ResolvedStage
from tasks.drive import serial
from tasks.engine import Fusion, rowwise, run_stage, run_stages
from tasks.engine.fitting import check_tokens
from tasks.engine.fold import Folder, Read, fold_units
from tasks.engine.fusable import check_fusable
from tasks.engine.prepare import open_source
from tasks.engine.reduction import Counted, Reduction, load_counted, rows_folder, to_numpy
from tasks.engine.source import Part, Rows, SiteSource, read
from tasks.engine.spans import spans, spans_of, tree
from tasks.engine.stages import finished
from tasks.methods.contract import ROW_LABELS, Block, load_method
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tasks.store.states import load_state
from tasks.store.verify import verify
from tests.helpers import make_capture, rounded, rows_ref, stage_of

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


@pytest.fixture(autouse=True)
def many_spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small captures have one span; these get as many as large ones, but where other processes would not know of it."""
    if "processes" not in request.node.name:
        monkeypatch.setattr("tasks.engine.spans.LEAST_BYTES", 1)
        monkeypatch.setattr("tasks.engine.spans.ROWS_PER_FEATURE", 0)


def rows_of(seed: int = 0, n: int = 90, width: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) * (1 + np.arange(width)) + 50


def pca(spec: CaptureSpec, site: str | None = None, **options: Any) -> ResolvedStage:
    return stage_of("spectrum.pca", {"x": rows_ref(spec, site)}, **options)


def covariance(values: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(np.cov(values.astype(np.float64), rowvar=False))[::-1]


class Progress:
    """Remembers how far a call came."""

    def __init__(self) -> None:
        self.jobs = self.shards = 0

    def __call__(self, done: int, total: int, shards: int) -> None:
        assert done <= total
        self.jobs, self.shards = done, shards


def dying(after: int) -> Callable[..., None]:
    """A driver whose process dies after so many jobs."""
    done = 0

    def drive(function: Any, items: Sequence[Any], on_done: Callable[[Any], None]) -> None:
        nonlocal done
        for item in items:
            if done == after:
                raise KeyboardInterrupt
            on_done(function(item))
            done += 1

    return drive


def travelling(function: Any, items: Sequence[Any], on_done: Callable[[Any], None]) -> None:
    """A driver that sends everything through pickle, last item first."""
    for item in reversed(items):
        sent = pickle.dumps((function, item))
        assert len(sent) < 20_000
        there_function, there = pickle.loads(sent)
        back = pickle.dumps(there_function(there))
        assert len(back) < 20_000
        on_done(pickle.loads(back))


def spawned(function: Any, items: Sequence[Any], on_done: Callable[[Any], None]) -> None:
    """A driver on two fresh processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for result in pool.map(function, items):
            on_done(result)


def stored_bytes(root: Location, artifact: Artifact) -> dict[str, bytes]:
    arrays = artifact_arrays(root, artifact.id)
    return {name: values.tobytes() for name, values in arrays.items()}


class TestReduce:
    def test_the_answer_is_that_of_all_good_rows(self, root: Location) -> None:
        values, sample = rows_of(), np.arange(90) // 3
        spec = make_capture(root, {"a": values}, sample, failed=(0, 7, 29))
        made = run_stage(root, pca(spec), serial)
        good = values.astype(np.float32)[~np.isin(sample, (0, 7, 29))]
        np.testing.assert_allclose(artifact_arrays(root, made.id)["eigenvalue"], covariance(good), rtol=1e-10)
        assert (made.rows_used, made.rows_dropped) == (81, 9)

    @pytest.mark.parametrize("fuse", [False, True])
    def test_a_label_weighs_rows(self, root: Location, fuse: bool) -> None:
        """`weight_label` reaches the method, from the store and while capturing; NumPy's own weighted covariance is the oracle."""
        sample, weight = np.arange(90) // 3, np.linspace(0.0, 2.0, 30)
        columns = {"a": rows_of()}
        calls = (MethodCall(method="spectrum.pca", config={"weight_label": "importance"}),)
        on_unit = fused(calls, columns, sample, ())(root) if fuse else None
        spec = make_capture(root, columns, sample, {"importance": weight}, on_unit=on_unit)
        progress = Progress()
        made = run_stage(root, pca(spec, weight_label="importance"), serial, on_progress=progress)
        assert (progress.shards == 0) == fuse
        expected = np.cov(columns["a"].astype(np.float32).T.astype(float), aweights=weight[sample])
        np.testing.assert_allclose(
            artifact_arrays(root, made.id)["eigenvalue"], np.linalg.eigvalsh(expected)[::-1], rtol=1e-11
        )
        assert made.result["n_eff"] == pytest.approx(weight[sample].sum() ** 2 / (weight[sample] ** 2).sum())
        assert made.id != run_stage(root, pca(spec), serial).id

    def test_weights_must_be_numbers(self, root: Location) -> None:
        labels = {"kind": list("xyz" * 30), "importance": np.linspace(0.0, 1.0, 90)}
        spec = make_capture(root, {"a": rows_of()}, labels=labels)
        with pytest.raises(MethodError, match=r"'kind' holds classes.*: importance"):
            run_stage(root, pca(spec, weight_label="kind"), serial)
        with pytest.raises(MethodError, match=r"'wieght' is not a label.*: importance"):
            run_stage(root, pca(spec, weight_label="wieght"), serial)

    @pytest.mark.parametrize("wrong", [1e-300, 1e200, np.inf])
    def test_weights_have_squares(self, root: Location, wrong: float) -> None:
        weight = np.ones(90)
        weight[5] = wrong
        spec = make_capture(root, {"a": rows_of()}, labels={"importance": weight})
        with pytest.raises(MethodError, match=r"'importance' holds .*; expected 0, or 1e-140 to 1e\+140"):
            run_stage(root, pca(spec, weight_label="importance"), serial)

    def test_methods_over_one_site_share_each_shard(
        self, root: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tasks.numerics import moments

        calls = []
        real = moments.partial
        monkeypatch.setattr(moments, "partial", lambda *a: calls.append(1) or real(*a))
        spec, progress = make_capture(root, {"a": rows_of()}), Progress()
        ref = {"x": rows_ref(spec)}
        stages = [pca(spec), pca(spec, components=2), stage_of("spectrum.summary", ref)]
        other = stage_of("spectrum.summary", ref, precision="float32")
        run_stages(root, [*stages, other], serial, on_progress=progress)
        n_shards = spec.layout.spaces[0].n_shards
        assert progress.shards == n_shards
        assert len(calls) == 2 * n_shards

    def test_a_stage_that_fails_takes_none_that_shares_its_state_with_it(
        self, root: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever comes first; the rows, and what was found of the others, need not be read again. One state is decomposed once."""
        from tasks.numerics import spectrum

        summary, decomposed = load_method("spectrum.summary"), []
        finish, decompose = summary.finish, spectrum._decompose

        def failing(state: Any, carry: Any, inputs: Any, config: Any) -> Any:
            if config.top == 2:
                raise RuntimeError("of its own")
            return finish(state, carry, inputs, config)

        monkeypatch.setattr(spectrum, "_decompose", lambda *a: decomposed.append(1) or decompose(*a))
        spec, progress = make_capture(root, {"a": rows_of()}), Progress()
        stages = [stage_of("spectrum.summary", {"x": rows_ref(spec)}, top=top) for top in (2, 3, 4)]
        with monkeypatch.context() as patch:
            patch.setattr(summary, "finish", failing)
            with pytest.raises(RuntimeError, match="of its own"):
                run_stages(root, stages, serial, on_progress=progress)
        assert [finished(root, stage.id) is None for stage in stages] == [True, False, False]
        assert len(decomposed) == 1
        again = Progress()
        run_stages(root, stages, serial, on_progress=again)
        assert (progress.shards, again.shards) == (spec.layout.spaces[0].n_shards, 0)

    def test_bytes_do_not_depend_on_the_driver(self, root: Location, tmp_path: Path) -> None:
        elsewhere = Location(str(tmp_path / "elsewhere"))
        kept = []
        for place, driver in ((root, serial), (elsewhere, travelling)):
            spec = make_capture(place, {"a": rows_of(), "b": rows_of(1)}, unit_shards=1)
            stages = [pca(spec, "a"), pca(spec, "b"), subspace(spec)]
            made = run_stages(place, stages, driver)
            kept.append([stored_bytes(place, made[stage.id]) for stage in stages])
        assert kept[0] == kept[1]

    @pytest.mark.slow
    def test_bytes_do_not_depend_on_processes(self, root: Location, tmp_path: Path) -> None:
        elsewhere = Location(str(tmp_path / "elsewhere"))
        kept = []
        for place, driver in ((root, serial), (elsewhere, spawned)):
            spec = make_capture(place, {"a": rows_of()}, unit_shards=1)
            kept.append(stored_bytes(place, run_stage(place, pca(spec), driver)))
        assert kept[0] == kept[1]

    @pytest.mark.parametrize("after", [1, 4, 7])
    def test_a_killed_stage_goes_on_where_it_was(self, root: Location, tmp_path: Path, after: int) -> None:
        spec = make_capture(root, {"a": rows_of()})
        n_shards, unit = spec.layout.spaces[0].n_shards, spec.layout.spaces[0].unit_shards
        first, second = Progress(), Progress()
        with pytest.raises(KeyboardInterrupt):
            run_stage(root, pca(spec), dying(after), on_progress=first)
        made = run_stage(root, pca(spec), serial, on_progress=second)
        assert first.shards == min(n_shards, max(0, after - 1) * unit)
        assert first.shards + second.shards == n_shards
        fresh = Location(str(tmp_path / "fresh"))
        again = run_stage(fresh, pca(make_capture(fresh, {"a": rows_of()})), serial)
        assert stored_bytes(root, made) == stored_bytes(fresh, again)

    def test_a_damaged_state_is_made_again(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()})
        with pytest.raises(KeyboardInterrupt):
            run_stage(root, pca(spec), dying(4))
        path = next(p for p in root.walk("states") if "span-01" in p)
        root.write(f"states/{path}", b"not a state")
        progress = Progress()
        made = run_stage(root, pca(spec), serial, on_progress=progress)
        values = artifact_arrays(root, made.id)["eigenvalue"]
        np.testing.assert_allclose(values, covariance(rows_of().astype(np.float32)), rtol=1e-10)

    def test_a_finished_stage_is_returned_at_once(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()})
        made = run_stage(root, pca(spec), serial)
        for name in root.ls("captures"):
            root.delete(f"captures/{name}", recursive=True)

        def refuse(*_: Any) -> None:
            raise AssertionError("nothing is left to do")

        assert run_stage(root, pca(spec), refuse) == made

    def test_a_finished_stage_needs_no_torch(self, root: Location) -> None:
        made = run_stage(root, pca(make_capture(root, {"a": rows_of()})), serial)
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "from schemas.artifact import Artifact\n"
            "from tasks.drive import serial\n"
            "from tasks.engine import run_stage\n"
            "from tasks.store.location import Location\n"
            "from tasks.store.artifacts import read_artifact\n"
            f"root = Location({root.url!r}); stage = read_artifact(root, {made.id!r}).stage\n"
            "assert run_stage(root, stage, serial).id == stage.id\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr

    def test_at_most_two_shards_are_in_memory(self, root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
        alive, most = [0], [0]
        real = Part.values

        def watched(self: Part, start: int, stop: int) -> np.ndarray:
            values = real(self, start, stop).copy()
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            weakref.finalize(values, lambda: alive.__setitem__(0, alive[0] - 1))
            return values

        monkeypatch.setattr(Part, "values", watched)
        spec = make_capture(root, {"a": rows_of(n=60)}, unit_shards=4)
        ref = {"x": rows_ref(spec)}
        stages = [pca(spec), stage_of("geometry.neighbours", ref, k=2)]
        run_stages(root, stages, serial)
        gc.collect()
        assert most[0] == 2
        assert alive[0] == 0


def subspace(spec: CaptureSpec, **options: Any) -> ResolvedStage:
    given = {"components": 2, "oversample": 1, "max_rounds": 5, "tolerance": 1e-14} | options
    return stage_of("spectrum.subspace", {"x": rows_ref(spec)}, **given)


class TestRounds:
    def test_every_round_reads_once(self, root: Location) -> None:
        spec, progress = make_capture(root, {"a": rows_of()}), Progress()
        made = run_stage(root, subspace(spec), serial, on_progress=progress)
        assert made.result["rounds"] == 5
        assert progress.shards == 5 * spec.layout.spaces[0].n_shards
        assert [p for p in root.walk("states") if "whole" not in p] == []

    @pytest.mark.parametrize("after", [3, 8, 13, 26])
    def test_a_killed_round_goes_on_where_it_was(self, root: Location, tmp_path: Path, after: int) -> None:
        spec = make_capture(root, {"a": rows_of()})
        first, second = Progress(), Progress()
        with pytest.raises(KeyboardInterrupt):
            run_stage(root, subspace(spec), dying(after), on_progress=first)
        made = run_stage(root, subspace(spec), serial, on_progress=second)
        assert first.shards + second.shards == 5 * spec.layout.spaces[0].n_shards
        fresh = Location(str(tmp_path / "fresh"))
        again = run_stage(fresh, subspace(make_capture(fresh, {"a": rows_of()})), serial)
        assert stored_bytes(root, made) == stored_bytes(fresh, again)

    def test_another_run_over_other_rows_takes_nothing_away(self, root: Location) -> None:
        """Rounds begin with the same carry wherever widths and seeds agree: a run that ends must not delete it for others."""
        mine, other = (
            make_capture(root, {"a": rows_of()}),
            make_capture(root, {"a": rows_of(1)}, name="other"),
        )
        expected = run_stage(root, subspace(other), serial)
        root.delete(f"artifacts/{expected.id}", recursive=True)
        calls = 0

        def interrupted(function: Any, items: Sequence[Any], on_done: Callable[[Any], None]) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:  # the first round has begun, and nothing is folded
                run_stage(root, subspace(other), serial)
            serial(function, items, on_done)

        assert run_stage(root, subspace(mine), interrupted).result["rounds"] == 5
        assert calls > 2
        assert run_stage(root, subspace(other), serial).result == expected.result


@pytest.mark.parametrize("engine", ["qr", "rows", "streaming", "sketch"])
def test_engines_of_components_run_over_captures(root: Location, engine: str) -> None:
    """Their states go through the store, pass by pass; the covariance's answer comes out of each."""
    specs = [make_capture(root, {"a": rows_of(k, width=12)}, name=str(k), failed=(3,)) for k in range(2)]
    refs, options = {"x": [rows_ref(s) for s in specs]}, {"components": 3, "rank": 8, "refine": 8}
    made = run_stage(root, stage_of("spectrum.pca", refs, engine=engine, **options), serial)
    usual = run_stage(root, stage_of("spectrum.pca", refs, components=3), serial)
    found, expected = (artifact_arrays(root, a.id) for a in (made, usual))
    np.testing.assert_allclose(found["eigenvalue"][:3], expected["eigenvalue"][:3], rtol=1e-6)
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-12)
    assert made.result["engine"] == engine
    assert made.result["passes"] == (9 if engine in ("streaming", "sketch") else 1)
    assert made.result["n_rows"] == usual.result["n_rows"]


class TestSeveralCaptures:
    def test_the_next_unit_is_read_while_one_is_folded(
        self, root: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = make_capture(root, {"a": rows_of()}, unit_shards=1)
        n, begun, changed = spec.layout.spaces[0].n_units, [], threading.Condition()
        part_rows, folded = SiteSource.part_rows, []

        def reading(self: SiteSource, part: int, start: int, stop: int) -> Rows:
            with changed:
                begun.append(start)
                changed.notify()
            return part_rows(self, part, start, stop)

        class Waiting(Folder):
            def add(self, counted: Counted | None, block: Block) -> Counted | None:
                with changed:  # no more than the next, or memory would hold more
                    wanted = min(n, len(folded) + 2)
                    folded.append(changed.wait_for(lambda: len(begun) >= wanted, 20) and len(begun) == wanted)
                return super().add(counted, block)

        monkeypatch.setattr(SiteSource, "part_rows", reading)
        read = Read(root, ((rows_ref(spec, "a"),),), "cpu", ())
        options = load_method("spectrum.summary").Config().model_dump_json()
        folder = Waiting(read, Reduction("spectrum.summary", options, "x", None))
        list(fold_units(read, open_source(root, read.refs, labels=False), 0, range(n), [folder]))
        assert folded == [True] * n > [True]

    def test_columns_of_some_shards_are_read_at_once(
        self, root: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = make_capture(root, {"a": rows_of(n=300)}, np.arange(300) // 3)
        part, reads = Part(root, rows_ref(spec, "a")), []
        whole = part.column("sample")
        column = Part._column

        def counting(self: Part, name: str, start: int, stop: int | None) -> np.ndarray:
            reads.append(start)
            return column(self, name, start, stop)

        monkeypatch.setattr(Part, "_column", counting)
        for shard in range(part.space.n_shards):
            low, high = part.space.shard_bounds(shard)
            assert part.column("sample", low, high).tolist() == whole[low:high].tolist()
        assert len(reads) == -(-part.space.n_shards // 16) < part.space.n_shards
        for low, high in np.sort(np.random.default_rng(0).integers(0, 301, (40, 2)), axis=1):
            assert part.column("sample", low, high).tolist() == whole[low:high].tolist()

    def test_captures_are_read_as_one(self, root: Location) -> None:
        a, b = rows_of(1, 40), rows_of(2, 70)
        specs = [make_capture(root, {"a": v}, name=str(k), failed=(3,)) for k, v in enumerate((a, b))]
        made = run_stage(root, stage_of("spectrum.pca", {"x": [rows_ref(s) for s in specs]}), serial)
        rows = np.concatenate([np.delete(a, 3, 0), np.delete(b, 3, 0)]).astype(np.float32)
        np.testing.assert_allclose(artifact_arrays(root, made.id)["eigenvalue"], covariance(rows), rtol=1e-10)
        assert (made.rows_used, made.rows_dropped) == (108, 2)

    def test_a_new_capture_costs_only_its_own_rows(self, root: Location) -> None:
        specs = [make_capture(root, {"a": rows_of(k)}, name=str(k)) for k in range(3)]
        n_shards = specs[0].layout.spaces[0].n_shards
        for known in (1, 2, 3):
            refs, progress = [rows_ref(spec) for spec in specs[:known]], Progress()
            run_stage(root, stage_of("spectrum.pca", {"x": refs}), serial, on_progress=progress)
            assert progress.shards == n_shards

    def test_codes_of_labels_are_brought_together(self, root: Location) -> None:
        x = np.zeros((8, 2))
        one = make_capture(root, {"a": x}, labels={"kind": list("bbccbbcc")}, name="1")
        two = make_capture(root, {"a": x}, labels={"kind": list("aabbccaa")}, name="2")
        source = open_source(root, ((rows_ref(one), rows_ref(two)),), labels=True)
        assert source.categories == {"kind": ("b", "c", "a")}
        names = np.array(source.categories["kind"])
        found = [names[source.part_rows(k, 0, 8).labels["kind"]].tolist() for k in (0, 1)]
        assert found == [list("bbccbbcc"), list("aabbccaa")]

    def test_outputs_of_several_captures_lie_in_groups(self, root: Location) -> None:
        a, b = rows_of(1, 20), rows_of(2, 30)
        specs = [make_capture(root, {"a": v}, name=str(k), failed=(3,)) for k, v in enumerate((a, b))]
        stage = stage_of("geometry.neighbours", {"x": [rows_ref(s) for s in specs]}, k=1)
        made = run_stage(root, stage, serial)
        found = artifact_arrays(root, made.id)
        assert found[f"{specs[0].id}/index"].shape == (20, 1)
        good = np.delete(np.concatenate([a, b]).astype(np.float32).astype(np.float64), (3, 23), 0)
        names = np.delete(np.arange(50), (3, 23))
        apart = np.linalg.norm(good[:, None] - good[None], axis=2) + np.diag(np.full(48, np.inf))
        index = np.concatenate([found[f"{s.id}/index"] for s in specs])[names, 0]
        np.testing.assert_array_equal(index, names[apart.argmin(1)])

    def test_outputs_that_were_removed_half_done_are_made_again(self, root: Location) -> None:
        """What a killed run left says which shards are written; without them it says nothing."""
        spec = make_capture(root, {"a": rows_of(1, 60)})
        stage = stage_of("geometry.neighbours", {"x": rows_ref(spec)}, k=1)
        with pytest.raises(KeyboardInterrupt):
            run_stage(root, stage, dying(4))
        assert root.walk(f"states/rows/{stage.id}")
        root.delete(f"artifacts/{stage.id}", recursive=True)
        made = run_stage(root, stage, serial)
        assert np.isfinite(artifact_arrays(root, made.id)["distance"]).all()

    def test_different_widths_are_refused(self, root: Location) -> None:
        specs = [make_capture(root, {"a": rows_of(width=w)}) for w in (4, 5)]
        with pytest.raises(MethodError, match=r"5 features.*4"):
            run_stage(root, stage_of("spectrum.pca", {"x": [rows_ref(s) for s in specs]}), serial)


def fused(
    calls: Sequence[MethodCall], columns: dict[str, np.ndarray], sample: np.ndarray, failed: Sequence[int]
) -> Any:
    """Runs a Fusion for each unit, on rows as a worker has them."""

    def on_unit(root: Location) -> Callable[[CaptureSpec, UnitRef], dict[str, FileDigest]]:
        def make(spec: CaptureSpec, unit: UnitRef) -> dict[str, FileDigest]:
            fusion, space = Fusion(calls, root, spec, unit), spec.layout.spaces[0]
            dtype = spec.request.store.dtype
            for shard in space.unit_shard_range(unit.index):
                index = np.arange(*space.shard_bounds(shard))
                rows = {f"{s}:out:0": torch.from_numpy(rounded(v[index], dtype)) for s, v in columns.items()}
                ok = ~np.isin(sample[index], list(failed))
                position = index - np.searchsorted(sample, sample[index])
                fusion.add(rows, ok, sample[index], position, index)
            return fusion.save()

        return make

    return on_unit


CALLS = (
    MethodCall(method="spectrum.pca"),
    MethodCall(method="spectrum.summary", config={"precision": "float32"}),
)


class TestFusion:
    SAMPLE = np.arange(90) // 4
    FAILED = (0, 4, 5, 6, 7, 8, 9, 22)  # units 1 and 2 lose whole shards

    def capture(
        self, root: Location, dtype: str = "float32", keep: str = "rows", fuse: bool = True
    ) -> CaptureSpec:
        columns = {"a": rows_of(), "b": rows_of(1, width=3)}
        return make_capture(
            root,
            columns,
            self.SAMPLE,
            {"kind": list("xyz" * 8)[:23]},
            failed=self.FAILED,
            dtype=dtype,
            keep=keep,
            fuse=CALLS if keep == "states" else (),
            on_unit=fused(CALLS, columns, self.SAMPLE, self.FAILED)(root) if fuse else None,
        )

    def stages(self, spec: CaptureSpec) -> list[ResolvedStage]:
        return [
            stage_of(call.method, {"x": rows_ref(spec, site)}, **call.config)
            for call in CALLS
            for site in ("a", "b")
        ]

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_states_equal_those_from_the_store_bit_for_bit(
        self, root: Location, tmp_path: Path, dtype: str
    ) -> None:
        plain = Location(str(tmp_path / "plain"))
        spec = self.capture(root, dtype)
        assert self.capture(plain, dtype, fuse=False).id == spec.id
        made = [p for p in root.walk("states") if "unit-" in p]
        space = spec.layout.spaces[0]
        assert len(made) == 4 * space.n_units
        for call in CALLS:
            for site in ("a", "b"):
                read = Read(plain, ((rows_ref(spec, site),),), "cpu", ())
                source = open_source(plain, read.refs, labels=False)
                reduction = self.reduction(call, made, root)
                for unit in range(space.n_units):
                    (((counted,), shards),) = fold_units(read, source, 0, [unit], [Folder(read, reduction)])
                    assert shards == len(space.unit_shard_range(unit))
                    kept = load_state(root, f"{rows_folder(reduction, read.refs, 0)}/unit-{unit:06d}.npz")
                    assert kept is not None
                    from_store = to_numpy(counted)
                    assert kept.keys() == from_store.keys()
                    assert all(kept[k].tobytes() == from_store[k].tobytes() for k in kept)

    def reduction(self, call: MethodCall, made: list[str], root: Location) -> Reduction:
        from tasks.engine.reduction import make_reduction
        from tasks.methods.contract import Inputs, load_method

        module = load_method(call.method)
        config = module.Config.model_validate(call.config)
        return make_reduction(call.method, module, config, {}, Inputs(widths={"x": 1}, n_rows=0, n_samples=0))

    def test_no_shard_is_read_for_fused_methods(self, root: Location, tmp_path: Path) -> None:
        plain, progress = Location(str(tmp_path / "plain")), Progress()
        spec = self.capture(root)
        made = run_stages(root, self.stages(spec), serial, on_progress=progress)
        assert progress.shards == 0
        again = run_stages(plain, self.stages(self.capture(plain, fuse=False)), serial)
        for key, artifact in made.items():
            assert stored_bytes(root, artifact) == stored_bytes(plain, again[key])
            assert artifact.rows_used == again[key].rows_used

    def test_a_capture_may_keep_states_only(self, root: Location, tmp_path: Path) -> None:
        plain = Location(str(tmp_path / "plain"))
        spec = self.capture(root, keep="states")
        made = run_stages(root, self.stages(spec), serial)
        again = run_stages(plain, self.stages(self.capture(plain, fuse=False)), serial)
        kept, expected = (
            [stored_bytes(place, a) for a in found.values()]
            for place, found in ((root, made), (plain, again))
        )
        assert kept == expected

    def test_states_that_begin_with_a_carry_serve_several_stages(self, root: Location) -> None:
        """They were made with the rows, which are not there any more: no stage may take them away."""
        columns, call = {"a": rows_of()}, (MethodCall(method="geometry.rate_reduction"),)
        spec = make_capture(
            root,
            columns,
            self.SAMPLE,
            {"kind": list("xyz" * 8)[:23]},
            failed=self.FAILED,
            keep="states",
            fuse=call,
            on_unit=fused(call, columns, self.SAMPLE, self.FAILED)(root),
        )
        for confidence in (0.95, 0.8):
            stage = stage_of("geometry.rate_reduction", {"x": rows_ref(spec)}, confidence=confidence)
            assert run_stage(root, stage, serial).rows_used == int((~np.isin(self.SAMPLE, self.FAILED)).sum())

    @pytest.mark.parametrize("engine", ["qr", "rows", "streaming", "sketch"])
    def test_components_of_one_pass_leave_the_capture_whole(self, root: Location, engine: str) -> None:
        """These engines begin with a carry, and their method could read the rows again."""
        columns, options = {"a": rows_of()}, {"engine": engine, "refine": 0, "components": 2}
        call = (MethodCall(method="spectrum.pca", config=options),)
        on_unit = fused(call, columns, self.SAMPLE, self.FAILED)(root)
        spec = make_capture(
            root, columns, self.SAMPLE, failed=self.FAILED, keep="states", fuse=call, on_unit=on_unit
        )
        for confidence in (0.95, 0.8):
            run_stage(
                root,
                stage_of("spectrum.pca", {"x": rows_ref(spec)}, **options, confidence=confidence),
                serial,
            )
            assert verify(root, spec.id) == []

    def test_tokens_cannot_be_fused(self, root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
        from tasks.methods.geometry import neural_collapse

        monkeypatch.delattr(neural_collapse, "update")
        with pytest.raises(MethodError, match="neighbouring shards"):
            check_fusable(MethodCall(method="geometry.neural_collapse", config={"label": "token"}))
        check_fusable(MethodCall(method="geometry.neural_collapse", config={"label": "kind"}))

    def test_other_methods_need_rows(self, root: Location) -> None:
        spec = self.capture(root, keep="states")
        ref = {"x": rows_ref(spec, "a")}
        with pytest.raises(
            MethodError, match=r"keeps only the states.*neighbours cannot be fused, because it is of"
        ):
            run_stage(root, stage_of("geometry.neighbours", ref, k=2), serial)
        with pytest.raises(
            MethodError, match=r"subspace cannot be fused, because it reads the rows several times"
        ):
            run_stage(root, subspace(spec), serial)
        told = r"states of spectrum.pca, spectrum.summary, no rows.*; add \{method: geometry.rate_reduction, config: \{label: kind"
        with pytest.raises(MethodError, match=told):
            run_stage(root, stage_of("geometry.rate_reduction", ref, label="kind"), serial)

    def test_a_state_of_other_rows_is_not_taken(self, root: Location) -> None:
        columns = {"a": rows_of()}
        spec = make_capture(
            root,
            columns,
            self.SAMPLE,
            failed=self.FAILED,
            on_unit=fused(CALLS, columns, self.SAMPLE, self.FAILED[1:])(root),
        )
        progress = Progress()
        made = run_stage(root, pca(spec), serial, on_progress=progress)
        good = columns["a"].astype(np.float32)[~np.isin(self.SAMPLE, self.FAILED)]
        np.testing.assert_allclose(artifact_arrays(root, made.id)["eigenvalue"], covariance(good), rtol=1e-10)
        assert progress.shards == 2

    @pytest.mark.parametrize(
        ("method", "reason"),
        [
            ("spectrum.subspace", "several times"),
            ("spectrum.project", "kind map"),
            ("geometry.cka", "2 ports"),
            ("probe.linear", "kind sequential"),
        ],
    )
    def test_what_cannot_be_fused_is_refused(self, root: Location, method: str, reason: str) -> None:
        spec = make_capture(root, {"a": rows_of()})
        with pytest.raises(MethodError, match=reason):
            Fusion([MethodCall(method=method)], root, spec, UnitRef(space="tokens", index=0))

    def test_components_in_several_passes_are_fused_only_if_asked_for_one(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()})
        for refine, refused in ((2, True), (0, False)):
            call = MethodCall(method="spectrum.pca", config={"engine": "streaming", "refine": refine})
            if refused:
                with pytest.raises(MethodError, match="several times"):
                    Fusion([call], root, spec, UnitRef(space="tokens", index=0))
            else:
                Fusion([call], root, spec, UnitRef(space="tokens", index=0))

    @pytest.mark.parametrize("keep", ["rows", "states"])
    def test_infinity_fails_the_stage_and_not_the_capture(self, root: Location, keep: str) -> None:
        """A value that the store's dtype cannot hold: only where nothing but states is kept is it refused at once."""
        spec = make_capture(
            root, {"a": rows_of(), "b": rows_of()}, keep=keep, fuse=CALLS if keep == "states" else ()
        )
        fusion = Fusion(CALLS, root, spec, UnitRef(space="tokens", index=0))
        rows, index = torch.zeros(8, 5), np.arange(8)
        bad = rows.clone()
        bad[5, 1] = torch.inf
        add = bind(
            fusion.add, {"a:out:0": bad, "b:out:0": rows}, np.ones(8, dtype=bool), index, 0 * index, index
        )
        if keep == "states":
            with pytest.raises(MethodError, match=r"a:out:0.*row 5"):
                add()
            return
        add()
        assert len(fusion.states()) == len(CALLS)
        assert all("/b@out@0/" in path for path in fusion.states())

    def test_a_method_that_fails_on_no_rows_at_all_fails_no_capture(self, root: Location) -> None:
        """In a unit without a good row nothing is folded; the state of an empty block is made at the end."""
        spec = make_capture(root, {"a": rows_of()})
        call = MethodCall(method="spectrum.pca", config={"weight_label": "nothing"})
        fusion = Fusion([call], root, spec, UnitRef(space="tokens", index=0))
        index = np.arange(8)
        fusion.add({"a:out:0": torch.zeros(8, 5)}, np.zeros(8, dtype=bool), index, 0 * index, index)
        assert fusion.states() == {}


class TestJoin:
    def test_rows_meet_by_key_and_position(self, root: Location) -> None:
        rng = np.random.default_rng(0)
        x, sample = rng.standard_normal((60, 4)), np.arange(60) // 3
        order = rng.permutation(20)
        rows = np.concatenate([np.flatnonzero(sample == s) for s in order])
        names = [f"text {s}" for s in range(20)]
        one = make_capture(root, {"a": x}, sample, keys=names, name="1", failed=(2,))
        two = make_capture(
            root, {"b": 3 * x[rows] + 1}, sample, keys=[names[s] for s in order], name="2", failed=(9,)
        )
        lost = 6 if order[9] != 2 else 3
        made = run_stage(root, stage_of("geometry.cka", {"x": rows_ref(one), "y": rows_ref(two)}), serial)
        assert made.rows_used == 60 - lost
        assert made.result["cka"] == pytest.approx(1, abs=1e-6)

    def test_rows_without_a_partner_are_counted(self, root: Location) -> None:
        x = rows_of()
        one = make_capture(root, {"a": x}, np.arange(90) // 3, name="1")
        two = make_capture(root, {"a": x[:40]}, np.arange(40) // 4, name="2")
        made = run_stage(root, stage_of("geometry.cka", {"x": rows_ref(one), "y": rows_ref(two)}), serial)
        assert (made.rows_used, made.rows_dropped) == (30, 60)

    def test_no_partner_at_all_is_refused(self, root: Location) -> None:
        x = rows_of(n=20)
        one = make_capture(root, {"a": x}, name="1")
        two = make_capture(root, {"a": x}, keys=[f"other {k}" for k in range(20)], name="2")
        with pytest.raises(MethodError, match="no row of x has a partner"):
            run_stage(root, stage_of("geometry.cka", {"x": rows_ref(one), "y": rows_ref(two)}), serial)

    def test_rows_of_different_kinds_are_refused(self, root: Location) -> None:
        one = make_capture(root, {"a": rows_of()}, np.arange(90) // 3)
        two = make_capture(root, {"a": rows_of(n=30)}, space="sample")
        with pytest.raises(MethodError, match="sample, tokens"):
            run_stage(root, stage_of("geometry.cka", {"x": rows_ref(one), "y": rows_ref(two)}), serial)

    def test_keys_that_occur_twice_are_refused(self, root: Location) -> None:
        specs = [make_capture(root, {"a": rows_of(k)}, name=str(k)) for k in range(3)]
        ports = {"x": rows_ref(specs[0]), "y": [rows_ref(s) for s in specs[1:]]}
        with pytest.raises(MethodError, match="more than once"):
            run_stage(root, stage_of("geometry.cka", ports), serial)


class TestTokenLabels:
    """Token ids of `make_capture` are sample % 7 + position."""

    SAMPLE = np.arange(44) // 5

    def capture(self, root: Location, **options: Any) -> CaptureSpec:
        return make_capture(
            root, {"a": rows_of(n=44), "b": rows_of(1, 44)}, self.SAMPLE, failed=(3,), **options
        )

    def source(self, root: Location, *specs: CaptureSpec, names: tuple[str, ...] = ROW_LABELS) -> Any:
        return open_source(root, (tuple(rows_ref(spec) for spec in specs),), labels=True, of_rows=names)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """Row by row, from the capture's rule."""
        token = [s % 7 + k - 5 * s for k, s in enumerate(self.SAMPLE)]
        last = [k + 1 == 44 or self.SAMPLE[k + 1] != s for k, s in enumerate(self.SAMPLE)]
        following = [-1 if end else t + 1 for t, end in zip(token, last, strict=True)]
        good = np.flatnonzero(self.SAMPLE != 3)
        return np.array(token)[good], np.array(following)[good]

    def test_the_next_token_may_lie_in_the_next_shard(self, root: Location) -> None:
        source = self.source(root, self.capture(root))
        space = source.parts[0].space
        assert space.n_shards == 6
        pieces = [source.part_rows(0, *space.shard_bounds(k)).labels for k in range(space.n_shards)]
        token, following = self.expected()
        np.testing.assert_array_equal(np.concatenate([piece["token"] for piece in pieces]), token)
        np.testing.assert_array_equal(np.concatenate([piece["next_token"] for piece in pieces]), following)

    def test_a_position_that_was_not_kept_has_no_token(
        self, root: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = self.source(root, self.capture(root))
        column = Part.column

        def gaps(part: Part, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
            found = column(part, name, start, stop)
            return found + (found >= 2) if name == "position" else found

        monkeypatch.setattr(Part, "column", gaps)
        assert source.part_rows(0, 0, 10).labels["next_token"].tolist() == [1, -1, 3, 4, -1, 2, -1, 4, 5, -1]

    def test_several_captures_and_a_join(self, root: Location) -> None:
        one, two = self.capture(root), self.capture(root, name="2")
        rows = read(self.source(root, one, two), 0, 88)
        token, following = self.expected()
        np.testing.assert_array_equal(rows.labels["token"], np.tile(token, 2))
        np.testing.assert_array_equal(rows.labels["next_token"], np.tile(following, 2))
        ports = ((rows_ref(one, "a"),), (rows_ref(two, "b"),))
        joined = open_source(root, ports, labels=True, of_rows=ROW_LABELS)
        np.testing.assert_array_equal(joined.part_rows(0, 0, 44).labels["next_token"], following)

    def test_the_samples_own_label_comes_first(self, root: Location) -> None:
        source = self.source(root, self.capture(root, labels={"token": list("ababababa")}))
        assert source.of_rows == ("next_token",)
        assert source.part_rows(0, 0, 10).labels["token"].tolist() == [0] * 5 + [1] * 5

    def test_different_tokenizers_are_refused(self, root: Location) -> None:
        source = self.source(root, self.capture(root), self.capture(root, name="2"), names=())
        source.parts[1].spec = source.parts[1].spec.model_copy(update={"tokenizer": "other"})
        with pytest.raises(MethodError, match="different tokenizers"):
            check_tokens(source.parts)

    def test_rows_that_are_no_tokens_are_refused(self, root: Location) -> None:
        source = self.source(root, self.capture(root), names=())
        source.parts[0].space = source.parts[0].space.model_copy(update={"per_sample": 1, "name": "sample"})
        with pytest.raises(MethodError, match=r"space 'sample' are no tokens"):
            check_tokens(source.parts)


class TestRowwise:
    def stages(self, spec: CaptureSpec) -> list[ResolvedStage]:
        first = pca(spec)
        ref = {"x": rows_ref(spec)}
        return [
            first,
            stage_of("spectrum.project", ref, {"basis": first.id}, components=2),
            stage_of("geometry.neighbours", ref, k=3),
        ]

    def test_failed_rows_are_fill(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()}, np.arange(90) // 3, failed=(4,))
        stages = self.stages(spec)
        made = run_stages(root, stages, serial)
        near, place = (artifact_arrays(root, made[s.id].id) for s in reversed(stages[1:]))
        dead = np.isin(np.arange(90) // 3, 4)
        np.testing.assert_array_equal((near["index"] == -1).all(1), dead)
        np.testing.assert_array_equal(np.isnan(near["distance"]).all(1), dead)
        np.testing.assert_array_equal(np.isnan(place["coordinates"]).all(1), dead)
        assert not np.isin(near["index"], np.flatnonzero(dead)).any()

    @pytest.mark.parametrize("shards", [1, 2])
    @pytest.mark.parametrize("after", [1, 5, 13])
    def test_a_killed_stage_goes_on_where_it_was(
        self, root: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, shards: int
    ) -> None:
        """Also where a job takes several shards, which count together."""
        spec, first, second = make_capture(root, {"a": rows_of()}), Progress(), Progress()
        space = spec.layout.spaces[0]
        monkeypatch.setattr(rowwise, "SPAN_ROWS", shards * space.shard_rows)
        after = min(after, 1 + space.n_shards // shards)  # jobs: one begins, then those of shards
        stages = self.stages(spec)
        run_stage(root, stages[0], serial)
        with pytest.raises(KeyboardInterrupt):
            run_stage(root, stages[1], dying(after), on_progress=first)
        made = run_stage(root, stages[1], serial, on_progress=second)
        assert first.shards + second.shards == spec.layout.spaces[0].n_shards
        fresh = Location(str(tmp_path / "fresh"))
        make_capture(fresh, {"a": rows_of()})
        again = run_stages(fresh, stages[:2], serial)[stages[1].id]
        assert stored_bytes(root, made) == stored_bytes(fresh, again)

    def test_a_stage_waits_for_the_one_that_it_reads(self, root: Location) -> None:
        stages = self.stages(make_capture(root, {"a": rows_of()}))
        made = run_stages(root, [stages[1], stages[0]], serial)
        assert made.keys() == {stages[0].id, stages[1].id}

    def test_an_artifact_of_another_method_is_refused(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()})
        ref = {"x": rows_ref(spec)}
        wrong = run_stage(root, stage_of("spectrum.summary", ref), serial)
        with pytest.raises(MethodError, match=r"expected one of spectrum.pca"):
            run_stage(root, stage_of("spectrum.project", ref, {"basis": wrong.id}), serial)

    def test_an_artifact_that_is_not_there_is_named(self, root: Location) -> None:
        ref = {"x": rows_ref(make_capture(root, {"a": rows_of()}))}
        with pytest.raises(NotFoundError, match="missing0"):
            run_stage(root, stage_of("spectrum.project", ref, {"basis": "missing0"}), serial)

    def test_a_stage_is_prepared_once_for_all_shards_of_a_worker(
        self, root: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not once for each: what it reads of other stages may be as long as the rows."""
        from tasks.engine import rowwise

        spec, calls = make_capture(root, {"a": rows_of()}), []
        real = rowwise.prepare
        monkeypatch.setattr(rowwise, "prepare", lambda job: calls.append(job) or real(job))
        run_stages(root, stages_over(spec), serial)
        assert spec.layout.spaces[0].n_shards > 6
        assert len(calls) == 3  # to begin, for the shards, to finish

    def test_a_stage_that_was_finished_without_saying_so_is_finished(self, root: Location) -> None:
        """As where a worker dies between its last write and its answer, and another is asked again."""
        spec = make_capture(root, {"a": rows_of()})
        stages, asked = stages_over(spec), []

        def twice(function: Any, items: Sequence[Any], on_done: Callable[[Any], None]) -> None:
            for item in items:
                first = function(item)
                asked.append(function.__name__)
                on_done(function(item) if function.__name__ == "finish" else first)

        made = run_stages(root, stages, twice)
        assert "finish" in asked
        assert made[stages[-1].id].rows_used == 90


def stages_over(spec: CaptureSpec) -> list[ResolvedStage]:
    """Components, and residuals outside of them."""
    basis = pca(spec)
    return [basis, stage_of("anomaly.residual", {"x": rows_ref(spec)}, {"basis": basis.id}, components=2)]


class TestSequential:
    def probe(self, spec: CaptureSpec, **options: Any) -> ResolvedStage:
        return stage_of("probe.linear", {"x": rows_ref(spec)}, epochs=2, batch_rows=5, **options)

    def capture(self, root: Location) -> CaptureSpec:
        return make_capture(
            root, {"a": rows_of()}, np.arange(90) // 3, {"kind": list("ab" * 15)}, failed=(3,)
        )

    @pytest.mark.parametrize("after", [1, 13, 30])
    def test_a_killed_stage_gives_the_same_bytes(
        self, root: Location, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tasks.engine import sequential

        real, count = sequential.save_state, [0]

        def save(*arguments: Any) -> Any:
            count[0] += 1
            if count[0] == after:
                raise KeyboardInterrupt
            return real(*arguments)

        stage, first, second = self.probe(self.capture(root)), Progress(), Progress()
        monkeypatch.setattr(sequential, "save_state", save)
        with pytest.raises(KeyboardInterrupt):
            run_stage(root, stage, serial, on_progress=first)
        made = run_stage(root, stage, serial, on_progress=second)
        n_shards = 12
        assert second.shards == 4 * n_shards - (after - 1)
        fresh = Location(str(tmp_path / "fresh"))
        again = run_stage(fresh, self.probe(self.capture(fresh)), serial)
        assert stored_bytes(root, made) == stored_bytes(fresh, again)
        assert made.result == again.result
        assert made.rows_used == again.rows_used == 87

    def test_another_seed_gives_another_order(self, root: Location) -> None:
        spec = self.capture(root)
        made = [run_stage(root, self.probe(spec, seed=seed), serial) for seed in (0, 1)]
        assert stored_bytes(root, made[0]) != stored_bytes(root, made[1])


class TestWhole:
    def cluster(self, spec: CaptureSpec, **options: Any) -> ResolvedStage:
        return stage_of("clustering.spectral", {"x": rows_ref(spec)}, neighbours=3, clusters=2, **options)

    def test_too_many_rows_are_refused_with_both_numbers(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()}, failed=(0,))
        with pytest.raises(MethodError, match="up to 50 rows in memory, found 89"):
            run_stage(root, self.cluster(spec, most_rows=50), serial)

    def test_a_sample_is_seeded_sorted_and_good(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()}, failed=range(0, 90, 3))
        drawn = []
        for seed in (0, 0, 1):
            made = run_stage(root, self.cluster(spec, most_rows=50, sample_rows=30, seed=seed), serial)
            drawn.append(artifact_arrays(root, made.id)["row"])
            assert made.rows_used == 30
        assert (np.diff(drawn[0]) > 0).all()
        assert (drawn[0] % 3 > 0).all()
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert drawn[0].tolist() != drawn[2].tolist()

    def test_a_sample_larger_than_the_most_is_refused(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()})
        with pytest.raises(MethodError, match="up to 20 rows in memory, found 30"):
            run_stage(root, self.cluster(spec, most_rows=20, sample_rows=30), serial)

    def seen(self, spec: CaptureSpec | Sequence[CaptureSpec], **options: Any) -> ResolvedStage:
        specs = [spec] if isinstance(spec, CaptureSpec) else spec
        return stage_of("tests.whole_method", {"x": [rows_ref(one) for one in specs]}, **options)

    def test_whole_samples_are_drawn_with_the_seed(self, root: Location) -> None:
        sample = np.repeat(np.arange(18), np.arange(18) % 4 + 3)[:72]  # of different lengths
        failed = range(0, 18, 5)
        specs = [
            make_capture(root, {"a": rows_of(k, 72)}, sample, failed=failed, name=str(k)) for k in range(2)
        ]
        n, drawn = len(np.unique(sample)), []
        for seed in (0, 0, 1):
            made = run_stage(
                root, self.seen(specs, most_rows=60, samples=9, seed=seed), serial, allowed=("tests",)
            )
            found = artifact_arrays(root, made.id)
            drawn.append(found["row"])
            there = np.unique(found["sample"])
            assert len(there) == 9
            assert not np.isin(there % n, list(failed)).any()
            expected = np.flatnonzero(np.isin(np.concatenate([sample, sample + n]), there))
            np.testing.assert_array_equal(found["row"], expected)
            assert made.rows_used == len(expected)
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert drawn[0].tolist() != drawn[2].tolist()
        assert drawn[0].max() >= 72 > drawn[0].min()

    def test_more_samples_than_there_are_take_all(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()}, np.arange(90) // 3, failed=(2,))
        made = run_stage(root, self.seen(spec, samples=99), serial, allowed=("tests",))
        assert made.rows_used == 87

    def test_samples_that_hold_too_many_rows_are_refused(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()}, np.arange(90) // 3)
        with pytest.raises(
            MethodError, match=r"up to 20 rows in memory, found 30 in the 10 drawn .* about 6"
        ):
            run_stage(root, self.seen(spec, most_rows=20, samples=10), serial, allowed=("tests",))
        with pytest.raises(MethodError, match=r"found 90 .* set samples to the number of whole samples"):
            run_stage(root, self.seen(spec, most_rows=20), serial, allowed=("tests",))

    def test_samples_that_are_drawn_come_before_rows(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()}, np.arange(90) // 3)
        stage = self.seen(spec, most_rows=20, samples=2, sample_rows=20)
        made = run_stage(root, stage, serial, allowed=("tests",))
        assert made.rows_used == 6
        assert len(np.unique(artifact_arrays(root, made.id)["sample"])) == 2
        with pytest.raises(MethodError, match=r"found 21 .* set sample_rows to 20 or less"):
            run_stage(root, self.seen(spec, most_rows=20, sample_rows=21), serial, allowed=("tests",))


class TestRefusals:
    def test_ports_must_all_be_connected(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()})
        with pytest.raises(MethodError, match="ports"):
            run_stage(root, stage_of("geometry.cka", {"x": rows_ref(spec)}), serial)

    def test_another_version_is_refused(self, root: Location) -> None:
        stage = pca(make_capture(root, {"a": rows_of()}))
        with pytest.raises(MethodError, match="version 99"):
            run_stage(root, stage.model_copy(update={"version": 99}), serial)

    def test_unknown_sites_and_captures_are_named(self, root: Location) -> None:
        spec = make_capture(root, {"layer.1": rows_of()})
        with pytest.raises(UnknownNameError, match=r"layer.1:out:0"):
            run_stage(
                root, pca(spec).model_copy(update={"rows": {"x": (rows_ref(spec, "layer.2"),)}}), serial
            )
        gone = rows_ref(spec).model_copy(update={"capture": "0" * 20})
        with pytest.raises(NotFoundError, match="0" * 20):
            run_stage(root, stage_of("spectrum.pca", {"x": gone}), serial)


class TestOwnMethods:
    def test_a_method_of_an_allowed_package_runs(self, root: Location) -> None:
        spec = make_capture(root, {"a": rows_of()})
        stage = stage_of("tests.own_method", {"rows": rows_ref(spec)})
        made = run_stage(root, stage, serial, allowed=("tests",))
        expected = rows_of().astype(np.float32).mean(0, dtype=np.float64)
        np.testing.assert_allclose(artifact_arrays(root, made.id)["mean"], expected, rtol=1e-14)
        assert made.result == {"nothing": None, "endless": [None, 1.0]}

    def test_other_packages_are_refused(self, root: Location) -> None:
        stage = stage_of("tests.own_method", {"rows": rows_ref(make_capture(root, {"a": rows_of()}))})
        with pytest.raises((SpecError, UnknownNameError)):
            run_stage(root, stage, serial)

    def test_a_port_for_one_capture_takes_one(self, root: Location) -> None:
        refs = [rows_ref(make_capture(root, {"a": rows_of(k)}, name=str(k))) for k in range(2)]
        with pytest.raises(MethodError, match="2 captures, it takes one"):
            run_stage(root, stage_of("tests.own_method", {"rows": refs}), serial, allowed=("tests",))


def test_spans_are_large_beside_their_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    space = Space(
        name="tokens", n_rows=10**6, per_sample=None, chunk_rows=512, shard_rows=4096, unit_shards=4
    )
    for width, n in ((0, 62), (1, 1), (384, 21), (2048, 8)):
        found = spans_of(space, width)
        assert len(found) == n
        assert [unit for span in found for unit in span.units] == list(range(space.n_units))
        assert all(span.of == n for span in found)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000])
def test_spans_cover_all_units_in_order(n: int) -> None:
    found = spans(n)
    assert [unit for span in found for unit in span] == list(range(n))
    assert len(found) <= 64


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_the_tree_is_balanced_and_in_order(n: int) -> None:
    depth = {}

    def merge(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        depth[a + b] = max(depth.get(a, 0), depth.get(b, 0)) + 1
        return a + b

    whole = tree(lambda k: (k,), n, merge)
    assert whole == tuple(range(n))
    assert depth.get(whole, 0) == (n - 1).bit_length()


def test_an_empty_root_has_no_state(root: Location) -> None:
    assert load_counted(root, "states/none.npz", "cpu") is None
    with pytest.raises(StoreError):
        run_stage(root, pca_of_nothing(), serial)


def pca_of_nothing() -> ResolvedStage:
    from schemas.stage import RowsRef

    return stage_of("spectrum.pca", {"x": RowsRef(capture="a", digest="a", site="a:out:0")})
