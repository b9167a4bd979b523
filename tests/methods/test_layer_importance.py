"""Cosines of the two sides of a layer: planted ones, and those of torch."""

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.gradients import layer_importance
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.training import randn


def importance(x: Tensor, y: Tensor, edges: tuple[int, ...] = ()) -> Answer:
    inputs = Inputs(widths={"x": x.shape[1], "y": y.shape[1]}, n_rows=len(x), n_samples=len(x))
    layer_importance.check(inputs, layer_importance.Config())
    index = torch.arange(len(x))
    block = Block({"x": x, "y": y}, index, torch.zeros_like(index), index)
    return cases.run(
        Case(layer_importance, layer_importance.Config(), inputs, block), cases.cut(block, edges)
    )


def test_the_identity_and_its_opposite() -> None:
    x = randn(50, 12)
    assert importance(x, 3 * x).result.cosine == pytest.approx(1)
    assert importance(x, -x).result.cosine == pytest.approx(-1)


def test_cosines_are_those_of_torch() -> None:
    x, y = randn(301, 20), randn(301, 20, seed=1)
    cosine = torch.nn.functional.cosine_similarity(x, y).numpy()
    for edges in ((), (1, 150, 150)):
        answer = importance(x, y, edges)
        assert answer.result.cosine == pytest.approx(cosine.mean(), abs=1e-12)
        assert answer.result.cosine_std == pytest.approx(cosine.std(ddof=1))
        assert float(answer.arrays["cosine_histogram"].sum()) == 301
    assert cosine.std() == pytest.approx(answer.result.cosine_null_std, rel=0.1)


def test_zeros_and_widths() -> None:
    x = torch.cat([torch.zeros(2, 3), torch.ones(1, 3)]).double()
    assert importance(x, torch.ones(3, 3).double()).result.zero_rows == 2
    with pytest.raises(MethodError, match="one width"):
        importance(x, torch.ones(3, 4).double())
