"""anomaly.map_quality: a planted block, figures beside scikit-learn, and grids that are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.anomaly import map_quality
from tasks.methods.contract import Block, Inputs
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods.cases import Answer, Case, run_whole


def run(
    score: np.ndarray,
    mask: np.ndarray,
    leading: int = 0,
    order: np.ndarray | None = None,
    first: np.ndarray | None = None,
    **options: Any,
) -> Answer:
    """Of maps [image, row, column], with places before them."""
    n, places = len(score), score[0].size + leading
    sample, position = (torch.from_numpy(v.ravel()) for v in np.indices((n, places)))
    flat = np.concatenate([np.full((n, leading), 99.0), score.reshape(n, -1)], 1).ravel()
    marked = np.concatenate([np.zeros((n, leading)), mask.reshape(n, -1)], 1).ravel()
    order = np.arange(len(flat)) if order is None else order
    rows = {"x": torch.empty(len(order), 3), "mask": torch.from_numpy(marked[order, None].astype(np.float32))}
    scores = {"score": torch.from_numpy(flat[order])}
    if first is not None:
        scores["first"] = torch.from_numpy(first.ravel()[order])
    block = Block(
        rows,
        sample[order],
        position[order],
        torch.arange(len(order)),
        aligned={"scores": scores},
    )
    inputs = Inputs({"x": 3, "mask": 1}, n_rows=len(flat), n_samples=n)
    config = map_quality.Config.model_validate({"leading": leading} | options)
    map_quality.check(inputs, config)
    return run_whole(Case(map_quality, config, inputs, block), [block])


def planted(n: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """48 x 48 tokens of noise with a block of 3 x 3 that is strange, in half of the images."""
    rng = np.random.default_rng(seed)
    tokens, mask = rng.standard_normal((n, 48, 48, 64)), np.zeros((n, 48, 48), dtype=bool)
    for k in range(0, n, 2):
        r, c = rng.integers(0, 46, 2)
        mask[k, r : r + 3, c : c + 3] = True
    tokens[mask] *= 2
    return (tokens**2).sum(-1), mask


def test_a_block_of_strange_tokens_is_found() -> None:
    score, mask = planted()
    found = run(score, mask).result
    assert found.top_inside == 1
    assert found.aupro >= 0.9
    assert found.image_auroc == 1
    assert (found.n_images, found.n_strange_images, found.n_regions, found.n_strange) == (4, 2, 2, 18)
    assert (found.height, found.width) == (48, 48)
    assert "2 images with strange places" in found.caveats[0]


def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((40, 5, 7)) < 0.05
    score = np.round(8 * (rng.standard_normal(mask.shape) + mask)) / 8  # which sums hold exactly
    found = run(score, mask, height=5, width=7, top=1.0)
    assert found.result.auroc == pytest.approx(metrics.roc_auc_score(mask.ravel(), score.ravel()), abs=1e-12)
    precision = metrics.average_precision_score(mask.ravel(), score.ravel())
    assert found.result.average_precision == pytest.approx(precision, abs=1e-12)
    images = metrics.roc_auc_score(mask.any((1, 2)), score.mean((1, 2)))
    assert found.result.image_auroc == pytest.approx(images, abs=1e-12)
    np.testing.assert_allclose(found.arrays["image_score"], score.mean((1, 2)), rtol=1e-12)
    assert found.arrays["sample"].tolist() == list(range(40))
    assert int(found.arrays["regions"].sum()) == found.result.n_regions
    assert found.result.caveats == ()


def test_class_tokens_are_left_out_and_the_order_of_rows_is_nothing() -> None:
    score, mask = planted(2)
    plain = run(score, mask).result
    order = np.random.default_rng(2).permutation(2 * 2305)
    assert run(score, mask, leading=1, order=order).result == plain


def test_all_images_may_have_strange_places() -> None:
    score, mask = planted(2)
    assert run(score[:1], mask[:1]).result.image_auroc is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"height": 3}, "give both, or neither"),
        ({"above": 1.0}, "found 0 strange and 32 normal places"),
        ({"above": -1.0}, "found 32 strange and 0 normal"),
        ({"height": 4, "width": 5}, "expected 4 x 5 places of each"),
        ({"height": 2, "width": 4}, "expected 2 x 4 places of each"),
    ],
)
def test_refusals(options: dict[str, Any], told: str) -> None:
    mask = np.eye(4)[None].repeat(2, 0)
    with pytest.raises(MethodError, match=told):
        run(np.zeros((2, 4, 4)), mask, **options)


def test_places_that_make_no_square_are_told_with_the_cure() -> None:
    mask = np.ones((2, 1, 17))
    with pytest.raises(
        MethodError, match="17 places of a sample make no square; set `leading: 1` if the first"
    ):
        run(np.zeros((2, 1, 17)), mask)
    with pytest.raises(MethodError, match="15 places of a sample make no square; set `height` and `width`"):
        run(np.zeros((2, 1, 15)), mask[..., :15])
    with pytest.raises(MethodError, match="found 0 rows"):
        run(np.zeros((2, 1, 16)), mask[..., :16], order=np.zeros(0, dtype=np.int64))
    with pytest.raises(MethodError, match="2 samples have 31 rows"):
        run(np.zeros((2, 4, 4)), mask[..., :16], order=np.arange(31))
    with pytest.raises(MethodError, match="row 5 has the score NaN"):
        run(np.where(np.arange(16.0).reshape(1, 4, 4) == 5, np.nan, 0), mask[:1, :, :16])


def test_scores_of_samples_are_refused() -> None:
    score, first = np.full((2, 4, 4), np.nan), np.zeros((2, 4, 4))
    score[:, 0, 0] = first[:, 0, 0] = 1
    with pytest.raises(MethodError, match="one for each, found places without one"):
        run(score, np.eye(4)[None].repeat(2, 0), first=first)


def test_masks_come_from_another_capture_of_the_same_samples(tmp_path: Path) -> None:
    """In another order, and without the one that failed."""
    root, rng = Location(str(tmp_path)), np.random.default_rng(4)
    mask = rng.random((6, 3, 3)) < 0.2
    rows = rng.standard_normal((6, 9, 4)) + 3 * mask.reshape(6, 9, 1)
    sample, keys = np.repeat(np.arange(6), 9), [f"image-{n}" for n in range(6)]
    specs = [
        make_capture(
            root,
            {name: values.reshape(54, -1)},
            sample,
            keys=names,
            failed=failed,
            space="grid3x3",
            name=name,
        )
        for name, values, names, failed in (
            ("layer", rows, keys, (2,)),
            ("mask", mask[::-1].astype(float), keys[::-1], ()),
            ("normal", rng.standard_normal((6, 9, 4)), [f"other-{n}" for n in range(6)], ()),
        )
    ]
    basis = stage_of("spectrum.pca", {"x": rows_ref(specs[2])})
    scores = stage_of("anomaly.residual", {"x": rows_ref(specs[0])}, {"basis": basis.id}, components=0)
    ports = {"x": rows_ref(specs[0]), "mask": rows_ref(specs[1])}
    last = stage_of("anomaly.map_quality", ports, {"scores": scores.id})
    found = run_stages(root, [basis, scores, last], serial)[last.id].result
    good = [n for n in range(6) if n != 2]
    score = artifact_arrays(root, scores.id)["score"].reshape(6, -1)[good]
    assert found["n_images"] == 5
    assert found["n_strange"] == mask[good].sum()
    assert found["auroc"] == pytest.approx(
        metrics.roc_auc_score(mask[good].ravel(), score.ravel()), abs=1e-12
    )
