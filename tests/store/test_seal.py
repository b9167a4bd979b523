import subprocess
import sys
import time

import pytest
import xarray as xr

from schemas.base import canonical_json, sha256
from schemas.errors import DamageError, NotFoundError, StoreError
from schemas.receipts import Failure
from tasks.store.arrays import create_capture
from tasks.store.location import Location
from tasks.store.paths import all_units, capture_path, manifest_path, receipt_path, receipts_path
from tasks.store.seal import (
    count_receipts,
    is_sealed,
    list_captures,
    read_manifest,
    read_receipts,
    receipt_of,
    seal,
    verify,
    write_receipt,
)
from tasks.store.states import save_state
from tests.store.helpers import PROVENANCE, do_unit, make_capture, make_receipt, make_samples, make_spec

SHARD = "sites/encoder.layer.0@out@0/activation/c/0/0"


@pytest.fixture
def done(root: Location) -> Location:
    """Every unit is done, nothing is sealed."""
    spec = make_spec()
    create_capture(root, spec, make_samples(spec), PROVENANCE)
    for unit in all_units(spec):
        do_unit(root, spec, unit)
    return root


def test_receipts_come_back(any_root: Location) -> None:
    spec = make_spec()
    create_capture(any_root, spec, make_samples(spec), PROVENANCE)
    first, second, *_ = all_units(spec)
    assert receipt_of(any_root, spec.id, first) is None
    assert read_receipts(any_root, spec.id) == {}
    receipt = do_unit(any_root, spec, first)
    assert receipt_of(any_root, spec.id, first) == receipt.with_digest()
    assert receipt_of(any_root, spec.id, second) is None
    assert list(read_receipts(any_root, spec.id)) == [first.name]
    assert count_receipts(any_root, spec.id) == 1


def test_a_unit_that_ends_a_second_time_keeps_the_seal_whole(any_root: Location) -> None:
    """A worker that was given up may still end its unit after the capture was sealed."""
    spec = make_spec()
    manifest = make_capture(any_root, spec)
    unit = all_units(spec)[0]
    first = receipt_of(any_root, spec.id, unit)
    assert first is not None
    write_receipt(any_root, first.model_copy(update={"seconds": 99.0, "worker": "other:2", "digest": ""}))
    assert receipt_of(any_root, spec.id, unit) == first
    assert verify(any_root, spec.id) == []
    assert read_manifest(any_root, spec.id) == manifest


def test_a_damaged_receipt_is_replaced(done: Location) -> None:
    spec = make_spec()
    unit = all_units(spec)[0]
    done.write(receipt_path(spec.id, unit), b"{}")
    receipt = do_unit(done, spec, unit)
    assert receipt_of(done, spec.id, unit) == receipt.with_digest()


def test_corrupt_receipts_are_ignored(done: Location) -> None:
    """Whichever byte of a receipt changes, the unit counts as not done."""
    spec = make_spec()
    unit = all_units(spec)[0]
    path = receipt_path(spec.id, unit)
    good = done.read(path)
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1
        done.write(path, bytes(bad))
        assert receipt_of(done, spec.id, unit) is None
        assert unit.name not in read_receipts(done, spec.id)
    for bad in (b"", good[:-1], good + b" ", b"null"):
        done.write(path, bad)
        assert receipt_of(done, spec.id, unit) is None


