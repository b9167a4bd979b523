"""geometry.semantic_axes: numpy over rows, few dimensions planted among many axes, random axes, and pairs that lack a pole."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import semantic_axes as method
from tests.methods.cases import Case
from tests.methods.cases import run as run_case


def run(
    x: Tensor, code: Tensor, end: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[method.Result, dict[str, np.ndarray]]:
    sample = torch.arange(len(x)) if sample is None else sample
    config = method.Config.model_validate({"pair": "pair", "pole": "pole"} | options)
    names = {"pair": tuple(f"{k:03d}" for k in range(int(code.max()) + 1)), "pole": ("high", "low", "none")}
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), categories=names)
    method.check(inputs, config)
    blocks = [
        Block({"x": x[p]}, sample[p], p, p, {"pair": code[p], "pole": end[p]})
        for p in torch.randperm(len(x), generator=torch.Generator().manual_seed(2)).tensor_split(3)
    ]
    answer = run_case(Case(method, config, inputs, blocks[0]), blocks)
    return answer.result, {name: values.numpy() for name, values in answer.arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def words(axes: int, copies: int, others: int) -> tuple[Tensor, Tensor]:
    """Pairs with as many rows at each pole, and rows of none."""
    pair = torch.arange(axes).repeat_interleave(2 * copies)
    pole = (torch.arange(2 * axes) % 2).repeat_interleave(copies)
    return torch.cat([pair, torch.full((others,), -1)]), torch.cat([pole, torch.full((others,), 2)])


def value(found: Any) -> float:
    assert found is not None
    return float(found.value)


def test_numbers_are_those_of_numpy() -> None:
    pair, pole = words(6, 5, 100)
    x = drawn(160, 9) + 20
    result, arrays = run(x, pair, pole)
    rows, p, q = x.numpy(), pair.numpy(), pole.numpy()
    axes = np.array([rows[(p == k) & (q == 1)].mean(0) - rows[(p == k) & (q == 0)].mean(0) for k in range(6)])
    apart = np.linalg.norm(axes, axis=1)
    axes /= apart[:, None]
    along = rows @ axes.T
    np.testing.assert_allclose(arrays["axis"], axes, atol=1e-10)
    np.testing.assert_allclose(arrays["separation"], apart / along.std(0), rtol=1e-9)
    correlation = np.corrcoef(along.T)
    np.testing.assert_allclose(arrays["correlation"], correlation, atol=1e-9)
    values = np.linalg.eigvalsh(correlation)[::-1]
    assert value(result.dimension) == pytest.approx(36 / (values**2).sum(), rel=1e-9)
    assert value(result.top_share) == pytest.approx(values[:3].sum() / 6, rel=1e-9)
    cosine = axes @ axes.T
    low = np.tril_indices(6, -1)
    assert value(result.off_target) == pytest.approx(np.abs(cosine[low]).mean(), rel=1e-9)
    assert result.entanglement == pytest.approx(np.corrcoef(cosine[low], correlation[low])[0, 1], rel=1e-8)
    assert (result.n_axes, result.n_other, result.n_incomplete) == (6, 100, 0)
    assert (arrays["rows"] == 5).all()


def test_planted_three_dimensions_among_twenty_axes() -> None:
    pair, pole = words(20, 4, 600)
    plane = torch.linalg.qr(drawn(40, 3)).Q.T
    to = torch.nn.functional.normalize(drawn(20, 3, 1), dim=1) @ plane
    x = 0.05 * drawn(760, 40, 2)
    x[160:] += drawn(600, 3, 3) @ plane
    x[:160] += (2.0 * pole[:160, None] - 1) * to[pair[:160]]
    result, arrays = run(x, pair, pole)
    assert value(result.top_share) > 0.97
    assert 2.2 < value(result.dimension) < 3.05
    assert result.components_90 in (2, 3)
    assert result.entanglement is not None
    assert result.entanglement > 0.97
    assert np.abs((arrays["axis"] * to.numpy()).sum(1)).min() > 0.99
    assert (result.off_target_uniform or 1) < 0.2 < value(result.off_target)


def test_axes_of_rows_that_mean_nothing_are_random_ones() -> None:
    pair, pole = words(15, 3, 800)
    x = drawn(890, 30) * torch.linspace(2, 0.2, 30).double()
    result, _ = run(x, pair, pole)
    assert result.off_target_random is not None
    assert result.dimension_random is not None
    assert result.top_share_random is not None
    assert value(result.off_target) == pytest.approx(result.off_target_random, rel=0.2)
    assert value(result.dimension) == pytest.approx(result.dimension_random, rel=0.2)
    assert value(result.top_share) == pytest.approx(result.top_share_random, rel=0.15)
    assert result.off_target_uniform is not None
    assert result.off_target_random > 1.1 * result.off_target_uniform


def test_a_step_along_an_axis_moves_others_by_the_cosine() -> None:
    pair, pole = words(5, 4, 50)
    x = drawn(90, 12)
    _, arrays = run(x, pair, pole)
    moved = (x[:1].numpy() + 3 * arrays["axis"][2] - x[:1].numpy()) @ arrays["axis"].T
    np.testing.assert_allclose(moved[0], 3 * arrays["cosine"][2], atol=1e-10)


def test_poles_can_be_turned_and_named() -> None:
    pair, pole = words(4, 3, 20)
    x = drawn(44, 6)
    straight, turned = run(x, pair, pole)[1], run(x, pair, pole, low="low", high="high")[1]
    np.testing.assert_allclose(turned["axis"], -straight["axis"], atol=1e-12)
    one, arrays = run(x, pair, pole, pair=None)
    assert one.n_axes == 1
    assert one.dimension is None
    assert arrays["pair"].tolist() == [-1]
    assert "one axis" in " ".join(one.caveats)


def test_bad_input() -> None:
    pair, pole = words(4, 3, 20)
    x = drawn(44, 6)
    x[6:12] = x[6]
    lame = pole.clone()
    lame[:3] = 2
    result, _ = run(x, pair, lame)
    assert (result.n_incomplete, result.n_zero, result.n_axes) == (1, 1, 2)
    with pytest.raises(MethodError, match="none of 4 pairs"):
        run(torch.ones(44, 6).double(), pair, pole)
    with pytest.raises(MethodError, match="names no pairs"):
        run(x, pair, pole, pair="colour")
    with pytest.raises(MethodError, match="names no poles"):
        run(x, pair, pole, pole="colour")
    with pytest.raises(MethodError, match="both poles"):
        run(x, pair, pole, low="low", high="low")
    with pytest.raises(MethodError, match="no class"):
        run(x, pair, pole, low="lowest")


def test_intervals_cover() -> None:
    """Poles of eighty samples of three alike rows each, about axes that are known."""
    pair, pole = words(6, 40, 0)
    to = torch.nn.functional.normalize(drawn(6, 5, 1) + 0.5, dim=1)
    low = torch.ones(6, 6).tril(-1).bool()
    truth = float((to @ to.T)[low].abs().mean())
    hits = []
    for seed in range(15):
        x = (2.0 * pole[:, None] - 1) * to[pair] + 0.7 * drawn(480, 5, 10 + seed)
        order = torch.randperm(480, generator=torch.Generator().manual_seed(seed)).repeat_interleave(3)
        found = run(x[order], pair[order], pole[order], torch.arange(480).repeat_interleave(3), groups=12)[
            0
        ].off_target
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) >= 0.8
