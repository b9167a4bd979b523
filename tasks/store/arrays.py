"""A capture's arrays: their metadata with final shapes, and the table of samples, before any forward."""

import json
from collections.abc import Sized
from typing import Any

import zarr
from zarr.storage import MemoryStore

from schemas.base import canonical_json
from schemas.capture import CaptureSpec
from schemas.errors import DataError, OccupiedError
from schemas.receipts import FileDigest
from tasks.store.capture_spec import read_spec
from tasks.store.codecs import add_array, codec_chain
from tasks.store.location import PARTIAL, Location, digest_of
from tasks.store.manifest import is_sealed, read_manifest
from tasks.store.paths import ArrayPlan, capture_path, created_path, space_arrays
from tasks.store.receipts import CreatedRecord
from tasks.store.sample_table import SampleTable, add_samples, read_samples
from tasks.store.shards import ShardWriter

UNITS = {
    "activation": "as the network gives it",
    "activation_gradient": "loss of the sample per unit of the activation",
    "parameter_gradient": "loss of the sample per unit of the parameter; projected ones keep inner products on average",
    "gradient_norm": "Euclidean norm of the gradient of each parameter",
    "weight": "as the network holds it",
    "update": "change of the weight by the step, or since the checkpoint before",
    "norm": "Euclidean norm of the row, in the unit of the activation",
    "position": "tokens or grid cells from the start of the sample",
}


def create_capture(
    root: Location, spec: CaptureSpec, samples: SampleTable, provenance: dict[str, Any]
) -> dict[str, FileDigest]:
    """Write groups, array metadata and the sample table of a capture.

    Doing it again changes nothing: the first root metadata (with its provenance) stays, what is missing or
    damaged is written again. A sealed capture is left as it is.

    Args:
        root: where captures lie.
        spec: the resolved spec, which names the capture.
        samples: the sample table, in store order.
        provenance: versions and origin, kept in the root attributes.

    Returns:
        Path below the capture's folder to digest, of everything written here.

    Raises:
        OccupiedError: if the place holds something that is not this capture.
        DataError: if the sample table does not fit the layout.
    """
    if is_sealed(root, spec.id):
        shards = {plan.path for space in spec.layout.spaces for plan in space_arrays(spec, space)}
        sealed = read_manifest(root, spec.id).files
        return {path: digest for path, digest in sealed.items() if path.partition("/c/")[0] not in shards}
    _check(spec, samples)
    place = root.child(capture_path(spec.id))
    objects = _build(spec, samples, provenance)
    objects["zarr.json"] = _claim(place, spec, objects["zarr.json"])
    there = place.walk()
    for path, data in objects.items():
        if there.get(path) != len(data) or place.read(path) != data:
            place.write(path, data, durable=False)
    place.sync(objects)
    digests = {path: digest_of(data) for path, data in objects.items()}
    record = CreatedRecord(capture=spec.id, files=digests).with_digest()
    root.write(created_path(spec.id), canonical_json(record))
    return digests


def _claim(place: Location, spec: CaptureSpec, own: bytes) -> bytes:
    """The root metadata that stands: what lies there if it is of this spec, ours if the place is free."""
    foreign = [name for name in place.ls() if not name.endswith(PARTIAL)]
    if "zarr.json" not in foreign:
        if foreign:
            raise OccupiedError(
                f"{place.url} holds {', '.join(foreign[:3])} but no capture; "
                "move them away, or choose another root"
            )
        place.write("zarr.json", own)
        return own
    there = place.read("zarr.json")
    if own.startswith(there):  # a server that writes in place died in this very write
        place.write("zarr.json", own)
        return own
    try:
        found = CaptureSpec.model_validate(json.loads(there)["attributes"]["spec"]).id
    except (ValueError, KeyError, TypeError):
        found = ""
    if found != spec.id:
        raise OccupiedError(
            f"{place.url}/zarr.json is not of capture {spec.id}; move the folder away, or choose another root"
        )
    return there


def _check(spec: CaptureSpec, samples: SampleTable) -> None:
    """Refuse a sample table that does not fit the layout."""
    n = spec.layout.n_samples
    columns: dict[str, Sized] = {"keys": samples.keys, "lengths": samples.lengths, **samples.labels}
    wrong = {name: len(column) for name, column in columns.items() if len(column) != n}
    if wrong:
        raise DataError(
            f"the sample table of capture {spec.id} has columns of length {wrong}, expected {n} samples"
        )
    for space in spec.layout.spaces:
        start = samples.row_start.get(space.name)
        if start is None or len(start) != n + 1 or int(start[0]) != 0 or int(start[-1]) != space.n_rows:
            raise DataError(
                f"row_start of space {space.name!r} in capture {spec.id} must run from 0 to {space.n_rows} "
                f"in {n + 1} steps"
            )


def _build(spec: CaptureSpec, samples: SampleTable, provenance: dict[str, Any]) -> dict[str, bytes]:
    """Every object of a new capture, in memory: some kilobytes per array, some tens of bytes per sample."""
    store = MemoryStore()
    root = zarr.create_group(
        store,
        zarr_format=3,
        attributes={
            "schema_version": spec.schema_version,
            "spec": spec.model_dump(mode="json"),
            "provenance": provenance,
            "units": UNITS,
        },
    )
    add_samples(root.create_group("samples"), spec, samples)
    for space in spec.layout.spaces:
        plans = space_arrays(spec, space)
        if plans:
            sites = [str(site.site) for site in spec.layout.sites_of(space.name)]
            root.create_group(f"rows/{space.name}", attributes={"space": space.name, "sites": sites})
        for plan in plans:
            _add_rows(root, spec, plan)
    for site in reversed(spec.layout.sites) if spec.request.keep == "rows" else ():
        about: dict[str, Any] = {
            "site": str(site.site),
            "parameter" if site.site.is_parameter else "module": site.site.module,
            "width": site.width,
            "space": site.space,
        }
        root[f"sites/{site.site.key}"].attrs.update(about)
        own = {"site": str(site.site), "shape": site.shape, "features": site.features}
        if site.site.quantity != "activation":
            root[site.site.array].attrs.update({name: value for name, value in own.items() if value})
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def _add_rows(root: zarr.Group, spec: CaptureSpec, plan: ArrayPlan) -> None:
    name = plan.path.rpartition("/")[2]
    add_array(
        root,
        plan.path,
        plan.shape,
        plan.dtype,
        plan.dims,
        chunk_rows=plan.space.chunk_rows,
        shard_rows=plan.space.shard_rows,
        codec=spec.request.store.codec,
        attributes={"quantity": name, "unit": UNITS[name]} if name in UNITS else {},
    )


__all__ = ["SampleTable", "ShardWriter", "codec_chain", "create_capture", "read_samples", "read_spec"]
