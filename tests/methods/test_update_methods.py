"""Subspaces of gradients and updates: planted ones are found, random ones give the null."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.gradients import (
    core_energy,
    dominant_overlap,
    early_final,
    flag_aggregation,
    update_activation_overlap,
    update_structure,
)
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.training import low_rank, randn, solved


class TestDominantOverlap:
    def test_a_frozen_subspace(self) -> None:
        rows, _ = low_rank(12, 30, 20, 4, 0.0)
        result = solved(dominant_overlap, rows, (30, 20), rank=4).result
        assert result.adjacent == pytest.approx(1, abs=1e-9)
        assert result.first_last == pytest.approx(1, abs=1e-9)
        assert result.frozen

    @pytest.mark.parametrize("variant", ["dominant", "sampled"])
    def test_random_gradients_have_the_overlap_of_chance(self, variant: str) -> None:
        result = solved(dominant_overlap, randn(200, 40 * 10), (40, 10), rank=6, variant=variant).result
        assert result.null == 0.15
        assert result.adjacent == pytest.approx(0.15, abs=3 * result.null_std / 200**0.5)
        assert not result.frozen

    def test_the_spread_of_chance(self) -> None:
        overlaps = []
        for k in range(400):
            a, b = (torch.linalg.qr(randn(20, 3, seed=2 * k + s)).Q for s in (0, 1))
            overlaps.append(float((a.T @ b).square().sum() / 3))
        result = solved(dominant_overlap, randn(3, 20 * 8), (20, 8), rank=3).result
        assert np.std(overlaps) == pytest.approx(result.null_std, rel=0.12)
        assert np.mean(overlaps) == pytest.approx(result.null, rel=0.05)

    def test_it_equals_scipy(self) -> None:
        rows = randn(2, 15 * 9)
        answer = solved(dominant_overlap, rows, (15, 9), rank=4)
        u = [np.linalg.svd(row.reshape(15, 9).numpy())[0][:, :4] for row in rows]
        expected = (np.cos(subspace_angles(*u)) ** 2).mean()
        assert answer.result.adjacent == pytest.approx(expected, rel=1e-10)

    def test_sampling_prefers_large_singular_values(self) -> None:
        rows, basis = low_rank(300, 30, 20, 2, 0.05)
        u = torch.linalg.svd(rows[0].reshape(30, 20)).U[:, :2]
        assert float((u.T @ basis).square().sum()) > 1.95
        sampled = solved(dominant_overlap, rows, (30, 20), rank=2, variant="sampled").result.adjacent
        dominant = solved(dominant_overlap, rows, (30, 20), rank=2).result.adjacent
        assert 2 / 30 < sampled < dominant

    def test_steps_of_zeros_are_counted(self) -> None:
        rows = torch.cat([randn(2, 12), torch.zeros(1, 12).double()])
        result = solved(dominant_overlap, rows, (4, 3), rank=2).result
        assert result.empty_steps == 1
        with pytest.raises(MethodError, match="no steps"):
            solved(dominant_overlap, rows[:0], (4, 3))


class TestCoreEnergy:
    def test_planted_energy(self) -> None:
        rows, _ = low_rank(40, 50, 30, 3, 0.1)
        result = solved(core_energy, rows, (50, 30), rank=3).result
        planted = 30 * 3 / (30 * 3 + 0.01 * 30 * 50)
        assert result.common == pytest.approx(planted, abs=0.02)
        assert result.first == pytest.approx(result.common, abs=0.02)
        assert result.own >= result.common
        assert result.null == 0.06

    def test_noise_has_the_energy_of_chance_in_a_fixed_core(self) -> None:
        result = solved(core_energy, randn(100, 60 * 20), (60, 20), rank=6).result
        assert result.first == pytest.approx(0.1, abs=0.01)
        assert result.own > 0.2  # the most that six dimensions hold is more than chance even for noise

    def test_a_growing_core(self) -> None:
        rows, _ = low_rank(20, 30, 20, 2, 0.0)
        noise = randn(20, 600, seed=5)
        share = torch.linspace(0, 1, 20).double()[:, None]
        result = solved(core_energy, share * rows + (1 - share) * noise, (30, 20), rank=2).result
        assert result.slope > 0.3
        assert solved(core_energy, torch.zeros(3, 12).double(), (4, 3)).result.own is None


class TestEarlyFinal:
    def test_a_subspace_that_shows_early(self) -> None:
        steps, _ = low_rank(50, 30, 20, 2, 0.0)
        weights = randn(1, 600, seed=8) + torch.cat([torch.zeros(1, 600).double(), steps.cumsum(0)])
        result = solved(early_final, weights, (30, 20), rank=2).result
        assert result.early_overlap == pytest.approx(1, abs=1e-9)
        assert result.concentration == pytest.approx(1, abs=1e-9)
        assert result.effective_rank <= 2 + 1e-9
        assert result.step_found == 1
        assert result.concentration_null < 0.4

    def test_a_subspace_that_turns(self) -> None:
        first, _ = low_rank(10, 40, 20, 2, 0.0, seed=1)
        second, _ = low_rank(10, 40, 20, 2, 0.0, seed=7)
        weights = torch.cat(
            [torch.zeros(1, 800).double(), first.cumsum(0), first.sum(0) + 100 * second.cumsum(0)]
        )
        result = solved(early_final, weights, (40, 20), rank=2, early=0.25).result
        assert result.early_overlap < 0.3
        assert result.step_found is not None
        assert result.step_found > 10

    def test_nothing_moved(self) -> None:
        result = solved(early_final, torch.ones(4, 12).double(), (4, 3)).result
        assert result.concentration is None
        assert result.caveats


class TestUpdateStructure:
    def test_planted_sparsity_rank_and_overlap(self) -> None:
        mask = torch.zeros(20, 30).bool()
        mask[:10, :15] = True
        rows = torch.stack(
            [(randn(20, 30, seed=k) + 3 * k * randn(20, 30, seed=k).sign()) * mask for k in (1, 2)]
        )
        result = solved(update_structure, rows.flatten(1), (20, 30), tolerance=0).result
        assert result.sparsity == pytest.approx(0.75)
        assert result.rank == 10
        assert result.rank_share == 0.5
        assert result.overlap == pytest.approx(1)
        assert result.jaccard == pytest.approx(1)
        assert result.overlap_null == pytest.approx(0.25)

    def test_independent_updates_overlap_by_chance(self) -> None:
        keep = torch.rand(6, 5000, generator=torch.Generator().manual_seed(0)) < 0.3
        result = solved(update_structure, randn(6, 5000) * keep, (50, 100), tolerance=0).result
        assert result.overlap == pytest.approx(result.overlap_null, rel=0.05)
        assert result.overlap_null == pytest.approx(0.3, rel=0.05)
        assert result.jaccard == pytest.approx(0.09 / 0.51, rel=0.07)

    def test_full_rank_updates_that_are_sparse(self) -> None:
        keep = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) < 0.3
        result = solved(
            update_structure, (randn(40, 40) * keep).flatten()[None], (40, 40), tolerance=0
        ).result
        assert result.rank_share == 1
        assert result.overlap is None

    def test_nothing_changed(self) -> None:
        result = solved(update_structure, torch.zeros(2, 12).double(), (4, 3)).result
        assert result.unchanged_rows == 2
        assert result.rank is None
        assert result.effective_rank_null is None

    def test_ranks_beside_shuffled_entries(self) -> None:
        rows, _ = low_rank(6, 40, 30, 3, 0.0)
        low = solved(update_structure, rows, (40, 30), tolerance=0).result
        assert (low.rank, low.rank_null) == (3, 30)
        assert low.effective_rank < 3.01
        noise = solved(update_structure, randn(6, 1200), (40, 30), tolerance=0).result
        assert noise.effective_rank == pytest.approx(noise.effective_rank_null, rel=0.02)
        assert low.effective_rank_null == pytest.approx(noise.effective_rank_null, rel=0.1)

    def test_few_entries_have_few_directions_by_chance(self) -> None:
        row = torch.zeros(1, 40 * 30).double()
        row[0, :5] = torch.arange(1.0, 6)
        answer = solved(update_structure, row, (40, 30), tolerance=0)
        assert (answer.result.rank, answer.result.rank_null) == (1, 5)

    def test_shuffling_depends_on_seed_and_step_alone(self) -> None:
        rows = randn(3, 200).cumsum(1)
        first, second = (
            solved(update_structure, x, (20, 10)).arrays["effective_rank_null"] for x in (rows, rows[:2])
        )
        torch.testing.assert_close(first[:2], second, rtol=0, atol=0)
        other = solved(update_structure, rows, (20, 10), seed=1).arrays["effective_rank_null"]
        assert not torch.equal(first, other)


class TestFlagAggregation:
    def test_planted_faults_are_found(self) -> None:
        truth = randn(1, 400)
        rows = truth + 0.5 * randn(15, 400, seed=1)
        rows[3], rows[9] = 5 * randn(400, seed=2), -8 * randn(400, seed=3)
        answer = solved(flag_aggregation, rows, components=1)
        assert set(answer.result.suspects) == {3, 9}
        good = torch.nn.functional.cosine_similarity(answer.arrays["aggregate"], truth[0], dim=0)
        bad = torch.nn.functional.cosine_similarity(answer.arrays["mean"], truth[0], dim=0)
        assert float(good) > 0.97 > float(bad)

    def test_one_iteration_is_the_leading_subspace_of_unit_gradients(self) -> None:
        rows = randn(8, 50)
        answer = solved(flag_aggregation, rows, components=3, iterations=1)
        units = rows / rows.norm(dim=1, keepdim=True)
        y = torch.linalg.svd(units, full_matrices=False).Vh[:3]
        np.testing.assert_allclose(answer.arrays["value"], (units @ y.T).square().sum(1), atol=1e-10)
        np.testing.assert_allclose(answer.arrays["aggregate"], (rows @ y.T @ y).mean(0), atol=1e-10)

    def test_iterations_lower_the_sum_of_sines(self) -> None:
        rows = torch.cat([randn(1, 60) + 0.3 * randn(12, 60, seed=1), 3 * randn(4, 60, seed=2)])

        def sines(iterations: int) -> float:
            value = solved(flag_aggregation, rows, components=2, iterations=iterations).arrays["value"]
            return float((1 - value).clamp(min=0).sqrt().sum())

        assert sines(50) < sines(1)

    def test_the_value_of_chance(self) -> None:
        result = solved(flag_aggregation, randn(4, 1000), components=4).result
        assert result.caveats
        assert result.value_null == 0.004
        zero = solved(flag_aggregation, torch.zeros(3, 5).double()).result
        assert zero.value is None
        assert zero.zero_rows == 3


class TestUpdateActivationOverlap:
    def solved(
        self, rows: Tensor, basis: Tensor, values: Tensor, shape: tuple[int, int], **options: Any
    ) -> Answer:
        inputs = Inputs(
            widths={"x": rows.shape[1]},
            n_rows=len(rows),
            n_samples=len(rows),
            shapes={"x": shape},
            artifacts={"activations": {"components": basis, "eigenvalue": values}},
        )
        config = update_activation_overlap.Config(**options)
        update_activation_overlap.check(inputs, config)
        return cases.run(
            Case(update_activation_overlap, config, inputs, cases._block({"x": rows}, len(rows), False))
        )

    def test_updates_of_gradients_act_on_activations(self) -> None:
        basis = torch.linalg.qr(randn(50, 4)).Q.T
        rows = (randn(6, 30, 4, seed=1) @ basis).flatten(
            1
        )  # every gradient of a linear layer is of this kind
        result = self.solved(rows, basis, torch.ones(4).double(), (30, 50), energy=1.0).result
        assert result.overlap == pytest.approx(1)
        assert result.energy == pytest.approx(1)
        assert result.between == pytest.approx(1)
        assert result.energy_null == 0.08

    def test_random_updates_have_the_overlap_of_chance(self) -> None:
        basis = torch.linalg.qr(randn(60, 6)).Q.T
        result = self.solved(randn(40, 10 * 60), basis, torch.ones(6).double(), (10, 60), energy=1.0).result
        assert result.overlap == pytest.approx(result.overlap_null, abs=0.02)
        assert result.energy == pytest.approx(0.1, abs=0.01)
        assert result.between == pytest.approx(result.between_null, abs=0.02)

    def test_it_equals_scipy(self) -> None:
        basis = torch.linalg.qr(randn(20, 3)).Q.T
        rows = randn(1, 5 * 20)
        answer = self.solved(rows, basis, torch.ones(3).double(), (5, 20), energy=1.0)
        right = np.linalg.svd(rows[0].reshape(5, 20).numpy(), full_matrices=False)[2]
        expected = (np.cos(subspace_angles(right.T, basis.T.numpy())) ** 2).sum() / 3
        assert answer.result.overlap == pytest.approx(expected)

    def test_activations_of_another_layer(self) -> None:
        with pytest.raises(MethodError, match="take the components at the layer's input"):
            self.solved(randn(1, 100), torch.eye(7).double(), torch.ones(7).double(), (5, 20))
