"""Groups of experts that are planted, and merged weights against their definition."""

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import expert_merging


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_planted_groups_whatever_their_scale() -> None:
    """Outputs of six experts on 50 tokens: two of each of three kinds, of very different sizes."""
    kinds = drawn(3, 50, 4)
    outputs = torch.stack([kinds[k % 3] + 0.1 * drawn(50, 4, seed=k + 1) for k in range(6)]).flatten(1)
    outputs *= torch.tensor([1, 100, 0.01, 7, 0.5, 30]).double()[:, None]
    products = outputs @ outputs.T
    assert expert_merging.grouped(products, 3).tolist() == [0, 1, 2, 0, 1, 2]
    unit = outputs / outputs.norm(dim=1, keepdim=True)
    torch.testing.assert_close(expert_merging.cosines(products), unit @ unit.T)


def test_alike_and_silent_experts() -> None:
    outputs = torch.zeros(4, 3).double()
    outputs[1:3] = torch.tensor([1.0, 2, 3]).double()
    outputs[3, 0] = 1
    products = outputs @ outputs.T
    assert not expert_merging.cosines(products)[0].any()
    assert expert_merging.grouped(products, 3).tolist() == [0, 1, 1, 2]
    with pytest.raises(
        MethodError, match="4 experts have 3 different directions of outputs, expected at least 4"
    ):
        expert_merging.grouped(products, 4)


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 4, 30), (1, 6, 2), (5, 40, 3)])
def test_with_all_directions_it_is_the_mean_by_use(shape: tuple[int, int, int]) -> None:
    weights, used = drawn(*shape), drawn(shape[0], seed=1).abs()
    found = expert_merging.merged(weights, used)
    torch.testing.assert_close(found.weight, torch.einsum("e,eoi->oi", used / used.sum(), weights))
    assert found.rank == min(shape[1], shape[0] * shape[2])
    unused = expert_merging.merged(weights, torch.zeros_like(used))
    torch.testing.assert_close(unused.weight, weights.mean(0))


def test_fewer_directions_are_those_of_all_weights() -> None:
    """From the eigenvectors of the sum of products rather than the singular vectors."""
    weights, used = (
        drawn(3, 8, 5) * 0.5 ** torch.arange(8).double()[:, None],
        torch.tensor([3.0, 0, 1]).double(),
    )
    found = expert_merging.merged(weights, used, 0.9)
    values, vectors = torch.linalg.eigh(sum(w @ w.T for w in weights))
    values, u = values.flip(0), vectors.flip(1)[:, : found.rank]
    shares = values.cumsum(0) / values.sum()
    assert shares[found.rank - 1] >= 0.9 > shares[found.rank - 2]
    torch.testing.assert_close(found.weight, u @ u.T @ (0.75 * weights[0] + 0.25 * weights[2]))


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(MethodError, match="2 experts' weights"):
        expert_merging.merged(torch.full((2, 3, 3), torch.nan).double(), torch.ones(2).double())
