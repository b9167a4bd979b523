"""Subspaces of clusters: against decompositions of each cluster's rows, and new rows by them."""

from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.contract import Inputs, load_method
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.expressed import block_of, expressed, parted, pieces_of
from tests.methods.test_k_subspaces import union


def based(x: np.ndarray, clusters: Answer, pieces: int = 3, **options: Any) -> Answer:
    module = load_method("clustering.bases")
    config = module.Config(**options)
    inputs = Inputs(
        widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), artifacts={"clusters": clusters.arrays}
    )
    module.check(inputs, config)
    return cases.run(Case(module, config, inputs, block_of(x)), pieces_of(block_of(x), pieces))


def assigned(x: np.ndarray, bases: Answer) -> Answer:
    module = load_method("clustering.assign")
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        artifacts={"subspaces": bases.arrays},
        results={"subspaces": bases.result.model_dump(mode="json")},
    )
    return cases.run(Case(module, module.Config(), inputs, block_of(x)))


def given(cluster: np.ndarray, row: np.ndarray | None = None) -> Answer:
    """Clusters as another method would give them."""
    rows = np.arange(len(cluster)) if row is None else row
    arrays = {"cluster": cluster, "row": rows, "size": np.bincount(cluster)}
    return Answer(None, {name: torch.from_numpy(values) for name, values in arrays.items()}, {})


@pytest.mark.parametrize("kind", ["affine", "linear"])
def test_leading_directions_of_each_cluster(kind: str) -> None:
    x, of = union(0, 3, 4, 20, 50, noise=0.3, offset=50.0)
    answer = based(x, given(of), dimension=4, kind=kind)
    left = 0.0
    for k in range(3):
        rows = x[of == k]
        point = rows.mean(0) if kind == "affine" else np.zeros(20)
        s, v = np.linalg.svd(rows - point, full_matrices=False)[1:]
        np.testing.assert_allclose(answer.arrays["mean"][k], point, atol=1e-9)
        found = answer.arrays["basis"][k].numpy()
        np.testing.assert_allclose(found.T @ found, v[:4].T @ v[:4], atol=1e-8)
        np.testing.assert_allclose(answer.arrays["eigenvalue"][k], s**2 / 50, atol=1e-8 * s[0] ** 2)
        left += (s[4:] ** 2).sum()
    centre = x.mean(0) if kind == "affine" else 0
    assert answer.result.residual_share == pytest.approx(left / ((x - centre) ** 2).sum(), rel=1e-6)
    np.testing.assert_array_equal(answer.arrays["cluster"], of)


def test_dimensions_that_stand_out_of_noise() -> None:
    parts = [union(k, 1, d, 30, 300, noise=0.1)[0] for k, d in enumerate((2, 5, 9))]
    answer = based(np.concatenate(parts), given(np.repeat(np.arange(3), 300)), kind="linear")
    assert answer.arrays["dimension"].tolist() == [2, 5, 9]
    assert [int((b.norm(dim=1) > 0.5).sum()) for b in answer.arrays["basis"]] == [2, 5, 9]


def test_half_of_the_rows_label_the_other_half() -> None:
    """Clusters of a graph label rows that it has not seen."""
    x, of = union(1, 5, 3, 30, 120, noise=0.02)
    clusters = parted(expressed("ssc_omp", x[:300], entries=3), of[:300], clusters=5)
    assert clusters.result.accuracy == 1
    found = assigned(x[300:], based(x[:300], clusters, kind="linear")).arrays["cluster"].numpy()
    names = [np.bincount(of[:300][clusters.arrays["cluster"].numpy() == k]).argmax() for k in range(5)]
    assert (np.array(names)[found] == of[300:]).mean() >= 0.99


def test_rows_that_were_not_clustered_are_left_out() -> None:
    x, of = union(2, 2, 2, 10, 40)
    answer = based(x, given(of[::2], np.arange(len(x))[::2]), dimension=2)
    assert (answer.result.n_rows, answer.result.left_out) == (40, 40)
    assert (answer.arrays["cluster"][1::2] == -1).all()
    np.testing.assert_array_equal(answer.arrays["cluster"][::2], of[::2])


def test_refusals() -> None:
    x, of = union(0, 2, 2, 8, 20)
    with pytest.raises(MethodError, match="8 dimensions hold all rows of 8 features"):
        based(x, given(of), dimension=8)
    with pytest.raises(MethodError, match="clusters are of other rows"):
        based(x, given(of, np.arange(len(x)) + 1000))


def test_directions_that_rows_do_not_go_along_are_zeros() -> None:
    """Any others would do as well, and would take from the residuals of other rows."""
    x = np.outer(np.random.default_rng(0).standard_normal(40), [3.0, 4, 0, 0, 0])
    x[20:] = np.random.default_rng(1).standard_normal((20, 5))
    answer = based(x, given(np.repeat([0, 1], 20)), dimension=3, kind="linear")
    length = answer.arrays["basis"].norm(dim=2)
    np.testing.assert_allclose(length, [[1, 0, 0], [1, 1, 1]], atol=1e-12)
