"""Draws of K subspaces on a sample: what a round lowers, and where they end."""

import numpy as np
import pytest
import torch

from tasks.numerics import affinity, k_subspaces, subspace_starts


def rows_of(seed: int, width: int = 20) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((4, 3, width))
    rows = np.einsum("nd,ndf->nf", rng.standard_normal((300, 3)), basis[np.arange(300) % 4])
    return torch.from_numpy(rows + rng.standard_normal(rows.shape) + 2)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_no_round_raises_the_residuals_and_the_last_moves_no_row(seed: int, affine: bool) -> None:
    """A round's subspaces are turned, not decomposed; the end is a fixed point of rows' own leading directions."""
    x, held = rows_of(seed), torch.full((4,), 3)
    begun = subspace_starts.drawn(x, 4, 3, affine, torch.Generator().manual_seed(seed))
    costs = [subspace_starts.improved(x, begun, held, affine, rounds).cost for rounds in range(30)]
    assert (np.diff(costs) <= 1e-9 * costs[0]).all()
    assert costs[-1] < 0.8 * costs[0]
    end = subspace_starts.improved(x, begun, held, affine)
    for k in range(4):
        rows = x[end.label == k].numpy()
        z = rows - rows.mean(0) if affine else rows
        found = np.linalg.svd(z)[2][:3]
        basis = end.subspaces.basis[k].numpy()
        np.testing.assert_allclose(found.T @ found, basis.T @ basis, atol=1e-9)
    assert torch.equal(k_subspaces.nearest(x, end.subspaces)[1], end.label)
    assert end.cost == pytest.approx(float(k_subspaces.residuals(x, end.subspaces).amin(1).sum()))


def test_more_subspaces_than_different_rows_leave_some_empty() -> None:
    x = torch.eye(3).double().repeat(20, 1)
    begun = subspace_starts.drawn(x, 5, 1, True, torch.Generator().manual_seed(0))
    end = subspace_starts.improved(x, begun, torch.ones(5, dtype=torch.int64), True)
    assert end.cost < 1e-20
    assert bool(end.subspaces.basis.isfinite().all())


def test_rows_that_runs_put_together_are_joined() -> None:
    labels = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    graph = affinity.together(labels, 2, 2).toarray()
    expected = (labels[:, :, None] == labels[:, None]).double().mean(0).fill_diagonal_(0).numpy()
    np.testing.assert_allclose(graph, np.where(expected > 0.5, expected, 0))
    for found in subspace_starts.agreed(labels, 2):
        assert found[:3].unique().numel() == found[3:].unique().numel() == 1
        assert found[0] != found[3]


def test_an_ensemble_is_no_worse_than_its_draws() -> None:
    x = rows_of(1)
    runs = subspace_starts.begun(x, 4, 3, True, 2, True, torch.Generator().manual_seed(0))
    assert len(runs) == 2
    assert runs[0].cost <= runs[1].cost
    for run in runs:
        assert float(k_subspaces.nearest(x, run.subspaces)[0].sum()) >= run.cost * (1 - 1e-9)


@pytest.mark.parametrize("affine", [True, False])
def test_rows_that_every_subspace_holds_do_not_move_for_ever(
    affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows on one line, in planes: residuals are rounding, and so is whose is the least."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(np.outer(rng.standard_normal(60), rng.standard_normal(8)))
    rounds = []

    def refitted(*given: object) -> k_subspaces.Subspaces:
        rounds.append(1)
        return fit(*given)  # type: ignore[arg-type]

    fit = subspace_starts.refitted
    monkeypatch.setattr(subspace_starts, "refitted", refitted)
    begun = subspace_starts.drawn(x, 8, 2, affine, torch.Generator().manual_seed(0))
    end = subspace_starts.improved(x, begun, torch.full((8,), 2), affine)
    assert len(rounds) < 10
    assert end.cost < 1e-12 * float(x.square().sum())
