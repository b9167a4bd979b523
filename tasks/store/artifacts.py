"""Artifacts: the typed result of a stage in artifact.json (written last), its arrays in Zarr, its figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from schemas.artifact import ArrayInfo, Artifact
from schemas.base import canonical_json
from schemas.capture import SCHEMA_VERSION
from schemas.errors import DamageError, MethodError, NotFoundError, StoreError
from schemas.receipts import FileDigest
from tasks.store.location import Location, digest_of
from tasks.store.paths import ARTIFACTS, artifact_arrays_path, artifact_path, artifact_receipts_path
from tasks.store.verify import Damage, compare, unknown

if TYPE_CHECKING:
    import zarr

    from tasks.store.row_outputs import ArtifactWriter, RowArray, RowGrid

CHUNK_BYTES = 1 << 24
"""Arrays are cut along the first axis into chunks of about this size."""
ARRAYS, RECORD = "arrays.zarr", "artifact.json"
NamedArray = tuple[npt.NDArray[Any], tuple[str, ...]]


def write_artifact(
    root: Location,
    artifact: Artifact,
    arrays: Mapping[str, NamedArray],
    figures: Mapping[str, bytes],
    rows: Sequence["ArtifactWriter"] = (),
) -> Artifact:
    """Write a result; it exists when this returns, and not before.

    What an interrupted run left is removed, except finished shards of `rows`. A finished artifact is never
    overwritten: the one that is there is returned.

    Args:
        root: where artifacts lie.
        artifact: everything but `arrays` and `files`, which are filled in here.
        arrays: name (`a` or `group/a`) to values and names of their axes.
        figures: file name to bytes.
        rows: writers whose row-aligned shards are all done.

    Raises:
        MethodError: if one axis name has two lengths in a group, which xarray could not open.
        StoreError: if shards of `rows` are missing, or the storage refuses.
    """
    there = root.walk(artifact_path(artifact.id))
    if RECORD in there:
        return read_artifact(root, artifact.id)
    written = {f"{ARRAYS}/{path}": digest for writer in rows for path, digest in writer.files().items()}
    infos = {name: ArrayInfo(dims=d, shape=v.shape, dtype=v.dtype.name) for name, (v, d) in arrays.items()}
    infos |= {name: info for writer in rows for name, info in writer.infos().items()}
    _check_dims(artifact.id, infos)
    for path in there.keys() - written.keys():
        root.delete(f"{artifact_path(artifact.id)}/{path}")
    root.sweep(artifact_receipts_path(artifact.id))
    written |= _write_arrays(root, artifact, arrays)
    for name, data in figures.items():
        root.write(f"{artifact_path(artifact.id)}/figures/{name}", data)
        written[f"figures/{name}"] = digest_of(data)
    update = {"arrays": infos, "files": dict(sorted(written.items())), "digest": ""}
    finished = artifact.model_copy(update=update).with_digest()
    root.sync(f"{artifact_path(artifact.id)}/{path}" for path in written)
    root.create(_record(artifact.id), canonical_json(finished))
    return read_artifact(root, artifact.id)


def _record(artifact: str) -> str:
    return f"{artifact_path(artifact)}/{RECORD}"


def _check_dims(artifact: str, infos: Mapping[str, ArrayInfo]) -> None:
    lengths: dict[tuple[str, str], tuple[int, str]] = {}
    for name, info in infos.items():
        if len(info.dims) != len(info.shape):
            raise MethodError(
                f"array {name!r} of artifact {artifact}: axes {info.dims} for shape {info.shape}"
            )
        for dim, length in zip(info.dims, info.shape, strict=True):
            other, first = lengths.setdefault((name.rpartition("/")[0], dim), (length, name))
            if other != length:
                raise MethodError(
                    f"artifact {artifact}: axis {dim!r} has length {other} in {first!r} and {length} in "
                    f"{name!r}; give one of them another name"
                )


def _write_arrays(
    root: Location, artifact: Artifact, arrays: Mapping[str, NamedArray]
) -> dict[str, FileDigest]:
    """Encode in memory, then replace file by file: another run that writes the same artifact is not disturbed."""
    import zarr.storage

    from tasks.store.codecs import add_array

    store = zarr.storage.MemoryStore()
    attributes: dict[str, Any] = {
        "schema_version": artifact.schema_version,
        "artifact": artifact.id,
        "stage": artifact.stage.model_dump(mode="json"),
    }
    group = zarr.create_group(store, zarr_format=3, attributes=attributes)
    for name, (values, dims) in arrays.items():
        rows = max(1, CHUNK_BYTES * len(values) // max(values.nbytes, 1)) if values.ndim else 1
        chunk_rows = min(rows, len(values)) if values.ndim else 1
        array = add_array(group, name, values.shape, values.dtype.name, dims, chunk_rows=chunk_rows)
        if values.size:
            array[...] = values
    objects = {path: value.to_bytes() for path, value in store._store_dict.items()}
    for path, data in objects.items():
        root.write(f"{artifact_arrays_path(artifact.id)}/{path}", data, durable=False)
    return {f"{ARRAYS}/{path}": digest_of(data) for path, data in objects.items()}


def read_artifact(root: Location, artifact: str) -> Artifact:
    """A finished artifact, whose own digest holds.

    Raises:
        NotFoundError: if it is not there or not finished.
        DamageError: if artifact.json was changed.
        StoreError: if a newer subspan wrote it.
    """
    path = _record(artifact)
    try:
        data = root.read(path)
    except NotFoundError as error:
        raise NotFoundError(f"{root.url} holds no finished artifact {artifact}; run its stage") from error
    try:
        found = Artifact.model_validate_json(data)
    except ValidationError as error:
        raise DamageError(
            f"{root.url}/{path} is no artifact; remove its folder and run the stage again"
        ) from error
    if found.schema_version > SCHEMA_VERSION:
        raise StoreError(
            f"{root.url}/{path} has schema_version {found.schema_version}, this subspan reads up to "
            f"{SCHEMA_VERSION}: install a newer subspan"
        )
    if found.id != artifact or not found.holds() or canonical_json(found) != data:
        raise DamageError(f"{root.url}/{path} was changed; remove its folder and run the stage again")
    return found


def artifact_files(root: Location, artifact: str) -> Mapping[str, FileDigest]:
    """What arrays.zarr of an artifact must hold."""
    start = f"{ARRAYS}/"
    files = read_artifact(root, artifact).files
    return {path.removeprefix(start): digest for path, digest in files.items() if path.startswith(start)}


def open_arrays(root: Location, artifact: str) -> "zarr.Group":
    """The arrays of an artifact, read lazily; every access raises DamageError on what changed."""
    import zarr

    from tasks.store.sealed import SealedStore

    read_artifact(root, artifact)
    folder = artifact_arrays_path(artifact)
    store = SealedStore(root, artifact, folder=folder, files=artifact_files, what="artifact")
    return zarr.open_group(store, mode="r", zarr_format=3)


def artifact_arrays(root: Location, artifact: str, without: str | None = None) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an artifact in memory, by name, digests checked.

    Args:
        root: where artifacts lie.
        artifact: the artifact's id.
        without: arrays whose first axis has this name are left out, and not read.

    Raises:
        NotFoundError, DamageError: if it is not there, or something changed.
    """
    group: Any = open_arrays(root, artifact)
    infos = read_artifact(root, artifact).arrays
    wanted = [name for name, info in infos.items() if without is None or info.dims[:1] != (without,)]
    return {name: np.asarray(group[name][...]) for name in wanted}


