"""geometry.diffusion_entropy: the package's formula, groups that count themselves, and labels that share nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import diffusion_entropy


def run(
    x: Tensor, sample: Tensor | None = None, codes: Tensor | None = None, **options: Any
) -> tuple[diffusion_entropy.Result, np.ndarray]:
    index = torch.arange(len(x))
    config = diffusion_entropy.Config.model_validate(options | ({} if codes is None else {"label": "kind"}))
    inputs = Inputs(
        {"x": x.shape[1]}, len(x), len(x), categories={} if codes is None else {"kind": ("a", "b", "c")}
    )
    diffusion_entropy.check(inputs, config)
    labels = {} if codes is None else {"kind": codes}
    block = Block({"x": x}, index if sample is None else sample, index, index, labels)
    result, arrays = diffusion_entropy.solve(block, inputs, config)
    return result, arrays["share"].values.numpy()


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_formula(x: np.ndarray, sigma: float, t: int, documented: bool) -> float:
    """The published formula: a row-stochastic matrix, general eigenvalues, and the package's small number in the logarithm."""
    n = len(x)
    g = np.array([[math.exp(-(math.dist(a, b) ** 2) / (2 * sigma**2)) for b in x] for a in x])
    g /= sigma * math.sqrt(2 * math.pi)
    walk = g / g.sum(1, keepdims=True)
    if documented:
        degree = g.sum(1)
        k = np.array([[g[i, j] / math.sqrt(degree[i] * degree[j]) for j in range(n)] for i in range(n)])
        walk = k / k.sum(1, keepdims=True)
    values = np.abs(np.linalg.eigvals(walk)) ** t
    p = values / values.sum() + np.finfo(float).eps
    return float(-(p * np.log2(p)).sum())


@pytest.mark.parametrize("walk", ["package", "documented"])
@pytest.mark.parametrize("time", [1, 3])
def test_numbers_are_those_of_the_published_formula(walk: str, time: int) -> None:
    x = drawn(60, 7) * torch.tensor([9, 5, 3, 1, 1, 0.2, 0.1]) + 40
    result, share = run(x, bandwidth=10, walk=walk, time=time)
    assert result.entropy is not None
    assert result.entropy.value == pytest.approx(
        by_formula(x.numpy(), 10, time, walk == "documented"), abs=1e-6
    )
    assert share.sum() == pytest.approx(1)
    assert (np.diff(share) <= 1e-15).all()


def test_the_two_walks_differ() -> None:
    x = torch.cat([drawn(80, 2), drawn(20, 2, 1) * 9])
    package, documented = (run(x, walk=walk)[0].entropy for walk in ("package", "documented"))
    assert package is not None
    assert documented is not None
    assert abs(package.value - documented.value) > 0.01


@pytest.mark.parametrize("walk", ["package", "documented"])
def test_groups_of_equal_rows_are_counted(walk: str) -> None:
    """Also where groups differ in size."""
    for sizes in ([10] * 8, [3, 30, 7, 1]):
        x = torch.eye(len(sizes)).double().repeat_interleave(torch.tensor(sizes), 0) * 1000
        result, _ = run(x, bandwidth=10, walk=walk)
        assert result.entropy is not None
        assert result.entropy.value == pytest.approx(math.log2(len(sizes)), abs=1e-10)
        assert result.n_duplicates == sum(sizes) - len(sizes)


def test_extremes_of_the_bandwidth_are_said() -> None:
    x = drawn(64, 5)
    far, near = run(x, bandwidth=1e-3)[0], run(x, bandwidth=1e5)[0]
    assert far.entropy is not None
    assert near.entropy is not None
    assert far.entropy.value == pytest.approx(6)
    assert far.entropy_most == 6
    assert near.entropy.value == pytest.approx(0, abs=1e-6)
    assert any("raise" in note for note in far.caveats)
    assert any("lower" in note for note in near.caveats)
    equal, _ = run(torch.ones(9, 4).double())
    assert equal.entropy is not None
    assert equal.entropy.value == pytest.approx(0, abs=1e-10)
    assert (equal.median_distance, equal.n_duplicates) == (None, 8)


