"""Writing whole shards, each by one worker alone."""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from schemas.capture import CaptureSpec
from schemas.errors import NotFoundError, UnitError
from schemas.receipts import FileDigest
from tasks.store.location import Location
from tasks.store.paths import ArrayPlan, capture_path, space_arrays
from tasks.store.zarrstore import ShardStore


def open_for_writing(store: ShardStore, path: str) -> zarr.Array[Any]:
    """An array that exists; fill values are written like any other.

    Raises:
        NotFoundError: if its metadata are not there.
    """
    try:
        array = zarr.open_array(store, path=path, mode="r+", zarr_format=3)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{store.base.url}/{path} is not there; create it before writing shards"
        ) from error
    return array.with_config({"write_empty_chunks": True})  # open_array takes a config and ignores it


class ShardWriter:
    """Writes shards of one capture. May be used by several threads, each on its own shards.

    A shard is encoded whole in memory, written to a temporary name and renamed; it becomes durable with the unit's
    receipt, which is written after one sync of all the unit's files. Shards that are already there are replaced, never merged.
    """

    def __init__(self, root: Location, spec: CaptureSpec, capture_id: str) -> None:
        self._store = ShardStore(root.child(capture_path(capture_id)))
        self._plans = {plan.path: plan for space in spec.layout.spaces for plan in space_arrays(spec, space)}
        self._open = cache(lambda path: open_for_writing(self._store, path))

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
            StoreError, ResourceError: if the storage refuses, stalls, or is full.
        """
        plan = self._plan(array_path)
        _check(plan, shard, block)
        first, last = plan.space.shard_bounds(shard)
        self._open(array_path)[first:last] = block
        path = plan.shard_path(shard)
        return path, self._store.written.pop(path)

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
