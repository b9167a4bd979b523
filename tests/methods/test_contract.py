"""Laws that every method keeps. A new method takes part by being in its folder."""

import hashlib
import json
import math
import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.base import Frozen
from schemas.errors import MethodError, SubspanError
from schemas.model import FactoryModel
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.engine.parameters import wanted
from tasks.methods.contract import (
    ArtifactPort,
    BatchesPort,
    GraphPort,
    RowsPort,
    list_methods,
    load_method,
)
from tasks.store.artifacts import artifact_arrays
from tasks.store.edges import edges_ref
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Answer, Case, case, cut, part, run

METHODS = tuple(list_methods())
OF_NETWORKS = [
    name
    for name in METHODS
    for ports in [load_method(name).READS.values()]
    if any(
        isinstance(p, BatchesPort)
        or (
            isinstance(p, ArtifactPort)
            and any(isinstance(q, BatchesPort) for q in load_method(p.method).READS.values())
        )
        for p in ports
    )
]
"""These run over captures with a network in tests/pipelines/test_network_stages.py."""
OF_ROWS = [name for name in METHODS if name not in OF_NETWORKS]
KINDS = {name: load_method(name).KIND for name in METHODS}
SPLITTABLE = [name for name, kind in KINDS.items() if kind in ("reduce", "map", "pairs")]
ROWWISE = [name for name, kind in KINDS.items() if kind in ("map", "pairs")]
TOLERANCE = 1e-6
FUNCTIONS = {
    "reduce": ("start", "partial", "merge", "finish"),
    "map": ("start", "outputs", "apply", "finish"),
    "pairs": ("start", "outputs", "begin", "pair", "finish"),
    "sequential": ("start", "step", "passes", "batch_rows", "finish"),
    "whole": ("max_rows", "solve"),
    "combine": ("solve",),
}


@cache
def at_once(method: str) -> Answer:
    """Over all rows as one block; never changed."""
    return run(case(method))


def of_kind(*kinds: str) -> Any:
    """One test for each method of some kinds."""
    return pytest.mark.parametrize("method", [name for name, kind in KINDS.items() if kind in kinds])


def assert_close(found: Answer, expected: Answer, tolerance: float = TOLERANCE) -> None:
    """Numbers agree relative to the largest of their array, residuals and angles to the tolerance; words are equal."""
    assert_close_json(
        json.loads(found.result.model_dump_json()), json.loads(expected.result.model_dump_json()), tolerance
    )
    assert found.arrays.keys() == expected.arrays.keys()
    for name, values in expected.arrays.items():
        wanted, got = (
            values.detach().cpu().double().numpy(),
            found.arrays[name].detach().cpu().double().numpy(),
        )
        finite = np.abs(wanted[np.isfinite(wanted)])
        scale = finite.max() if finite.size and not is_error(name) else 1.0
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * scale, err_msg=name)


def assert_close_json(found: Any, expected: Any, tolerance: float) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if not is_error(key) or max(abs(value or 0), abs(found[key] or 0)) > tolerance:
                assert_close_json(found[key], value, tolerance)
    elif isinstance(expected, list) and len(expected) == len(found):
        for a, b in zip(found, expected, strict=True):
            assert_close_json(a, b, tolerance)
    elif isinstance(expected, float) and isinstance(found, float | int):
        assert math.isclose(found, expected, rel_tol=10 * tolerance, abs_tol=1e-9), (found, expected)
    else:
        assert found == expected


def is_error(name: str) -> bool:
    """Whether a number says how far others may be off, and is itself made of rounding errors."""
    return "residual" in name or "angle" in name


def assert_equal(found: Answer, expected: Answer) -> None:
    """The same bytes."""
    assert found.result.model_dump_json() == expected.result.model_dump_json()
    assert found.arrays.keys() == expected.arrays.keys()
    for name, values in expected.arrays.items():
        assert found.arrays[name].dtype == values.dtype
        assert found.arrays[name].numpy().tobytes() == values.numpy().tobytes(), name


def state_bytes(state: dict[str, torch.Tensor]) -> dict[str, tuple[str, bytes]]:
    return {name: (str(t.dtype), t.cpu().numpy().tobytes()) for name, t in state.items()}


def test_methods_are_found() -> None:
    assert {"spectrum.pca", "geometry.cka", "probe.linear"} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
