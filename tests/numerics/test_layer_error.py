"""Errors of a layer's outputs from second moments against those of the rows."""

import pytest
import torch

from tasks.numerics.layer_error import lost_share, output_energy


def test_shares_are_those_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, other = (
        torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((50, 7), (4, 7), (4, 7))
    )
    gram = x.T @ x / 50
    energy, lost = ((x @ each.T).square().sum(1).mean() for each in (weight, weight - other))
    assert output_energy(weight, gram) == pytest.approx(float(energy))
    assert lost_share(weight, other, gram) == pytest.approx(float(lost / energy))
    assert lost_share(weight, weight, gram) == 0
    assert lost_share(torch.zeros(4, 7).double(), other, gram) == 0
