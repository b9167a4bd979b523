"""Spectral densities beside exact ones."""

import numpy as np
import pytest
import torch
from torch import nn

from tasks.methods.gradients import spectral_density
from tests.methods.curvature import Linear, dense, solved, wide


def test_the_density_holds_inside_its_errors() -> None:
    network = wide()
    values = np.linalg.eigvalsh(dense(network))
    answer = solved(spectral_density, network, probes=16, steps=40)
    result = answer.result
    assert abs(result.trace - values.sum()) <= 3 * result.trace_error
    assert abs(result.square - (values**2).sum()) <= 3 * result.square_error
    negative = (values < -1e-6 * np.abs(values).max()).mean()
    assert abs(result.negative_share - negative) <= 3 * result.negative_share_error + 0.01
    assert result.smallest == pytest.approx(values.min(), rel=1e-3)
    assert result.largest == pytest.approx(values.max(), rel=1e-3)
    grid, density = answer.arrays["grid"].numpy(), answer.arrays["density"].numpy()
    step = grid[1] - grid[0]
    assert density.sum() * step == pytest.approx(1, abs=1e-3)
    sigma = 0.02 * (result.largest - result.smallest)
    kernel = np.exp(-0.5 * ((grid[:, None] - values[None]) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    difference = np.abs(density - kernel.mean(1)).sum() * step
    assert difference <= 2 * (result.density_error + result.quadrature_error)


def test_planted_outliers_are_counted() -> None:
    scale = torch.cat(
        [torch.tensor([12.0, 11, 10]), 0.3 + torch.rand(57, generator=torch.Generator().manual_seed(0))]
    )
    x = (
        torch.linalg.qr(torch.randn(300, 60, generator=torch.Generator().manual_seed(2)).double()).Q
        * 300**0.5
        * scale.double()
    )
    network = Linear(nn.Linear(60, 1, bias=False).double(), x, torch.zeros(300).double())
    result = solved(spectral_density, network, probes=24, steps=25).result
    assert result.bulk_edge < 5
    assert result.outliers == pytest.approx(3, abs=3 * result.outliers_error + 1e-9)
    assert result.negative_share == 0
