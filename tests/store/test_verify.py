"""200 random injuries to a small capture: verify names each, reading shows none in silence."""

import random

import numpy as np
import pytest

from schemas.errors import StoreError
from tasks.store.location import Location
from tasks.store.paths import capture_path, manifest_path, receipts_path
from tasks.store.seal import verify
from tasks.store.sealed import open_group
from tests.store.helpers import full_values, make_capture, make_samples, make_spec, plans

TRIALS = 200


def injure(rng: random.Random, data: bytes) -> tuple[str, bytes | None]:
    """One of: a flipped bit, a cut, an extension, a swap of two different bytes, deletion."""
    kind = rng.choice(["flip", "flip", "flip", "cut", "extend", "delete"])
    if kind == "delete":
        return kind, None
    if kind == "cut":
        return kind, data[: rng.randrange(len(data))]
    if kind == "extend":
        return kind, data + rng.randbytes(rng.randrange(1, 20))
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return kind, bytes(changed)


def read_everything(root: Location, spec) -> None:
    """Read all arrays; fails the test if a value differs from what was written."""
    group = open_group(root, spec.id)
    assert len(list(group.members(max_depth=None))) > 20  # reads the metadata of every group
    for plan in plans(spec):
        np.testing.assert_array_equal(group[plan.path][...], full_values(plan))
    samples = make_samples(spec)
    assert group["samples/key"][...].tolist() == samples.keys
    np.testing.assert_array_equal(group["samples/length"][...], samples.lengths)
    assert group["samples/ok"][...].all()
    np.testing.assert_array_equal(group["samples/labels/kind"][...], samples.labels["kind"])
    np.testing.assert_array_equal(group["samples/labels/size"][...], samples.labels["size"])
    for name, start in samples.row_start.items():
        np.testing.assert_array_equal(group[f"samples/row_start/{name}"][...], start)
    assert not group["samples/truncated"][...].any()
    assert group["samples/source_index"][...].tolist() == list(range(5))


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_no_injury_goes_unseen(root: Location, codec: str) -> None:
    spec = make_spec(14, codec=codec)
    make_capture(root, spec)
    read_everything(root, spec)
    files, rng = sorted(root.walk()), random.Random(1)
    for trial in range(TRIALS // 2):
        path = rng.choice(files)
        good = root.read(path)
        kind, bad = injure(rng, good)
        if bad is None:
            root.delete(path)
        else:
            root.write(path, bad, durable=False)
        about = f"trial {trial}: {kind} in {path}"
        _check_seen(root, spec, path, about)
        root.write(path, good, durable=False)
    assert verify(root, spec.id) == []
    read_everything(root, spec)


def _check_seen(root: Location, spec, path: str, about: str) -> None:
    if path == manifest_path(spec.id) and not root.exists(path):
        with pytest.raises(StoreError):
            verify(root, spec.id)
    else:
        assert [damage.path for damage in verify(root, spec.id)] == [path], about
    if path.startswith(receipts_path(spec.id)):
        read_everything(root, spec)  # receipts are proofs, not data
    else:
        with pytest.raises(StoreError):
            _read_or_fail(root, spec, about)


def _read_or_fail(root: Location, spec, about: str) -> None:
    read_everything(root, spec)
    pytest.fail(f"{about}: read without an error")


def test_every_bit_of_a_shard_matters(root: Location) -> None:
    """Chunks, index and checksums of one shard, one flipped bit per byte, read whole and in part."""
    spec = make_spec(14, width=2, codec="none", chunk_rows=4, shard_rows=8)
    make_capture(root, spec)
    array = "sites/encoder.layer.0@out@0/activation"
    for shard in (0, 1):  # a full one, and a short one
        path = f"{capture_path(spec.id)}/{array}/c/{shard}/0"
        good = root.read(path)
        for position in range(len(good)):
            bad = bytearray(good)
            bad[position] ^= 1 << (position % 8)
            with open(f"{root.url}/{path}", "wb") as file:
                file.write(bad)
            with pytest.raises(StoreError, match=f"{array}/c/{shard}/0"):
                open_group(root, spec.id)[array][...]
        root.write(path, good)


def test_unknown_files_are_named(root: Location) -> None:
    spec = make_spec(14)
    make_capture(root, spec)
    extra = [f"{receipts_path(spec.id)}/tokens-000099.json", f"{capture_path(spec.id)}/sites/notes.txt"]
    for path in extra:
        root.write(path, b"x")
    damages = verify(root, spec.id)
    assert [damage.path for damage in damages] == extra
    assert all("unknown file" in damage.what for damage in damages)
    read_everything(root, spec)


def test_damages_say_what(root: Location) -> None:
    spec = make_spec(14)
    make_capture(root, spec)
    base = f"{capture_path(spec.id)}/rows/tokens"
    root.delete(f"{base}/sample/c/0")
    root.write(f"{base}/position/c/0", root.read(f"{base}/position/c/0")[:-2])
    data = root.read(f"{base}/norm/zarr.json")
    root.write(f"{base}/norm/zarr.json", data.replace(b"site", b"sitE"))
    found = {damage.path.removeprefix(f"{base}/"): damage.what for damage in verify(root, spec.id)}
    assert found["sample/c/0"] == "missing"
    assert "bytes, sealed with" in found["position/c/0"]
    assert found["norm/zarr.json"] == "its bytes changed"
    assert len(found) == 3


def test_progress_reaches_the_end(root: Location) -> None:
    spec = make_spec(14)
    make_capture(root, spec)
    seen: list[tuple[int, int]] = []
    verify(root, spec.id, progress=lambda done, total: seen.append((done, total)))
    total = seen[-1][1]
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    sealed = root.walk(capture_path(spec.id)) | root.walk(receipts_path(spec.id))
    assert total == sum(sealed.values())
