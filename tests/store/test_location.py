import errno
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.errors import NotFoundError, ResourceError, StoreError
from schemas.receipts import FileDigest
from tasks.store import local
from tasks.store.location import Location, digest_of


def test_bytes_come_back(any_root: Location) -> None:
    any_root.write("a/b.bin", b"0123456789")
    assert any_root.read("a/b.bin") == b"0123456789"
    assert any_root.read("a/b.bin", 2, 5) == b"234"
    assert any_root.read("a/b.bin", -3, None) == b"789"
    assert any_root.size("a/b.bin") == 10
    assert any_root.digest("a/b.bin") == digest_of(b"0123456789")


def test_write_replaces(any_root: Location) -> None:
    any_root.write("x", b"long before")
    any_root.write("x", b"new")
    assert any_root.read("x") == b"new"
    assert any_root.walk() == {"x": 3}


def test_listing(any_root: Location) -> None:
    assert any_root.ls() == []
    assert any_root.walk("nowhere") == {}
    for path in ("b/1", "b/c/2", "a"):
        any_root.write(path, path.encode())
    assert any_root.ls() == ["a", "b"]
    assert any_root.ls("b") == ["1", "c"]
    assert any_root.walk("b") == {"1": 3, "c/2": 5}
    assert any_root.exists("b/1")
    assert not any_root.exists("b")


def test_delete(any_root: Location) -> None:
    for path in ("b/1", "b/c/2"):
        any_root.write(path, b"x")
    any_root.delete("b/1")
    any_root.delete("b/1")
    assert any_root.walk() == {"b/c/2": 1}
    any_root.delete("b", recursive=True)
    any_root.delete("b", recursive=True)
    assert any_root.walk() == {}


def test_missing_file_is_named(any_root: Location) -> None:
    with pytest.raises(NotFoundError, match=r"no (file|object) .*nothing.json"):
        any_root.read("nothing.json")
    assert any_root.size("nothing.json") is None


def test_create_is_exclusive(any_root: Location) -> None:
    assert any_root.atomic_create
    assert any_root.create("lease", b"first")
    assert not any_root.create("lease", b"second")
    assert any_root.read("lease") == b"first"


def test_one_of_many_creates_wins(any_root: Location) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: any_root.create("one", b"%d" % number), range(16)))
    assert sum(made) == 1
    assert any_root.read("one") == b"%d" % made.index(True)
    assert any_root.walk() == {"one": len(any_root.read("one"))}


def test_locations_pickle_and_compare(any_root: Location) -> None:
    any_root.write("x", b"1")
    again = pickle.loads(pickle.dumps(any_root))
    assert again == any_root
    assert hash(again) == hash(any_root)
    assert again.read("x") == b"1"
    assert any_root.child("a", "b").url == f"{any_root.url}/a/b"


def _read_in_process(location: Location) -> bytes:
    return location.read("x")


def test_s3_works_in_spawned_processes(s3_root: Location) -> None:
    s3_root.write("x", b"there")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read_in_process, (s3_root,)) == b"there"


def test_local_urls_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Location("out").url == str(tmp_path / "out")
    assert Location(f"file://{tmp_path}/out").url == str(tmp_path / "out")
    assert Location("out").is_local
    assert not Location("s3://bucket/x").is_local
    assert Location("s3://bucket/x/").url == "s3://bucket/x"


def test_free_bytes(root: Location) -> None:
    free = root.free_bytes()
    assert free is not None
    assert free > 0
    assert Location("memory://x").free_bytes() is None


def test_full_disk_names_both_numbers(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"needs 1,000 bytes, [\d,]+ are free"):
        root.write("big", bytes(1000))
    assert root.walk() == {}


def test_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda path, *rest: opened("/dev/full" if str(path).endswith(local.PARTIAL) else path, os.O_WRONLY),
    )
    with pytest.raises(ResourceError, match="disk is full"):
        Location(str(tmp_path)).write("big", bytes(1000))


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file/below"):
        Location(str(tmp_path / "file")).write("below/x", b"1")


def test_interrupted_write_leaves_the_old_file(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    root.write("x", b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "disk error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match="disk error"):
        root.write("x", b"new")
    assert root.walk() == {"x": 3}


def test_create_without_hard_links(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    assert root.create("x", b"first")
    assert not root.create("x", b"second")
    assert root.walk() == {"x": 5}


def test_sync_reaches_every_file_and_folder(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    root.write("a/b/c", b"1", durable=False)
    root.write("a/b/d", b"1", durable=False)
    synced: list[str] = []
    monkeypatch.setattr(local, "_sync_directory", synced.append)
    root.sync(["a/b/c", "a/b/d"])
    files, folders = synced[:2], synced[2:]
    assert sorted(files) == [f"{root.url}/a/b/c", f"{root.url}/a/b/d"]
    assert sorted(folders) == [root.url, f"{root.url}/a", f"{root.url}/a/b"]


def test_unknown_protocol() -> None:
    with pytest.raises(StoreError, match="nosuch://place"):
        Location("nosuch://place").read("x")


def test_digest_in_blocks(root: Location) -> None:
    data = bytes(range(256)) * 40_000
    root.write("x", data)
    assert root.digest("x") == digest_of(data)
    assert isinstance(root.digest("x"), FileDigest)


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Location(str(tmp_path)).write("runs/one.json", b"whole")
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_killed_writes_left_goes_when_it_is_old(tmp_path: Path) -> None:
    """In a folder that others write into: a fresh one may be theirs."""
    place, now = Location(str(tmp_path)), os.stat(tmp_path).st_mtime
    for name, age in (("old.json.1.partial", 2), ("new.json.2.partial", 0.5), ("old.json", 2)):
        place.write(f"runs/{name}", b"half")
        os.utime(tmp_path / "runs" / name, times=(now - age * local.OLD_SECONDS,) * 2)
    place.sweep_old("runs")
    place.sweep_old("not-there")
    assert place.ls("runs") == ["new.json.2.partial", "old.json"]
