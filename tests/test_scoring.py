"""New rows by finished detectors: the bits of their stages, in a process of its own, without captures, and what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.artifact import Artifact
from schemas.capture import CaptureSpec
from schemas.errors import MethodError, UnknownNameError
from schemas.model import FactoryModel
from schemas.stage import ResolvedStage
from subspan import open_artifact
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.anomaly import calibrated
from tasks.methods.anomaly_scores import SCORES
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of

TOP = Path(__file__).resolve().parent.parent
SITE, WIDTH = "last:in:0", 12
NETWORK = FactoryModel(factory="tests.factories:squares", arguments={"width": WIDTH // 2})
WHOLE = {"components": WIDTH}
DETECTORS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "anomaly.residual": ("basis", "spectrum.pca", WHOLE, {"energy": 0.9}),
    "anomaly.mahalanobis": ("reference", "anomaly.reference", {"label": "kind"}, {"relative": True}),
    "anomaly.vim": ("normal", "anomaly.head_subspace", {}, {}),
    "anomaly.neighbours": ("normal", "anomaly.normal_rows", {}, {"k": 5}),
    "anomaly.last_gradient": ("basis", "spectrum.pca", WHOLE | {"center": False}, {}),
    "anomaly.neco": ("normal", "anomaly.standard_components", {}, {"components": 4}),
    "anomaly.spikes": ("basis", "spectrum.pca", WHOLE, {}),
    "anomaly.direction": ("reference", "anomaly.reference", {"label": "kind"}, {"towards": "x"}),
}
"""Detector -> its port, what makes the artifact there, with its options, and the detector's options."""
OF_THE_NETWORK = ("anomaly.last_gradient", "anomaly.neco")


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


