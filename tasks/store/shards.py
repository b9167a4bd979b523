"""Writing whole shards, each by one worker alone."""

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.capture import CaptureSpec
from schemas.errors import NotFoundError, UnitError
from schemas.receipts import FileDigest
from tasks.store.encode import encoded
from tasks.store.location import Location, digest_of
from tasks.store.paths import ArrayPlan, capture_path, space_arrays


@lru_cache(maxsize=4096)
def require_array(place: Location, path: str) -> None:
    """Ask once whether an array was created: a shard without its metadata would be read by nobody.

    Raises:
        NotFoundError: if its metadata are not there.
    """
    if not place.exists(f"{path}/zarr.json"):
        raise NotFoundError(f"{place.url}/{path} is not there; create it before writing shards")


class Staged(NamedTuple):
    """A shard on disk that has not got its name."""

    path: str
    """That name, below the capture's folder."""
    partial: str
    digest: FileDigest


class ShardWriter:
    """Writes shards of one capture. May be used by several threads, each on its own shards.

    A shard is encoded whole in memory, written to a temporary name and renamed; it becomes durable with the unit's
    receipt, which is written after one sync of all the unit's files. Shards that are already there are replaced, never merged.
    """

    def __init__(self, root: Location, spec: CaptureSpec, capture_id: str) -> None:
        self._place = root.child(capture_path(capture_id))
        self._codec = spec.request.store.codec
        self._plans = {plan.path: plan for space in spec.layout.spaces for plan in space_arrays(spec, space)}

    def write(self, array_path: str, shard: int, block: npt.NDArray[Any]) -> tuple[str, FileDigest]:
        """Write one whole shard.

        Args:
            array_path: below the capture's folder, such as `sites/<key>/activation`.
            shard: which one.
            block: all its rows, [row] or [row, feature], in the dtype that is stored (float32 for bfloat16).

        Returns:
            The shard's path below the capture's folder and the digest of the bytes stored.

        Raises:
            UnitError: if the block is not exactly this shard.
            NotFoundError: if the array's metadata are not there.
            StoreError, ResourceError: if the storage refuses, stalls, or is full.
        """
        path = self._path(array_path, shard, block)
        with self._encoded(array_path, block) as data:
            self._place.write(path, data, durable=False)
            return path, digest_of(data)

    def stage(self, array_path: str, shard: int, block: npt.NDArray[Any]) -> Staged:
        """Write one whole shard where no reader looks, as `write` does otherwise; local stores only. `publish` or `drop` must follow."""
        path = self._path(array_path, shard, block)
        with self._encoded(array_path, block) as data:
            return Staged(path, self._place.stage(path, data), digest_of(data))

    def publish(self, staged: Staged) -> tuple[str, FileDigest]:
        """Give a staged shard its name; returns what `write` returns."""
        self._place.publish(staged.partial, staged.path)
        return staged.path, staged.digest

    def drop(self, staged: Staged) -> None:
        """Remove a staged shard."""
        self._place.delete(staged.partial)

    def _path(self, array_path: str, shard: int, block: npt.NDArray[Any]) -> str:
        """The file of a shard, after checking the block."""
        plan = self._plan(array_path)
        _check(plan, shard, block)
        require_array(self._place, array_path)
        return plan.shard_path(shard)

    def _encoded(self, array_path: str, block: npt.NDArray[Any]) -> AbstractContextManager[memoryview]:
        space = self._plans[array_path].space
        return encoded(block, chunk_rows=space.chunk_rows, shard_rows=space.shard_rows, codec=self._codec)

    def _plan(self, array_path: str) -> ArrayPlan:
        if array_path not in self._plans:
            raise UnitError(
                f"the capture has no sharded array {array_path!r}; it has {', '.join(self._plans)}"
            )
        return self._plans[array_path]


def _check(plan: ArrayPlan, shard: int, block: npt.NDArray[Any]) -> None:
    if not 0 <= shard < plan.space.n_shards:
        raise UnitError(f"{plan.path} has shards 0 to {plan.space.n_shards - 1}, was asked to write {shard}")
    expected = plan.block_shape(shard)
    if block.shape != expected or block.dtype != np.dtype(plan.dtype):
        raise UnitError(
            f"shard {shard} of {plan.path} takes shape {expected} of {plan.dtype}, "
            f"was given {block.shape} of {block.dtype.name}"
        )
