"""Steps are read off the label of that name, and only where it is a number."""

from dataclasses import replace

import torch

from tasks.methods import steps
from tests.methods import cases


def block_of(**labels: torch.Tensor) -> cases.Block:
    return replace(cases._block({"x": torch.zeros(4, 2)}, 4, False), labels=labels)


def test_steps_are_those_of_the_label_in_the_order_of_rows() -> None:
    block = block_of(step=torch.tensor([30.0, 10.0, 40.0, 20.0]).double())
    block = replace(block, index=torch.tensor([2, 0, 3, 1]))
    assert steps.of_rows(block).tolist() == [30, 10, 40, 20]
    assert steps.in_order(block).tolist() == [10, 20, 30, 40]


def test_rows_without_numbers_have_no_steps() -> None:
    for block in (block_of(), block_of(step=torch.arange(4)), block_of(loss=torch.ones(4).double())):
        assert steps.of_rows(block).isnan().all()
        assert len(steps.of_rows(block)) == 4
