"""Where everything lies below a root, and which arrays a capture has. Names only: nothing is opened here."""

from typing import NamedTuple

from schemas.capture import CaptureSpec
from schemas.layout import Space, UnitRef

CAPTURES, ARTIFACTS, RUNS, PLANS = "captures", "artifacts", "runs", "plans"
STATES = "states/"


def capture_path(capture: str) -> str:
    """The folder of a capture's arrays."""
    return f"{CAPTURES}/{capture}.zarr"


def receipts_path(capture: str) -> str:
    """The folder of a capture's receipts."""
    return f"{CAPTURES}/{capture}.receipts"


def receipt_path(capture: str, unit: UnitRef) -> str:
    """The receipt of a unit."""
    return f"{receipts_path(capture)}/{unit.name}.json"


def created_path(capture: str) -> str:
    """The digests of what `create_capture` wrote."""
    return f"{receipts_path(capture)}/created.json"


def manifest_path(capture: str) -> str:
    """The manifest, whose presence seals the capture."""
    return f"{CAPTURES}/{capture}.manifest.json"


def lease_path(capture: str) -> str:
    """The folder of a capture's lease."""
    return f"{CAPTURES}/{capture}.lease"


def artifact_path(artifact: str) -> str:
    """The folder of an artifact."""
    return f"{ARTIFACTS}/{artifact}"


def artifact_arrays_path(artifact: str) -> str:
    """The Zarr folder of an artifact."""
    return f"{artifact_path(artifact)}/arrays.zarr"


def artifact_receipts_path(artifact: str) -> str:
    """The folder of the receipts of an artifact's row-aligned shards."""
    return f"{ARTIFACTS}/{artifact}.receipts"


def stored_dtype(name: str) -> str:
    """The NumPy dtype that a store dtype lies in: bfloat16 values lie in float32, which no reader minds."""
    return "float32" if name == "bfloat16" else name


class ArrayPlan(NamedTuple):
    """A sharded array of a capture, one row per row of its space."""

    path: str
    """Below the capture's folder."""
    space: Space
    dtype: str
    """A NumPy dtype name."""
    width: int | None
    """Length of the second axis; None for one value per row."""
    dims: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The final shape."""
        return (self.space.n_rows,) if self.width is None else (self.space.n_rows, self.width)

    def block_shape(self, shard: int) -> tuple[int, ...]:
        """The shape of what a shard holds; the last one may be short."""
        first, last = self.space.shard_bounds(shard)
        return (last - first, *self.shape[1:])

    def shard_path(self, shard: int) -> str:
        """The file of a shard, below the capture's folder."""
        return f"{self.path}/c/{shard}" + ("" if self.width is None else "/0")


def space_arrays(spec: CaptureSpec, space: Space) -> list[ArrayPlan]:
    """The sharded arrays of a row space, in the order of writing; none if only states are kept."""
    if spec.request.keep == "states":
        return []
    base, sites = f"rows/{space.name}", spec.layout.sites_of(space.name)
    dtype = stored_dtype(spec.request.store.dtype)
    per_row = [("sample", "int64"), ("position", "int32"), ("token_id", "int32")]
    per_site = [("norm", "float32"), ("outlier", "bool")] if sites else []
    return [
        *(ArrayPlan(f"{base}/{name}", space, kind, None, ("row",)) for name, kind in per_row),
        *(ArrayPlan(f"{base}/{name}", space, kind, len(sites), ("row", "site")) for name, kind in per_site),
        *(ArrayPlan(site.site.array, space, dtype, site.width, ("row", "feature")) for site in sites),
    ]


def unit_files(spec: CaptureSpec, unit: UnitRef) -> list[str]:
    """Every shard that a unit writes, below the capture's folder."""
    space = spec.layout.space(unit.space)
    shards = space.unit_shard_range(unit.index)
    return [plan.shard_path(shard) for plan in space_arrays(spec, space) for shard in shards]


def all_units(spec: CaptureSpec) -> list[UnitRef]:
    """Every unit of a capture, in order."""
    return [
        UnitRef(space=space.name, index=index)
        for space in spec.layout.spaces
        for index in range(space.n_units)
    ]
