"""Row-aligned outputs of a stage, written shard by shard by many workers, with a receipt for each shard.

The grid is that of the rows: shard k of an output holds the rows of shard k of what was read. Outputs over
several captures lie in one group per capture, because their row counts differ.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import MemoryStore

from schemas.artifact import ArrayInfo
from schemas.base import Digested, canonical_json
from schemas.capture import ArrayCodec, Codec
from schemas.errors import NotFoundError, StoreError, UnitError
from schemas.receipts import FileDigest
from tasks.store.codecs import add_array
from tasks.store.encode import encoded
from tasks.store.location import Location, digest_of
from tasks.store.paths import artifact_arrays_path, artifact_receipts_path
from tasks.store.shards import require_array


class RowArray(NamedTuple):
    """One output: a value or a vector per row."""

    dtype: str
    """A NumPy dtype name; floats are filled with NaN, integers with -1, booleans with False."""
    width: int | None = None
    """Length of the second axis; None for one value per row."""
    dim: str = "component"
    """Name of the second axis."""
    codec: ArrayCodec | None = None
    """Of this output; None for that of the writer."""


class RowGrid(NamedTuple):
    """How rows are cut, as in the capture that they come from."""

    n_rows: int
    chunk_rows: int
    shard_rows: int

    @property
    def n_shards(self) -> int:
        """Number of shards, the last of which may be short."""
        return -(-self.n_rows // self.shard_rows)

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row and one past the last of a shard."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.n_rows)


class ShardReceipt(Digested):
    """The proof that one shard of every output of a group is durable."""

    artifact: str
    group: str
    shard: int
    files: dict[str, FileDigest]
    """Path below arrays.zarr to digest."""


class ArtifactWriter:
    """Writes the row-aligned outputs of one artifact, for one group of rows.

    Args:
        root: where artifacts lie.
        artifact: the artifact's id.
        grid: the rows.
        outputs: name to what it holds.
        group: where they lie below arrays.zarr; empty for the root, the capture's id if there are several.
        codec: as in captures, of outputs that name none.

    Picklable; each worker may make its own from the same arguments.
    """

    def __init__(
        self,
        root: Location,
        artifact: str,
        grid: RowGrid,
        outputs: Mapping[str, RowArray],
        group: str = "",
        codec: Codec = "lz4",
    ) -> None:
        self.root, self.artifact, self.grid, self.group = root, artifact, grid, group
        self.outputs, self.codec = dict(outputs), codec
        self._place = root.child(artifact_arrays_path(artifact))

    def create(self) -> dict[str, FileDigest]:
        """Write the metadata of all outputs, the same bytes every time; do it before any shard."""
        objects = self._metadata()
        for path, data in objects.items():
            self._place.write(path, data)
        return {path: digest_of(data) for path, data in objects.items()}

    def done(self, shard: int) -> bool:
        """Whether a shard has its receipt."""
        return self._receipt(shard) is not None

    def write(self, shard: int, blocks: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write one shard of every output, then its receipt: see `put`."""
        self.confirm({shard: self.put(shard, blocks)})

    def put(self, shard: int, blocks: Mapping[str, npt.NDArray[Any]]) -> dict[str, FileDigest]:
        """Write one shard of every output, which counts once it is confirmed.

        Args:
            shard: which one.
            blocks: output to all rows of the shard, [row] or [row, component].

        Returns:
            What was written, for `confirm`.

        Raises:
            UnitError: if a block is missing or is not exactly the shard.
        """
        return dict(self._place.each(lambda name: self._put_one(name, shard, blocks), self.outputs))

    def _put_one(
        self, name: str, shard: int, blocks: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[str, FileDigest]:
        output = self.outputs[name]
        block = np.asarray(blocks[name]) if name in blocks else np.empty(0)
        self._check(name, shard, output, block)
        require_array(self._place, self._path(name))
        path = self._shard_path(name, shard)
        with encoded(
            block,
            chunk_rows=self.grid.chunk_rows,
            shard_rows=self.grid.shard_rows,
            codec=output.codec or self.codec,
        ) as data:
            self._place.write(path, data, durable=False)
            return path, digest_of(data)

    def confirm(self, written: Mapping[int, dict[str, FileDigest]]) -> None:
        """Make shards durable that were put, then write their receipts, which are durable on return: all together, so that they wait for
        the disk twice.
        """
        self._place.sync([path for files in written.values() for path in files])
        self.root.each(lambda shard: self._put_receipt(shard, written[shard]), written)
        self.root.sync([self._receipt_path(shard) for shard in written])

    def _put_receipt(self, shard: int, files: dict[str, FileDigest]) -> None:
        receipt = ShardReceipt(artifact=self.artifact, group=self.group, shard=shard, files=files)
        self.root.write(self._receipt_path(shard), canonical_json(receipt.with_digest()), durable=False)

    def files(self) -> dict[str, FileDigest]:
        """Everything that was written, by path below arrays.zarr.

        Raises:
            StoreError: if shards have no receipt.
        """
        found = {path: digest_of(data) for path, data in self._metadata().items()}
        open_shards = []
        for shard, receipt in enumerate(self.root.each(self._receipt, range(self.grid.n_shards))):
            open_shards += [] if receipt else [shard]
            found |= receipt.files if receipt else {}
        if open_shards:
            raise StoreError(
                f"artifact {self.artifact} lacks {len(open_shards)} of {self.grid.n_shards} shards of "
                f"{', '.join(self.outputs)} (first: {open_shards[0]}); "
                "run the stage again, finished shards are kept"
            )
        return found

    def infos(self) -> dict[str, ArrayInfo]:
        """Axes, shape and dtype of every output."""
        return {
            self._path(name): ArrayInfo(
                dims=self._dims(output), shape=self._shape(output), dtype=output.dtype
            )
            for name, output in self.outputs.items()
        }

    def _dims(self, output: RowArray) -> tuple[str, ...]:
        return ("row",) if output.width is None else ("row", output.dim)

    def _shape(self, output: RowArray) -> tuple[int, ...]:
        return (self.grid.n_rows,) if output.width is None else (self.grid.n_rows, output.width)

    def _path(self, name: str) -> str:
        return f"{self.group}/{name}" if self.group else name

    def _shard_path(self, name: str, shard: int) -> str:
        return f"{self._path(name)}/c/{shard}" + ("" if self.outputs[name].width is None else "/0")

    def _receipt_path(self, shard: int) -> str:
        return f"{artifact_receipts_path(self.artifact)}/{self.group or 'rows'}-{shard:06d}.json"

    def _receipt(self, shard: int) -> ShardReceipt | None:
        try:
            receipt = ShardReceipt.read(self.root.read(self._receipt_path(shard)))
        except NotFoundError:
            return None
        if receipt is None:
            return None
        expected = {self._shard_path(name, shard) for name in self.outputs}
        ours = (receipt.artifact, receipt.group, receipt.shard) == (self.artifact, self.group, shard)
        return receipt if ours and set(receipt.files) == expected else None

    def _check(self, name: str, shard: int, output: RowArray, block: npt.NDArray[Any]) -> None:
        first, last = self.grid.bounds(shard)
        expected = (last - first,) if output.width is None else (last - first, output.width)
        if block.shape != expected or block.dtype != np.dtype(output.dtype):
            raise UnitError(
                f"shard {shard} of output {name!r} takes shape {expected} of {output.dtype}, "
                f"was given {block.shape} of {block.dtype.name}"
            )

    def _metadata(self) -> dict[str, bytes]:
        store = MemoryStore()
        root = zarr.create_group(store, zarr_format=3)
        for name, output in self.outputs.items():
            add_array(
                root,
                self._path(name),
                self._shape(output),
                output.dtype,
                self._dims(output),
                chunk_rows=self.grid.chunk_rows,
                shard_rows=self.grid.shard_rows,
                codec=output.codec or self.codec,
            )
        return {key: value.to_bytes() for key, value in store._store_dict.items()}
