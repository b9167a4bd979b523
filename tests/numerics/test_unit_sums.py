"""Sums by group and unit beside plain loops, however rows are cut, and rows that are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import MethodError
from tasks.numerics import unit_sums


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 40), cut=st.integers(0, 40), seed=st.integers(0, 50))
def test_they_are_plain_sums(n: int, cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, group, unit = rng.standard_normal((n, 3)), rng.integers(-1, 3, n), rng.integers(0, 4, n)
    given = torch.from_numpy(x).float(), torch.from_numpy(group), torch.from_numpy(unit)
    parts = [
        unit_sums.partial(*(one[some] for one in given), 3, 4) for some in (slice(cut), slice(cut, None))
    ]
    state, x = unit_sums.merge(*parts), given[0].double().numpy()
    for g in range(3):
        of_group = group == g
        np.testing.assert_allclose(state["square"][g], (x[of_group] ** 2).sum(0), atol=1e-12)
        for u in range(4):
            np.testing.assert_allclose(state["sum"][g, u], x[of_group & (unit == u)].sum(0), atol=1e-12)
            assert state["rows"][g, u] == (of_group & (unit == u)).sum()
    for side, those in enumerate((group == 0, group > 0)):
        np.testing.assert_allclose(state["gram"][side], np.triu(x[those].T @ x[those]), atol=1e-12)
    assert int(state["left_out"]) == (group < 0).sum()


def test_what_is_refused() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(MethodError, match="NaN or infinity"):
        unit_sums.partial(torch.tensor([[1.0, torch.inf]]), one, one, 1, 1)
    with pytest.raises(MethodError, match="squares of the rows overflow"):
        unit_sums.partial(torch.full((1, 2), 1e200, dtype=torch.float64), one, one, 1, 1)