def test_names_are_durable_before_the_receipt(done: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec()
    unit = all_units(spec)[0]
    receipt = receipt_of(done, spec.id, unit)
    assert receipt is not None
    steps: list[str] = []
    create = Location.create
    done.delete(receipt_path(spec.id, unit))
    monkeypatch.setattr(Location, "sync", lambda self, paths: steps.extend(sorted(paths)))
    monkeypatch.setattr(
        Location, "create", lambda self, path, data: (steps.append(path), create(self, path, data))[1]
    )
    write_receipt(done, receipt)
    assert steps == [
        *(f"{capture_path(spec.id)}/{path}" for path in sorted(receipt.files)),
        receipt_path(spec.id, unit),
    ]


def test_a_receipt_of_another_unit_proves_nothing(done: Location) -> None:
    spec = make_spec()
    first, second, *_ = all_units(spec)
    done.write(receipt_path(spec.id, first), done.read(receipt_path(spec.id, second)))
    assert receipt_of(done, spec.id, first) is None
    assert first.name not in read_receipts(done, spec.id)


def test_seal(any_root: Location) -> None:
    spec = make_spec()
    assert not is_sealed(any_root, spec.id)
    manifest = make_capture(any_root, spec)
    assert is_sealed(any_root, spec.id)
    assert manifest.holds()
    assert read_manifest(any_root, spec.id) == manifest
    assert set(manifest.files) == set(any_root.walk(capture_path(spec.id)))
    assert set(manifest.receipts) == set(any_root.ls(receipts_path(spec.id)))
    assert manifest.rows == {"tokens": 25, "sample": 5}
    assert list_captures(any_root) == [spec.id]
    assert verify(any_root, spec.id) == []


def test_seal_twice_is_the_same(done: Location) -> None:
    spec = make_spec()
    first = seal(done, spec)
    before = done.read(manifest_path(spec.id))
    time.sleep(1.1)  # longer than the resolution of the seal's time
    assert seal(done, spec) == first
    assert done.read(manifest_path(spec.id)) == before


def test_a_missing_unit_is_named(done: Location) -> None:
    spec = make_spec()
    done.delete(receipt_path(spec.id, all_units(spec)[1]))
    with pytest.raises(StoreError, match=r"1 of 3 units .*tokens-000001\).*run it again"):
        seal(done, spec)
    assert not is_sealed(done, spec.id)


@pytest.mark.parametrize("how", ["gone", "short"])
def test_a_unit_whose_shard_is_damaged_runs_again(done: Location, how: str) -> None:
    spec = make_spec()
    unit = all_units(spec)[0]
    path = f"{capture_path(spec.id)}/{SHARD}"
    if how == "gone":
        done.delete(path)
    else:
        done.write(path, done.read(path)[:-1])
    with pytest.raises(StoreError, match=r"tokens-000000 \(its files are missing or short\)"):
        seal(done, spec)
    assert receipt_of(done, spec.id, unit) is None
    do_unit(done, spec, unit)
    seal(done, spec)
    assert verify(done, spec.id) == []


def test_a_receipt_that_covers_too_little_is_void(done: Location) -> None:
    spec = make_spec()
    unit = all_units(spec)[0]
    receipt = receipt_of(done, spec.id, unit)
    assert receipt is not None
    files = {path: digest for path, digest in receipt.files.items() if path != SHARD}
    done.delete(receipt_path(spec.id, unit))
    write_receipt(done, receipt.model_copy(update={"files": files}))
    with pytest.raises(StoreError, match="tokens-000000"):
        seal(done, spec)


def test_metadata_that_changed_before_sealing_are_refused(done: Location) -> None:
    spec = make_spec()
    path = f"{capture_path(spec.id)}/samples/length/c/0"
    data = bytearray(done.read(path))
    data[0] ^= 1
    done.write(path, bytes(data))
    with pytest.raises(DamageError, match="samples/length/c/0 changed since it was created"):
        seal(done, spec)
    create_capture(done, spec, make_samples(spec), PROVENANCE)
    seal(done, spec)


def test_failed_samples_are_not_ok(root: Location) -> None:
    """A sample that straddles two units fails in both and is named once."""
    spec = make_spec()
    create_capture(root, spec, make_samples(spec), PROVENANCE)
    failures = (
        Failure(sample=3, key="größe/3", reason="NaN"),
        Failure(sample=1, key="größe/1", reason="raised"),
    )
    for number, unit in enumerate(all_units(spec)):
        do_unit(root, spec, unit, failures=failures[:1] if number == 1 else failures if number == 0 else ())
    manifest = seal(root, spec)
    assert [failure.sample for failure in manifest.failures] == [1, 3]
    samples = xr.open_zarr(f"{root.url}/{capture_path(spec.id)}", group="samples", consolidated=False)
    assert samples["ok"].values.tolist() == [True, False, True, False, True]


def test_leftovers_are_swept(done: Location) -> None:
    spec = make_spec()
    done.write(f"{capture_path(spec.id)}/{SHARD}.0123.partial", b"half")
    done.write(f"{receipts_path(spec.id)}/tokens-000000.json.0123.partial", b"half")
    seal(done, spec)
    assert not [path for path in done.walk() if path.endswith(".partial")]
    assert verify(done, spec.id) == []


@pytest.mark.parametrize("change", ["flip", "cut", "extend", "pretty"])
def test_a_changed_manifest_is_refused(done: Location, change: str) -> None:
    spec = make_spec()
    seal(done, spec)
    path = manifest_path(spec.id)
    data = bytearray(done.read(path))
    if change == "flip":
        data[len(data) // 2] ^= 1
    changed = {"flip": bytes(data), "cut": bytes(data[:-1]), "extend": bytes(data) + b"\n"}.get(change)
    done.write(path, changed if changed is not None else bytes(data).replace(b'{"', b'{ "'))
    with pytest.raises(DamageError, match=path):
        read_manifest(done, spec.id)
    assert [damage.path for damage in verify(done, spec.id)] == [path]


def test_unsealed_captures_are_not_readable(done: Location) -> None:
    with pytest.raises(NotFoundError, match="no sealed capture"):
        read_manifest(done, make_spec().id)
    with pytest.raises(NotFoundError):
        verify(done, make_spec().id)


def test_a_newer_manifest_is_refused(done: Location) -> None:
    spec = make_spec()
    newer = seal(done, spec).model_copy(update={"schema_version": 99}).with_digest()
    done.write(manifest_path(spec.id), canonical_json(newer))
    with pytest.raises(StoreError, match="schema_version 99, this subspan reads up to 1: install a newer"):
        read_manifest(done, spec.id)


def test_states_only_captures_seal_their_states(root: Location) -> None:
    spec = make_spec(keep="states")
    create_capture(root, spec, make_samples(spec), PROVENANCE)
    for unit in all_units(spec):
        import numpy as np

        path = f"states/abc/{spec.id}/{unit.name}.npz"
        digest = save_state(root, path, {"s": np.ones(3)})
        write_receipt(root, make_receipt(spec, unit, files={path: digest}))
    seal(root, spec)
    assert verify(root, spec.id) == []
    root.write(path, b"?" * digest.bytes)
    assert [damage.path for damage in verify(root, spec.id)] == [path]


def test_fused_states_beside_rows_are_no_part_of_the_seal(root: Location) -> None:
    import numpy as np

    spec = make_spec()
    create_capture(root, spec, make_samples(spec), PROVENANCE)
    for unit in all_units(spec):
        receipt = do_unit(root, spec, unit)
        path = f"states/abc/{unit.name}.npz"
        files = {**receipt.files, path: save_state(root, path, {"s": np.ones(3)})}
        write_receipt(root, receipt.model_copy(update={"files": files}))
    seal(root, spec)
    root.delete("states", recursive=True)
    assert verify(root, spec.id) == []


def test_reading_manifests_is_light() -> None:
    """Finding out that nothing is to be done imports no array library."""
    code = "import sys, tasks.store.seal, tasks.store.lease, tasks.store.location\n"
    code += "print([name for name in ('zarr', 'numpy', 'fsspec', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_manifest_of_an_older_version_is_read(root: Location) -> None:
    """Fields that came later are not in its bytes; its digest is that of what was written then."""
    manifest = make_capture(root, make_spec())
    old = {k: v for k, v in manifest.model_dump(mode="json").items() if k not in ("truncated", "saturated")}
    old["digest"] = sha256(canonical_json({**old, "digest": ""}))
    root.write(manifest_path(manifest.capture), canonical_json(old))
    found = read_manifest(root, manifest.capture)
    assert (found.files, found.truncated, found.saturated) == (manifest.files, 0, {})
    root.write(manifest_path(manifest.capture), canonical_json({**old, "sealed": "another time"}))
    with pytest.raises(DamageError, match="changed after sealing"):
        read_manifest(root, manifest.capture)
