"""The direction between classes inside and outside of principal directions: beside plain NumPy, planted outside, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from schemas.errors import MethodError
from tasks.methods.anomaly import direction, reference
from tasks.methods.contract import Block, Inputs
from tests.methods.detectors import Fitted, scores

WIDTH, STRONG = 16, 4


def rows(
    seed: int, n: int, apart: float = 0.6, moved: float = 0.0, width: int = WIDTH
) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ along a weak direction, and by `moved` along a strong one."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(9).standard_normal((width, width)))[0]
    code = np.arange(n) % 2
    x = rng.standard_normal((n, width)) * np.where(np.arange(width) < STRONG, 5.0, 0.2)
    x[:, -1] += apart * code
    x[:, 0] += moved * code
    return x @ turn + 3, code


def told(fitted: Fitted, **options: Any) -> direction.Result:
    """The result over no rows."""
    inputs = Inputs(
        {"x": fitted.width},
        0,
        0,
        artifacts={"reference": fitted.arrays},
        results={"reference": fitted.result},
    )
    config = direction.Config.model_validate(options)
    direction.check(inputs, config)
    none = torch.zeros(0, dtype=torch.int64)
    block, carry = (
        Block({"x": torch.zeros(0, fitted.width)}, none, none, none),
        direction.start(inputs, config),
    )
    state = direction.partial(block, direction.apply(block, carry, config), carry, config)
    return direction.finish(state, carry, inputs, config)[0]


@pytest.mark.parametrize("shrinkage", ["none", "oracle"])
@pytest.mark.parametrize("components", [1, 4, 9])
def test_parts_are_plain_projections(shrinkage: str, components: int) -> None:
    x, code = rows(0, 400, moved=3.0)
    fitted = Fitted(reference, x, code, label="class", shrinkage=shrinkage)
    means = np.stack([x[code == c].mean(0) for c in (0, 1)])
    ends, middle = means[1] - means[0], means.mean(0)
    inside = np.cov((x - means[code]).T, bias=True)
    vectors = np.linalg.eigh(inside)[1][:, ::-1][:, :components]
    principal = vectors @ vectors.T @ ends
    new, _ = rows(1, 50)
    for within, part in (("principal", principal), ("residual", ends - principal), ("all", ends)):
        options = {"within": within, "components": components}
        expected = 2 * (new - middle) @ part / (part @ part)
        np.testing.assert_allclose(
            scores(direction, "reference", fitted, new, **options), expected, rtol=1e-7, atol=1e-7
        )
        at_ends = scores(direction, "reference", fitted, means, **options)
        np.testing.assert_allclose(at_ends, [-1, 1], atol=1e-8)
        result = told(fitted, **options)
        assert result.components == components
        assert result.principal_distance == pytest.approx((principal @ principal) / (ends @ ends))
        if shrinkage == "none":
            whole = ends @ np.linalg.solve(inside, ends)
            assert result.separation == pytest.approx(whole**0.5)
            share = principal @ np.linalg.solve(inside, principal) / whole
            assert result.principal_separation == pytest.approx(share)


def test_a_concept_outside_the_principal_directions() -> None:
    """Chance moves the means of the strong directions by more than the concept does: the residual part alone finds it."""
    x, code = rows(2, 120)
    fitted = Fitted(reference, x, code, label="class", shrinkage="none")
    new, kind = rows(3, 400)
    found = {
        within: roc_auc_score(kind, scores(direction, "reference", fitted, new, within=within))
        for within in ("all", "principal", "residual")
    }
    assert found["residual"] > 0.95
    assert found["all"] < 0.7
    assert found["principal"] < 0.7
    result = told(fitted)
    assert result.components == STRONG
    assert result.principal_distance > 0.5 > 0.1 > result.principal_separation  # type: ignore[operator]
    energies = [told(fitted, energy=energy).components for energy in (0.1, 0.5, 0.9, 0.999)]
    assert energies == sorted(energies)
    assert energies[0] == 1


def test_what_is_refused() -> None:
    x, code = rows(0, 400)
    fitted = Fitted(reference, x, code, label="class")
    with pytest.raises(MethodError, match="vary along 16 directions, asked for 20"):
        told(fitted, components=20)
    with pytest.raises(MethodError, match=r"same mean in the residual part of 16 principal directions"):
        told(fitted, components=16, within="residual")
    flat = Fitted(reference, *rows(0, 400), label="class")
    flat.result = flat.result | {"intensity": 1.0}
    with pytest.raises(MethodError, match="shrunk to the same variance"):
        told(flat, within="principal")
    plain = told(flat)
    assert (plain.principal_distance, plain.principal_separation) == (None, None)
    still = Fitted(reference, np.repeat(np.eye(2), 5, 0), np.arange(2).repeat(5), label="class")
    assert told(still).principal_distance == 0
    with pytest.raises(MethodError, match="same mean in the principal part of 0"):
        told(still, within="principal")


def test_fewer_rows_than_features() -> None:
    x, code = rows(0, 14)
    fitted = Fitted(reference, x, code, label="class", shrinkage="none")
    assert fitted.result["rank"] == 12
    result = told(fitted, energy=0.999999)
    assert result.components <= 12
    new = scores(direction, "reference", fitted, rows(1, 20)[0], within="residual")
    assert np.isfinite(new).all()
