"""Elastic nets of many rows: against scikit-learn, all sign patterns, a constrained optimiser, and the optimality conditions."""

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from sklearn.linear_model import ElasticNet, Lasso
from torch import Tensor

from tasks.numerics.elastic_net import Solution, gamma_for, solve


class Case(NamedTuple):
    x: Tensor  # [row, feature]
    among: Tensor  # [row, candidate, feature]
    gram: Tensor
    target: Tensor
    gamma: Tensor


def case(rows: int, s: int, d: int, seed: int, gamma: float = 50.0, tau: float = 0.9) -> Case:
    """Rows near subspaces of a third of the dimensions, candidates of the same subspace before others."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    bases = draw(rows, max(d // 3, 1), d)
    x = (draw(rows, 1, len(bases[0])) @ bases)[:, 0] + 0.1 * draw(rows, d)
    among = draw(rows, s, len(bases[0])) @ bases + 0.3 * draw(rows, s, d)
    among[:, s // 2 :] = draw(rows, s - s // 2, d)
    return of(
        x / x.norm(dim=1, keepdim=True), among / among.norm(dim=2, keepdim=True).clamp(min=1e-9), gamma, tau
    )


def of(x: Tensor, among: Tensor, gamma: float, tau: float) -> Case:
    target = (among @ x[..., None])[..., 0]
    return Case(x, among, among @ among.transpose(1, 2), target, gamma_for(target.abs().amax(1), gamma, tau))


def solved(k: Case, tau: float, **more: object) -> Solution:
    return solve(k.gram, k.target, k.gamma, tau, **more)  # type: ignore[arg-type]


def objective(k: Case, c: Tensor, tau: float) -> Tensor:
    residual = k.x - (c[:, None] @ k.among)[:, 0]
    penalty = tau * c.abs().sum(1) + (1 - tau) / 2 * (c**2).sum(1)
    return penalty + k.gamma / 2 * (residual**2).sum(1)


def assert_optimal(k: Case, found: Solution, tau: float, affine: bool = False, off: float = 1e-9) -> None:
    """From the rows themselves, by a multiplier that is fitted to the non-zeros."""
    residual = k.x - (found.c[:, None] @ k.among)[:, 0]
    g = k.gamma[:, None] * (k.among @ residual[..., None])[..., 0] - (1 - tau) * found.c
    there = found.c != 0
    if affine:
        torch.testing.assert_close(found.c.sum(1), torch.ones(len(g)).double(), rtol=0, atol=1e-12)
        want = torch.where(there, tau * found.c.sign() - g, 0.0)
        g = g + (want.sum(1) / there.sum(1))[:, None]
    worst = torch.where(there, (g - tau * found.c.sign()).abs(), (g.abs() - tau).clamp(min=0)).amax(1) / tau
    assert float(worst.max()) <= 2 * off
    assert float(found.violation.max()) <= off
    assert bool((found.violation <= worst + 1e-10).all())


@pytest.mark.parametrize("gamma", [3.0, 50.0, 1000.0])
@pytest.mark.parametrize("tau", [0.3, 0.9, 1.0])
def test_it_equals_scikit_learn(tau: float, gamma: float) -> None:
    k = case(12, 40, 60, 0, gamma, tau)
    found = solved(k, tau)
    assert_optimal(k, found, tau)
    for i in range(len(k.x)):
        alpha = 1 / (float(k.gamma[i]) * k.x.shape[1])
        common = {"fit_intercept": False, "tol": 1e-12, "max_iter": 1_000_000}
        net = Lasso(alpha=alpha, **common) if tau == 1 else ElasticNet(alpha=alpha, l1_ratio=tau, **common)
        net.fit(k.among[i].T.numpy(), k.x[i].numpy())
        np.testing.assert_allclose(found.c[i], net.coef_, rtol=0, atol=1e-6)
        theirs = objective(k, torch.from_numpy(net.coef_)[None].expand(len(k.x), -1), tau)[i]
        assert float(objective(k, found.c, tau)[i]) <= float(theirs) * (1 + 1e-12)


def least_of_all_patterns(k: Case, i: int, tau: float, affine: bool) -> float:
    """The least objective over all sign patterns, each by least squares."""
    h = (k.gamma[i] * k.gram[i] + (1 - tau) * torch.eye(k.gram.shape[1])).numpy()
    b, best = (k.gamma[i] * k.target[i]).numpy(), np.inf
    for signs in product([-1.0, 0.0, 1.0], repeat=len(b)):
        sign = np.array(signs)
        on = np.flatnonzero(sign)
        if affine and not len(on):
            continue
        a, rhs = h[np.ix_(on, on)], b[on] - tau * sign[on]
        if affine:
            one = np.full(
                (len(on), 1), np.abs(a).max()
            )  # of the size of the rest, or least squares would drop it
            a = np.block([[a, one], [one.T, np.zeros((1, 1))]])
            rhs = np.append(rhs, one[0])
        c = np.zeros(len(b))
        c[on] = np.linalg.lstsq(a, rhs, rcond=1e-12)[0][: len(on)]
        if (c[on] * sign[on] >= -1e-9).all() and (not affine or abs(c.sum() - 1) < 1e-9):
            best = min(best, float(objective(k, torch.from_numpy(c)[None], tau)[i]))
    return best


@settings(max_examples=60, deadline=None)
@example(s=1, d=5, tau=0.2, gamma=1e4, affine=True, seed=817)
@given(
    s=st.integers(1, 5),
    d=st.integers(1, 6),
    tau=st.sampled_from([0.2, 0.9, 1.0]),
    gamma=st.sampled_from([0.5, 1.5, 20.0, 1e4]),
    affine=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_it_equals_the_best_of_all_patterns(
    s: int, d: int, tau: float, gamma: float, affine: bool, seed: int
) -> None:
    k = case(2, s, d, seed, gamma, tau)
    found = solved(k, tau, affine=affine)
    for i in range(2):
        best = least_of_all_patterns(k, i, tau, affine)
        assert float(objective(k, found.c, tau)[i]) == pytest.approx(best, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("tau", [0.9, 1.0])
def test_a_held_sum_equals_a_constrained_optimiser(tau: float) -> None:
    """In positive and negative parts, where the objective is smooth."""
    k = case(4, 10, 20, 3, 30.0, tau)
    found = solved(k, tau, affine=True)
    assert_optimal(k, found, tau, affine=True)
    for i in range(4):
        h = (k.gamma[i] * k.gram[i]).numpy()
        b = (k.gamma[i] * k.target[i]).numpy()

        def value(z: np.ndarray, h: np.ndarray = h, b: np.ndarray = b) -> float:
            c = z[:10] - z[10:]
            return float(tau * z.sum() + (1 - tau) / 2 * c @ c + c @ h @ c / 2 - b @ c)

        held = LinearConstraint(np.r_[np.ones(10), -np.ones(10)][None], 1, 1)
        options = {"ftol": 1e-14, "maxiter": 2000}
        z = minimize(value, np.full(20, 0.05), bounds=[(0, None)] * 20, constraints=held, options=options).x
        theirs = torch.from_numpy(z[:10] - z[10:])
        least = float(objective(k, theirs[None].expand(4, -1), tau)[i])
        assert float(objective(k, found.c, tau)[i]) <= least * (1 + 1e-12)
        torch.testing.assert_close(found.c[i], theirs, rtol=0, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    s=st.integers(1, 60),
    d=st.integers(1, 20),
    copies=st.integers(0, 30),
    tau=st.sampled_from([0.5, 0.99, 1.0]),
    gamma=st.sampled_from([2.0, 50.0, 2000.0]),
    affine=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_singular_products_and_duplicates(
    rows: int, s: int, d: int, copies: int, tau: float, gamma: float, affine: bool, seed: int
) -> None:
    """More candidates than dimensions, some twice, some opposite, and the row itself among them."""
    k = case(rows, s, d, seed, gamma, tau)
    more = k.among[:, :copies]
    among = torch.cat([k.among, more, -more, k.x[:, None], torch.zeros_like(k.x)[:, None]], 1)
    k = of(k.x, among, gamma, tau)
    found = solved(k, tau, affine=affine)
    assert_optimal(k, found, tau, affine, off=1e-9 if tau < 1 else 1e-8)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tau", [0.999, 1.0])
def test_near_duplicates_under_a_large_weight(tau: float, affine: bool) -> None:
    k = case(6, 50, 20, 7, 1e4, tau)
    near = 1e-7 * torch.randn(k.among.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k = of(k.x, torch.cat([k.among, k.among + near], 1), 1e4, tau)
    assert_optimal(k, solved(k, tau, affine=affine), tau, affine, off=1e-7)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tau", [0.9, 1.0])
def test_a_row_does_not_depend_on_others(tau: float, affine: bool) -> None:
    """Also where candidates come twice, so that at tau = 1 there is more than one minimum."""
    k = case(30, 40, 15, 5, 100.0, tau)
    k = of(k.x, torch.cat([k.among, k.among[:, ::2]], 1), 100.0, tau)
    k = k._replace(gamma=k.gamma * torch.linspace(0.01, 1, 30))
    whole = solved(k, tau, affine=affine).c
    for part in ([slice(i, i + 1) for i in range(30)], [slice(0, 7), slice(7, 30)]):
        alone = [solved(Case(*(v[i] for v in k)), tau, affine=affine).c for i in part]
        torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("affine", [False, True])
def test_masks_leave_candidates_out(affine: bool) -> None:
    k = case(6, 20, 30, 1)
    valid = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) < 0.6
    valid[3] = False
    found = solved(k, 0.9, affine=affine, valid=valid)
    assert not found.c[~valid].any()
    assert not found.c[3].any()
    assert float(found.violation.max()) <= 1e-9
    for i in (0, 1, 2, 4, 5):
        on = valid[i]
        few = solve(
            k.gram[i][on][:, on][None], k.target[i : i + 1, on], k.gamma[i : i + 1], 0.9, affine=affine
        )
        torch.testing.assert_close(found.c[i, on], few.c[0], rtol=0, atol=1e-10)


def test_nothing_to_do() -> None:
    """No target, no candidates, no rows."""
    k = case(3, 8, 10, 0)
    none = k._replace(x=0 * k.x, target=0 * k.target)
    assert not solved(none, 0.9).c.any()
    assert solved(none, 0.9).iterations == 0
    assert_optimal(none, solved(none, 1.0, affine=True), 1.0, affine=True)
    assert_optimal(none, solved(none, 0.5, affine=True), 0.5, affine=True)
    for affine in (False, True):
        assert solved(Case(*(v[:0] for v in k)), 0.9, affine=affine).c.shape == (0, 8)
        assert not solved(k, 0.9, affine=affine, valid=torch.zeros(3, 8, dtype=torch.bool)).c.any()
        empty = solve(torch.zeros(3, 0, 0).double(), torch.zeros(3, 0).double(), k.gamma, 0.9, affine=affine)
        assert empty.violation.tolist() == [0, 0, 0]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tau", [0.7, 1.0])
def test_starts_lead_to_the_same_minimum(tau: float, affine: bool) -> None:
    k = case(10, 30, 40, 2, 50.0, tau)
    cold = solved(k, tau, affine=affine)
    wild = torch.randn(10, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(solved(k, tau, affine=affine, start=wild).c, cold.c, rtol=0, atol=1e-8)
    assert solved(k, tau, affine=affine, start=cold.c).iterations <= 1 < cold.iterations


def test_gamma_is_on_the_scale_of_the_first_that_enters() -> None:
    for tau in (0.5, 1.0):
        assert not solved(case(5, 20, 10, 0, 0.999, tau), tau).c.any()
        assert solved(case(5, 20, 10, 0, 1.001, tau), tau).c.any(1).all()
    assert gamma_for(torch.tensor([0.0, 2.0]).double(), 50.0, 0.5).tolist() == [0.0, 12.5]


def test_what_is_not_done_is_told() -> None:
    k = case(5, 40, 60, 0)
    short, full = solved(k, 0.9, passes=1), solved(k, 0.9)
    assert float(short.violation.max()) > 1e-3
    assert bool((objective(k, full.c, 0.9) <= objective(k, short.c, 0.9)).all())


@pytest.mark.parametrize("affine", [False, True])
def test_products_in_single_precision(affine: bool) -> None:
    """Not semidefinite by their rounding."""
    k = case(8, 60, 15, 4, 500.0, 1.0)
    rough = solve(k.gram.float().double(), k.target, k.gamma, 1.0, affine=affine)
    exact = objective(k, solved(k, 1.0, affine=affine).c, 1.0)
    torch.testing.assert_close(objective(k, rough.c, 1.0), exact, rtol=1e-4, atol=0)


def test_shares_outside_their_range_are_refused() -> None:
    k = case(1, 3, 4, 0)
    for tau in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"tau is {tau}; expected more than 0 and at most 1"):
            solved(k, tau)


@pytest.mark.gpu
@pytest.mark.parametrize("affine", [False, True])
def test_the_gpu_agrees(affine: bool) -> None:
    k = case(50, 60, 80, 6)
    there = solve(k.gram.cuda(), k.target.cuda(), k.gamma.cuda(), 0.9, affine=affine)
    torch.testing.assert_close(there.c.cpu(), solved(k, 0.9, affine=affine).c, rtol=0, atol=1e-10)
