"""spectrum.joint against one decomposition of all rows, planted groups, and bounds that hold."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Inputs, Member
from tasks.methods.spectrum import joint
from tests.methods.test_components import solved


def member(x: Tensor, name: str, **options: Any) -> Member:
    answer = solved(x, **options)
    return Member(name, ("capture",), answer.arrays, answer.result.model_dump(mode="json"))


def run(members: list[Member], **options: Any) -> tuple[joint.Result, dict[str, Array]]:
    inputs = Inputs(widths={}, n_rows=0, n_samples=0, series={"pca": tuple(members)})
    config = joint.Config.model_validate(options)
    joint.check(inputs, config)
    return joint.solve(inputs, config)


def drawn(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def families(noise: float = 0.02) -> list[Tensor]:
    """Six sites: three in one plane of four dimensions, three in another."""
    planes = [torch.linalg.qr(drawn(30, 4, seed)).Q.T for seed in (0, 1)]
    return [drawn(200, 4, 10 + k) @ planes[k % 2] + noise * drawn(200, 30, 20 + k) for k in range(6)]


def test_planted_groups_are_found() -> None:
    result, arrays = run(
        [member(x, f"s{k}", components=30) for k, x in enumerate(families())], rank=4, tolerance=0.1
    )
    assert result.groups == (
        tuple(f"capture s{k}" for k in (0, 2, 4)),
        tuple(f"capture s{k}" for k in (1, 3, 5)),
    )
    assert arrays["member_group"].values.tolist() == [0, 1, 0, 1, 0, 1]
    assert result.worst_error < 0.1
    assert result.bounds_violated == 0
    assert result.stored == pytest.approx(1 / 3)
    assert (
        run([member(x, f"s{k}") for k, x in enumerate(families())], rank=4, contiguous=True)[0].n_groups == 6
    )


def test_errors_are_those_of_all_rows() -> None:
    xs = [x - x.mean(0) for x in families(0.5)]
    scaled = [x / x.square().sum().sqrt() for x in xs]
    result, arrays = run([member(x, f"s{k}", components=30) for k, x in enumerate(xs)], rank=5, tolerance=0.9)
    assert result.n_groups == 1
    values = torch.linalg.svdvals(torch.cat(scaled)).square()
    assert result.worst_error == pytest.approx(1 - float(values[:5].sum()) / 6, abs=1e-12)
    basis = arrays["basis"].values[0]
    own = [1 - float((x @ basis.T).square().sum()) for x in scaled]
    np.testing.assert_allclose(arrays["member_error"].values, own, atol=1e-12)
    assert np.mean(own) == pytest.approx(result.worst_error, abs=1e-12)
    pair = torch.linalg.svdvals(torch.cat([scaled[1], scaled[4]])).square()
    assert float(arrays["pair_error"].values[1, 4]) == pytest.approx(1 - float(pair[:5].sum()) / 2, abs=1e-12)
    assert result.incremental_slack < 0.1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, 9), kept=st.integers(1, 12), power=st.floats(0, 2))
def test_bounds_and_tolerance_hold(seed: int, rank: int, kept: int, power: float) -> None:
    scales = torch.arange(1, 13).double() ** -power
    turns = [torch.linalg.qr(drawn(12, 12, seed * 10 + k)).Q for k in range(4)]
    members = [
        member((drawn(40, 12, seed + 50 + k) * scales) @ turns[k // 2], f"s{k}", components=kept)
        for k in range(4)
    ]
    result, arrays = run(members, rank=rank, tolerance=0.3)
    assert result.bounds_violated == 0
    exact, tight, loose = (arrays[name].values for name in ("pair_error", "pair_bound", "pair_bound_loose"))
    assert bool((exact <= tight + 1e-9).all())
    assert bool((tight <= loose + 1e-9).all())
    sizes = torch.bincount(arrays["member_group"].values)
    alone = sizes == 1
    assert bool((arrays["error"].values[~alone] <= 0.3 + 1e-12).all())
    assert result.unseen >= 0
    basis = arrays["basis"].values
    eye = torch.eye(basis.shape[1], dtype=torch.float64).expand(len(basis), -1, -1)
    torch.testing.assert_close(basis @ basis.transpose(1, 2), eye, rtol=0, atol=1e-10)


def test_artifacts_that_hold_too_little_are_said_to() -> None:
    few = [member(drawn(50, 20, k), f"s{k}", components=2) for k in range(2)]
    assert "lacks" in run(few, tolerance=0.1)[0].caveats[0]
    assert run([member(x, f"s{k}", components=30) for k, x in enumerate(families())], rank=4)[0].caveats == ()


def test_wrong_series_are_refused() -> None:
    one, flat = member(drawn(30, 6, 0), "a"), member(torch.ones(30, 6).double(), "flat")
    with pytest.raises(MethodError, match="found 1 artifacts"):
        run([one])
    with pytest.raises(MethodError, match="5, 6 features"):
        run([one, member(drawn(30, 5, 0), "b")])
    with pytest.raises(MethodError, match="flat has no variance"):
        run([one, flat])


def test_members_about_the_mean_and_about_the_origin_are_not_joined() -> None:
    x = families()[0]
    with pytest.raises(MethodError, match="b about the origin"):
        run([member(x, "a"), member(x, "b", center=False)])
