"""Every engine of spectrum.pca on one question: LAPACK's answer, bounds that hold, and the choice by shape."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods import component_states
from tasks.methods.contract import Inputs
from tasks.methods.spectrum import pca
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.numerics.test_streaming import planted

ENGINES = ("moments", "qr", "rows", "streaming", "sketch")


def solved(x: Tensor, pieces: int = 3, weight: Tensor | None = None, **options: Any) -> Answer:
    config = pca.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    pca.check(inputs, config)
    block = cases._block({"x": x}, len(x), False)
    here = Case(pca, config, inputs, replace(block, weight=weight))
    edges = [len(part) for part in torch.arange(len(x)).tensor_split(pieces)]
    return cases.run(here, cases.cut(here.block, np.cumsum(edges)[:-1].tolist()))


def by_lapack(x: Tensor, center: bool = True) -> tuple[Tensor, Tensor]:
    exact = x.double() - x.double().mean(0) if center else x.double()
    _, singular, vectors = torch.linalg.svd(exact, full_matrices=False)
    return singular.square() / (len(x) - center), vectors


def sine(basis: Tensor, vectors: Tensor) -> float:
    return float(torch.linalg.matrix_norm(basis - (basis @ vectors.T) @ vectors, 2))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_all_engines_agree_where_nothing_is_cut(engine: str, center: bool, offset: float) -> None:
    x = planted(60, 24, 0.8, 3, offset)
    answer = solved(x, engine=engine, components=5, rank=24, center=center)
    values, vectors = by_lapack(x, center)
    k = len(answer.arrays["eigenvalue"])
    np.testing.assert_allclose(answer.arrays["eigenvalue"][:5], values[:5], rtol=1e-9)
    assert k >= 5
    assert answer.result.trace == pytest.approx(float(values.sum()), rel=1e-10)
    assert answer.result.explained == pytest.approx(float(values[:5].sum() / values.sum()), rel=1e-9)
    assert sine(answer.arrays["components"], vectors[:5]) < 1e-6
    mean = x.mean(0) if center else torch.zeros(24).double()
    torch.testing.assert_close(answer.arrays["mean"], mean, rtol=1e-12, atol=1e-12)
    assert answer.result.engine == engine


@pytest.mark.parametrize("engine", ENGINES)
def test_integer_weights_repeat_rows(engine: str) -> None:
    x = planted(40, 12, 0.5, 1, 7.0)
    times = torch.arange(40) % 4
    weighted = solved(x, weight=times.double(), engine=engine, components=3, rank=12, weights="count")
    repeated = solved(x.repeat_interleave(times, 0), engine=engine, components=3, rank=12)
    for name in ("eigenvalue", "components", "mean"):
        torch.testing.assert_close(weighted.arrays[name][:3], repeated.arrays[name][:3], rtol=1e-9, atol=1e-9)
    assert weighted.result.trace == pytest.approx(repeated.result.trace, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    engine=st.sampled_from(["streaming", "sketch"]),
    refine=st.integers(0, 3),
    power=st.floats(0.2, 2),
    shrink=st.booleans(),
    pieces=st.integers(1, 6),
)
def test_bounds_hold(seed: int, engine: str, refine: int, power: float, shrink: bool, pieces: int) -> None:
    x = planted(120, 40, power, seed, 20.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.numerics.streaming.FEWEST", 1)
        options: dict[str, Any] = {"engine": engine, "refine": refine, "shrink": shrink, "seed": seed}
        answer = solved(x, pieces, components=4, rank=8, **options)
    values, vectors = by_lapack(x)
    found, upper = answer.arrays["eigenvalue"].numpy(), answer.arrays["eigenvalue_upper"].numpy()
    true, rounding = values[: len(found)].numpy(), 1e-11 * float(values[0])
    assert (found <= true + rounding).all()
    assert (true <= upper + rounding).all()
    assert answer.result.passes == 1 + refine
    if answer.result.angle_bound is not None:
        assert sine(answer.arrays["components"], vectors[:4]) <= answer.result.angle_bound + 1e-6
    if refine or engine == "sketch":
        assert answer.result.relative_error is not None


@pytest.mark.parametrize("order", [False, True])
def test_a_further_pass_pays(order: bool) -> None:
    """Rank 2 k of a slow spectrum, k = 20: 0.15 without, 0.05 with one pass more."""
    x = planted(2000, 500, 0.5, 0, order=order)
    _, vectors = by_lapack(x)
    found = [
        sine(
            solved(x, engine="streaming", components=20, rank=40, refine=refine).arrays["components"],
            vectors[:20],
        )
        for refine in (0, 1)
    ]
    assert found[0] < 0.15
    assert found[1] < 0.05
    assert found[1] < found[0] / 2


def test_single_precision_rows_lose_nothing_by_passes() -> None:
    """Products of single precision with themselves, again and again, lose a slow spectrum; orthonormal blocks in double do not."""
    x = planted(800, 200, 0.75)
    errors = {}
    for rows in (x, x.float()):
        values, _ = by_lapack(x)
        found = solved(rows, engine="sketch", components=32, rank=42, refine=5).arrays["eigenvalue"][:32]
        errors[rows.dtype] = float((found.sqrt() / values[:32].sqrt() - 1).abs().max())
    assert errors[torch.float32] <= 1.05 * errors[torch.float64] + 1e-6
    assert errors[torch.float64] < 0.01


def test_small_singular_values() -> None:
    x = planted(300, 30, 0, 2)
    x = x @ torch.diag(torch.logspace(0, -10, 30).double())
    values, _ = by_lapack(x)
    exact, usual = solved(x, engine="qr"), solved(x, engine="moments")
    np.testing.assert_allclose(exact.arrays["eigenvalue"], values, rtol=1e-4)
    assert exact.result.resolved == 30
    assert usual.result.resolved < 25
    assert any("engine qr" in note for note in usual.result.caveats)
    assert bool(usual.arrays["eigenvalue"][-1].isnan())


@pytest.mark.parametrize(
    ("width", "rows", "memory", "engine"),
    [
        (2048, 10, 4, "moments"),
        (4000, 1000, 4, "rows"),
        (4000, 3000, 4, "moments"),
        (8192, 10**6, 4, "moments"),
        (8192, 10**6, 0.9, "streaming"),
        (100_000, 2000, 8, "rows"),
        (100_000, 10**6, 4, "streaming"),
    ],
)
def test_the_choice_by_shape(width: int, rows: int, memory: float, engine: str) -> None:
    config = pca.Config(memory_gib=memory)
    choice = component_states.choose(width, rows, 256, config)
    assert choice.engine == engine
    assert str(width) in choice.why


def test_what_does_not_fit_is_refused() -> None:
    inputs = Inputs(widths={"x": 10**7}, n_rows=10**6, n_samples=10**6)
    with pytest.raises(MethodError, match=r"155\.6 GiB for 10,000,000 features.*memory_gib allows 4"):
        pca.check(inputs, pca.Config())
    with pytest.raises(MethodError, match="asked for 9 components of rank 5"):
        pca.check(inputs, pca.Config(components=9, rank=5))


def test_a_stream_without_variance() -> None:
    x = torch.ones(30, 6, dtype=torch.float64) * 3
    for engine in ("rows", "streaming", "sketch"):
        answer = solved(x, engine=engine, components=2, rank=4)
        assert answer.result.components == 0
        assert answer.result.explained is None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("apart", [1e-6, 1e-10, 1e-12])
def test_the_angle_bound_holds_where_eigenvalues_nearly_coincide(engine: str, apart: float) -> None:
    rng = np.random.default_rng(3)
    draws = rng.standard_normal((300, 4))
    left = np.linalg.qr(draws - draws.mean(0))[0]
    right = np.linalg.qr(rng.standard_normal((30, 4)))[0]
    x = torch.from_numpy(left * [1, 1 - apart / 2, 0.3, 0.1] @ right.T)
    answer = solved(x, engine=engine, components=1, rank=8)
    assert answer.result.angle_bound is not None
    assert sine(answer.arrays["components"], torch.from_numpy(right[:, :1].T)) <= answer.result.angle_bound


@pytest.mark.parametrize("engine", ["rows", "streaming", "sketch"])
def test_what_rounding_hides_is_counted_as_left_out(engine: str) -> None:
    """About the origin, a mean of 1e6 hides directions of variance 1 in products of rows."""
    x = torch.randn(60, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    answer = solved(x, engine=engine, components=2, rank=30, center=False)
    values, _ = by_lapack(x, center=False)
    assert answer.result.resolved < 40
    assert answer.result.missed >= float(values[answer.result.resolved])


@pytest.mark.parametrize("engine", ["qr", "rows"])
def test_the_last_digits_of_a_large_mean_are_no_directions(engine: str) -> None:
    """Whole numbers beside 2^40 / 3: every row is exact, the means of blocks are not."""
    step = torch.arange(300, dtype=torch.float64) % 7
    x = step[:, None] * torch.arange(1, 9).double() + (2**40 // 3)
    result = solved(x, pieces=7, engine=engine, components=8, rank=8).result
    assert result.resolved == 1
    assert result.eigenvalues[0] == pytest.approx(float(step.var() * 204), rel=1e-6)


@pytest.mark.parametrize("engine", ["moments", "streaming", "sketch"])
@pytest.mark.parametrize("rank", [8, 16])
def test_sampling_error_counts_directions_that_were_not_kept(engine: str, rank: int) -> None:
    """Eight strong directions among 300: nearly all of the error lies outside the 16 that a stream keeps."""
    x = torch.randn(2000, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:, :8] *= 10
    answer = solved(x, engine=engine, components=8, rank=rank, refine=2)
    off = 8 - float(answer.arrays["components"][:, :8].square().sum())
    assert answer.result.subspace_error == pytest.approx(off, rel=0.15)


@pytest.mark.parametrize("engine", ["moments", "qr", "rows"])
@pytest.mark.parametrize(("center", "all_of_them"), [(True, 19), (False, 20)])
def test_components_that_hold_all_rows_tell_no_sampling_error(
    engine: str, center: bool, all_of_them: int
) -> None:
    x = torch.randn(20, 100, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = solved(x, engine=engine, center=center).result
    assert (whole.components, whole.subspace_error) == (all_of_them, None)
    fewer = solved(x, engine=engine, center=center, components=all_of_them - 1).result
    assert fewer.subspace_error is not None


@pytest.mark.parametrize("engine", ["qr", "rows", "streaming", "sketch"])
@pytest.mark.parametrize("scale", [1e-150, 1e-80, 1e80, 1e150])
def test_rows_of_any_scale(engine: str, scale: float) -> None:
    x = planted(100, 20, 0.8, 3)
    usual, scaled = (solved(rows, engine=engine, components=3, rank=8) for rows in (x, x * scale))
    np.testing.assert_allclose(
        np.array(scaled.result.eigenvalues[:3]) / scale**2, usual.result.eigenvalues[:3], rtol=1e-9
    )
    assert scaled.result.resolved == usual.result.resolved
    assert scaled.result.explained == pytest.approx(usual.result.explained, rel=1e-9)


@pytest.mark.parametrize("engine", ["moments", "qr"])
def test_merging_takes_as_much_memory_as_is_counted(engine: Any) -> None:
    """Two states as they are and whatever is allocated on the way, by torch's own account."""
    width, n = 160, 400
    config, inputs = pca.Config(engine=engine), Inputs(widths={"x": width}, n_rows=2 * n, n_samples=2 * n)
    carry = pca.start(inputs, config)
    made = pca.reduces(carry, config)
    states = [
        made.partial(cases._block({"x": torch.randn(n, width) + seed}, n, False), carry, config)
        for seed in (0, 3)
    ]
    held = sum(t.numel() * t.element_size() for state in states for t in state.values())
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as prof:
        made.merge(*states)
    steps = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    beside = np.cumsum([e.nbytes() for e in sorted(steps, key=lambda e: e.start_ns())]).max()
    assert 1 / 1.5 < (held + beside) / component_states.state_bytes(engine, width, 2 * n, 64) <= 1.05


def test_a_stream_takes_no_more_memory_than_it_is_counted_for() -> None:
    """Two states and the rows of both as one; in a further pass the block, two products and their sum."""
    width, rank, n = 900, 30, 1000
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = pca.Config(engine="streaming", rank=rank, components=4)
    inputs = Inputs(widths={"x": width}, n_rows=n, n_samples=n)
    counted = component_states.state_bytes("streaming", width, n, rank)
    carry, block = pca.start(inputs, config), cases._block({"x": x}, n, False)
    a, b = (pca.partial(cases.part(block, slice(low, low + 229)), carry, config) for low in (0, 500))
    first = 2 * (a["rows"].numel() + b["rows"].numel())
    following = pca.update(pca.merge(a, a), carry, inputs, config)
    assert following is not None
    product = pca.partial(block, following, config)["p"]
    second = following["q"].numel() + 3 * product.numel()
    assert counted / 2 < 8 * max(first, second) <= counted
