"""geometry.factorisation: regressions by numpy, planted sums and interactions, confounded concepts, and combinations foretold."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stage
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import factorisation as method
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods.cases import Case
from tests.methods.cases import run as run_case


def run(
    x: Tensor,
    codes: dict[str, Tensor],
    sample: Tensor | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> tuple[method.Result, dict[str, np.ndarray]]:
    sample = torch.arange(len(x)) if sample is None else sample
    config = method.Config.model_validate(options)
    names = {name: tuple(f"{k:03d}" for k in range(int(code.max()) + 1)) for name, code in codes.items()}
    inputs = Inputs(
        widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1, categories=names
    )
    method.check(inputs, config)
    blocks = [
        Block(
            {"x": x[p]},
            sample[p],
            p,
            p,
            {n: c[p] for n, c in codes.items()},
            None if weight is None else weight[p],
        )
        for p in torch.arange(len(x)).tensor_split(3)
    ]
    answer = run_case(Case(method, config, inputs, blocks[0]), blocks)
    return answer.result, {name: values.numpy() for name, values in answer.arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def concepts(n: int, *sizes: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"c{k}": torch.randint(0, size, (n,), generator=generator) for k, size in enumerate(sizes)}


def value(found: Any) -> float:
    assert found is not None
    return float(found.value)


def design_of(codes: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([np.eye(int(c.max()) + 1)[c.numpy()] for c in codes.values()], 1)


def test_shares_are_those_of_regressions() -> None:
    """Row by row: on all columns, on a column for each combination, and again without each combination."""
    codes = concepts(300, 4, 3, 2)
    z = design_of(codes)
    x = drawn(300, 7) + torch.from_numpy(z) @ drawn(9, 7, 1) + 100
    weight = torch.rand(300, generator=torch.Generator().manual_seed(5)).double() + 0.2
    result, arrays = run(x, codes, weight=weight)
    w, y = weight.numpy(), x.numpy()
    ones = np.ones((300, 1))

    def left(columns: np.ndarray, rows: np.ndarray, at: np.ndarray) -> float:
        root = np.sqrt(w[rows])[:, None]
        beta = np.linalg.lstsq(root * columns[rows], root * y[rows], rcond=None)[0]
        return float((w[at, None] * (y[at] - columns[at] @ beta) ** 2).sum())

    everyone = np.ones(300, dtype=bool)
    cell = codes["c0"].numpy() * 6 + codes["c1"].numpy() * 2 + codes["c2"].numpy()
    cells = (cell[:, None] == np.unique(cell)).astype(float)
    additive, combined, total = (left(c, everyone, everyone) for c in (np.hstack([ones, z]), cells, ones))
    assert value(result.r2) == pytest.approx(1 - additive / total, rel=1e-9)
    assert value(result.r2_combinations) == pytest.approx(1 - combined / total, rel=1e-9)
    assert value(result.additive) == pytest.approx((total - additive) / (total - combined), rel=1e-9)
    unseen, base = 0.0, 0.0
    for k in np.unique(cell):
        here = cell == k
        inner = left(cells, everyone, here)
        unseen += left(np.hstack([ones, z]), ~here, here) - inner
        base += left(ones, ~here, here) - inner
    assert value(result.additive_unseen) == pytest.approx(1 - unseen / base, rel=1e-8)
    assert (result.n_combinations, result.n_unseen, result.confounded) == (24, 24, 0)
    assert result.additive_random == pytest.approx(6 / 23)
    centred = np.average(arrays["component"][:4], axis=0, weights=arrays["rows"][:4])
    np.testing.assert_allclose(centred, 0, atol=1e-10)


def test_planted_sum_of_orthogonal_components() -> None:
    codes = concepts(2000, 5, 4)
    basis = torch.linalg.qr(drawn(30, 5)).Q.T
    parts = drawn(5, 2, 1) @ basis[:2], drawn(4, 3, 2) @ basis[2:]
    x = parts[0][codes["c0"]] + parts[1][codes["c1"]] + 7.0
    for some in (parts[0], parts[1]):
        some -= some.mean(0)
    result, arrays = run(x, codes)
    assert value(result.additive) == pytest.approx(1, abs=1e-10)
    assert value(result.additive_unseen) == pytest.approx(1, abs=1e-10)
    assert value(result.r2) == pytest.approx(1, abs=1e-10)
    assert value(result.cosine) == pytest.approx(0, abs=1e-8)
    assert value(result.overlap) == pytest.approx(0, abs=1e-8)
    assert arrays["rank"].tolist() in ([2, 3], [2, 2])
    shift = parts[0].numpy() - arrays["component"][:5]
    np.testing.assert_allclose(shift - shift[0], 0, atol=1e-9)


def test_planted_interaction_is_not_foretold() -> None:
    """Every combination anywhere: additive by chance alone, and unseen ones are worse than the mean."""
    codes = concepts(4000, 6, 6)
    x = drawn(36, 40)[codes["c0"] * 6 + codes["c1"]]
    result, _ = run(x, codes)
    assert result.additive_random == pytest.approx(10 / 35)
    assert value(result.additive) == pytest.approx(10 / 35, abs=0.06)
    assert value(result.additive_unseen) < 0
    assert value(result.r2_combinations) == pytest.approx(1)


def test_components_that_have_nothing_to_do_with_each_other() -> None:
    """Random directions have the cosine that is told, and one direction has 1."""
    codes = concepts(3000, 12, 12)
    x = drawn(12, 20, 1)[codes["c0"]] + drawn(12, 20, 2)[codes["c1"]]
    result, _ = run(x, codes)
    assert value(result.cosine) == pytest.approx(result.cosine_random, rel=0.15)
    assert result.overlap_random is not None
    assert value(result.overlap) == pytest.approx(result.overlap_random, rel=0.2)
    line = torch.linspace(1, 2, 9).double()
    scale = torch.linspace(-1, 1, 12).double()[:, None]
    same, _ = run((scale * line)[codes["c0"]] + (scale * line)[codes["c1"]], codes)
    assert value(same.cosine) == pytest.approx(1)
    assert value(same.overlap) == pytest.approx(1)


def test_confounded_concepts_are_told() -> None:
    one = torch.arange(120) % 4
    result, arrays = run(drawn(120, 5) + one[:, None], {"a": one, "b": (one > 1).long()})
    assert result.confounded == 1
    assert result.n_unseen < 4
    assert "confounded" in " ".join(result.caveats)
    assert np.isfinite(arrays["component"]).all()
    assert value(result.additive) == pytest.approx(1)


def test_rows_without_a_value_and_single_combinations() -> None:
    codes = concepts(200, 3, 3)
    codes["c0"][:9] = -1
    result, _ = run(drawn(200, 4), codes)
    assert (result.n_unlabelled, result.n_rows) == (9, 191)
    with pytest.raises(MethodError, match="takes at least 2"):
        run(drawn(20, 4), {"a": torch.zeros(20).long(), "b": torch.zeros(20).long()}, concepts=("a", "b"))
    with pytest.raises(MethodError, match="has no values"):
        run(drawn(20, 4), codes, concepts=("colour",))
    with pytest.raises(MethodError, match="each once"):
        run(drawn(20, 4), codes, concepts=("c0", "c0"))
    flat, arrays = run(torch.full((200, 3), 4.5).double(), codes)
    assert flat.additive is None
    assert flat.cosine is None
    assert (arrays["rank"] == 0).all()


def test_intervals_cover_dependent_rows() -> None:
    part = drawn(4, 6, 1), drawn(3, 6, 2), 0.7 * drawn(12, 6, 3)
    every = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    means = part[0][every[:, 0]] + part[1][every[:, 1]] + part[2]
    centred = (means - means.mean(0)).numpy()
    z = np.hstack([np.ones((12, 1)), design_of({"a": every[:, 0], "b": every[:, 1]})])
    beta = np.linalg.lstsq(z, centred, rcond=None)[0]
    truth = 1 - ((centred - z @ beta) ** 2).sum() / (centred**2).sum()
    hits = []
    for seed in range(15):
        cell = torch.arange(240) % 12
        rows = means[cell] + 0.5 * drawn(240, 6, 100 + seed)
        sample = torch.arange(240).repeat_interleave(4)
        codes = {"a": every[cell, 0].repeat_interleave(4), "b": every[cell, 1].repeat_interleave(4)}
        found = run(rows.repeat_interleave(4, 0), codes, sample, groups=12)[0].additive
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) >= 0.8
    assert math.isfinite(truth)


def test_all_labels_of_few_values_are_concepts_through_the_engine(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root, sample = Location(str(tmp_path)), np.arange(600) // 2
    shape, colour = rng.integers(0, 3, 300), rng.integers(0, 4, 300)
    part = rng.standard_normal((3, 5)), rng.standard_normal((4, 5))
    values = (part[0][shape] + part[1][colour])[sample].astype(np.float32)
    labels = {
        "shape": [f"s{k}" for k in shape],
        "colour": [f"c{k}" for k in colour],
        "text": [f"text {k}" for k in range(300)],
        "size": np.arange(300) / 7,
    }
    reference = rows_ref(make_capture(root, {"a": values}, sample, labels, failed=(3,), shard_rows=64))
    made = run_stage(root, stage_of("geometry.factorisation", {"x": reference}), serial)
    assert made.result["concepts"] == ["colour", "shape"]
    assert (made.result["n_rows"], made.result["n_combinations"]) == (598, 12)
    assert made.result["additive"]["value"] == pytest.approx(1, abs=1e-9)
    arrays = artifact_arrays(root, made.id)
    rows = (
        np.bincount(np.unique([labels["colour"][k] for k in range(300) if k != 3], return_inverse=True)[1])
        * 2
    )
    assert sorted(arrays["rows"][arrays["concept"] == 0]) == sorted(rows)
