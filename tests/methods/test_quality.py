"""Quality of clusters without labels: against loops over rows and clusters, and where clusters are right, wrong and random."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.contract import Inputs, load_method
from tasks.numerics.k_subspaces import Subspaces
from tasks.numerics.silhouettes import silhouettes
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.expressed import block_of, pieces_of
from tests.methods.test_bases import based, given
from tests.methods.test_k_subspaces import union


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


def measured(x: np.ndarray, subspaces: Answer, pieces: int = 3, **options: Any) -> Answer:
    module = load_method("clustering.quality")
    config = module.Config(**options)
    rows = {name: subspaces.arrays[name] for name in ("cluster",) if name in subspaces.arrays}
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        artifacts={"subspaces": {k: v for k, v in subspaces.arrays.items() if k not in rows}},
        results={"subspaces": subspaces.result.model_dump(mode="json")},
    )
    module.check(inputs, config)
    block = replace(block_of(x), aligned={"subspaces": rows})
    return cases.run(Case(module, config, inputs, block), pieces_of(block, pieces))


def by_hand(x: np.ndarray, bases: Answer, of: np.ndarray) -> np.ndarray:
    """Silhouettes, a row and a cluster at a time."""
    found = []
    for row, own in zip(x, of, strict=True):
        apart = []
        for mean, basis in zip(bases.arrays["mean"].numpy(), bases.arrays["basis"].numpy(), strict=True):
            z = row - mean
            apart.append(np.linalg.norm(z - basis.T @ (basis @ z)))
        a, b = apart[own], min(v for k, v in enumerate(apart) if k != own)
        found.append((b - a) / max(a, b))
    return np.array(found)


def rate_by_hand(x: np.ndarray, distortion: float) -> float:
    """Half the log of the determinant of the Gram matrix of rows of length 1."""
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    n, d = z.shape
    return float(np.linalg.slogdet(np.eye(n) + d / (n * distortion**2) * z @ z.T)[1]) / 2


@pytest.mark.parametrize("kind", ["affine", "linear"])
def test_silhouettes_and_rates_are_those_of_a_loop(kind: str) -> None:
    x, of = union(0, 3, 4, 20, 50, noise=0.3, offset=5.0)
    of[::7] = (of[::7] + 1) % 3
    bases = based(x, given(of), dimension=3, kind=kind)
    answer = measured(x, bases, distortion=0.4, examples=5)
    silhouette = by_hand(x, bases, of)
    np.testing.assert_allclose(answer.arrays["silhouette"], silhouette, atol=1e-6)
    assert answer.result.silhouette == pytest.approx(silhouette.mean(), abs=1e-6)
    assert answer.result.misplaced == pytest.approx((silhouette < 0).mean())
    rates = [rate_by_hand(x[of == k], 0.4) for k in range(3)]
    np.testing.assert_allclose(answer.arrays["cluster_rate"], rates, rtol=1e-9)
    assert answer.result.rate == pytest.approx(rate_by_hand(x, 0.4), rel=1e-9)
    gain = rate_by_hand(x, 0.4) - np.bincount(of) @ rates / len(x)
    assert answer.result.rate_gain == pytest.approx(max(0, gain), rel=1e-7)
    for k in range(3):
        rows = np.flatnonzero(of == k)
        assert answer.arrays["example"][k].tolist() == rows[np.argsort(-silhouette[rows])][:5].tolist()
        assert answer.arrays["doubtful"][k].tolist() == rows[np.argsort(silhouette[rows])][:5].tolist()


def test_right_clusters_beat_random_ones() -> None:
    x, of = union(1, 4, 3, 24, 100, noise=0.05)
    right = measured(x, based(x, given(of), dimension=3, kind="linear"))
    assert right.result.silhouette > 0.7
    assert right.result.misplaced == 0
    assert right.result.rate_gain > 3 * right.result.rate_gain_random
    dealt = np.random.default_rng(0).permutation(of)
    wrong = measured(x, based(x, given(dealt), dimension=3, kind="linear"))
    assert wrong.result.silhouette < 0.1
    assert wrong.result.rate_gain == pytest.approx(
        wrong.result.rate_gain_random, rel=0.2
    )  # a law of many features; here 24


@pytest.mark.parametrize("seed", range(3))
def test_random_clusters_are_said_to_be_so(seed: int) -> None:
    """Also where directions differ in strength, for which the law is less exact; right clusters are not."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((600, 48)) * 0.9 ** np.arange(48)
    dealt = measured(x, based(x, given(rng.integers(0, 4, 600)), dimension=2, kind="linear")).result
    assert any("random clusters" in note for note in dealt.caveats)
    x, of = union(seed, 4, 3, 24, 100, noise=0.05)
    right = measured(x, based(x, given(of), dimension=3, kind="linear")).result
    assert not any("random clusters" in note for note in right.caveats)