class TestDeclarations:
    def test_members(self, method: str) -> None:
        module = load_method(method)
        assert isinstance(module.VERSION, int)
        assert module.VERSION >= 1
        assert isinstance(module.REFERENCE, str)
        assert module.REFERENCE.strip()
        assert all(isinstance(seed, int) for seed in module.SEEDS)
        assert all(isinstance(port, RowsPort | ArtifactPort | GraphPort) for port in module.READS.values())
        reads_rows = any(isinstance(port, RowsPort) for port in module.READS.values())
        assert reads_rows != (module.KIND == "combine")
        assert (module.__doc__ or "").strip()
        missing = [name for name in FUNCTIONS[module.KIND] if not callable(getattr(module, name, None))]
        assert not missing

    def test_options(self, method: str) -> None:
        config = load_method(method).Config()
        assert isinstance(config, Frozen)
        with pytest.raises(ValidationError):
            type(config).model_validate({"no_such_option": 1})
        assert type(config).model_validate(config.model_dump(mode="json")) == config
        assert all(field.description for field in type(config).model_fields.values())
        if type(config).model_fields:
            with pytest.raises(ValidationError):
                setattr(config, next(iter(type(config).model_fields)), None)

    def test_result_is_a_frozen_schema(self, method: str) -> None:
        result = load_method(method).Result
        assert issubclass(result, Frozen)

    def test_answer_is_as_declared(self, method: str) -> None:
        answer, module = at_once(method), load_method(method)
        assert answer.dims == module.ARRAYS
        lengths: dict[str, int] = {}
        for name, values in answer.arrays.items():
            assert values.ndim == len(answer.dims[name])
            assert not values.dtype.is_complex
            for dim, length in zip(answer.dims[name], values.shape, strict=True):
                assert lengths.setdefault(dim, length) == length, (name, dim)

    def test_result_survives_json(self, method: str) -> None:
        result = at_once(method).result
        text = result.model_dump_json()
        assert type(result).model_validate_json(text) == result
        json.dumps(result.model_dump(mode="json"), allow_nan=False)

    def test_everything_travels(self, method: str) -> None:
        here = case(method)
        for thing in (here.config, here.inputs, at_once(method).result):
            again = pickle.loads(pickle.dumps(thing))
            assert type(again) is type(thing)
        assert pickle.loads(pickle.dumps(here.config)) == here.config

    def test_the_same_question_has_the_same_answer(self, method: str) -> None:
        assert_equal(run(case(method)), at_once(method))

    @pytest.mark.gpu
    def test_a_gpu_agrees(self, method: str) -> None:
        assert_close(run(cases.on(case(method), "cuda")), at_once(method), 1e-4)


@of_kind("reduce")
class TestReduce:
    @settings(max_examples=8, deadline=None)
    @given(edges=st.lists(st.integers(0, cases.N), max_size=9))
    def test_any_partition_agrees(self, method: str, edges: list[int]) -> None:
        here = case(method)
        assert_close(run(here, cut(here.block, edges)), at_once(method))

    def test_rows_one_by_one_agree(self, method: str) -> None:
        here = case(method)
        assert_close(run(here, cut(here.block, range(1, cases.N))), at_once(method))

    @settings(max_examples=8, deadline=None)
    @given(order=st.permutations(range(5)))
    def test_order_of_merging_does_not_matter(self, method: str, order: list[int]) -> None:
        here = case(method)
        blocks = cut(here.block, [20, 50, 51, 120])
        assert_close(run(here, [blocks[k] for k in order]), at_once(method))

    def test_a_tree_agrees(self, method: str) -> None:
        here, carry = case(method), cases.start(case(method))
        a, b, c, d = (here.module.partial(x, carry, here.config) for x in cut(here.block, [40, 80, 120]))
        merge = here.module.merge
        self.finish_alike(here, merge(merge(a, b), merge(c, d)), merge(merge(merge(a, b), c), d))

    def test_a_fixed_tree_gives_the_same_bytes(self, method: str) -> None:
        here, carry = case(method), cases.start(case(method))
        blocks = cut(here.block, [40, 80, 120])
        first, second = (cases.fold(here, blocks, carry) for _ in range(2))
        assert state_bytes(first) == state_bytes(second)

    def test_merging_changes_no_argument(self, method: str) -> None:
        here, carry = case(method), cases.start(case(method))
        a, b = (here.module.partial(x, carry, here.config) for x in cut(here.block, [40]))
        before = state_bytes(a), state_bytes(b)
        here.module.merge(a, b)
        assert (state_bytes(a), state_bytes(b)) == before

    def test_an_empty_block_is_neutral(self, method: str) -> None:
        here, carry = case(method), cases.start(case(method))
        full = here.module.partial(here.block, carry, here.config)
        empty = here.module.partial(part(here.block, slice(0, 0)), carry, here.config)
        for merged in (here.module.merge(empty, full), here.module.merge(full, empty)):
            self.finish_alike(here, merged, full, 1e-12)

    def test_the_state_is_bounded(self, method: str) -> None:
        sizes = []
        for n in (10 * cases.N, 20 * cases.N):
            here = case(method, n)
            state = here.module.partial(here.block, cases.start(here), here.config)
            sizes.append(sum(t.numel() * t.element_size() for t in state.values()))
        assert sizes[0] == sizes[1]

    def test_state_config_is_part_of_the_options(self, method: str) -> None:
        module = load_method(method)
        if hasattr(module, "state_config"):
            json.dumps(module.state_config(module.Config()), allow_nan=False)

    @staticmethod
    def finish_alike(here: Case, a: Any, b: Any, tolerance: float = TOLERANCE) -> None:
        """Equal answers, or equal beginnings of the next round."""
        carry = cases.start(here)
        update = getattr(here.module, "update", lambda *_: None)
        following = [update(state, carry, here.inputs, here.config) for state in (a, b)]
        if following[0] is not None:
            assert following[0].keys() == following[1].keys()
            for name, values in following[1].items():
                scale = float(values.double().nan_to_num().abs().max()) if values.numel() else 0.0
                torch.testing.assert_close(
                    following[0][name], values, rtol=tolerance, atol=tolerance * scale, equal_nan=True
                )
            return
        found, expected = (
            cases._answer(*here.module.finish(state, carry, here.inputs, here.config)) for state in (a, b)
        )
        assert_close(found, expected, tolerance)


