"""Spectra of gradients of samples: closed forms, LAPACK, and planted subspaces of tasks."""

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.gradients import active_subspace, fisher, forget_retain, online_subspace, task_subspaces
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.training import low_rank, randn, solved


def labelled(module: ModuleType, groups: dict[str, Tensor], **options: Any) -> Answer:
    """A method over rows whose label `task` names their group, mixed up."""
    x = torch.cat(list(groups.values()))
    names = tuple(sorted(groups))
    code = torch.tensor([names.index(name) for name, rows in groups.items() for _ in rows])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), categories={"task": names})
    index = torch.arange(len(x))
    block = Block({"x": x[order]}, index, torch.zeros_like(index), index, {"task": code[order]})
    return cases.run(Case(module, module.Config(**options), inputs, block))


class TestActiveSubspace:
    def gradients(self, n: int = 400) -> tuple[Tensor, Tensor]:
        """Of sin(a'x) at random points."""
        a, x = randn(20), randn(n, 20, seed=1)
        return torch.cos(x @ a)[:, None] * a, a

    def test_a_ridge_function_has_one_direction(self) -> None:
        rows, a = self.gradients()
        answer = solved(active_subspace, rows)
        assert answer.result.dimension == 1
        assert answer.result.share == pytest.approx(1, abs=1e-12)
        direction = answer.arrays["direction"][0]
        assert float((direction @ (a / a.norm())).abs()) == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(answer.arrays["activity"], answer.arrays["eigenvalue"][0] * direction**2)

    def test_it_is_about_the_origin(self) -> None:
        rows = torch.tensor([1.0, 2, 0]).double().repeat(50, 1) + 1e-3 * randn(50, 3)
        answer = solved(active_subspace, rows)
        assert answer.result.dimension == 1
        assert answer.result.mean_gradient_share == pytest.approx(1, abs=1e-4)
        assert answer.arrays["eigenvalue"][0] == pytest.approx(5, rel=0.01)

    def test_it_equals_lapack_and_finds_a_planted_gap(self) -> None:
        scale = torch.tensor([5.0, 4, 3, 0.1, 0.09, 0.08, 0.07]).double()
        rows = randn(3000, 7) * scale
        answer = solved(active_subspace, rows)
        values = np.linalg.eigvalsh(rows.T.numpy() @ rows.numpy() / 3000)[::-1]
        np.testing.assert_allclose(answer.arrays["eigenvalue"], values, rtol=1e-10)
        assert answer.result.dimension == 3
        assert answer.result.gap_is_clear
        assert answer.result.share_null == pytest.approx(3 / 7)
        assert answer.result.angle_error < 0.01

    def test_no_gradients(self) -> None:
        result = solved(active_subspace, torch.zeros(10, 4).double()).result
        assert result.dimension == 0
        assert result.share is None


class TestFisher:
    def test_it_equals_the_matrix(self) -> None:
        rows = randn(40, 9) * 0.6 ** torch.arange(9)
        answer = solved(fisher, rows, directions=3)
        matrix = rows.T.numpy() @ rows.numpy() / 40
        values, vectors = np.linalg.eigh(matrix)
        np.testing.assert_allclose(answer.arrays["eigenvalue"], values[::-1], rtol=1e-8)
        assert np.sin(subspace_angles(answer.arrays["eigenvector"].numpy().T, vectors[:, -3:])).max() < 1e-8
        assert answer.result.trace == pytest.approx(np.trace(matrix))
        p = values / values.sum()
        assert answer.result.participation_ratio == pytest.approx(1 / (p**2).sum())

    def test_effective_dimension_of_an_isotropic_matrix(self) -> None:
        rows = torch.cat([torch.eye(6), -torch.eye(6)]).double()
        result = solved(fisher, rows, data_size=1000, gamma=0.5).result
        kappa = 0.5 * 1000 / (2 * math.pi * math.log(1000))
        assert result.effective_dimension == pytest.approx(6 * math.log(1 + kappa) / math.log(kappa))
        assert result.mean_gradient_share == pytest.approx(0)
        assert solved(fisher, rows, data_size=10).result.effective_dimension is None

    def test_few_rows_of_many_parameters(self) -> None:
        result = solved(fisher, randn(10, 5000)).result
        assert result.rank == 10
        assert result.caveats
        assert result.mean_gradient_share == pytest.approx(0.1, abs=0.02)