def list_artifacts(root: Location) -> list[str]:
    """Ids of all finished artifacts, sorted."""
    return sorted(name for name in root.ls(ARTIFACTS) if root.exists(_record(name)))


def verify_artifact(root: Location, artifact: str) -> list[Damage]:
    """Everything of an artifact that is not as it was written; empty if it is whole."""
    folder = artifact_path(artifact)
    try:
        files = read_artifact(root, artifact).files
    except DamageError as error:
        return [Damage(_record(artifact), str(error))]
    expected = {f"{folder}/{path}": digest for path, digest in files.items()}
    found = {f"{folder}/{path}" for path in root.walk(folder)} - {_record(artifact)}
    changed = [(path, compare(root, path, digest)) for path, digest in expected.items()]
    return [Damage(path, what) for path, what in changed if what] + unknown(found, expected)


def delete_artifact(root: Location, artifact: str) -> None:
    """Remove an artifact; its record first, so that it is never half there."""
    root.delete(_record(artifact))
    root.delete(artifact_path(artifact), recursive=True)
    root.delete(artifact_receipts_path(artifact), recursive=True)


def __getattr__(name: str) -> Any:
    """The writer of row-aligned outputs, imported (with zarr) at first use."""
    if name in ("ArtifactWriter", "RowArray", "RowGrid"):
        from tasks.store import row_outputs

        return getattr(row_outputs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ArtifactWriter",
    "RowArray",
    "RowGrid",
    "artifact_arrays",
    "delete_artifact",
    "list_artifacts",
    "open_arrays",
    "read_artifact",
    "verify_artifact",
    "write_artifact",
]
