import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from schemas.artifact import Artifact
from schemas.errors import DamageError, MethodError, NotFoundError, StoreError
from schemas.stage import ResolvedStage
from tasks.store.artifacts import (
    artifact_arrays,
    delete_artifact,
    list_artifacts,
    open_arrays,
    read_artifact,
    verify_artifact,
    write_artifact,
)
from tasks.store.location import Location
from tests.store.helpers import FINGERPRINT

ARRAYS = {
    "mean": (np.arange(6.0), ("feature",)),
    "basis": (np.arange(12, dtype=np.float32).reshape(2, 6), ("component", "feature")),
    "count": (np.array(7), ()),
    "empty": (np.zeros((0, 6), dtype=np.float16), ("nothing", "feature")),
    "group/label": (np.array([True, False]), ("row",)),
}
FIGURES = {"spectrum.png": b"\x89PNG", "spectrum.svg": b"<svg/>"}


def make_artifact(method: str = "spectrum.pca", **fields: object) -> Artifact:
    stage = ResolvedStage(method=method, version=1, config={"rank": 2, "tolerance": 1e-9})
    defaults = {
        "schema_version": 1,
        "id": stage.id,
        "stage": stage,
        "result": {"rank": 2, "shares": [0.1, 1 / 3, None]},
        "arrays": {},
        "seconds": 0.25,
        "fingerprint": FINGERPRINT,
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return Artifact.model_validate({**defaults, **fields})


def test_artifacts_come_back(any_root: Location) -> None:
    artifact = write_artifact(any_root, make_artifact(), ARRAYS, FIGURES)
    assert artifact.holds()
    assert read_artifact(any_root, artifact.id) == artifact
    assert artifact.result == {"rank": 2, "shares": [0.1, 1 / 3, None]}
    found = artifact_arrays(any_root, artifact.id)
    assert set(found) == set(ARRAYS)
    for name, (values, dims) in ARRAYS.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
        assert artifact.arrays[name].dims == dims
        assert artifact.arrays[name].shape == values.shape
    assert any_root.read(f"artifacts/{artifact.id}/figures/spectrum.svg") == b"<svg/>"
    assert list_artifacts(any_root) == [artifact.id]
    assert verify_artifact(any_root, artifact.id) == []


def test_plain_xarray_opens_it(root: Location) -> None:
    artifact = write_artifact(root, make_artifact(), ARRAYS, {})
    data = xr.open_zarr(f"{root.url}/artifacts/{artifact.id}/arrays.zarr", consolidated=False)
    assert data["basis"].dims == ("component", "feature")
    np.testing.assert_array_equal(data["basis"].values, ARRAYS["basis"][0])
    assert data.attrs["artifact"] == artifact.id
    assert ResolvedStage.model_validate(data.attrs["stage"]) == artifact.stage


def test_large_arrays_are_cut_into_chunks(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.store import artifacts

    monkeypatch.setattr(artifacts, "CHUNK_BYTES", 1000)
    values = np.arange(5000.0).reshape(500, 10)
    artifact = write_artifact(root, make_artifact(), {"x": (values, ("row", "feature"))}, {})
    assert sum("/c/" in path for path in artifact.files) == -(-500 // 12)
    np.testing.assert_array_equal(artifact_arrays(root, artifact.id)["x"], values)


def test_a_finished_artifact_is_never_overwritten(any_root: Location) -> None:
    first = write_artifact(any_root, make_artifact(), ARRAYS, FIGURES)
    before = {path: any_root.read(path) for path in any_root.walk()}
    other = make_artifact(result={"rank": 99}, seconds=9.0)
    assert write_artifact(any_root, other, {"mean": (np.zeros(6), ("feature",))}, {}) == first
    assert {path: any_root.read(path) for path in any_root.walk()} == before


def test_equal_arrays_give_equal_bytes(root: Location, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Location(str(tmp_path_factory.mktemp("other")))
    assert (
        write_artifact(root, make_artifact(), ARRAYS, FIGURES).files
        == write_artifact(other, make_artifact(), ARRAYS, FIGURES).files
    )


def test_half_written_leftovers_are_removed(root: Location) -> None:
    artifact = make_artifact()
    folder = f"artifacts/{artifact.id}"
    for path in ("arrays.zarr/old/zarr.json", "figures/old.png", "arrays.zarr/mean/c/0.12.partial"):
        root.write(f"{folder}/{path}", b"left over")
    with pytest.raises(NotFoundError, match="no finished artifact"):
        read_artifact(root, artifact.id)
    assert list_artifacts(root) == []
    write_artifact(root, artifact, ARRAYS, FIGURES)
    assert verify_artifact(root, artifact.id) == []


def test_receipts_of_rows_half_written_are_removed(root: Location) -> None:
    """By a run that was killed in that write."""
    half = f"artifacts/{make_artifact().id}.receipts/rows-000000.json.{0:032x}.partial"
    root.write(half, b"half")
    write_artifact(root, make_artifact(), {}, {})
    assert root.size(half) is None


def test_the_record_comes_last(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    write, create = Location.write, Location.create
    monkeypatch.setattr(
        Location, "write", lambda s, p, d, **k: (order.append(f"{s.url}/{p}"), write(s, p, d, **k))[1]
    )
    monkeypatch.setattr(
        Location, "create", lambda s, p, d: (order.append(f"{s.url}/{p}"), create(s, p, d))[1]
    )
    artifact = write_artifact(root, make_artifact(), ARRAYS, FIGURES)
    assert order[-1].endswith(f"{artifact.id}/artifact.json")
    assert len(set(order)) > len(ARRAYS)


def test_names_are_durable_before_the_record(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    create = Location.create

    def checked(place: Location, path: str, data: bytes) -> bool:
        assert set(synced) == {p for p in root.walk() if not p.endswith("artifact.json")}
        return create(place, path, data)

    monkeypatch.setattr(Location, "sync", lambda s, paths: synced.extend(paths))
    monkeypatch.setattr(Location, "create", checked)
    assert write_artifact(root, make_artifact(), ARRAYS, FIGURES).files


def test_a_record_that_appears_meanwhile_stays(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs make the same artifact: whoever comes second deletes nothing that is finished."""
    walk = Location.walk
    others: list[Artifact] = []

    def slow(place: Location, path: str = "") -> dict[str, int]:
        there = walk(place, path)
        if len(others) == 0:
            others.append(make_artifact())
            others[0] = write_artifact(root, make_artifact(), ARRAYS, FIGURES)
        return there

    monkeypatch.setattr(Location, "walk", slow)
    assert write_artifact(root, make_artifact(seconds=9.0), ARRAYS, FIGURES) == others[0]
    monkeypatch.undo()
    assert verify_artifact(root, others[0].id) == []


def test_every_byte_of_the_record_matters(root: Location) -> None:
    artifact = write_artifact(root, make_artifact(), {"mean": ARRAYS["mean"]}, {})
    path = f"artifacts/{artifact.id}/artifact.json"
    good = root.read(path)
    for position in range(0, len(good), 3):
        bad = bytearray(good)
        bad[position] ^= 1
        with open(f"{root.url}/{path}", "wb") as file:
            file.write(bad)
        with pytest.raises((DamageError, StoreError)):
            read_artifact(root, artifact.id)
    assert verify_artifact(root, artifact.id)[0].path == path


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_damaged_arrays_raise(root: Location, how: str) -> None:
    artifact = write_artifact(root, make_artifact(), ARRAYS, FIGURES)
    for name in artifact.files:
        path = f"artifacts/{artifact.id}/{name}"
        good = bytearray(root.read(path))
        if how == "delete":
            root.delete(path)
        elif how == "cut":
            root.write(path, bytes(good[:-1]))
        else:
            root.write(path, bytes([*good[:-1], good[-1] ^ 1]))
        assert [damage.path for damage in verify_artifact(root, artifact.id)] == [path]
        if name.startswith("arrays.zarr"):
            with pytest.raises(DamageError, match=f"artifact {artifact.id} is damaged: .*{path}"):
                read_all(root, artifact.id)
        root.write(path, bytes(good))


def read_all(root: Location, artifact: str) -> None:
    assert list(open_arrays(root, artifact).members(max_depth=None))
    artifact_arrays(root, artifact)


def test_unknown_files_are_named(root: Location) -> None:
    artifact = write_artifact(root, make_artifact(), ARRAYS, {})
    root.write(f"artifacts/{artifact.id}/extra", b"x")
    assert [damage.what for damage in verify_artifact(root, artifact.id)] == [
        "unknown file, not part of the seal"
    ]


def test_axes_must_agree(root: Location) -> None:
    arrays = {"a": (np.zeros(3), ("feature",)), "b": (np.zeros(4), ("feature",))}
    with pytest.raises(MethodError, match="axis 'feature' has length 3 in 'a' and 4 in 'b'"):
        write_artifact(root, make_artifact(), arrays, {})
    with pytest.raises(MethodError, match=r"axes \('feature',\) for shape \(2, 2\)"):
        write_artifact(root, make_artifact(), {"a": (np.zeros((2, 2)), ("feature",))}, {})
    separate = {"a": (np.zeros(3), ("feature",)), "g/b": (np.zeros(4), ("feature",))}
    write_artifact(root, make_artifact(), separate, {})


def test_a_newer_artifact_is_refused(root: Location) -> None:
    artifact = write_artifact(root, make_artifact(), {}, {})
    newer = artifact.model_copy(update={"schema_version": 99}).with_digest()
    root.write(f"artifacts/{artifact.id}/artifact.json", json.dumps(newer.model_dump(mode="json")).encode())
    with pytest.raises(StoreError, match="schema_version 99"):
        read_artifact(root, artifact.id)


def test_delete(root: Location) -> None:
    artifact = write_artifact(root, make_artifact(), ARRAYS, FIGURES)
    other = write_artifact(root, make_artifact("geometry.id"), {}, {})
    delete_artifact(root, artifact.id)
    assert list_artifacts(root) == [other.id]
    assert not [path for path in root.walk() if artifact.id in path]


def test_reading_a_record_is_light() -> None:
    code = "import sys, tasks.store.artifacts\n"
    code += "print([name for name in ('zarr', 'torch', 'fsspec') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
