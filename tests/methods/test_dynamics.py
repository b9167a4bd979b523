"""geometry.dynamics: systems of known eigenvalues, numpy's least squares with loops over held-out groups, and inputs that have no map."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.geometry import dynamics
from tasks.numerics.split import spread


def run(
    x: Tensor, y: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[dynamics.Result, dict[str, Array]]:
    """The method as the engine calls it, with its rounds."""
    sample = torch.arange(len(x)) if sample is None else sample
    config = dynamics.Config.model_validate(options)
    inputs = Inputs({"x": x.shape[1], "y": y.shape[1]}, n_rows=len(x), n_samples=len(x))
    dynamics.check(inputs, config)
    carry: dict[str, Tensor] | None = dynamics.start(inputs, config)
    while True:
        assert carry is not None
        state = None
        for part in torch.arange(len(x)).tensor_split(3):
            block = Block({"x": x[part], "y": y[part]}, sample[part], part, part)
            other = dynamics.partial(block, carry, config)
            state = other if state is None else dynamics.merge(state, other)
        assert state is not None
        following = dynamics.update(state, carry, inputs, config)
        if following is None:
            return dynamics.finish(state, carry, inputs, config)
        carry = following


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def eigenvalues(arrays: dict[str, Array]) -> np.ndarray:
    return (arrays["eigenvalue_real"].values + 1j * arrays["eigenvalue_imaginary"].values).numpy()


def system(d: int = 6, seed: int = 5) -> tuple[Tensor, np.ndarray]:
    """A matrix and its eigenvalues, largest modulus first."""
    blocks = torch.zeros(d, d, dtype=torch.float64)
    angle, size = math.pi / 5, 0.95
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    blocks[:2, :2] = size * torch.tensor(turn, dtype=torch.float64)
    rest = torch.linspace(0.8, 0.1, d - 2, dtype=torch.float64)
    blocks[2:, 2:] = torch.diag(rest)
    change = drawn(d, d, seed) + 2 * torch.eye(d, dtype=torch.float64)
    pair = size * np.exp(1j * angle * np.array([1, -1]))
    return change @ blocks @ torch.linalg.inv(change), np.concatenate([pair, rest.numpy()])


def test_a_linear_system_has_its_eigenvalues() -> None:
    a, truth = system()
    x = drawn(2000, 6) + 3
    result, arrays = run(x, x @ a.T - 7)
    np.testing.assert_allclose(eigenvalues(arrays), truth, atol=1e-9)
    assert float(arrays["residual"].values.max()) < 1e-6
    assert (result.rank, result.n_modes_resolved, result.n_observables) == (6, 6, 6)
    assert result.spectral_radius == pytest.approx(0.95, abs=1e-9)
    assert result.error is not None
    assert result.error.value < 1e-14


def test_noise_shows_in_error_and_residuals() -> None:
    a, truth = system()
    x = drawn(40_000, 6)
    clean = x @ a.T
    result, arrays = run(x, clean + 0.5 * drawn(40_000, 6, 1))
    np.testing.assert_allclose(eigenvalues(arrays)[:2], truth[:2], atol=0.02)
    assert result.error is not None
    assert result.error.low is not None
    assert result.error.high is not None
    share = 6 * 0.25 / (6 * 0.25 + float(a.square().sum()))
    assert result.error.low < share * 1.01
    assert result.error.high > share * 0.99
    assert result.error.value == pytest.approx(share, rel=0.03)
    assert result.beats_identity
    assert float(arrays["residual"].values.min()) > 0.05


def test_error_is_that_of_a_loop_over_held_out_groups() -> None:
    x, sample = drawn(120, 4) @ drawn(4, 4, 9), torch.arange(120) // 3
    y = torch.tanh(x) + 0.3 * drawn(120, 4, 2) + 5
    result, arrays = run(x, y, sample, groups=5)
    a, b, group = x.numpy(), y.numpy(), spread(sample, 5).numpy()
    wrong = mean = stay = 0.0
    for g in range(5):
        train, test = group != g, group == g
        mx, my = a[train].mean(0), b[train].mean(0)
        k = np.linalg.lstsq(a[train] - mx, b[train] - my, rcond=None)[0]
        wrong += ((b[test] - my - (a[test] - mx) @ k) ** 2).sum()
        mean += ((b[test] - my) ** 2).sum()
        stay += ((b[test] - a[test]) ** 2).sum()
    assert arrays["rank_tried"].values.tolist() == [1, 2, 4]
    assert float(arrays["rank_error"].values[-1]) == pytest.approx(wrong / mean, rel=1e-9)
    assert result.error_identity is not None
    assert result.error_identity.value == pytest.approx(stay / mean, rel=1e-9)
    share = np.linalg.eigvalsh(np.cov(a.T))
    share = share / share.sum()
    assert result.entropy_x is not None
    assert result.entropy_x.value == pytest.approx(-(share * np.log(share)).sum(), rel=1e-9)


def test_products_hold_eigenfunctions_that_coordinates_do_not() -> None:
    """x' = a x, z' = b z + c x^2 has the Koopman eigenvalues a, b and a^2 on products of two coordinates."""
    a, b = 0.9, 0.5
    x = drawn(3000, 2) * torch.tensor([2.0, 1.0])
    y = torch.stack([a * x[:, 0], b * x[:, 1] + 0.4 * x[:, 0] ** 2], 1)
    plain, _ = run(x, y)
    result, arrays = run(x, y, observables="quadratic", components=2)
    assert plain.error is not None
    assert result.error is not None
    assert result.error.value < 1e-3 * plain.error.value
    found, exact = eigenvalues(arrays), arrays["residual"].values.numpy() < 1e-6
    for value in (a, b, a * a):
        assert np.abs(found[exact] - value).min() < 1e-6
    assert not exact.all()
    assert result.state_share == pytest.approx(1)


def test_cosines_predict_what_coordinates_do_not() -> None:
    x = drawn(4000, 2)
    y = torch.stack([torch.cos(2 * x[:, 0]), x[:, 1]], 1)
    plain, _ = run(x, y)
    result, _ = run(x, y, observables="fourier", components=2, features=60)
    assert plain.error is not None
    assert result.error is not None
    assert result.error.value < 0.5 * plain.error.value
    assert result.n_observables == 62


def test_the_identity_is_not_beaten_where_nothing_changes() -> None:
    x = drawn(300, 5)
    result, arrays = run(x, x)
    np.testing.assert_allclose(eigenvalues(arrays), np.ones(5), atol=1e-9)
    assert result.error_identity is not None
    assert result.error_identity.value == 0
    assert not result.beats_identity


def test_unrelated_sites_are_predicted_by_their_mean() -> None:
    result, _ = run(drawn(3000, 10), drawn(3000, 10, 1))
    assert result.error is not None
    assert result.error.value == pytest.approx(1, abs=0.02)
    assert result.n_modes_resolved == 0


def test_what_has_no_map_is_refused_or_none() -> None:
    x = drawn(30, 3)
    with pytest.raises(MethodError, match="3 and 2 features"):
        run(x, x[:, :2])
    with pytest.raises(MethodError, match="asked for 4 components"):
        run(x, x, components=4)
    with pytest.raises(MethodError, match="1 groups of samples"):
        run(x, x, torch.zeros(30, dtype=torch.int64))
    inputs = Inputs({"x": 20_000, "y": 20_000}, 9, 9)
    with pytest.raises(MethodError, match="ask for fewer"):
        dynamics.check(inputs, dynamics.Config())
    result, arrays = run(torch.ones(30, 3).double(), torch.ones(30, 3).double())
    assert result.error is None
    assert result.spectral_radius is None
    assert len(arrays["residual"].values) == 0
    constant, _ = run(torch.ones(30, 3).double(), x)
    assert constant.error is not None
    assert constant.error.value == pytest.approx(1)
    assert "x does not vary" in constant.caveats
