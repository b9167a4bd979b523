"""A read-only zarr store that never shows damaged data in silence.

Plain zarr reads fill values where a shard is missing and cannot see changed metadata. This store knows from
the manifest what must be there:

- metadata and unsharded chunks are compared with their digest;
- a shard's size is compared once, and every part of it that is read carries a crc32c, which is checked here
  (29 GB/s) before zarr decodes it, so that the message can name the shard and the capture;
- what the manifest does not name does not exist, and a chunk that it does not name is damage.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NoReturn

import google_crc32c
import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from schemas.errors import DamageError, NotFoundError, StoreError
from schemas.receipts import FileDigest
from tasks.store.location import Location, digest_of
from tasks.store.manifest import read_manifest
from tasks.store.paths import capture_path
from tasks.store.zarrstore import LocationStore, byte_bounds

CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16
Loader = Callable[[Location, str], Mapping[str, FileDigest]]


def capture_files(root: Location, capture_id: str) -> Mapping[str, FileDigest]:
    """What a sealed capture must hold, by path below its folder."""
    return read_manifest(root, capture_id).files


class SealedStore(LocationStore):
    """The arrays of a sealed capture. Picklable: the manifest is read again where it arrives.

    Raises DamageError on any access to what is missing, short, long or changed, and NotFoundError if the
    capture is not sealed.
    """

    def __init__(
        self,
        root: Location,
        name: str,
        *,
        folder: str | None = None,
        files: Loader = capture_files,
        what: str = "capture",
    ) -> None:
        super().__init__(root.child(capture_path(name) if folder is None else folder), read_only=True)
        self.root = root
        self.name = name
        self._loader = files
        self._what = what
        self._expected: Mapping[str, FileDigest] | None = None
        self._right_size: set[str] = set()
        self._shard_chunks: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_expected": None, "_right_size": set(), "_shard_chunks": {}, "written": {}}

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return (type(self).__name__, self.base.url, self.name)

    def with_read_only(self, read_only: bool = False) -> "SealedStore":
        """Itself: what is sealed is never written."""
        if not read_only:
            raise StoreError(f"{self._what} {self.name} is sealed: it cannot be opened for writing")
        return self

    @property
    def expected(self) -> Mapping[str, FileDigest]:
        """What must be there, by key."""
        if self._expected is None:
            self._expected = self._loader(self.root, self.name)
        return self._expected

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Part or all of an object that is as it was sealed; None for metadata that never were."""
        data = await asyncio.to_thread(self._checked, key, *byte_bounds(byte_range))
        return None if data is None else prototype.buffer.from_bytes(data)

    async def exists(self, key: str) -> bool:
        """Whether the key was sealed."""
        return key in self.expected

    async def list(self) -> AsyncIterator[str]:
        """Every key that was sealed."""
        for key in self.expected:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every sealed key that begins with a prefix."""
        for key in self.expected:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a prefix, of what was sealed."""
        start = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        for name in sorted({k[len(start) :].partition("/")[0] for k in self.expected if k.startswith(start)}):
            yield name

    def _damaged(self, key: str, found: str) -> NoReturn:
        raise DamageError(
            f"{self._what} {self.name} is damaged: {self.base.url}/{key} {found}; "
            "restore the file from a copy; or remove it and the capture's .manifest.json (an artifact's whole folder) and run again: "
            "only what is missing is computed"
        )

    def _checked(self, key: str, start: int | None, stop: int | None) -> bytes | None:
        digest = self.expected.get(key)
        if digest is None:
            if "/c/" in key:
                self._damaged(key, "is not in the manifest")
            return None
        chunks = self._chunks_of(key)
        try:
            if chunks:
                return self._shard_part(key, digest, chunks, start, stop)
            data = self.base.read(key)
        except NotFoundError:
            self._damaged(key, "is missing")
        if digest_of(data) != digest:
            self._damaged(key, f"changed ({len(data):,} bytes, sealed with {digest.bytes:,})")
        return data[slice(start, stop)]

    def _shard_part(
        self, key: str, digest: FileDigest, chunks: int, start: int | None, stop: int | None
    ) -> bytes:
        """A shard, its index, or one of its chunks: each ends with a crc32c that must hold."""
        if key not in self._right_size:
            size = self.base.size(key)
            if size is None:
                self._damaged(key, "is missing")
            if size != digest.bytes:
                self._damaged(key, f"has {size:,} bytes, sealed with {digest.bytes:,}")
            self._right_size.add(key)
        data = self.base.read(key, start, stop)
        whole = start is None and stop is None
        if not (shard_holds(data, chunks) if whole else crc_holds(data)):
            self._damaged(key, "has bytes that changed (crc32c)")
        return data

    def _chunks_of(self, key: str) -> int:
        """Chunks per shard of the array that a key belongs to; 0 for metadata and unsharded arrays."""
        array, chunk, _ = key.partition("/c/")
        if not chunk:
            return 0
        if array not in self._shard_chunks:
            metadata = json.loads(self._checked(f"{array}/zarr.json", None, None) or b"{}")
            self._shard_chunks[array] = shard_chunks(metadata)
        return self._shard_chunks[array]


def shard_chunks(metadata: Mapping[str, Any]) -> int:
    """Chunks per shard from an array's zarr.json; 0 if it is not sharded."""
    codec = metadata.get("codecs", [{}])[0]
    if codec.get("name") != "sharding_indexed":
        return 0
    shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    inner = codec["configuration"]["chunk_shape"]
    return int(np.prod([outer // part for outer, part in zip(shard, inner, strict=True)]))


def crc_holds(data: bytes | memoryview) -> bool:
    """Whether the last four bytes are the crc32c of those before."""
    if len(data) < CRC_BYTES:
        return False
    body = np.frombuffer(data, dtype=np.uint8)[:-CRC_BYTES]  # the library takes no memoryview
    return bool(google_crc32c.value(body) == int.from_bytes(data[-CRC_BYTES:], "little"))


def shard_holds(data: bytes, chunks: int) -> bool:
    """Whether the index of a whole shard and each chunk hold by their crc32c, with no byte left over."""
    index_bytes = INDEX_ENTRY_BYTES * chunks + CRC_BYTES
    if len(data) < index_bytes or not crc_holds(data[-index_bytes:]):
        return False
    entries = np.frombuffer(data[-index_bytes:-CRC_BYTES], dtype="<u8").reshape(chunks, 2)
    present = entries[entries[:, 0] != np.iinfo(np.uint64).max].astype(np.int64)
    view = memoryview(data)
    covered = int(present[:, 1].sum()) + index_bytes == len(data)
    return covered and all(crc_holds(view[start : start + length]) for start, length in present)


def open_group(root: Location, capture_id: str) -> zarr.Group:
    """The arrays of a sealed capture; every access raises DamageError on what is not as it was sealed.

    Raises:
        NotFoundError: if the capture is not sealed.
        DamageError: if the manifest or metadata changed.
    """
    store = SealedStore(root, capture_id)
    if "zarr.json" not in store.expected:
        raise DamageError(f"the manifest of capture {capture_id} names no metadata; capture again")
    return zarr.open_group(store, mode="r", zarr_format=3)