@of_kind("map", "pairs")
class TestRowwise:
    def test_outputs_are_as_declared(self, method: str) -> None:
        here = case(method)
        found = cases.outputs_of(here, here.block, [here.block], cases.start(here))
        declared = here.module.outputs(here.inputs, here.config)
        assert found.keys() == declared.keys()
        for name, output in declared.items():
            shape = (cases.N,) if output.width is None else (cases.N, output.width)
            assert tuple(found[name].shape) == shape
            assert found[name].numpy().dtype == np.dtype(output.dtype)

    @settings(max_examples=8, deadline=None)
    @given(edges=st.lists(st.integers(0, cases.N), max_size=9))
    def test_partition_changes_no_bit(self, method: str, edges: list[int]) -> None:
        here = case(method)
        found, expected = run(here, cut(here.block, edges)), at_once(method)
        for name in here.module.outputs(here.inputs, here.config):
            assert same_bits(found.arrays[name], expected.arrays[name]), name
        assert_close(found, expected)

    def test_rows_stay_aligned(self, method: str) -> None:
        here = case(method)
        order = torch.from_numpy(np.random.default_rng(3).permutation(cases.N))
        carry = cases.start(here)
        straight = cases.outputs_of(here, here.block, [here.block], carry)
        mixed = cases.outputs_of(here, part(here.block, order), [here.block], carry)
        for name, values in straight.items():
            assert same_bits(mixed[name], values[order]), name

    def test_no_rows_give_no_outputs(self, method: str) -> None:
        here = case(method)
        found = cases.outputs_of(here, part(here.block, slice(0, 0)), [here.block], cases.start(here))
        assert all(len(values) == 0 for values in found.values())


@of_kind("sequential")
class TestSequential:
    def test_a_resumed_run_gives_the_same_bytes(self, method: str) -> None:
        here = case(method)
        blocks = cut(here.block, [30, 90, 91, 130])

        def through(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: torch.from_numpy(np.array(t.numpy())) for name, t in state.items()}

        assert_equal(cases.run_sequential(here, blocks, through), run(here, blocks))

    def test_an_empty_batch_changes_nothing(self, method: str) -> None:
        here = case(method)
        blocks = cut(here.block, [30, 90])
        assert_equal(run(here, [*blocks, part(here.block, slice(0, 0))]), run(here, blocks))

    def test_the_state_keeps_its_shape(self, method: str) -> None:
        here = case(method)
        before = cases.start(here)
        after = here.module.step(here.block, before, here.config)
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {
            n: (t.shape, t.dtype) for n, t in after.items()
        }


