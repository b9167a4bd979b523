"""How artifacts were made: what calibrated scores see of it, over captures with failed rows, in codes and names that differ."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.artifact import Artifact
from schemas.capture import CaptureSpec
from schemas.errors import MethodError
from schemas.model import FactoryModel
from schemas.stage import ResolvedStage
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.engine.made import common_samples, how_made, reference_captures
from tasks.store.artifacts import artifact_arrays, read_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of

SITE = "a"


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


def capture(root: Location, seed: int, n: int, names: tuple[str, ...] = ("x", "y")) -> CaptureSpec:
    """One row per sample; sample 3 failed."""
    rows = np.random.default_rng(seed).standard_normal((n, 6)) * [5, 3, 1, 0.3, 0.2, 0.1]
    labels = {"kind": [names[k % len(names)] for k in range(n)]}
    return make_capture(root, {SITE: rows, "b": rows[:, ::-1]}, None, labels, failed=(3,), name=str(seed))


def scored(specs: list[CaptureSpec], basis: ResolvedStage, site: str = SITE, **options: Any) -> ResolvedStage:
    rows = {"x": [rows_ref(spec, site) for spec in specs]}
    return stage_of("anomaly.residual", rows, {"basis": basis.id}, **{"components": 3} | options)


def calibrated(
    specs: list[CaptureSpec], scores: ResolvedStage, calibration: ResolvedStage, **options: Any
) -> ResolvedStage:
    rows = {"x": [rows_ref(spec, SITE) for spec in specs]}
    return stage_of(
        "anomaly.calibrated", rows, {"scores": scores.id, "calibration": calibration.id}, **options
    )


def basis_of(spec: CaptureSpec, **options: Any) -> ResolvedStage:
    return stage_of("spectrum.pca", {"x": rows_ref(spec, SITE)}, **options)


def ran(root: Location, *stages: ResolvedStage) -> Artifact:
    return run_stages(root, list(stages), serial)[stages[-1].id]


@pytest.mark.parametrize("several", [False, True])
def test_scores_are_calibrated_by_those_of_other_captures(root: Location, several: bool) -> None:
    normal, first, second, third = (
        capture(root, seed, n) for seed, n in ((1, 40), (2, 30), (3, 25), (4, 20))
    )
    judged, known = ([third, normal], [first, second]) if several else ([third], [first])
    basis = basis_of(normal)
    scores, calibration = scored(judged, basis), scored(known, basis)
    found = ran(root, basis, scores, calibration, calibrated(judged, scores, calibration))

    def of(stage: str, specs: list[CaptureSpec], name: str) -> np.ndarray:
        arrays = artifact_arrays(root, stage)
        return np.concatenate([arrays[f"{spec.id}/{name}" if len(specs) > 1 else name] for spec in specs])

    known_scores = of(calibration.id, known, "score")
    known_scores = known_scores[~np.isnan(known_scores)]
    assert found.result["n_calibration"] == len(known_scores) == sum((29, 24)[: len(known)])
    p = [
        np.nan if np.isnan(s) else (1 + (known_scores >= s).sum()) / (len(known_scores) + 1)
        for s in of(scores.id, judged, "score")
    ]
    np.testing.assert_array_equal(of(found.id, judged, "p_value"), p)
    np.testing.assert_array_equal(of(found.id, judged, "flagged"), np.array(p) <= 0.05)


def test_classes_go_by_their_names(root: Location) -> None:
    normal, known = capture(root, 1, 40), capture(root, 2, 60, ("y", "z", "x"))
    judged, basis = capture(root, 3, 30, ("x", "y")), basis_of(normal)
    scores, calibration = scored([judged], basis), scored([known], basis)
    found = ran(root, basis, scores, calibration, calibrated([judged], scores, calibration, by_class="kind"))
    score, p = artifact_arrays(root, scores.id)["score"], artifact_arrays(root, found.id)["p_value"]
    of_known = artifact_arrays(root, calibration.id)["score"]
    for k, place in ((0, 2), (1, 0)):
        cal = of_known[place::3]
        cal = cal[~np.isnan(cal)]
        rows = [r for r in range(k, 30, 2) if r != 3]
        np.testing.assert_array_equal(p[rows], [(1 + (cal >= s).sum()) / (len(cal) + 1) for s in score[rows]])
    lacking, others = capture(root, 4, 30, ("x", "w")), scored([capture(root, 4, 30, ("x", "w"))], basis)
    with pytest.raises(MethodError, match="no calibration row has the class 'w'"):
        ran(root, others, calibrated([lacking], others, calibration, by_class="kind"))


def test_shared_samples_and_those_of_the_reference_are_counted(root: Location) -> None:
    """All captures are of one source of data, in its order."""
    normal, known, judged = capture(root, 1, 40), capture(root, 2, 60), capture(root, 3, 25)
    basis = basis_of(normal)
    scores, calibration = scored([judged], basis), scored([known], basis)
    found = ran(root, basis, scores, calibration, calibrated([judged], scores, calibration))
    shared, reference = found.result["caveats"][-2:]
    assert shared.startswith("25 of the calibration's samples are among those")
    assert "was made from 40 of the calibration's samples" in reference
    assert common_samples(root, [known.id], [judged.id, normal.id]) == 40
    assert common_samples(root, [known.id], []) == 0


def test_what_came_with_the_rows_is_told_by_how_it_was_made(root: Location) -> None:
    spec, other = capture(root, 1, 40), capture(root, 2, 30)

    def stages(of: CaptureSpec) -> list[ResolvedStage]:
        near = stage_of("geometry.neighbours", {"x": rows_ref(of, SITE)}, k=5)
        return [
            near,
            stage_of("geometry.local_dimension", {"x": rows_ref(of, SITE)}, {"neighbours": near.id}),
        ]

    made = [how_made(root, ran(root, *stages(of))) for of in (spec, other)]
    assert made[0].reads == made[1].reads
    assert made[0].captures == (spec.id,)
    assert made[0].site == rows_ref(spec, SITE).site
    last = read_artifact(root, stages(spec)[-1].id)
    assert reference_captures(root, last) == set()
    basis = basis_of(spec)
    assert reference_captures(root, ran(root, basis, scored([other], basis))) == {spec.id}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"components": 2}, "option 'components': 3 and 2"),
        ({"basis": {"components": 4}}, "port 'basis'"),
        ({"site": "b"}, "site: a:out:0 and b:out:0"),
    ],
)
def test_other_scores_are_refused(root: Location, change: dict[str, Any], match: str) -> None:
    normal, known, judged = capture(root, 1, 40), capture(root, 2, 60), capture(root, 3, 25)
    basis = basis_of(normal)
    other = basis_of(normal, **change.pop("basis", {}))
    scores, calibration = scored([judged], basis), scored([known], other, **change)
    with pytest.raises(MethodError, match=match):
        ran(root, basis, other, scores, calibration, calibrated([judged], scores, calibration))


def test_energy_in_shared_neurons_is_calibrated(root: Location) -> None:
    """The score of neurons, which one capture located, has p-values by rows of another that knows nothing by heart."""
    layer = FactoryModel(
        factory="tests.factories:with_parameters", arguments={"shapes": {"layer.weight": [3, 6]}}
    )

    def rows_with(known: int, seed: int, n: int) -> CaptureSpec:
        rows, kinds = np.random.default_rng(seed).standard_normal((n, 6)), np.arange(n) % 2 * known
        rows[kinds > 0, :2] += 6
        labels = {"kind": [("plain", "by heart")[kind] for kind in kinds]}
        return make_capture(root, {SITE: rows}, None, labels, name=str(seed), model=layer)

    memorised, judged, held_out = rows_with(1, 5, 60), rows_with(1, 6, 40), rows_with(0, 7, 99)
    options = {"weight": "layer.weight", "ordinary": ["plain"]}
    located = stage_of("anomaly.shared_neurons", {"x": rows_ref(memorised, SITE)}, **options)
    scores, calibration = (
        stage_of("anomaly.concept_energy", {"x": rows_ref(spec, SITE)}, {"basis": located.id})
        for spec in (judged, held_out)
    )
    found = ran(root, located, scores, calibration, calibrated([judged], scores, calibration))
    assert found.result["detector"] == "anomaly.concept_energy"
    p = artifact_arrays(root, found.id)["p_value"]
    assert p[1::2].max() <= 0.05
    assert 0.3 < p[::2].mean() < 0.7
    assert artifact_arrays(root, located.id)["located"].tolist() == [1, 1, 0, 0, 0, 0]
