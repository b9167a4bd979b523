"""A zarr store over a Location: the same retries, durability and messages for zarr and for our JSON.

Every object that zarr stores is hashed while it is written, from the very bytes: nothing is read back.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from schemas.errors import NotFoundError
from schemas.receipts import FileDigest
from tasks.store.location import Location, digest_of

SMALL_BYTES = 1 << 20
"""Below this, handing an object to another thread takes longer than writing it to a local disk."""


def byte_bounds(request: ByteRequest | None) -> tuple[int | None, int | None]:
    """Start and stop of a byte range, as `Location.read` takes them."""
    if isinstance(request, RangeByteRequest):
        return request.start, request.end
    if isinstance(request, OffsetByteRequest):
        return request.offset, None
    if isinstance(request, SuffixByteRequest):
        return -request.suffix, None
    return None, None


class LocationStore(Store):
    """Reads and writes below a Location and keeps the digest of each object written through it."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, base: Location, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.base = base
        self.written: dict[str, FileDigest] = {}
        """Key to digest of everything set through this object."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, LocationStore) and other.base == self.base

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base.url!r})"

    def with_read_only(self, read_only: bool = False) -> "LocationStore":
        """The same place, with or without the right to write."""
        return type(self)(self.base, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Part or all of an object; None if there is none."""
        start, stop = byte_bounds(byte_range)
        try:
            data = await asyncio.to_thread(self.base.read, key, start, stop)
        except NotFoundError:
            return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several parts of objects, in order."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        return await asyncio.to_thread(self.base.exists, key)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object and note its digest."""
        self._check_writable()
        data = memoryview(value.as_buffer_like())
        if self.base.is_local and data.nbytes < SMALL_BYTES:
            self._write(key, data)
        else:
            await asyncio.to_thread(self._write, key, data)
        self.written[key] = digest_of(data)

    def _write(self, key: str, data: memoryview) -> None:
        self.base.write(key, data)

    async def delete(self, key: str) -> None:
        """Remove an object."""
        self._check_writable()
        await asyncio.to_thread(self.base.delete, key)

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        for key in await asyncio.to_thread(self.base.walk):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with a prefix."""
        for key in await asyncio.to_thread(self.base.walk):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a prefix."""
        for name in await asyncio.to_thread(self.base.ls, prefix.rstrip("/")):
            yield name


class ShardStore(LocationStore):
    """For writing whole arrays: hides chunks already there, so that none is read, merged or trusted.

    The durability of files is left to a later `sync`.
    """

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Metadata only."""
        return None if "/c/" in key else await super().get(key, prototype, byte_range)

    def _write(self, key: str, data: memoryview) -> None:
        self.base.write(key, data, durable=False)
