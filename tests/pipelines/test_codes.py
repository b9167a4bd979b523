"""Stages that read what codes stand for in the place of rows: numbers are those of decoded rows, whatever the cut; what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.serial import run_serial
from schemas.errors import MethodError, SpecError, SubspanError, UnknownNameError
from schemas.run import RunSpec
from schemas.stage import RowsRef
from subspan import list_artifacts, open_artifact, open_capture
from tasks.engine.decoded import DecodedRows
from tasks.engine.source import Part
from tasks.store.location import Location
from tests.pipelines.runs import vectors_run

SITES = ["first", "act"]
CODED: dict[str, Any] = {
    "basis": {"method": "spectrum.pca", "config": {"components": 16}, "sites": "**"},
    "coded": {"method": "compression.klt", "config": {"nmse": 3e-4}, "inputs": {"basis": {"stage": "basis"}}},
}


def reading(**stages: Any) -> dict[str, Any]:
    return CODED | stages


def run_of(root: Path, stages: dict[str, Any]) -> RunSpec:
    return vectors_run(root, 120, network={"fragile": True}, sites=SITES, stages=stages)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("codes")
    x = {"captures": ["vectors"], "codes": "coded"}
    stages = reading(
        spectrum={"method": "spectrum.pca", "config": {"components": 3}, "inputs": {"x": x}},
        plain={"method": "spectrum.pca", "config": {"components": 3}},
        alike={"method": "geometry.cka", "inputs": {"x": {"captures": ["vectors"]}, "y": x}},
    )
    stages["clusters"] = {
        "method": "clustering.k_subspaces",
        "config": {"clusters": 2, "dimension": 1},
        "inputs": {"x": x},
    }
    outcome = run_serial(run_of(root, stages))
    assert not outcome.stage_failures
    return root


def views(root: Path, method: str, site: str = "act:out:0") -> list[Any]:
    found = [open_artifact(root, artifact.id) for artifact in list_artifacts(root, method)]
    return [view for view in found if next(iter(view.artifact.stage.rows.values()))[0].site == site]


def test_numbers_are_those_of_decoded_rows(done: Path) -> None:
    (coded,) = views(done, "compression.klt")
    rows = coded.reconstruct().values
    rows = rows[np.isfinite(rows).all(1)]
    assert 100 < len(rows) < 120  # samples of the fragile network fail
    (of_codes,) = (v for v in views(done, "spectrum.pca") if v.artifact.stage.rows["x"][0].codes)
    values = np.linalg.eigvalsh(np.cov(rows.astype(np.float64).T))[::-1]
    np.testing.assert_allclose(of_codes.arrays["eigenvalue"].values[:3], values[:3], rtol=1e-5)
    of_rows = [v for v in views(done, "spectrum.pca") if not v.artifact.stage.rows["x"][0].codes]
    assert all(
        abs(v.arrays["eigenvalue"].values[0] - values[0]) > 1e-4 * values[0] for v in of_rows
    )  # no state of the rows was taken for one of the codes
    (alike,) = views(done, "geometry.cka")
    assert 0.9 < alike.result["cka"] < 1 - 1e-6
    (clusters,) = views(done, "clustering.k_subspaces")
    assert clusters.result["n_rows"] == len(rows)


def test_a_row_is_decoded_to_the_same_bits_whatever_is_read_with_it(done: Path) -> None:
    (coded,) = views(done, "compression.klt", "first:out:0")
    stage, root = coded.artifact.stage, Location(str(done))
    (ref,) = stage.rows["x"]
    space = Part(root, ref).space
    reader = DecodedRows(root, ref.model_copy(update={"codes": coded.id}), space)
    whole = reader.rows(0, space.n_rows)
    assert np.array_equal(whole, coded.reconstruct().values, equal_nan=True) or np.allclose(
        whole, coded.reconstruct().values, rtol=1e-6, equal_nan=True
    )
    for start, stop in ((0, 1), (5, 23), (15, 17), (space.n_rows - 1, space.n_rows), (7, 7)):
        assert np.array_equal(reader.rows(start, stop), whole[start:stop], equal_nan=True)
    with pytest.raises(MethodError, match=r"found .* act:out:0 to be read from it"):
        DecodedRows(
            root, RowsRef(capture=ref.capture, digest=ref.digest, site="act:out:0", codes=coded.id), space
        )
    values = open_capture(done, ref.capture).site("first:out:0")["activation"].values
    good = np.isfinite(whole).all(1)
    assert (
        0
        < np.square(whole[good] - values[good]).sum()
        < 1e-3 * np.square(values[good] - values[good].mean(0)).sum()
    )


def test_ids_of_stages_that_read_rows_are_as_they_were() -> None:
    ref = RowsRef(capture="a", digest="a", site="first:out:0")
    assert ref.model_dump(mode="json") == {"capture": "a", "digest": "a", "site": "first:out:0"}
    assert RowsRef.model_validate(ref.model_copy(update={"codes": "b"}).model_dump(mode="json")).codes == "b"


@pytest.mark.parametrize(
    ("stage", "error", "told"),
    [
        ({"inputs": {"x": {"codes": "codde"}}}, UnknownNameError, "no stage 'codde' of codes; nearest: coded"),
        ({"inputs": {"x": {"codes": "basis"}}}, MethodError, "stage 'basis'.*hold no codes"),
        ({"method": "compression.klt", "inputs": {"basis": {"stage": "basis", "codes": "coded"}}}, SpecError,
         "'basis' of compression.klt reads no rows, found codes: 'coded'; ports that do: x"),
    ],
)  # fmt: skip
def test_what_is_no_code(tmp_path: Path, stage: dict[str, Any], error: type[SubspanError], told: str) -> None:
    with pytest.raises(error, match=told):
        run_serial(run_of(tmp_path, reading(read={"method": "spectrum.pca"} | stage)))


def test_codes_of_other_rows(tmp_path: Path) -> None:
    stages = reading(read={"method": "spectrum.pca", "inputs": {"x": {"codes": "coded"}}})
    stages["coded"] = stages["coded"] | {"sites": "act"}
    with pytest.raises(SpecError, match=r"stage 'coded' codes no .*first:out:0; expected the same captures"):
        run_serial(run_of(tmp_path, stages))
