"""anomaly.combined: p-values of several detectors through the engine, merged beside a loop, and calibrated once more."""

import math
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


def capture(root: Location, seed: int, n: int, strange: int = 0):  # type: ignore[no-untyped-def]
    """Rows of which the last lie off in a direction that normal rows do not know, or far out in one that they do."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, 6)) * [5, 3, 1, 0.3, 0.2, 0.1]
    kind = np.arange(n) >= n - strange
    half = np.arange(n) >= n - strange // 2
    rows[kind & ~half, 5] += 1.5
    rows[kind & half, 0] += 40
    labels = {"kind": ["strange" if k else "plain" for k in kind]}
    return make_capture(root, {SITE: rows}, None, labels, failed=(3,), name=str(seed), shard_rows=32)


class Detectors:
    """Stages of two detectors over some captures, calibrated by one of them."""

    def __init__(self, root: Location) -> None:
        self.root = root
        self.normal, self.known, self.second = (capture(root, seed, 300) for seed in (1, 2, 3))
        self.judged = capture(root, 4, 200, strange=40)
        x = {"x": rows_ref(self.normal, SITE)}
        self.basis, self.reference = stage_of("spectrum.pca", x), stage_of("anomaly.reference", x)
        self.stages = [self.basis, self.reference]

    def scores(self, spec, detector: str) -> ResolvedStage:  # type: ignore[no-untyped-def]
        port = {"residual": {"basis": self.basis.id}, "mahalanobis": {"reference": self.reference.id}}
        options = {"components": 3} if detector == "residual" else {}
        made = stage_of(f"anomaly.{detector}", {"x": rows_ref(spec, SITE)}, port[detector], **options)
        self.stages.append(made)
        return made

    def calibrated(self, spec, detector: str) -> ResolvedStage:  # type: ignore[no-untyped-def]
        ids = {
            "scores": self.scores(spec, detector).id,
            "calibration": self.scores(self.known, detector).id,
        }
        made = stage_of("anomaly.calibrated", {"x": rows_ref(spec, SITE)}, ids)
        self.stages.append(made)
        return made

    def combined(self, spec, *members: ResolvedStage, **options: object) -> ResolvedStage:  # type: ignore[no-untyped-def]
        given = members or tuple(self.calibrated(spec, name) for name in ("residual", "mahalanobis"))
        made = stage_of(
            "anomaly.combined", {"x": rows_ref(spec, SITE)}, {}, {"p_values": list(given)}, **options
        )
        self.stages.append(made)
        return made

    def run(self) -> dict[str, dict[str, object]]:
        unique = {stage.id: stage for stage in self.stages}
        return {
            name: made.result for name, made in run_stages(self.root, list(unique.values()), serial).items()
        }


def test_p_values_are_merged_as_a_loop_does(tmp_path: Path) -> None:
    given = Detectors(Location(str(tmp_path)))
    members = [given.calibrated(given.judged, name) for name in ("residual", "mahalanobis")]
    rules = {
        rule: given.combined(given.judged, *members, rule=rule)
        for rule in ("least", "harmonic", "geometric", "mean")
    }
    results = given.run()
    p = np.stack([artifact_arrays(given.root, member.id)["p_value"] for member in members], 1)
    means = {
        "least": 2 * p.min(1),
        "harmonic": 2 * 2 / (1 / p).sum(1),
        "geometric": math.e * np.sqrt(p.prod(1)),
        "mean": p.sum(1),
    }
    for rule, stage in rules.items():
        found, result = artifact_arrays(given.root, stage.id), results[stage.id]
        np.testing.assert_allclose(found["p_value"], np.minimum(1, means[rule]), rtol=1e-13)
        np.testing.assert_allclose(found["score"], -np.log(means[rule]), rtol=1e-12, atol=1e-12)
        assert found["first"].tolist() == (~np.isnan(p[:, 0])).astype(int).tolist()
        assert result["detectors"] == ["anomaly.residual", "anomaly.mahalanobis"]
        assert result["n_rows"] == 199
        assert result["flagged"] == pytest.approx((found["p_value"] <= 0.05).sum() / 199)


def test_calibrated_again_the_merged_score_finds_what_either_finds(tmp_path: Path) -> None:
    given = Detectors(Location(str(tmp_path)))
    ready = {spec.id: given.combined(spec) for spec in (given.second, given.judged)}
    rows = {"x": rows_ref(given.judged, SITE)}
    ids = {"scores": ready[given.judged.id].id, "calibration": ready[given.second.id].id}
    last = stage_of("anomaly.calibrated", rows, ids, alpha=0.05)
    given.stages.append(last)
    result = given.run()[last.id]
    flagged = artifact_arrays(given.root, last.id)["flagged"].astype(bool)
    assert (result["of"], result["n_calibration"]) == ("row", 299)
    assert flagged[160:180].mean() > 0.9  # off the subspace
    assert flagged[180:].mean() > 0.9  # far out inside it, where the residual is blind
    residual = artifact_arrays(given.root, given.calibrated(given.judged, "residual").id)["flagged"]
    assert residual[180:].mean() < 0.5
    assert flagged[:160].mean() < 0.12


def test_rows_with_samples_and_other_rows_are_refused(tmp_path: Path) -> None:
    given = Detectors(Location(str(tmp_path)))
    one, other = given.calibrated(given.judged, "residual"), given.calibrated(given.second, "mahalanobis")
    given.combined(given.judged, one, other)
    with pytest.raises(MethodError, match=r"was made over .* expected the same captures"):
        given.run()


def test_one_detector_of_two_references_is_two(tmp_path: Path) -> None:
    given = Detectors(Location(str(tmp_path)))
    one = given.calibrated(given.judged, "residual")
    given.basis = stage_of("spectrum.pca", {"x": rows_ref(given.second, SITE)})
    given.stages.append(given.basis)
    combined = given.combined(given.judged, one, given.calibrated(given.judged, "residual"))
    assert not given.run()[combined.id]["caveats"]


def test_the_least_p_value_is_told_where_calibrations_differ(tmp_path: Path) -> None:
    """Of 1 / 300 and 1 / 20 the mean, twice, is 0.0533."""
    given = Detectors(Location(str(tmp_path)))
    many = given.calibrated(given.judged, "residual")
    given.known = capture(given.root, 5, 20)
    combined = given.combined(given.judged, many, given.calibrated(given.judged, "mahalanobis"), rule="mean")
    (caveat,) = given.run()[combined.id]["caveats"]  # type: ignore[misc]
    assert "least p-value that can come out is 0.0533" in str(caveat)


def test_a_detector_that_is_there_twice_is_told(tmp_path: Path) -> None:
    given = Detectors(Location(str(tmp_path)))
    scores, known = given.scores(given.judged, "residual"), given.scores(given.known, "residual")
    rows, ids = {"x": rows_ref(given.judged, SITE)}, {"scores": scores.id, "calibration": known.id}
    members = [stage_of("anomaly.calibrated", rows, ids, alpha=alpha) for alpha in (0.05, 0.1)]
    given.stages += members
    combined = given.combined(given.judged, *members)
    assert any("more than once" in str(caveat) for caveat in given.run()[combined.id]["caveats"])  # type: ignore[attr-defined]
