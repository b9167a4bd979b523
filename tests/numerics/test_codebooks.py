"""k-means of each part against scikit-learn from the same start; dead vectors, draws and rotations."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from tasks.numerics import codebooks, row_sample, vector_codes


def parts_of(n: int, parts: int = 2, place: int = 3, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, parts, place, generator=rng, dtype=torch.float64) + 1


@pytest.mark.parametrize("rounds", [1, 4, 12])
def test_rounds_are_those_of_scikit_learn(rounds: int) -> None:
    parts = parts_of(900)
    begun = parts[:12].transpose(0, 1).contiguous()
    found = codebooks.lloyd(parts, begun, rounds)
    for m in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            oracle = KMeans(
                12, init=begun[m].numpy(), n_init=1, max_iter=rounds, tol=0, algorithm="lloyd"
            ).fit(parts[:, m].numpy())
        np.testing.assert_allclose(found[m], oracle.cluster_centers_, rtol=1e-6, atol=1e-6)


def test_the_error_never_rises_and_dead_vectors_go_to_rows() -> None:
    """All vectors of a part start at one place far off: but one are dead, and revived until all have rows."""
    parts, index = parts_of(600), torch.arange(600)
    centre = torch.full((2, 40, 3), 50.0, dtype=torch.float64)
    errors, dead = [], []
    for _ in range(6):
        state = codebooks.partial(parts, index, centre, 32)
        errors.append(float(state["error"].sum()))
        dead.append(int((state["n"] == 0).sum()))
        centre, revived = codebooks.moved(state, centre)
        assert revived == min(dead[-1], 2 * 32)
    assert dead[0] == 2 * 39
    assert dead[-1] == 0
    assert all(b <= a for a, b in pairwise(errors))


def test_what_repeats_stays_dead() -> None:
    parts = torch.ones(20, 1, 2, dtype=torch.float64)
    state = codebooks.partial(parts, torch.arange(20), parts[:4].transpose(0, 1), 4)
    centre, revived = codebooks.moved(state, parts[:4].transpose(0, 1))
    assert revived == 0
    assert (centre == 1).all()
    assert codebooks.spread(state) == 0


def test_anchors_are_drawn_by_their_squared_error() -> None:
    """One row in ten has nine times the squared error of the others: it is drawn as often as all of them."""
    error = torch.ones(4000, dtype=torch.float64)
    error[::10] = 9
    drawn = 0
    for seed in range(400):
        numbers = row_sample.numbers(torch.arange(10) + 10 * seed)
        drawn += int((-torch.log(numbers) / error[:10]).argmin() == 0)
    assert 0.42 < drawn / 400 < 0.58


def test_states_of_parts_merge_to_that_of_the_whole() -> None:
    parts, index = parts_of(500), torch.arange(500)
    centre = parts[:9].transpose(0, 1).contiguous()
    whole = codebooks.partial(parts, index, centre, 5)
    some = [codebooks.partial(parts[a:b], index[a:b], centre, 5) for a, b in ((0, 3), (3, 400), (400, 500))]
    merged = codebooks.merge(some[2], codebooks.merge(some[1], some[0]))
    for name, values in whole.items():
        torch.testing.assert_close(merged[name], values, rtol=1e-12, atol=1e-12)


def turned(n: int, variances: np.ndarray, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((len(variances), len(variances))))[0]
    x = rng.standard_normal((n, len(variances))) * np.sqrt(variances) @ turn
    return torch.from_numpy(x - x.mean(0))


def error_of(x: torch.Tensor, rotation: codebooks.Rotation) -> float:
    centre, turn = codebooks.begun(x, 2, 32, rotation, 0, 1e-3)
    parts = vector_codes.cut(x @ turn.T if len(turn) else x, centre)
    return float(codebooks.partial(parts, torch.arange(len(x)), centre, 1)["error"].sum() / x.square().sum())


def test_rotations_lower_the_error_of_turned_rows() -> None:
    x = turned(3000, np.geomspace(100, 0.1, 8))
    plain, principal, opq = (error_of(x, rotation) for rotation in ("none", "principal", "opq"))
    assert principal < 0.5 * plain
    assert opq <= 1.02 * principal


def test_parts_have_variances_of_about_equal_product() -> None:
    variances = np.geomspace(100, 0.1, 12)
    x = turned(4000, variances)
    _, turn = codebooks.begun(x, 4, 16, "principal", 0, 1e-3)
    np.testing.assert_allclose(turn @ turn.T, np.eye(12), atol=1e-6)
    logs = torch.log2((x @ turn.T).square().mean(0)).reshape(3, 4).sum(1)
    assert float(logs.max() - logs.min()) < 2.5
    _, uneven = codebooks.begun(x, 5, 16, "principal", 0, 1e-3)
    np.testing.assert_allclose(uneven @ uneven.T, np.eye(12), atol=1e-6)
