"""Feature collapse, words of one role that come to one representation: what geometry.neural_collapse says of rows labelled by role."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.test_neural_collapse import run


def words(spread: float, width: int = 24, roles: int = 6, each: int = 9) -> tuple[Tensor, Tensor]:
    """A row for each word, about the vector of its role."""
    rng = torch.Generator().manual_seed(2)
    role = torch.arange(roles * each) % roles
    vector = torch.randn(roles, width, generator=rng, dtype=torch.float64) + 30
    return vector[role] + spread * torch.randn(len(role), width, generator=rng, dtype=torch.float64), role


def test_variances_are_distances_between_words_of_a_role() -> None:
    """Mean squared distance of two words: twice the variance in a role, and with the means' distance across two."""
    x, role = words(0.4)
    result, arrays = run(x, role, nearest=False)
    same, other = [], []
    for i in range(len(x)):
        for j in range(i):
            (same if role[i] == role[j] else other).append(float((x[i] - x[j]).square().sum()))
    variance = arrays["variance"].numpy()
    assert 2 * variance.mean() == pytest.approx(np.mean(same), rel=1e-10)
    means = np.array([x[role == k].mean(0).numpy() for k in range(6)])
    between = ((means - means.mean(0)) ** 2).sum(1).mean()
    assert result.nc1_quotient is not None
    assert result.nc1_quotient.value == pytest.approx(variance.mean() / between, rel=1e-10)
    expected = (
        2 * between * 6 / 5 + 2 * variance.mean() * (9 - 1) / 9
    )  # two means of nine words each have their own error
    assert np.mean(other) == pytest.approx(expected, rel=1e-10)


def test_it_falls_to_nothing_as_words_of_a_role_become_one() -> None:
    """In proportion to the square of what is left of their differences."""
    found = []
    for spread in (1.0, 0.1, 0.01, 0.0):
        x, role = words(spread)
        result, _ = run(x, role, nearest=False)
        assert result.nc1_quotient is not None
        found.append(result.nc1_quotient.value)
    assert found[1] == pytest.approx(found[0] / 100, rel=0.3)
    assert found[2] == pytest.approx(found[1] / 100, rel=0.05)
    assert found[3] <= 1e-12


def test_words_without_roles_are_not_taken_for_collapsed() -> None:
    """Shuffled roles: as far from each other as from all others."""
    x, role = words(0.1)
    order = torch.randperm(len(role), generator=torch.Generator().manual_seed(3))
    result, _ = run(x, role[order], nearest=False)
    assert result.nc1_quotient is not None
    assert result.vci is not None
    assert result.vci_random is not None
    assert result.nc1_quotient.value > 3
    assert result.vci.value == pytest.approx(result.vci_random, abs=0.15)


def test_tokens_are_roles_of_their_contexts() -> None:
    """With `label: token`, rows are contexts of a token: the same numbers, by the row's own label."""
    x, role = words(0.4)
    by_role, by_token = run(x, role, nearest=False)[0], run(x, role, nearest=False, label="token")[0]
    assert by_role.nc1_quotient is not None
    assert by_token.nc1_quotient is not None
    assert by_token.nc1_quotient.value == by_role.nc1_quotient.value
