"""First weights of sparse autoencoders: where they lie, and that fewer of them die."""

import pytest
import torch
from torch import Tensor, nn

from tasks.numerics import sae_init

WIDTH, MOST = 48, 8


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plane(k: int) -> Tensor:
    return torch.linalg.qr(drawn(WIDTH, k, seed=3))[0].T.contiguous()


def test_directions_lie_inside_and_everywhere() -> None:
    basis = plane(6)
    found = sae_init.directions(basis, 9000, 1, torch.float64)
    torch.testing.assert_close(found @ basis.T @ basis, found)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(9000, dtype=torch.float64))
    inside = found @ basis.T
    torch.testing.assert_close(
        inside.T @ inside / 9000, torch.eye(6, dtype=torch.float64) / 6, atol=6e-3, rtol=0
    )
    assert torch.equal(found, sae_init.directions(basis, 9000, 1, torch.float64))
    assert not torch.equal(found, sae_init.directions(basis, 9000, 2, torch.float64))


def test_encoder_and_decoder_begin_alike_and_apart() -> None:
    first = sae_init.initial(plane(6), torch.arange(WIDTH).double(), 10)
    assert torch.equal(first.encoder, first.decoder)
    first.encoder.zero_()
    assert first.decoder.any()
    assert first.offset.dtype == first.encoder.dtype == torch.float32
    assert not first.encoder_bias.any()


def test_activity_is_counted_row_by_row() -> None:
    rows, encoder = drawn(70, 5), drawn(12, 5, seed=1)
    expected = torch.zeros(12, dtype=torch.int64)
    for row in rows:
        response = encoder @ row
        for k in sorted(range(12), key=lambda j: -float(response[j]))[:3]:
            expected[k] += bool(response[k] > 0)
    assert torch.equal(sae_init.activity(rows, encoder, 3), expected)
    assert int(sae_init.activity(-encoder[:1], encoder[:1], 3)) == 0
    assert not sae_init.activity(rows[:0], encoder, 3).any()


def sparse_rows(basis: Tensor, n: int, seed: int) -> Tensor:
    """Few of 64 concepts at a time, all inside the subspace, and a little noise."""
    rng = torch.Generator().manual_seed(seed)
    concepts = nn.functional.normalize(drawn(64, len(basis), seed=5), dim=1) @ basis
    amounts = (torch.rand(n, 64, generator=rng) < 0.06) * torch.rand(n, 64, generator=rng)
    return (amounts.double() @ concepts + 0.01 * torch.randn(n, WIDTH, generator=rng)).float()


def dead_after_training(first: sae_init.Initial, basis: Tensor) -> float:
    """The share of features of a top-k autoencoder that no held row makes active."""
    encoder, decoder = nn.Parameter(first.encoder), nn.Parameter(first.decoder)
    optimizer = torch.optim.Adam([encoder, decoder], 3e-3)
    for step in range(300):
        x = sparse_rows(basis, 128, step)
        features = x @ encoder.T
        top = features.topk(MOST, 1)
        sparse = torch.zeros_like(features).scatter(1, top.indices, top.values.relu())
        loss = (sparse @ decoder - x).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    held = sae_init.activity(sparse_rows(basis, 3000, 999), encoder.detach(), MOST)
    return float((held == 0).double().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_fewer_features_die_inside(seed: int) -> None:
    """In the paper, 87 % become less than 1 % with a million features; here 512, and a quarter of the directions."""
    basis, mean = plane(12), torch.zeros(WIDTH)
    inside = dead_after_training(sae_init.initial(basis, mean, 512, seed), basis)
    outside = dead_after_training(sae_init.initial(torch.eye(WIDTH), mean, 512, seed), basis)
    assert inside < 0.05
    assert outside > 0.1
