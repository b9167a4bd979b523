"""spectrum.utilised_rank: planted ranks, errors from the rows themselves, and inputs that cannot be meant."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.engine.reduction import make_reduction
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import attention_subspace, jackknife, utilised_rank

NAME = "{module}.weight"


def run(
    x: Tensor, weight: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[utilised_rank.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    sample = torch.arange(len(x)) if sample is None else sample
    config = utilised_rank.Config.model_validate(options)
    inputs = Inputs(
        widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1, weights={NAME: weight}
    )
    utilised_rank.check(inputs, config)
    carry, state = utilised_rank.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        other = utilised_rank.partial(Block({"x": x[part]}, sample[part], part, part), carry, config)
        state = other if state is None else utilised_rank.merge(state, other)
    assert state is not None
    return utilised_rank.finish(state, carry, inputs, config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_inputs_of_a_planted_rank() -> None:
    for r in (1, 5, 12):
        x, weight = drawn(900, r) @ torch.linalg.qr(drawn(20, r, seed=1))[0].T, drawn(16, 20, seed=2)
        result, arrays = run(x, weight, energy=1 - 1e-9)
        assert (result.input_rank, result.output_rank, result.rank) == (r, r, r)
        assert result.weight_rank == 16
        assert result.utilisation == r / 16
        assert result.utilisation_alike == 1
        assert result.error is not None
        assert result.error.value < 1e-9
        assert result.parameters == pytest.approx(r * 36 / 320)
        assert int((arrays["singular_value"].values > 1e-9).sum()) == r


def test_the_narrower_side_decides() -> None:
    weight = drawn(16, 4, seed=2) @ drawn(4, 20, seed=3)
    result, _ = run(drawn(4000, 20), weight, energy=1 - 1e-9)
    assert (result.input_rank, result.output_rank, result.rank, result.weight_rank) == (20, 4, 4, 4)
    assert result.utilisation_alike == 4 / 16


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("outputs", [7, 30])
def test_ranks_and_error_are_those_of_the_rows(center: bool, outputs: int) -> None:
    scale = 0.7 ** torch.arange(18).double()
    x, weight = drawn(700, 18) * scale + 0.4, drawn(outputs, 18, seed=5)
    result, arrays = run(x, weight, energy=0.9, center=center)
    rows = (x - x.mean(0) if center else x).numpy()
    out = rows @ weight.numpy().T

    def least(values: np.ndarray) -> int:
        energy = np.linalg.svd(values, compute_uv=False) ** 2
        return int(np.argmax(energy.cumsum() >= 0.9 * energy.sum())) + 1

    assert (result.input_rank, result.output_rank) == (least(rows), least(out))
    s, t = (arrays[f"{side}_basis"].values.numpy() for side in ("input", "output"))
    used = t.T @ (t @ weight.numpy() @ s.T) @ s
    expected = np.linalg.norm(out - rows @ used.T) / np.linalg.norm(out)
    assert result.error is not None
    assert result.error.value == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(
        arrays["singular_value"].values, np.linalg.svd(used, compute_uv=False)[: min(outputs, 18)], atol=1e-12
    )


def test_intervals_cover_dependent_rows() -> None:
    """Samples of ten rows that are nearly alike."""
    scale, weight = 0.8 ** torch.arange(12).double(), drawn(9, 12, seed=4)
    truth = run(drawn(60_000, 12, seed=99) * scale, weight, groups=5)[0].error
    assert truth is not None
    hits = []
    for seed in range(30):
        rows = (drawn(150, 12, seed=seed) * scale).repeat_interleave(10, 0)
        rows = rows + 0.01 * drawn(1500, 12, seed=1000 + seed)
        found = run(rows, weight, torch.arange(150).repeat_interleave(10), energy=0.99)[0].error
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth.value <= found.high)
    assert np.mean(hits) >= 0.8


def test_its_moments_are_those_that_other_methods_read() -> None:
    inputs = Inputs(widths={"x": 4}, n_rows=9, n_samples=9)
    found = {
        make_reduction("", module, module.Config(), {}, inputs).id
        for module in (utilised_rank, attention_subspace, jackknife)
    }
    assert len(found) == 1


def test_no_outputs_at_all() -> None:
    x = drawn(60, 6)
    x[:, 3:] = 0
    weight = torch.cat([torch.zeros(5, 3).double(), drawn(5, 3)], 1)
    result, arrays = run(x, weight)
    assert (result.rank, result.output_rank, result.input_rank) == (0, 0, 3)
    assert result.error is None
    assert result.fractional_utilisation is not None
    assert result.fractional_utilisation.value == 0
    assert not arrays["singular_value"].values.any()
    assert "60 rows for 6 inputs" not in " ".join(result.caveats)
    assert "40 rows for 6 inputs" in " ".join(run(x[:40], weight)[0].caveats)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.zeros(20, 7), r"\(20, 7\), expected \[outputs, 20\]"),
        (torch.zeros(20), r"\(20,\), expected"),
        (torch.full((3, 20), torch.nan), "holds NaN"),
    ],
)
def test_other_weights_are_refused(weight: Tensor, words: str) -> None:
    with pytest.raises(MethodError, match=words):
        run(drawn(60, 20), weight)
