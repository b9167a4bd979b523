"""geometry.euclidicity: two spheres that touch, a plane, crossing lines, and rows that cannot form a ring."""

from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import euclidicity

ONE_RING: dict[str, Any] = {"inner": (0.1,), "outer": (0.3,), "references": 1, "landmarks": 24}


def run(x: np.ndarray, **options: Any) -> tuple[euclidicity.Result, dict[str, np.ndarray]]:
    config, index = euclidicity.Config.model_validate(options), torch.arange(len(x))
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    euclidicity.check(inputs, config)
    result, arrays = euclidicity.solve(Block({"x": torch.from_numpy(x)}, index, index, index), inputs, config)
    return result, {name: array.values.numpy() for name, array in arrays.items()}


def test_two_spheres_that_touch_peak_where_they_do() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((800, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[:400] += [1.0, 0, 0]
    x[400:] -= [1.0, 0, 0]
    result, arrays = run(x, **ONE_RING | {"inner": (0.05,), "outer": (0.2,), "landmarks": 36}, points=80)
    away, value = np.linalg.norm(x, axis=1)[arrays["row"]], arrays["euclidicity"]
    near, far = away < 0.6, away > 1.2
    assert result.dimension == 2
    assert near.sum() >= 4
    assert value[near].mean() > 1.6 * value[far].mean()
    assert (value[near] > result.level).mean() > 0.7
    assert (value[far] > result.level).mean() < 0.3


def test_lines_that_cross_peak_where_they_do() -> None:
    """Two parts lie around a row of a line, four around the crossing."""
    t = np.linspace(-1, 1, 101)
    x = np.concatenate([np.stack([t, 0 * t], axis=1), np.stack([0 * t, t], axis=1)[t != 0]])
    x += 1e-4 * np.random.default_rng(0).standard_normal(x.shape)
    result, arrays = run(x, **ONE_RING, points=100)
    middle, value = np.abs(x).max(1)[arrays["row"]], arrays["euclidicity"]
    assert result.dimension == 1
    assert value[middle < 0.05].mean() > 3 * value[(middle > 0.45) & (middle < 0.6)].mean()
    assert (value[middle < 0.05] > result.level).all()


@pytest.mark.parametrize("reference", ["sampled", "model"])
def test_a_plane_lies_flat(reference: str) -> None:
    """Inside, where no ring reaches the border."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((7, 2)))[0]
    flat = rng.random((500, 2)) * 2 - 1
    options = ONE_RING | {"inner": (0.03,), "outer": (0.12,), "reference": reference}
    result, arrays = run(flat @ basis.T, **options, points=100)
    inside = np.abs(flat[arrays["row"]]).max(1) < 0.6
    value, level = arrays["euclidicity"][inside], result.level
    assert result.dimension == 2
    assert inside.sum() > 20
    assert (value > level).mean() < 0.2
    assert value.mean() == pytest.approx(arrays["flat"].mean(), rel=0.2)
    np.testing.assert_allclose(np.median(arrays["local_dimension"]), 2, atol=0.3)


def test_a_torus_has_no_edge_and_a_square_has_one() -> None:
    """Both are flat: about the nominal share of one lies above the level, and of the other its edge."""
    rng, options = np.random.default_rng(0), ONE_RING | {"inner": (0.03,), "outer": (0.12,), "points": 100}
    angle = rng.random((600, 2)) * 2 * np.pi
    torus, _ = run(np.concatenate([np.cos(angle), np.sin(angle)], axis=1), **options)
    assert torus.dimension == 2
    assert torus.share_above < 0.14  # four standard deviations above 0.05
    flat = rng.random((600, 2))
    square, arrays = run(flat, **options)
    edge = np.abs(flat[arrays["row"]] - 0.5).max(1) > 0.45
    above = arrays["euclidicity"] > square.level
    assert above[edge].mean() > 3 * above[~edge].mean()
    assert square.share_above > torus.share_above
    assert any("reach an edge" in note for note in square.caveats)


def test_scale_offset_and_turning_do_not_matter() -> None:
    x = np.random.default_rng(2).standard_normal((90, 3))
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    one, other = run(x, points=3)[1], run(x @ turn * 50 + 7, points=3)[1]
    np.testing.assert_allclose(one["euclidicity"], other["euclidicity"], rtol=1e-6)
    np.testing.assert_allclose(one["flat"], other["flat"], rtol=1e-6)


def test_equal_rows_count_once_and_two_runs_are_equal() -> None:
    x = np.random.default_rng(2).standard_normal((60, 2))
    result, arrays = run(np.concatenate([x, x[:9]]), points=5)
    alone, expected = run(x, points=5)
    assert (result.n_duplicates, result.n_rows, alone.n_duplicates) == (9, 69, 0)
    np.testing.assert_allclose(arrays["euclidicity"], expected["euclidicity"], rtol=1e-9)
    assert run(x, points=5)[0] == alone
    assert alone.euclidicity is not None
    assert alone.euclidicity.low is not None
    assert run(x, points=5, seed=1)[0] != alone


def test_what_cannot_be_measured_is_refused() -> None:
    x = np.random.default_rng(2).standard_normal((60, 2))
    with pytest.raises(MethodError, match="found 40 distinct rows; these rings need 60"):
        run(x[:40])
    with pytest.raises(MethodError, match="found 30 distinct rows"):
        run(np.repeat(x[:30], 2, axis=0))
    for rings in ({"inner": (0.0,)}, {"inner": (0.3,)}, {"outer": (1.0,)}):
        with pytest.raises(MethodError, match="rings go from"):
            run(x, **rings)
