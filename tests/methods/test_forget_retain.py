"""What unlearning does to what is retained, on planted parts."""

import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.gradients import forget_retain
from tests.methods.training import labelled, randn


def test_planted_parts() -> None:
    frame = torch.linalg.qr(randn(50, 8)).Q
    retain = randn(60, 4) @ frame[:, :4].T
    forget = 0.6 * frame[:, 0] + 0.8 * frame[:, 7] + torch.zeros(20, 50).double()
    result = labelled(forget_retain, {"retain": retain, "forget": forget}, energy=1.0).result
    assert result.dimension == 4
    assert result.tangential == pytest.approx(0.36)
    assert result.retain_change_normal == pytest.approx(0, abs=1e-12)
    assert result.forget_change_normal == pytest.approx(0.8)
    assert result.tangential_null == 0.08


def test_the_change_of_the_retain_loss_is_that_of_a_step() -> None:
    retain, forget = randn(30, 12), randn(30, 12, seed=1)
    result = labelled(forget_retain, {"a": forget, "b": retain}).result
    step = forget.mean(0) / forget.mean(0).norm()
    assert result.retain_change == pytest.approx(float(retain.mean(0) @ step))


def test_random_gradients() -> None:
    result = labelled(forget_retain, {"a": randn(200, 300), "b": randn(100, 300, seed=1)}, energy=0.5).result
    assert result.tangential == pytest.approx(result.tangential_null, abs=0.01)


def test_bad_classes() -> None:
    groups = {"a": randn(3, 4), "b": randn(3, 4)}
    with pytest.raises(MethodError, match="no class 'c'; nearest: a, b"):
        labelled(forget_retain, groups, forget="c")
    with pytest.raises(MethodError, match="same class"):
        labelled(forget_retain, groups, forget="b")