def test_too_many_and_too_few_clusters_are_worse() -> None:
    """The silhouette is largest at the number of clusters that was planted."""
    x, of = union(2, 4, 2, 24, 100, noise=0.1)
    halves = of * 2 + np.random.default_rng(0).integers(0, 2, len(of))
    mean = {
        name: measured(x, based(x, given(labels), dimension=2, kind="linear")).result.silhouette
        for name, labels in (("merged", of // 2), ("right", of), ("split", halves))
    }
    assert mean["right"] > mean["merged"]
    assert mean["right"] > mean["split"] + 0.3


def test_rows_of_k_subspaces_belong_to_the_nearest() -> None:
    x, _ = union(3, 3, 2, 12, 60, noise=0.05)
    module = load_method("clustering.k_subspaces")
    inputs = Inputs(widths={"x": 12}, n_rows=len(x), n_samples=len(x))
    found = cases.run(Case(module, module.Config(clusters=3, dimension=2), inputs, block_of(x)))
    answer = measured(x, found)
    assert answer.result.misplaced == 0
    assert answer.arrays["clustered"].tolist() == found.arrays["size"].tolist()


def test_stages_measure_k_subspaces_and_bases(root: Location) -> None:
    """One gives rows nothing, the other their clusters."""
    x, of = union(3, 3, 2, 12, 60, noise=0.05)
    spec = make_capture(root, {"a": x}, labels={"kind": [f"kind {k}" for k in of]})
    ready = stage_of("clustering.preparation", {"x": rows_ref(spec)}, center=False)
    near = stage_of("clustering.tsc", {"x": rows_ref(spec)}, {"preparation": ready.id})
    parts = stage_of("clustering.partition", {"x": rows_ref(spec)}, {"graph": near.id}, clusters=3)
    bases = stage_of("clustering.bases", {"x": rows_ref(spec)}, {"clusters": parts.id}, dimension=2)
    nearest = stage_of("clustering.k_subspaces", {"x": rows_ref(spec)}, clusters=3, dimension=2)
    measures = [
        stage_of("clustering.quality", {"x": rows_ref(spec)}, {"subspaces": made.id})
        for made in (nearest, bases)
    ]
    found = run_stages(root, [ready, near, parts, bases, nearest, *measures], serial)
    for stage in measures:
        assert found[stage.id].result["clusters"] == 3
        assert found[stage.id].result["silhouette"] > 0.7
    again = make_capture(root, {"a": x}, name="again")
    other = stage_of("clustering.quality", {"x": rows_ref(again)}, {"subspaces": nearest.id})
    with pytest.raises(MethodError, match="expected the same captures"):
        run_stages(root, [other], serial)


def test_rows_without_a_cluster_are_left_out() -> None:
    x, of = union(4, 2, 2, 12, 40)
    keep = np.flatnonzero(np.arange(len(x)) % 3 > 0)
    answer = measured(x, based(x, given(of[keep], keep), dimension=2))
    assert answer.result.left_out == len(x) - len(keep)
    out = np.setdiff1d(np.arange(len(x)), keep)
    assert bool(answer.arrays["silhouette"][out].isnan().all())
    assert set(answer.arrays["cluster"][out].tolist()) == {-1}


def test_zeros_and_duplicates_are_no_trouble() -> None:
    x = np.vstack([np.zeros((3, 4)), np.repeat(np.eye(4)[:2], 10, axis=0)])
    of = np.r_[0, 0, 1, np.repeat([0, 1], 10)]
    answer = measured(x, based(x, given(of), dimension=1, kind="linear"), examples=20)
    assert bool(answer.arrays["silhouette"].isfinite().all())
    assert answer.arrays["silhouette"][:3].tolist() == [0, 0, 0]
    assert answer.arrays["example"][0].tolist() == [*range(3, 13), 0, 1, *[-1] * 8]


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rows_in_two_subspaces_are_in_neither_more(offset: float) -> None:
    """Also where an offset rounds their distances to more than nothing."""
    rng, q = np.random.default_rng(2), np.linalg.qr(np.random.default_rng(3).standard_normal((12, 12)))[0]
    parts = [rng.standard_normal((40, 3)) @ q[some] for some in ([0, 1, 2], [0, 3, 4])]
    x = np.concatenate([*parts, rng.standard_normal((20, 1)) * q[0]]) + offset
    mean = torch.full((2, 12), offset, dtype=torch.float64)
    basis = torch.from_numpy(np.stack([q[[0, 1, 2]], q[[0, 3, 4]]]))
    own = torch.from_numpy(np.repeat([0, 1, 0], [40, 40, 20]))
    for given_own in (own, None):
        found = silhouettes(torch.from_numpy(x), Subspaces(mean, basis), given_own)
        assert found.silhouette[80:].tolist() == [0] * 20
        assert bool((found.silhouette[:80] == 1).all())


def test_few_rows_for_their_directions_are_said() -> None:
    x, of = union(5, 2, 4, 12, 10)
    answer = measured(x, based(x, given(of), dimension=4))
    assert "rows for each direction" in answer.result.caveats[0]


def test_what_is_refused() -> None:
    x, of = union(6, 2, 2, 12, 20)
    bases = based(x, given(of), dimension=2)
    with pytest.raises(MethodError, match="NaN or infinity"):
        measured(np.where(np.arange(12) == 3, np.nan, x), bases)
    with pytest.raises(MethodError, match="one subspace"):
        measured(x, based(x, given(np.zeros_like(of)), dimension=2))
    other = dict(bases.arrays, cluster=torch.full_like(bases.arrays["cluster"], -1))
    with pytest.raises(MethodError, match="clusters are of other rows"):
        measured(x, bases._replace(arrays=other))