class TestTaskSubspaces:
    def test_orthogonal_tasks_lose_nothing(self) -> None:
        frame = torch.linalg.qr(randn(60, 6)).Q
        groups = {"a": randn(30, 3) @ frame[:, :3].T, "b": randn(30, 3, seed=1) @ frame[:, 3:].T}
        result = labelled(task_subspaces, groups, rank=3).result
        assert result.energy == pytest.approx((1, 1))
        assert result.energy_lost == pytest.approx((0, 0), abs=1e-12)
        assert result.energy_kept == pytest.approx((1, 1))
        assert result.overlap == pytest.approx(0, abs=1e-12)
        assert result.history == 6

    def test_a_task_in_the_history_keeps_nothing(self) -> None:
        frame = torch.linalg.qr(randn(60, 3)).Q
        groups = {name: randn(30, 3, seed=k) @ frame.T for k, name in enumerate("ab")}
        answer = labelled(task_subspaces, groups, rank=3)
        assert answer.result.energy_lost == pytest.approx((0, 1))
        assert answer.result.energy_kept == pytest.approx((1, 0), abs=1e-9)
        assert answer.result.overlap == pytest.approx(1)
        assert answer.result.history == 3
        history = answer.arrays["history"]
        np.testing.assert_allclose(history @ history.T, np.eye(3), atol=1e-12)

    def test_random_tasks_have_the_numbers_of_chance(self) -> None:
        groups = {name: randn(400, 100, seed=k) for k, name in enumerate("abc")}
        result = labelled(task_subspaces, groups, rank=10).result
        assert result.lost_null == (0, 0.1, 0.2)
        assert result.energy_lost == pytest.approx(result.lost_null, abs=0.02)
        assert result.overlap == pytest.approx(0.1, abs=0.03)

    def test_a_label_that_names_no_classes(self) -> None:
        with pytest.raises(MethodError, match="names no classes"):
            labelled(task_subspaces, {"a": randn(3, 4)}, label="size")


class TestForgetRetain:
    def test_planted_parts(self) -> None:
        frame = torch.linalg.qr(randn(50, 8)).Q
        retain = randn(60, 4) @ frame[:, :4].T
        forget = 0.6 * frame[:, 0] + 0.8 * frame[:, 7] + torch.zeros(20, 50).double()
        result = labelled(forget_retain, {"retain": retain, "forget": forget}, energy=1.0).result
        assert result.dimension == 4
        assert result.tangential == pytest.approx(0.36)
        assert result.retain_change_normal == pytest.approx(0, abs=1e-12)
        assert result.forget_change_normal == pytest.approx(0.8)
        assert result.tangential_null == 0.08

    def test_the_change_of_the_retain_loss_is_that_of_a_step(self) -> None:
        retain, forget = randn(30, 12), randn(30, 12, seed=1)
        result = labelled(forget_retain, {"a": forget, "b": retain}).result
        step = forget.mean(0) / forget.mean(0).norm()
        assert result.retain_change == pytest.approx(float(retain.mean(0) @ step))

    def test_random_gradients(self) -> None:
        result = labelled(
            forget_retain, {"a": randn(200, 300), "b": randn(100, 300, seed=1)}, energy=0.5
        ).result
        assert result.tangential == pytest.approx(result.tangential_null, abs=0.01)

    def test_bad_classes(self) -> None:
        groups = {"a": randn(3, 4), "b": randn(3, 4)}
        with pytest.raises(MethodError, match="no class 'c'; nearest: a, b"):
            labelled(forget_retain, groups, forget="c")
        with pytest.raises(MethodError, match="same class"):
            labelled(forget_retain, groups, forget="b")


class TestOnlineSubspace:
    def test_it_finds_the_leading_subspace(self) -> None:
        rows, _ = low_rank(80, 20, 30, 3, 0.02)
        turned = rows.reshape(80, 20, 30).mT.flatten(1)  # the subspace is that of columns
        result = solved(online_subspace, turned, (30, 20), rank=3, passes=8).result
        assert result.captured > 0.97 * result.captured_best
        assert result.captured > result.captured_first
        assert result.distance < 0.1
        assert result.captured_null == pytest.approx(3 / 20)

    def test_the_slope_is_that_of_the_error(self) -> None:
        g, p = randn(5, 7), randn(7, 3, seed=1).requires_grad_()
        error = (g @ p @ p.T - g).square().sum() / 2
        regulariser = (p.T @ p - torch.eye(3)).square().sum() / 4
        (slope,) = torch.autograd.grad(error + 0.3 * regulariser, p)
        found = online_subspace._slope(g, p.detach(), 0.3)
        torch.testing.assert_close(found, slope)

    def test_the_best_is_that_of_an_svd(self) -> None:
        rows = randn(40, 12 * 9)
        result = solved(online_subspace, rows, (12, 9), rank=2, passes=1).result
        units = (rows / rows.norm(dim=1, keepdim=True)).reshape(-1, 9)
        s = torch.linalg.svdvals(units).square()
        assert result.captured_best == pytest.approx(float(s[:2].sum() / s.sum()))