def rows_of(seed: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: np.ndarray = (rng.standard_normal((n, WIDTH)) * np.geomspace(3, 0.05, WIDTH)).astype(np.float32)
    return rows


def capture(root: Location, seed: int, n: int) -> CaptureSpec:
    labels = {"kind": list("xy" * (n // 2))}
    return make_capture(root, {SITE: rows_of(seed, n)}, labels=labels, name=str(seed), model=NETWORK)


class Made:
    """A detector over two captures of which one calibrates the other."""

    def __init__(self, root: Location, method: str, **calibrated: Any) -> None:
        normal, known, judged = (rows_ref(capture(root, seed, n)) for seed, n in ((0, 90), (1, 60), (2, 50)))
        port, maker, options, own = DETECTORS[method]
        fit = stage_of(maker, {"x": normal}, **options)
        self.judged, self.known = (stage_of(method, {"x": x}, {port: fit.id}, **own) for x in (judged, known))
        given = {"scores": self.judged.id, "calibration": self.known.id}
        self.calibrated = stage_of("anomaly.calibrated", {"x": judged}, given, **calibrated)
        self.made = run_stages(root, [fit, self.judged, self.known, self.calibrated], serial)
        self.fit, self.root = fit, root

    def arrays(self, stage: ResolvedStage) -> dict[str, np.ndarray]:
        return artifact_arrays(self.root, stage.id)


@pytest.mark.parametrize("method", DETECTORS)
def test_new_rows_get_the_bits_of_the_stage(root: Location, method: str) -> None:
    """All at once, one by one, as float64 and as tensors; alone and with the calibration's p-values."""
    made = Made(root, method, alpha=0.2)
    rows, expected = rows_of(2, 50), made.arrays(made.judged)
    view = open_artifact(root.url, made.judged.id)
    for given in (rows, rows.astype(np.float64), torch.from_numpy(rows).requires_grad_()):
        found = view.score(given, trust_code=True)
        assert found["score"].dtype == np.float64
        assert found.sizes == {"row": 50}
        assert all(np.array_equal(found[name], expected[name]) for name in found)
    single = [view.score(row[None], trust_code=True)["score"].item() for row in rows]
    assert np.array_equal(single, expected["score"])
    judged = open_artifact(root.url, made.calibrated.id).score(rows, trust_code=True)
    told = made.arrays(made.calibrated)
    for name in ("p_value", "flagged"):
        assert np.array_equal(judged[name], told[name])
    assert np.array_equal(judged["score"], expected["score"])


@pytest.mark.parametrize("method", sorted(set(DETECTORS) - set(OF_THE_NETWORK)))
def test_captures_need_not_be_there(root: Location, method: str) -> None:
    made = Made(root, method)
    root.delete("captures", recursive=True)
    found = open_artifact(root.url, made.judged.id).score(rows_of(2, 50))
    assert np.array_equal(found["score"], made.arrays(made.judged)["score"])


def test_every_detector_is_here() -> None:
    assert set(DETECTORS) <= set(SCORES)


FRESH = """
import sys
import numpy as np
import subspan
root, rows, out, *ids = sys.argv[1:]
x, found = np.load(rows), {}
for name in ids:
    scored = subspan.open_artifact(root, name).score(x)
    found |= {f"{name}-{key}": values for key, values in scored.items()}
np.savez(out, **found)
"""


def test_a_fresh_process_gives_the_same_bits(root: Location, tmp_path: Path) -> None:
    new = rows_of(3, 77)
    np.save(tmp_path / "rows.npy", new)
    every = [Made(root, name) for name in ("anomaly.residual", "anomaly.mahalanobis", "anomaly.neighbours")]
    ids = [stage.id for made in every for stage in (made.judged, made.calibrated)]
    given = [root.url, tmp_path / "rows.npy", tmp_path / "out.npz", *ids]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *map(str, given)], cwd=TOP, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    there = np.load(tmp_path / "out.npz")
    for name in ids:
        for key, values in open_artifact(root.url, name).score(new).items():
            assert there[f"{name}-{key}"].tobytes() == values.values.tobytes()
    for made in every:
        known = made.arrays(made.known)["score"]
        p = [(1 + (known >= s).sum()) / (len(known) + 1) for s in there[f"{made.judged.id}-score"]]
        np.testing.assert_array_equal(there[f"{made.calibrated.id}-p_value"], p)


def test_the_artifact_says_what_it_is(root: Location) -> None:
    """Method, version, options, where from and to, dtypes, counts: what a p-value depends on."""
    made = Made(root, "anomaly.mahalanobis")
    artifact: Artifact = open_artifact(root.url, made.calibrated.id).artifact
    stage, result = artifact.stage, artifact.result
    assert (stage.method, stage.version) == ("anomaly.calibrated", calibrated.VERSION)
    assert {"alpha", "q", "procedure", "by_class"} <= stage.config.keys()
    assert {port: ref.artifact for port, ref in stage.artifacts.items()} == {
        "scores": made.judged.id,
        "calibration": made.known.id,
    }
    assert stage.rows["x"][0].site == SITE
    assert (result["detector"], result["n_rows"], result["n_calibration"]) == ("anomaly.mahalanobis", 50, 60)
    assert (artifact.arrays["p_value"].dtype, artifact.arrays["flagged"].dtype) == ("float64", "uint8")
    scores = open_artifact(root.url, made.judged.id).artifact
    assert scores.stage.artifacts["reference"].artifact == made.fit.id
    assert scores.stage.config == {"relative": True}
    assert (scores.arrays["score"].dtype, scores.result["n_rows"]) == ("float64", 50)
    normal = open_artifact(root.url, made.fit.id).artifact
    assert normal.rows_used == normal.result["n_rows"] == 90
    assert {"shrinkage", "intensity", "rank"} <= normal.result.keys()
    assert normal.stage.rows["x"][0].capture != stage.rows["x"][0].capture


@pytest.mark.parametrize("method", ["anomaly.residual", "anomaly.mahalanobis", "anomaly.neighbours"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float16"])
def test_whole_numbers_whose_squares_overflow(root: Location, method: str, dtype: str) -> None:
    """Captured, and given to `score`: what their float64 casts get; the residual beside NumPy."""
    scale = {"uint8": 20, "int16": 3000, "int64": 3000, "float16": 1}[dtype]
    normal, new = (
        (rows_of(seed, 60) * scale).clip(0 if dtype == "uint8" else None, None).astype(dtype)
        for seed in (0, 1)
    )
    port, maker, options, own = DETECTORS[method]
    ref = rows_ref(make_capture(root, {SITE: normal}, labels={"kind": list("xy" * 30)}, model=NETWORK))
    fit = stage_of(maker, {"x": ref}, **options)
    of = stage_of(method, {"x": ref}, {port: fit.id}, **own)
    view = open_artifact(root.url, run_stages(root, [fit, of], serial)[of.id].id)
    assert np.array_equal(view.score(normal, trust_code=True)["score"], view.arrays["score"])
    found = view.score(new, trust_code=True)["score"].values
    assert np.array_equal(found, view.score(new.astype(np.float64), trust_code=True)["score"])
    assert np.isfinite(found).all()
    if method == "anomaly.residual":
        off = normal.astype(np.float64) - normal.astype(np.float64).mean(0)
        v = np.linalg.svd(off)[2][: view.result["components"]]
        off = new.astype(np.float64) - normal.astype(np.float64).mean(0)
        np.testing.assert_allclose(found, np.square(off - off @ v.T @ v).sum(1), rtol=1e-4)


def test_rows_of_other_kinds(root: Location) -> None:
    """Other orders of bytes, longer floats and sparse tensors are read; what is no real number is refused."""
    view, rows = open_artifact(root.url, Made(root, "anomaly.mahalanobis").judged.id), rows_of(2, 50)
    expected = view.score(rows)["score"]
    for given in (rows.astype(">f4"), rows.astype(np.longdouble), torch.from_numpy(rows).to_sparse()):
        assert np.array_equal(view.score(given)["score"], expected)
    for wrong in (rows.astype(str), None, rows.astype(object)):
        with pytest.raises(MethodError, match="found rows of dtype"):
            view.score(wrong)
    for complex_rows in (rows + 1j, torch.from_numpy(rows + 1j)):
        with pytest.raises(MethodError, match="found complex rows"):
            view.score(complex_rows)


def test_classes_of_new_rows(root: Location) -> None:
    made = Made(root, "anomaly.residual", by_class="kind")
    view, rows = open_artifact(root.url, made.calibrated.id), rows_of(2, 50)
    found = view.score(rows, classes=list("xy" * 25))
    assert np.array_equal(found["p_value"], made.arrays(made.calibrated)["p_value"])
    assert view.score(rows[:1], classes=["x"])["p_value"].values >= 1 / 31
    with pytest.raises(UnknownNameError, match=r"no class 'z'; expected one of .*x"):
        view.score(rows[:1], classes=["z"])
    for classes, n in ((None, 0), (["x"], 1)):
        with pytest.raises(MethodError, match=f"a threshold for each class, found {n} classes of 50 rows"):
            view.score(rows, classes=classes)


def test_refusals(root: Location) -> None:
    made = Made(root, "anomaly.residual")
    view, rows = open_artifact(root.url, made.judged.id), rows_of(2, 50)
    with pytest.raises(MethodError, match=r"rows of 12 features, found 5: give rows of its site, last:in:0"):
        view.score(rows[:, :5])
    with pytest.raises(MethodError, match=r"shape \(12,\); write `rows\[None\]`"):
        view.score(rows[0])
    rows[7, 3] = np.nan
    with pytest.raises(MethodError, match=r"finite|NaN"):
        view.score(rows)
    with pytest.raises(
        MethodError, match=r"artifacts of spectrum\.pca give new rows no score; those of anomaly"
    ):
        open_artifact(root.url, made.fit.id).score(rows)
    assert view.score(np.empty((0, WIDTH), np.float32)).sizes == {"row": 0}
    assert (open_artifact(root.url, made.calibrated.id).score(np.empty((0, WIDTH)))["p_value"]).size == 0