@of_kind("whole")
class TestWhole:
    def test_it_says_how_many_rows_it_takes(self, method: str) -> None:
        here = case(method)
        assert here.module.max_rows(here.config) >= 1


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Also of numbers that are none."""
    return a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


class Engine:
    """Runs methods over captures with a failed sample; captures and artifacts are shared by all tests here."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.specs: dict[tuple[Any, ...], Any] = {}

    def __call__(self, method: str, shard_rows: int, poison: int | None = None) -> tuple[Location, Any]:
        ports = load_method(method).READS.values()
        several = any(isinstance(port, ArtifactPort) and port.several for port in ports)
        n_sites = cases.MEMBERS if several else sum(isinstance(port, RowsPort) for port in ports)
        sites = [f"site{k}" for k in range(n_sites)]
        names = weights_wanted(method, f"{sites[0]}:out:0")
        shapes = {name: list(cases.seeded_weight(0, name).shape) for name in names}
        per_sample = cases.per_sample(load_method(method))
        key = (len(sites), shard_rows, poison, per_sample, *shapes)
        root = Location(f"{self.folder}/{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}")
        if key not in self.specs:
            self.specs[key] = self._capture(root, sites, shard_rows, poison, per_sample, shapes)
        refs = {site: rows_ref(self.specs[key], site) for site in sites}
        stages = stages_of(method, refs, self._edges())
        return root, run_stages(root, stages, serial)[stages[-1].id]

    def _edges(self) -> str:
        """A file of edges by rows of the data."""
        lines = [f"{one},{other}" for one, other in cases.edges_of(cases.N).tolist()]
        place = Location(self.folder)
        place.write("edges.csv", "\n".join(["source,target", *lines]).encode())
        return f"{place.url}/edges.csv"

    @staticmethod
    def _capture(
        root: Location,
        sites: list[str],
        shard_rows: int,
        poison: int | None,
        per_sample: int,
        shapes: dict[str, list[int]],
    ) -> Any:
        arrays = {site: cases.rows_of(7 + k).numpy() for k, site in enumerate(sites)}
        if poison is not None:
            arrays[sites[0]][poison, 1] = np.nan
        sample = np.arange(cases.N) // per_sample
        names = [cases.CATEGORIES[k % 2] for k in range(sample[-1] + 1)]
        model = (
            FactoryModel(factory="tests.factories:with_parameters", arguments={"shapes": shapes})
            if shapes
            else None
        )
        return make_capture(
            root, arrays, sample, {"side": names}, failed=(5,), shard_rows=shard_rows, model=model
        )


def weights_wanted(method: str, site: str) -> list[str]:
    """Parameters that a method, and those whose artifacts it takes, read at a site."""
    module = load_method(method)
    names = list(wanted(module, module.Config(**cases.short_options(method)), site).values())
    for port in module.READS.values():
        names += weights_wanted(port.method, site) if isinstance(port, ArtifactPort) else []
    return list(dict.fromkeys(names))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(str(tmp_path_factory.mktemp("engine")))


def stages_of(method: str, refs: dict[str, Any], edges: str) -> list[Any]:
    """The stage of a method, after those of its artifact ports."""
    ports, made = load_method(method).READS, []
    rows = dict(zip((n for n, p in ports.items() if isinstance(p, RowsPort)), refs.values(), strict=False))
    artifacts, series = {}, {}
    for name, port in ports.items():
        if isinstance(port, ArtifactPort) and port.several:
            own = dict.fromkeys(refs, next(iter(refs.values()))) if port.aligned else refs
            members = [stages_of(port.method, {site: ref}, edges) for site, ref in own.items()]
            made += [stage for stages in members for stage in stages]
            series[name] = [stages[-1] for stages in members]
        elif isinstance(port, ArtifactPort):
            made += stages_of(port.method, dict(list(refs.items())[:1]), edges)
            artifacts[name] = made[-1].id
    graphs = {name: edges_ref(edges) for name, port in ports.items() if isinstance(port, GraphPort)}
    return [*made, stage_of(method, rows, artifacts, series, graphs, **cases.short_options(method))]


@pytest.mark.parametrize("method", OF_ROWS)
def test_the_engine_gives_what_is_declared(method: str, engine: Engine) -> None:
    module, (_, artifact) = load_method(method), engine(method, 24)
    assert {name: info.dims for name, info in artifact.arrays.items()} == module.ARRAYS
    reads_rows, failed = module.KIND != "combine", cases.per_sample(module)
    assert artifact.rows_used == (cases.N - failed) * reads_rows
    assert artifact.rows_dropped == failed * reads_rows
    module.Result.model_validate_json(json.dumps(artifact.result))


@pytest.mark.parametrize("method", [name for name in SPLITTABLE if name in OF_ROWS])
def test_the_size_of_shards_does_not_matter(method: str, engine: Engine) -> None:
    (small, a), (large, b) = engine(method, 24), engine(method, 88)
    assert_close_json(a.result, b.result, TOLERANCE)
    ours, theirs = artifact_arrays(small, a.id), artifact_arrays(large, b.id)
    for name, values in theirs.items():
        scale = 1.0 if method in ROWWISE or is_error(name) else float(np.nanmax(np.abs(values), initial=1))
        np.testing.assert_allclose(ours[name], values, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=name)


@pytest.mark.parametrize("method", OF_ROWS)
def test_nan_in_a_good_row_is_refused(method: str, engine: Engine) -> None:
    with pytest.raises(SubspanError, match=r"site0.*row 37") as caught:
        engine(method, 88, poison=37)
    assert isinstance(caught.value, MethodError)
