"""geometry.alignment_uniformity: loops over pairs, uniform directions, pairs that say nothing, and intervals that cover."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import hyp0f1
from torch import Tensor

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stage
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import alignment_uniformity as method
from tasks.numerics import hypersphere
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of


def run(x: Tensor, sample: Tensor | None = None, code: Tensor | None = None, **options: Any) -> method.Result:
    index = torch.arange(len(x))
    labels = {} if code is None else {"kind": code}
    config = method.Config.model_validate({"label": None if code is None else "kind"} | options)
    names = {} if code is None else {"kind": tuple(f"k{c}" for c in range(int(code.max()) + 1))}
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), categories=names)
    method.check(inputs, config)
    return method.solve(
        Block({"x": x}, index if sample is None else sample, index, index, labels), inputs, config
    )[0]


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("power", "t"), [(2.0, 2.0), (1.0, 0.5), (3.0, 7.0)])
def test_numbers_are_those_of_a_loop_over_pairs(power: float, t: float) -> None:
    x, code, sample = drawn(60, 5) + 0.3, torch.arange(60) % 7, torch.arange(60) // 9
    code[:3] = -1
    result = run(x, sample, code, power=power, t=t)
    z = (x / x.norm(dim=1, keepdim=True)).numpy()
    near: dict[int, list[float]] = {}
    far, kernel = [], []
    for i in range(60):
        for j in range(i):
            distance = np.linalg.norm(z[i] - z[j])
            if sample[i] == sample[j]:
                continue
            far.append(distance**power)
            kernel.append(math.exp(-t * distance**2))
            if code[i] == code[j] >= 0:
                near.setdefault(int(code[i]), []).append(distance**power)
    every = np.concatenate(list(near.values()))
    assert result.alignment is not None
    assert result.alignment_groups is not None
    assert result.alignment_share is not None
    assert result.uniformity is not None
    assert result.alignment.value == pytest.approx(every.mean(), rel=1e-10)
    assert result.alignment_groups.value == pytest.approx(
        np.mean([np.mean(v) for v in near.values()]), rel=1e-10
    )
    assert result.alignment_share.value == pytest.approx(every.mean() / np.mean(far), rel=1e-10)
    assert result.uniformity.value == pytest.approx(math.log(np.mean(kernel)), rel=1e-10)
    assert (result.n_pairs, result.n_alone) == (len(every), 3)


def test_uniform_directions() -> None:
    """0F1 by scipy where it does not overflow; known values in one dimension and of squares; and a large sample."""
    for width, t in ((2, 2.0), (7, 2.0), (64, 5.0)):
        expected = math.log(hyp0f1(width / 2, t**2)) - 2 * t
        assert hypersphere.uniformity_of_uniform(width, t) == pytest.approx(expected, rel=1e-12)
    assert hypersphere.uniformity_of_uniform(1, 2.0) == pytest.approx(math.log((1 + math.exp(-8)) / 2))
    assert hypersphere.uniformity_of_uniform(3, 1e4) == pytest.approx(
        -math.log(4e4), rel=1e-9
    )  # (1 - e^-4t) / 4t
    assert hypersphere.distance_of_uniform(9, 2.0) == pytest.approx(2)
    assert hypersphere.distance_of_uniform(1, 2.0) == pytest.approx(2)
    assert hypersphere.distance_of_uniform(2, 1.0) == pytest.approx(4 / math.pi)  # chord of a circle
    result = run(drawn(2000, 8), code=torch.arange(2000) % 10, halves=4)
    assert result.uniformity is not None
    assert result.alignment_share is not None
    assert result.uniformity.value == pytest.approx(result.uniformity_uniform, abs=0.01)
    assert result.alignment_share.value == pytest.approx(1, abs=0.01)


def test_planted_pairs() -> None:
    """Directions in an angle's noise around their class: 2 - 2 cos of the angle between two, by the mean direction's length."""
    centre = drawn(200, 30)
    centre /= centre.norm(dim=1, keepdim=True)
    x = centre.repeat_interleave(4, 0) + 0.1 / math.sqrt(30) * drawn(800, 30, 1)
    result = run(x, torch.arange(200).repeat_interleave(4))
    assert result.alignment is not None
    assert result.alignment.value == pytest.approx(2 * 0.01 * 29 / 30, rel=0.03)
    assert result.uniformity is not None
    assert result.uniformity.value == pytest.approx(result.uniformity_uniform, abs=0.02)
    assert result.n_alone == 0


def test_one_direction_and_two() -> None:
    one = run(torch.rand(40, 1).double() @ torch.ones(1, 9).double(), torch.arange(40) // 2)
    assert one.uniformity is not None
    assert one.alignment is not None
    assert (one.uniformity.value, one.alignment.value) == (
        pytest.approx(0, abs=1e-12),
        pytest.approx(0, abs=1e-12),
    )
    assert one.n_equal >= 1
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()[:, None] * torch.ones(1, 3).double()
    two = run(signs, code=torch.tensor([0, 0, 1, 1]))
    assert two.alignment is not None
    assert two.distance is not None
    assert two.alignment.value == pytest.approx(0, abs=1e-12)
    assert two.distance.value == pytest.approx(4 * 4 / 6)


def test_rows_without_direction_or_partner_are_counted() -> None:
    x = torch.cat([drawn(40, 5), torch.zeros(6, 5).double()])
    result = run(x)
    assert (result.n_zero, result.n_alone, result.n_pairs) == (6, 40, 0)
    assert result.alignment is None
    assert "no two rows belong together" in " ".join(result.caveats)
    with pytest.raises(MethodError, match="0 of 5 rows have a direction"):
        run(torch.zeros(5, 3).double())
    with pytest.raises(MethodError, match="names no classes"):
        run(drawn(9, 3), label="colour")


def test_intervals_cover_dependent_rows() -> None:
    """Samples of eight rows that share a direction but for noise; the truth is that of very many samples."""
    scales = torch.tensor([3.0, 1.5, 1.0, 0.5], dtype=torch.float64)

    def rows(samples: int, seed: int) -> tuple[Tensor, Tensor]:
        shared = (drawn(samples, 4, seed) * scales).repeat_interleave(8, 0)
        return shared + 0.3 * drawn(8 * samples, 4, 1000 + seed), torch.arange(samples).repeat_interleave(8)

    x, sample = rows(400, 99)
    truth = run(x, sample, halves=4)
    hits = []
    for seed in range(40):
        found = run(*rows(60, seed))
        for name in ("alignment", "uniformity"):
            value, expected = getattr(found, name), getattr(truth, name)
            hits.append(value.low <= expected.value <= value.high)
    assert 0.85 <= np.mean(hits) <= 1


def test_whole_samples_keep_their_pairs_through_the_engine(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    root, sample = Location(str(tmp_path)), np.arange(300) // 10
    reference = rows_ref(make_capture(root, {"a": values}, sample, failed=(3,), shard_rows=64))
    name = "geometry.alignment_uniformity"
    drawn_samples = run_stage(root, stage_of(name, {"x": reference}, samples=12), serial).result
    assert (drawn_samples["n_rows"], drawn_samples["n_pairs"], drawn_samples["n_alone"]) == (120, 12 * 45, 0)
    tokens = run_stage(root, stage_of(name, {"x": reference}, label="token"), serial).result
    code = (sample % 7 + np.arange(300) % 10)[sample != 3]
    sizes = np.bincount(code)
    assert tokens["n_pairs"] == (sizes * (sizes - 1) // 2).sum()
    few = run_stage(root, stage_of(name, {"x": reference}, sample_rows=12), serial).result
    assert few["n_alone"] == 10
    assert any("10 of 12 rows" in note and "set `samples`" in note for note in few["caveats"])