def test_the_scale_does_not_matter_with_auto_and_a_gaussian_is_its_null() -> None:
    x = drawn(200, 8)
    one, other = run(x)[0], run(x * 1e6 + 5)[0]
    assert one.entropy is not None
    assert other.entropy is not None
    assert one.entropy.value == pytest.approx(other.entropy.value, rel=1e-8)
    assert one.entropy.value == pytest.approx(one.entropy_gaussian, abs=0.1)
    assert one.bandwidth == one.median_distance
    assert one.entropy.low is not None
    assert one.entropy.high is not None
    assert one.entropy.low < one.entropy.value < one.entropy.high
    flat, _ = run(x * torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]))
    assert flat.entropy is not None
    assert flat.entropy.value < flat.entropy_gaussian - 0.5


def test_information_of_a_label() -> None:
    codes = torch.arange(300) % 3
    x = drawn(300, 4) * 0.01 + torch.eye(4).double()[codes] * 100
    result, _ = run(x, codes=codes, bandwidth=10)
    assert result.information is not None
    assert result.information_matched is not None
    assert result.information.value == pytest.approx(math.log2(3), abs=1e-4)
    assert result.information_matched.value == pytest.approx(math.log2(3), abs=1e-2)
    assert (result.n_classes, result.n_unlabelled) == (3, 0)


def test_a_label_that_says_nothing() -> None:
    """The plain difference is above 0 all the same; less that of chance it is about 0."""
    rng = np.random.default_rng(0)
    sample = torch.arange(240) // 4
    codes = torch.from_numpy(rng.integers(0, 3, 60))[sample]
    x = drawn(60, 5)[sample] + 0.5 * drawn(240, 5, 1)
    result, _ = run(x, sample, codes)
    assert result.information is not None
    assert result.information_matched is not None
    assert result.information_chance is not None
    assert result.information.low is not None
    assert result.information_matched.low is not None
    assert result.information_matched.high is not None
    assert result.information.low > 0.05
    assert result.information_matched.value == pytest.approx(0, abs=0.1)
    assert result.information_matched.low < 0 < result.information_matched.high
    assert result.information_matched.value == result.information.value - result.information_chance


def test_classes_that_tell_little() -> None:
    x, codes = drawn(40, 3), torch.zeros(40, dtype=torch.int64)
    one, _ = run(x, codes=codes)
    assert one.information is not None
    assert one.information.value == pytest.approx(0, abs=1e-10)
    assert any("one class" in note for note in one.caveats)
    codes[:5], codes[7] = -1, 2
    few, _ = run(x, codes=codes)
    assert (few.n_unlabelled, few.n_classes) == (5, 2)
    assert any("smallest class has 1 rows" in note for note in few.caveats)
    none, _ = run(x, codes=torch.full((40,), -1))
    assert none.information is None
    assert none.n_unlabelled == 40


def test_two_runs_are_equal() -> None:
    codes = torch.arange(60) % 2
    assert run(drawn(60, 3), codes=codes)[0] == run(drawn(60, 3), codes=codes)[0]


def test_what_is_refused() -> None:
    with pytest.raises(MethodError, match="names no classes"):
        run(drawn(9, 2), label="other")
    with pytest.raises(MethodError, match="bandwidth is 0"):
        run(drawn(9, 2), bandwidth=0)
    with pytest.raises(MethodError, match="found 1 rows"):
        run(drawn(1, 2))


@pytest.mark.parametrize("power", [-1000, -600, 600, 990])
def test_a_power_of_two_changes_no_digit(power: int) -> None:
    x = drawn(40, 3)
    x[5] = x[6]
    here, there = run(x)[0], run(torch.ldexp(x, torch.tensor(power)))[0]
    assert there.entropy_gaussian == here.entropy_gaussian
    assert there.entropy == here.entropy
    assert there.n_duplicates == here.n_duplicates == 1
    with pytest.raises(MethodError, match="scale the rows"):
        run(x * 1e304)
