"""spectrum.append against the decomposition of all rows at once, and bounds that hold."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.spectrum import append, pca
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.test_components import by_lapack, sine, solved
from tests.numerics.test_streaming import planted


def appended(old: Answer, x: Tensor, **options: Any) -> Answer:
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        artifacts={"old": old.arrays},
        results={"old": old.result.model_dump(mode="json")},
    )
    block = cases._block({"x": x}, len(x), False)
    config = append.Config.model_validate(options)
    append.check(inputs, config)
    return cases.run(Case(append, config, inputs, block), cases.cut(block, [len(x) // 3]))


def test_all_components_lose_nothing() -> None:
    x = planted(90, 12, 0.6, 0, 40.0)
    x[60:] += 3
    answer = appended(solved(x[:60], components=12), x[60:])
    values, vectors = by_lapack(x)
    np.testing.assert_allclose(answer.arrays["eigenvalue"], values, rtol=1e-9)
    assert sine(answer.arrays["components"][:4], vectors[:4]) < 1e-9
    torch.testing.assert_close(answer.arrays["mean"], x.mean(0), rtol=1e-12, atol=1e-12)
    assert (answer.result.n_rows, answer.result.n_new) == (90, 30)
    assert answer.result.trace == pytest.approx(float(values.sum()), rel=1e-12)
    apart = float(
        (x[60:].mean(0) - x[:60].mean(0)).norm() / (x[:60] - x[:60].mean(0)).square().sum(1).mean().sqrt()
    )
    assert answer.result.moved == pytest.approx(apart, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    k=st.integers(2, 8),
    power=st.floats(0.3, 2),
    engine=st.sampled_from(["moments", "streaming"]),
)
def test_bounds_hold(seed: int, k: int, power: float, engine: str) -> None:
    x = planted(100, 20, power, seed, 5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.numerics.streaming.FEWEST", 1)
        old = solved(x[:60], components=k, engine=engine, rank=10)
        answer = appended(old, x[60:], rank=10)
    values, vectors = by_lapack(x)
    found, upper = answer.arrays["eigenvalue"], answer.arrays["eigenvalue_upper"]
    rounding = 1e-10 * float(values[0])
    assert bool((found <= values[: len(found)] + rounding).all())
    assert bool((values[: len(found)] <= upper + rounding).all())
    assert answer.result.trace == pytest.approx(float(values.sum()), rel=1e-9)
    if answer.result.angle_bound is not None:
        kept = len(answer.arrays["components"])
        assert sine(answer.arrays["components"], vectors[:kept]) <= answer.result.angle_bound + 1e-6


def test_what_cannot_be_appended_is_refused() -> None:
    old = solved(planted(30, 6, 0.5))
    with pytest.raises(MethodError, match="the site has 5 features, the finished components 6"):
        appended(old, planted(30, 5, 0.5))
    about_origin = solved(planted(30, 6, 0.5), center=False)
    with pytest.raises(MethodError, match="about the origin"):
        appended(about_origin, planted(30, 6, 0.5))
    with pytest.raises(MethodError, match="found 0 rows"):
        appended(old, planted(30, 6, 0.5)[:0])


def test_weighted_rows_are_said_to_be() -> None:
    x = planted(40, 6, 0.5)
    old = solved(x, weight=torch.rand(40, generator=torch.Generator().manual_seed(0)).double())
    assert isinstance(old.result, pca.Result)
    assert "weighted" in appended(old, x).result.caveats[0]
