"""spectrum.rank against planted signals and scikit-learn."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import rank


def run(x: Tensor, weight: Tensor | None = None, **options: Any) -> tuple[rank.Result, dict[str, Array]]:
    """The method as the engine calls it, in three blocks."""
    config = rank.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    carry, state = rank.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        block = Block({"x": x[part]}, part, part, part, weight=None if weight is None else weight[part])
        other = rank.partial(block, carry, config)
        state = other if state is None else rank.merge(state, other)
    assert state is not None
    return rank.finish(state, carry, inputs, config)


def planted(n: int, d: int, spikes: tuple[float, ...], seed: int = 0, noise: float = 1.0) -> Tensor:
    """Rows of noise with directions of so many times its variance, turned, far from the origin."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64, generator=rng)
    x[:, : len(spikes)] *= torch.tensor(spikes, dtype=torch.float64).sqrt()
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=rng)).Q
    return math.sqrt(noise) * x @ turn + 50


@pytest.mark.parametrize(("n", "d"), [(600, 150), (150, 300)])
def test_planted_directions_are_counted(n: int, d: int) -> None:
    strong = tuple(1 + 3 * math.sqrt(d / n) + 2 * k for k in (3, 2, 1))
    result, arrays = run(planted(n, d, strong, noise=0.3))
    assert result.above_noise == 3
    assert result.hard_threshold == 3
    assert result.minka == (3 if n > d else None)
    assert result.noise == pytest.approx(0.3, rel=0.05)
    assert result.noise_misfit is not None
    assert result.noise_misfit < 0.05
    found = arrays["population"].values
    np.testing.assert_allclose(found[:3] / 0.3, strong, rtol=0.25)
    assert bool(found[3:].isnan().all())
    extra = sum(strong) - 3
    assert result.signal_share == pytest.approx(extra / (extra + d), rel=0.25)


def test_noise_has_no_signal() -> None:
    counted = [run(planted(300, 100, (), seed), confidence=0.95)[0] for seed in range(40)]
    assert sum(result.above_noise != 0 for result in counted) <= 6
    assert all(result.hard_threshold == 0 for result in counted)


def test_shrinking_brings_the_covariance_nearer() -> None:
    """Each loss is smallest under its own name, and as large as the spiked model says."""
    n, d, spikes = 400, 200, torch.tensor([9.0, 6.0, 4.0], dtype=torch.float64)
    found: dict[str, list[tuple[float, float]]] = {"operator": [], "frobenius": [], "none": []}
    for seed in range(20):
        x = planted(n, d, tuple(spikes.tolist()), seed)
        centred = x - x.mean(0)
        ascending, columns = torch.linalg.eigh(centred.T @ centred / (n - 1))
        shrunk = {loss: run(x, loss=loss)[1]["shrunk"].values for loss in ("operator", "frobenius")}
        for loss, values in {**shrunk, "none": ascending.flip(0)}.items():
            difference = columns.flip(1) * values @ columns.T.flip(0) - truth(n, d, spikes, seed)
            size = float(torch.linalg.matrix_norm(difference, 2)), float(difference.square().sum())
            found[loss].append(size)
    worst, squares = ({k: float(np.mean([one[i] for one in v])) for k, v in found.items()} for i in (0, 1))
    assert worst["operator"] < worst["frobenius"]
    assert worst["operator"] < worst["none"]
    assert squares["frobenius"] < squares["operator"] < 0.2 * squares["none"]
    above, g = spikes - 1, d / n
    aligned = (1 - g / above.square()) / (1 + g / above)
    assert squares["frobenius"] == pytest.approx(
        float((above.square() * (1 - aligned.square())).sum()), rel=0.2
    )


def truth(n: int, d: int, spikes: Tensor, seed: int) -> Tensor:
    """The covariance that `planted` draws from."""
    rng = torch.Generator().manual_seed(seed)
    torch.randn(n, d, dtype=torch.float64, generator=rng)
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=rng)).Q
    return turn.T * torch.cat([spikes, torch.ones(d - len(spikes), dtype=torch.float64)]) @ turn


def test_the_most_likely_number_is_that_of_scikit_learn() -> None:
    x = planted(300, 40, (5.0, 4.0, 1.8, 1.7), seed=5)
    assert run(x)[0].minka == PCA("mle", svd_solver="full").fit(x.numpy()).n_components_


def test_noise_that_is_not_white_is_told() -> None:
    x = planted(500, 80, ()) * torch.linspace(0.1, 2, 80, dtype=torch.float64)
    result, _ = run(x)
    assert any("white noise" in note for note in result.caveats)


@pytest.mark.parametrize("x", [planted(4, 30, ()), planted(200, 3, ()), torch.ones(50, 12).double()])
def test_too_little_says_nothing(x: Tensor) -> None:
    result, arrays = run(x)
    assert result.above_noise is None
    assert result.hard_threshold is None
    assert bool(arrays["population"].values.isnan().all())
    assert any("no rule of white noise applies" in note for note in result.caveats)


def test_weights_that_are_equal_are_none() -> None:
    x = planted(200, 40, (8.0,))
    weighted, plain = (run(x, weight)[0] for weight in (torch.full((200,), 2.0).double(), None))
    assert weighted.above_noise == plain.above_noise == 1
    assert weighted.noise == pytest.approx(plain.noise, rel=1e-12)


def test_directions_without_variance_are_left_out() -> None:
    """As after a layer norm: the rules are those of the space that rows lie in."""
    x = planted(400, 60, (9.0, 6.0), seed=2)
    inside, arrays = run(torch.cat([x, x[:, :3] @ torch.ones(3, 2).double()], 1))
    assert (inside.width, inside.lived_in) == (62, 60)
    flat = x - x.mean(1, keepdim=True)
    result, arrays = run(flat)
    assert (result.width, result.lived_in) == (60, 59)
    assert result.above_noise == result.hard_threshold == result.minka == 2
    assert float(arrays["shrunk"].values[-1]) == 0
    assert len(arrays["population"].values) == 60
