"""geometry.linear_factors: planted parts, plain regressions of numpy, labels that say nothing, combinations left out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.geometry import linear_factors
from tasks.numerics import factorisation

SIZES = {"colour": 4, "shape": 3, "size": 2}


def run(
    x: Tensor,
    value: dict[str, Tensor],
    sample: Tensor | None = None,
    weight: Tensor | None = None,
    sizes: dict[str, int] | None = None,
    **options: Any,
) -> tuple[linear_factors.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    sample = torch.arange(len(x)) if sample is None else sample
    config = linear_factors.Config.model_validate(options)
    sizes = sizes or {name: int(values.max()) + 1 for name, values in value.items()}
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=int(sample.max()) + 1,
        categories={name: tuple(f"{name}{k}" for k in range(size)) for name, size in sizes.items()},
    )
    linear_factors.check(inputs, config)
    carry, state = linear_factors.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(4):
        chosen = {name: values[part] for name, values in value.items()}
        weights = None if weight is None else weight[part]
        block = Block({"x": x[part]}, sample[part], part, part, chosen, weights)
        other = linear_factors.partial(block, carry, config)
        state = other if state is None else linear_factors.merge(state, other)
    assert state is not None
    return linear_factors.finish(state, carry, inputs, config)


def drawn(n: int, seed: int = 0, skewed: bool = True) -> dict[str, Tensor]:
    """Values of each concept, in combinations of different frequency."""
    rng = np.random.default_rng(seed)
    found = {name: rng.integers(0, k, n) for name, k in SIZES.items()}
    if skewed:
        found["shape"] = np.where(rng.random(n) < 0.5, found["colour"] % 3, found["shape"])
    return {name: torch.from_numpy(values) for name, values in found.items()}


def parts(d: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(k, d, generator=rng, dtype=torch.float64) for name, k in SIZES.items()}


def summed(labels: dict[str, Tensor], of: dict[str, Tensor]) -> Tensor:
    return torch.stack([of[name][labels[name]] for name in SIZES]).sum(0)


def noise(n: int, d: int, seed: int = 9) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sums_of_parts_are_found_out() -> None:
    labels = drawn(500)
    result, arrays = run(summed(labels, parts(20)) + 100, labels)
    for name in ("r2", "r2_whitened", "r2_cells", "linear_share"):
        assert getattr(result, name).value == pytest.approx(1, abs=1e-10), name
    assert result.r2_unseen == pytest.approx(1, abs=1e-10)
    assert (result.n_cells, result.n_possible, result.confounded, result.n_unpredictable) == (24, 24, 0, 0)
    assert arrays["directions_95"].values.tolist()[2] == 1
    centred = {name: of - torch.bincount(labels[name]).double() / 500 @ of for name, of in parts(20).items()}
    expected = factorisation.cosines(centred["colour"], centred["shape"]).mean()
    assert float(arrays["cosine"].values[0, 1]) == pytest.approx(float(expected), rel=1e-9)


def test_orthogonal_parts() -> None:
    labels, of, first = drawn(600, skewed=False), {}, 0
    for name, k in SIZES.items():
        of[name] = torch.zeros(k, 9, dtype=torch.float64)
        of[name][:, first : first + k] = torch.eye(k, dtype=torch.float64)
        first += k
    result, arrays = run(summed(labels, of), labels)
    assert result.cosine_across is not None
    assert result.cosine_across.value == pytest.approx(0, abs=1e-12)
    assert float(arrays["variance"].values.sum()) == pytest.approx(1, abs=0.03)
    assert arrays["directions_95"].values.tolist() == [3, 2, 1]


@pytest.mark.parametrize("how", ["least_squares", "marginal"])
def test_shares_are_those_of_regressions(how: str) -> None:
    labels = drawn(700, 1)
    x = summed(labels, parts(6)) + noise(700, 6) * torch.logspace(0, 1, 6) + 100
    x += 2 * ((labels["colour"] == 1) & (labels["shape"] == 2)).double()[:, None]
    result, _ = run(x, labels, parts=how)
    z = (x - x.mean(0)).numpy()
    if how == "least_squares":
        design = np.concatenate([np.eye(k)[labels[name].numpy()] for name, k in SIZES.items()], 1)
        fitted = design @ np.linalg.lstsq(design, z, rcond=None)[0]
    else:
        fitted = sum(
            np.array([z[labels[name].numpy() == v].mean(0) for v in range(k)])[labels[name].numpy()]
            for name, k in SIZES.items()
        )
    white = np.linalg.inv(np.linalg.cholesky(z.T @ z / 700)).T
    cell = sum(labels[name].numpy() * scale for name, scale in zip(SIZES, (6, 2, 1), strict=True))
    means = np.array([z[cell == c].mean(0) if (cell == c).any() else z[0] for c in range(24)])[cell]
    for name, value in {
        "r2": 1 - ((means - fitted) ** 2).sum() / (z**2).sum() - ((z - means) ** 2).sum() / (z**2).sum(),
        "r2_whitened": 1 - (((z - fitted) @ white) ** 2).sum() / ((z @ white) ** 2).sum(),
        "r2_cells": (means**2).sum() / (z**2).sum(),
    }.items():
        assert getattr(result, name).value == pytest.approx(value, rel=1e-9), name


def test_labels_that_say_nothing() -> None:
    found = []
    for seed in range(20):
        result, _ = run(noise(300, 40, seed) * torch.logspace(0, 1, 40), drawn(300, seed), groups=5)
        assert result.r2 is not None
        assert result.r2_whitened is not None
        assert result.cosine_across is not None
        found.append((result.r2.value, result.r2_whitened.value, result.cosine_across.value))
    assert result.r2_random == pytest.approx(6 / 299)
    assert np.mean(found, axis=0)[:2] == pytest.approx([6 / 299] * 2, rel=0.1)
    directions = noise(4000, 40, 77)
    mean = factorisation.cosines(directions[:2000], directions[2000:]).mean()
    assert result.cosine_random == pytest.approx(float(mean), rel=0.01)


def test_unseen_combinations_are_predicted_as_if_left_out() -> None:
    labels = drawn(400, 3)
    x = summed(labels, parts(5)) + noise(400, 5)
    result, _ = run(x, labels)
    cell = labels["colour"] * 6 + labels["shape"] * 2 + labels["size"]
    design = torch.cat([torch.nn.functional.one_hot(labels[n], k).double() for n, k in SIZES.items()], 1)
    error = spread = 0.0
    for c in cell.unique():
        here = cell == c
        solved = np.linalg.lstsq(design[~here].numpy(), x[~here].numpy(), rcond=None)[0]
        mean = x[here].mean(0).numpy()
        weight = int(here.sum())
        error += weight * ((mean - design[here][0].numpy() @ solved) ** 2).sum()
        spread += weight * ((mean - x.mean(0).numpy()) ** 2).sum()
    assert result.r2_unseen == pytest.approx(1 - error / spread, rel=1e-9)


def test_what_cannot_be_told_apart_is_said() -> None:
    code = torch.arange(90) % 3
    result, _ = run(noise(90, 4), {"a": code, "b": code})
    assert result.confounded == 2
    assert any("vary only together" in note for note in result.caveats)
    assert (result.n_unpredictable, result.r2_unseen) == (3, None)
    alone, arrays = run(noise(90, 4), {"a": code})
    assert alone.cosine_across is None
    assert arrays["cosine"].values.shape == (1, 1)
    assert alone.linear_share is not None
    assert alone.linear_share.value == pytest.approx(1)


def test_rows_without_a_value_weights_and_constant_rows() -> None:
    labels, times = drawn(300, 5), torch.arange(300) % 3
    x = summed(labels, parts(5)) + noise(300, 5)
    labels["size"] = torch.where(torch.arange(300) % 30 == 0, -1, labels["size"])
    assert run(x, labels)[0].n_unlabelled == 10
    rows = torch.arange(300).repeat_interleave(times)
    weighted = run(x, labels, weight=times.double(), weight_label="w")[0]
    repeated = run(x[rows], {name: values[rows] for name, values in labels.items()}, rows)[0]
    for name in ("r2", "r2_whitened", "cosine_across", "cosine_within"):
        assert getattr(weighted, name).value == pytest.approx(getattr(repeated, name).value, rel=1e-9), name
    flat = run(torch.ones(300, 5, dtype=torch.float64), labels)[0]
    assert (flat.r2, flat.r2_whitened, flat.cosine_across) == (None, None, None)


def test_intervals_cover_and_the_bias_of_few_samples_is_known() -> None:
    def made(n: int, seed: int, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        labels = drawn(n, seed)
        return summed(labels, parts(8)) + scale * noise(n, 8, seed), labels

    for scale, covers in ((1.0, True), (4.0, False)):
        truth = run(*made(20_000, 99, scale))[0].r2
        assert truth is not None
        hits, corrected = [], []
        for seed in range(30):
            x, labels = made(400, seed, scale)
            repeated = {name: values.repeat_interleave(3) for name, values in labels.items()}
            sample = torch.arange(400).repeat_interleave(3)
            found = run(x.repeat_interleave(3, 0), repeated, sample, groups=8)[0].r2
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            assert found.corrected is not None
            hits.append(found.low <= truth.value <= found.high)
            corrected.append(found.corrected)
        assert 0.85 <= np.mean(hits) <= 1 or not covers
        assert np.mean(corrected) == pytest.approx(truth.value, rel=0.05)


def test_refusals() -> None:
    x, labels = noise(40, 3), drawn(40)
    with pytest.raises(MethodError, match="names no classes"):
        run(x, labels, labels=("colour", "weight"))
    with pytest.raises(MethodError, match="found one twice"):
        run(x, labels, labels=("colour", "colour"))
    with pytest.raises(MethodError, match="one class each"):
        run(x, {"a": torch.zeros(40, dtype=torch.int64)})
    with pytest.raises(MethodError, match="have 1 combination"):
        run(x, {"a": torch.zeros(40, dtype=torch.int64)}, sizes={"a": 2})
    with pytest.raises(MethodError, match="labels is empty"):
        run(x, labels, labels=())
    with pytest.raises(MethodError, match="too many combinations"):
        run(
            x,
            {f"c{k}": torch.zeros(40, dtype=torch.int64) for k in range(8)},
            sizes={f"c{k}": 1000 for k in range(8)} | {f"c{k}": 40_000 for k in range(4)},
        )
    assert math.isclose(factorisation.cosine_at_random(2), 2 / math.pi)


@pytest.mark.parametrize("how", ["least_squares", "marginal"])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_concept_without_any_effect_has_no_direction(how: str, offset: float) -> None:
    """What rounding makes of its parts, 1e-32 of the variance, must not count as directions."""
    rng = torch.Generator().manual_seed(4)
    first, second = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    value = {name: grid.flatten().repeat(25) for name, grid in (("colour", first), ("shape", second))}
    x = torch.randn(3, 5, generator=rng, dtype=torch.float64)[value["colour"]] + offset
    result, arrays = run(x, value, parts=how)
    assert result.r2 is not None
    assert result.r2.value == pytest.approx(1)
    assert result.cosine_across is None
    assert result.cosine_within is not None
    assert arrays["directions_95"].values.tolist() == [2, 0]
    assert bool(arrays["cosine"].values[0, 1].isnan())
