"""A finished artifact as people see it: its result, its arrays, the rows that its codes stand for, scores of new rows, and what it takes on
disk.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from schemas.artifact import Artifact
from schemas.errors import UnknownNameError
from tasks.store.artifacts import read_artifact
from tasks.store.location import Location

if TYPE_CHECKING:
    import xarray as xr


class ArtifactView:
    """A finished artifact: its record, its result, and its arrays, read lazily."""

    def __init__(self, root: Location, artifact_id: str) -> None:
        self.root = root
        self.artifact: Artifact = read_artifact(root, artifact_id)

    def __repr__(self) -> str:
        arrays = ", ".join(self.artifact.arrays)
        return f"<artifact {self.artifact.id} of {self.artifact.stage.method}: {arrays}>"

    @property
    def id(self) -> str:
        """The artifact's id."""
        return self.artifact.id

    @property
    def result(self) -> dict[str, Any]:
        """The method's result; None where a number was NaN or infinite."""
        return self.artifact.result

    @property
    def arrays(self) -> "xr.Dataset":
        """The arrays, with named axes."""
        return self._open("")

    def arrays_of(self, capture_id: str) -> "xr.Dataset":
        """The row-aligned arrays of one capture, where a stage read several."""
        return self._open(capture_id)

    @property
    def bytes(self) -> dict[str, int]:
        """What each array takes on disk, with its metadata; those of several captures are named `capture/array`."""
        taken = dict.fromkeys(self.artifact.arrays, 0)
        for path, digest in self.artifact.files.items():
            name = (
                path.removeprefix("arrays.zarr/")
                .removesuffix("/zarr.json")
                .removesuffix("/c")
                .partition("/c/")[0]
            )
            if name in taken:
                taken[name] += digest.bytes
        return taken

    def reconstruct(self, capture_id: str | None = None) -> "xr.DataArray":
        """The rows that the artifact's codes stand for, lazily: (row, feature), float32, a Dask block per shard, NaN for failed samples.

        Args:
            capture_id: of whose rows, where the stage read several captures.

        Raises:
            MethodError: if the artifact holds no codes of rows.
            UnknownNameError: if it holds those of several captures and none of them is named; the message lists them.
        """
        from tasks.decoders import decoder_of
        from tasks.reconstruct import reconstructed

        decoder = decoder_of(self.artifact.stage.method)
        captures = [ref.capture for refs in self.artifact.stage.rows.values() for ref in refs]
        wanted = captures[0] if capture_id is None and len(captures) == 1 else capture_id
        if wanted not in captures:
            raise UnknownNameError(
                f"artifact {self.id} holds rows of {', '.join(captures)}; asked for {capture_id}: say which"
            )
        return reconstructed(
            decoder, self.arrays, self._open(wanted if len(captures) > 1 else "", by_shard=True)
        )

    def score(
        self,
        rows: Any,
        classes: Sequence[str] | None = None,
        device: str = "cpu",
        trust_code: bool = False,
    ) -> "xr.Dataset":
        """How strange new rows are: what the detector that made the artifact gives them, outside a run; larger is stranger.

        Of an `anomaly.calibrated` artifact p-values and flags come beside the scores. What a method reads of a network is loaded again.

        Args:
            rows: [row, feature], of the artifact's site: an array or tensor of any dtype, in memory.
            classes: the class of each row, for a calibration by classes.
            device: where it is computed.
            trust_code: run the functions that the store names, where the method reads parameters of a network that they make.

        Returns:
            `score` (row), float64, and what else the method gives a row, bit by bit as its stage gives them.

        Raises:
            MethodError: if the artifact is of no detector, or rows are not finite or of another width.
            UnknownNameError: for a class that has no calibration.
            SpecError: if code would run that is not trusted.
        """
        from tasks.scoring import score_rows

        return score_rows(self.root, self.artifact, rows, classes, device, trust_code)

    def _open(self, group: str, by_shard: bool = False) -> "xr.Dataset":
        import xarray as xr

        from tasks.store.artifacts import open_arrays

        arrays = open_arrays(self.root, self.artifact.id)
        chunks = {"row": _shard_rows(arrays[group] if group else arrays)} if by_shard else None
        found: xr.Dataset = xr.open_zarr(arrays.store, group=group or None, consolidated=False, chunks=chunks)
        return found


def _shard_rows(group: Any) -> int:
    """Rows of a shard of a group's arrays."""
    return next(int(array.shards[0]) for _, array in group.arrays() if array.shards)
