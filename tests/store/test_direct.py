"""Files written past the page cache hold exactly their bytes, wherever direct writing is known or not."""

import errno
import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.store import direct, local
from tasks.store.location import Location

LINUX = pytest.mark.skipif(not direct.DIRECT, reason="needs O_DIRECT, and this system has none")
SIZES = (direct.LEAST_BYTES, direct.LEAST_BYTES + 1, direct.STEP_BYTES - 1, direct.STEP_BYTES + 4097)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_and_length_are_exact(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    root = Location(str(tmp_path))
    root.write("deep/x", data, durable=False)
    assert (tmp_path / "deep/x").read_bytes() == data
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["x"]


@LINUX
@settings(max_examples=40)
@given(data=st.binary(min_size=0, max_size=3 * 4096 + 1), odd=st.integers(0, 64))
def test_any_address_and_length(tmp_path_factory: pytest.TempPathFactory, data: bytes, odd: int) -> None:
    """Data need not be aligned: a view that begins at any byte is written as it is."""
    path = tmp_path_factory.mktemp("direct") / "x"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | direct.DIRECT)
    direct.write_direct(descriptor, memoryview(b"." * odd + data)[odd:])
    os.close(descriptor)
    assert path.read_bytes() == data


@LINUX
@pytest.mark.parametrize("offset", [0, 1, direct.BLOCK_BYTES])
def test_only_what_does_not_lie_on_a_block_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    real, lengths = os.write, []

    def note(descriptor: int, data: memoryview) -> int:
        lengths.append(len(data))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", note)
    memory = mmap.mmap(-1, 4 * direct.STEP_BYTES)
    memory.write(os.urandom(len(memory)))
    data = memoryview(memory)[offset : offset + 2 * direct.STEP_BYTES + 5]
    descriptor = os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT | direct.DIRECT)
    direct.write_direct(descriptor, data)
    os.close(descriptor)
    assert (tmp_path / "x").read_bytes() == data
    in_steps = [direct.STEP_BYTES, direct.STEP_BYTES, direct.BLOCK_BYTES]
    assert lengths == (in_steps if offset == 1 else [2 * direct.STEP_BYTES, direct.BLOCK_BYTES])


@LINUX
def test_large_files_take_the_flag_and_small_ones_do_not(tmp_path: Path) -> None:
    seen = {}
    for size in (direct.LEAST_BYTES - 1, direct.LEAST_BYTES):
        descriptor, past_cache = local._open_new(str(tmp_path / str(size)), size)
        os.close(descriptor)
        seen[size] = past_cache
    assert seen == {direct.LEAST_BYTES - 1: False, direct.LEAST_BYTES: True}


@LINUX
def test_a_file_system_that_refuses_at_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without(path: str, flags: int, *mode: int) -> int:
        descriptor = real(path, flags & ~direct.DIRECT, *mode)
        if flags & direct.DIRECT:  # Linux has made the file by then
            os.close(descriptor)
            raise OSError(errno.EINVAL, "no direct writing here")
        return descriptor

    monkeypatch.setattr(os, "open", without)
    data = os.urandom(direct.LEAST_BYTES + 5)
    Location(str(tmp_path)).write("x", data, durable=False)
    assert (tmp_path / "x").read_bytes() == data


@LINUX
def test_a_file_system_that_refuses_at_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    real, refused = os.write, []

    def without(descriptor: int, data: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & direct.DIRECT:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "no direct writing here")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", without)
    data = os.urandom(direct.STEP_BYTES + 5)
    Location(str(tmp_path)).write("x", data, durable=False)
    assert (tmp_path / "x").read_bytes() == data
    assert len(refused) == 1
    monkeypatch.setattr(os, "write", real)

    descriptor = os.open(tmp_path / "y", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(
        os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.EINVAL, "another reason"))
    )
    with pytest.raises(OSError, match="another reason"):
        direct.write_direct(descriptor, memoryview(b"x"))
    os.close(descriptor)


@LINUX
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from schemas.errors import ResourceError

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        Location(str(tmp_path)).write("x", bytes(direct.LEAST_BYTES), durable=False)
    assert list(tmp_path.iterdir()) == []
