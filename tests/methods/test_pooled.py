"""anomaly.pooled: one score of each sample, through the engine, over captures with failed samples, and calibrated."""

from pathlib import Path

import numpy as np
import pytest

from schemas.errors import MethodError
from schemas.stage import ResolvedStage
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of

SITE = "layer"
SIZES = (3, 5, 1, 4, 6)


def capture(root: Location, seed: int, spot: bool = False, repeats: int = 6):  # type: ignore[no-untyped-def]
    """Samples of several rows; the second failed. With `spot`, one row of every third sample is strange."""
    sizes = SIZES * repeats
    sample = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.random.default_rng(seed).standard_normal((len(sample), 6)) * [5, 3, 1, 0.3, 0.2, 0.1]
    if spot:
        rows[np.searchsorted(sample, np.arange(0, len(sizes), 3)), 5] += 3
    labels = {"kind": ["strange" if k % 3 == 0 else "plain" for k in range(len(sizes))]}
    return make_capture(root, {SITE: rows}, sample, labels, failed=(1,), name=str(seed), shard_rows=32)


def pooled_of(spec, basis: ResolvedStage, **options: object) -> list[ResolvedStage]:  # type: ignore[no-untyped-def]
    rows = {"x": rows_ref(spec, SITE)}
    scores = stage_of("anomaly.residual", rows, {"basis": basis.id}, components=3)
    return [scores, stage_of("anomaly.pooled", rows, {"scores": scores.id}, **options)]


@pytest.mark.parametrize("by", ["mean", "largest", "top"])
def test_scores_of_samples_are_those_of_a_loop(tmp_path: Path, by: str) -> None:
    root = Location(str(tmp_path))
    spec = capture(root, 1)
    basis = stage_of("spectrum.pca", {"x": rows_ref(spec, SITE)})
    scores, pooled = pooled_of(spec, basis, by=by, share=0.5)
    made = run_stages(root, [basis, scores, pooled], serial)[pooled.id]
    given, found = artifact_arrays(root, scores.id)["score"], artifact_arrays(root, pooled.id)
    sizes, start = SIZES * 6, 0
    for k, size in enumerate(sizes):
        own, score, first = (a[start : start + size] for a in (given, found["score"], found["first"]))
        kept = {"mean": size, "largest": 1, "top": -(-size // 2)}[by]
        assert first.tolist() == [int(k != 1 and n == 0) for n in range(size)]
        assert np.isnan(score[1:]).all()
        if k == 1:
            assert np.isnan(score).all()
        else:
            np.testing.assert_allclose(score[0], np.sort(own)[::-1][:kept].mean(), rtol=1e-12)
        start += size
    assert made.result["n_rows"] == len(sizes) - 1
    assert made.result["n_pooled"] == sum(sizes) - 5


def test_p_values_are_of_samples_and_quality_counts_them(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    normal, known, judged = capture(root, 1), capture(root, 2), capture(root, 3, spot=True)
    basis = stage_of("spectrum.pca", {"x": rows_ref(normal, SITE)})
    calibration, scores = (pooled_of(spec, basis, by="largest") for spec in (known, judged))
    rows = {"x": rows_ref(judged, SITE)}
    ready = stage_of("anomaly.calibrated", rows, {"scores": scores[-1].id, "calibration": calibration[-1].id})
    quality = stage_of("anomaly.quality", rows, {"scores": scores[-1].id}, anomalous=("strange",))
    made = run_stages(root, [basis, *calibration, *scores, ready, quality], serial)
    result, told = made[ready.id].result, made[quality.id].result
    n = len(SIZES) * 6 - 1
    assert (result["of"], result["n_rows"], result["n_calibration"]) == ("sample", n, n)
    assert not any("alike" in caveat for caveat in result["caveats"] + told["caveats"])
    arrays = artifact_arrays(root, ready.id)
    theirs = artifact_arrays(root, calibration[-1].id)["score"]
    theirs = theirs[~np.isnan(theirs)]
    score = artifact_arrays(root, scores[-1].id)["score"]
    wanted = [np.nan if np.isnan(s) else (1 + (theirs >= s).sum()) / (n + 1) for s in score]
    np.testing.assert_array_equal(arrays["p_value"], wanted)
    assert (told["n_rows"], told["n_anomalous"], told["n_unlabelled"]) == (n, 10, 0)
    assert told["auroc"]["value"] > 0.95


def test_pooled_scores_and_other_rows_are_refused(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    spec, other = capture(root, 1), capture(root, 2)
    basis = stage_of("spectrum.pca", {"x": rows_ref(spec, SITE)})
    scores, pooled = pooled_of(spec, basis)
    again = stage_of("anomaly.pooled", {"x": rows_ref(spec, SITE)}, {"scores": pooled.id})
    with pytest.raises(MethodError, match="the scores are of samples already"):
        run_stages(root, [basis, scores, pooled, again], serial)
    elsewhere = stage_of("anomaly.pooled", {"x": rows_ref(other, SITE)}, {"scores": scores.id})
    with pytest.raises(MethodError, match=r"was made over .* expected the same captures"):
        run_stages(root, [elsewhere], serial)
