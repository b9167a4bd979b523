"""geometry.label_sharpness: against all pairs, planted clusters, and labels that are missing, constant or contradictory."""

from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import label_sharpness
from tests.methods.cases import Answer, Case, cut, run_rowwise


def run(x: np.ndarray, values: np.ndarray, edges: tuple[int, ...] = (), **options: Any) -> Answer:
    n, index = len(x), torch.arange(len(x))
    labels = {"kind": torch.from_numpy(values)}
    classes = values.dtype.kind == "i"
    names = tuple("abcdefghij"[: int(values.max()) + 1]) if classes else ()
    inputs = Inputs(
        widths={"x": x.shape[1]}, n_rows=n, n_samples=n, categories={"kind": names} if classes else {}
    )
    config = label_sharpness.Config.model_validate(options)
    label_sharpness.check(inputs, config)
    block = Block({"x": torch.from_numpy(x)}, index, index, index, labels=labels)
    return run_rowwise(Case(label_sharpness, config, inputs, block), cut(block, edges))


def all_pairs(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    distance = np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(-1))
    apart = np.abs(label[:, None] - label[None]) if label.dtype.kind == "f" else label[:, None] != label[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(apart > 0, apart / distance, 0.0)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
@pytest.mark.parametrize("edges", [(), (31, 90)])
def test_it_is_the_maximum_over_all_pairs(kind: str, edges: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((140, 8)).astype(np.float32)
    label = rng.integers(0, 4, 140) if kind == "classes" else rng.standard_normal(140) * 5
    found, slopes = run(x, label, edges), all_pairs(x, label)
    np.testing.assert_allclose(found.arrays["sharpness"], slopes.max(1), rtol=1e-12)
    np.testing.assert_array_equal(found.arrays["partner"], slopes.argmax(1))
    row = int(slopes.max(1).argmax())
    assert found.result.sharpness == pytest.approx(slopes.max(), rel=1e-12)
    assert (found.result.row, found.result.partner) == (row, int(slopes[row].argmax()))
    assert found.result.distance == pytest.approx(
        np.linalg.norm(x[row].astype(float) - x[slopes[row].argmax()])
    )
    assert found.result.median.value == pytest.approx(np.median(slopes.max(1)), rel=1e-12)
    assert found.result.median.low < found.result.median.value < found.result.median.high
    assert found.result.over_median == pytest.approx(slopes.max() / np.median(slopes.max(1)), rel=1e-12)
    np.testing.assert_allclose(
        found.arrays["quantile"], np.quantile(slopes.max(1), label_sharpness.SHARES), rtol=1e-12
    )


def test_two_clusters_at_a_distance() -> None:
    """Two points of many rows each, 4 apart: K = 1/4, everywhere."""
    x = np.zeros((60, 3), dtype=np.float32)
    label = (np.arange(60) % 2).astype(np.int64)
    x[label == 1, 1] = 4
    found = run(x, label)
    assert found.result.sharpness == 0.25
    assert (found.result.row, found.result.partner, found.result.classes) == (0, 1, 2)
    assert (found.arrays["distance"] == 4).all()
    assert found.result.over_median == 1


def test_more_than_two_classes_count_alike() -> None:
    """Codes are names: classes 0 and 2 are no further apart than 0 and 1."""
    x = np.array([[0.0], [1.0], [3.0]], dtype=np.float32)
    assert run(x, np.array([0, 2, 1])).result.sharpness == 1
    assert run(x, np.array([0.0, 2.0, 1.0])).result.sharpness == 2


def test_a_linear_label_is_as_sharp_as_its_slope() -> None:
    x = np.random.default_rng(0).standard_normal((200, 4))
    x[1] = x[0] + [0.01, 0, 0, 0]
    found = run(x.astype(np.float32), x.astype(np.float32)[:, 0].astype(np.float64) * 3)
    assert found.result.sharpness == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_missing_labels_are_left_out(kind: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((80, 5)).astype(np.float32)
    label = rng.integers(0, 3, 80) if kind == "classes" else rng.standard_normal(80)
    lost = np.arange(80) % 7 == 0
    label[lost] = -1 if kind == "classes" else np.nan
    found = run(x, label, (13, 14))
    assert (found.result.n_rows, found.result.n_missing) == (80 - lost.sum(), lost.sum())
    assert found.arrays["sharpness"][lost].isnan().all()
    assert (found.arrays["partner"][lost] == -1).all()
    slopes = all_pairs(x[~lost], label[~lost])
    np.testing.assert_allclose(found.arrays["sharpness"][~lost], slopes.max(1), rtol=1e-12)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_contradictions_are_counted(kind: str) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((50, 3)).astype(np.float32)
    x[10] = x[20]
    label = np.arange(50) % 2
    label[20] = 1 - label[10]
    label = label if kind == "classes" else label.astype(np.float64)
    found, slopes = run(x, label, (25,)), all_pairs(x, label)
    assert found.result.n_contradictions == 2
    assert found.result.sharpness == pytest.approx(np.sort(slopes.max(1))[-3], rel=1e-12)
    assert any("2 rows equal one that differs" in note for note in found.result.caveats)


def test_one_class_and_a_constant_number() -> None:
    x = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    with pytest.raises(MethodError, match="1 class, sharpness compares at least 2"):
        run(x, np.zeros(20, dtype=np.int64))
    lonely = np.ones(20, dtype=np.int64)
    for label in (np.ones(20), lonely):
        found = run(x, label)
        assert found.result.n_alone == 20
        assert (found.result.sharpness, found.result.row, found.result.median) == (None, None, None)
        assert any("no two rows differ" in note for note in found.result.caveats)


def test_a_class_with_one_row() -> None:
    x = np.random.default_rng(5).standard_normal((30, 3)).astype(np.float32)
    label = np.zeros(30, dtype=np.int64)
    label[17] = 1
    found = run(x, label, (10,))
    assert 17 in (found.result.row, found.result.partner)
    assert set(found.arrays["partner"].tolist()) - {17} == {int(found.arrays["partner"][17])}


def test_a_label_that_is_not_there() -> None:
    x = np.zeros((4, 2), dtype=np.float32)
    with pytest.raises(MethodError, match="'other' is not among the samples' labels, which are: kind"):
        run(x, np.array([0, 1, 0, 1]), label="other")
