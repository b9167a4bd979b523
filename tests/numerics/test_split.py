"""Groups of samples: equal in size, the same everywhere, and not in step with labels that alternate."""

import pytest
import torch

from tasks.numerics.split import spread


@pytest.mark.parametrize("groups", [2, 5, 20, 64])
def test_groups_are_equal_and_fixed(groups: int) -> None:
    sample = torch.arange(groups * 50)
    found = spread(sample, groups)
    assert torch.bincount(found, minlength=groups).tolist() == [50] * groups
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))
    assert torch.equal(spread(sample[order], groups), found[order])
    assert sorted(spread(torch.arange(groups), groups).tolist()) == list(range(groups))


def test_labels_that_alternate_are_in_every_group() -> None:
    for classes in (2, 4, 5, 10):
        sample = torch.arange(2000)
        found = spread(sample, 20)
        for group in range(20):
            assert len(torch.unique(sample[found == group] % classes)) == classes
