"""How captures and artifacts are opened by people: lazily, by id, by the beginning of an id, or by name.

Every byte that is read is checked against the seal; what is missing or changed raises DamageError.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.artifact import Artifact
from schemas.capture import CaptureSpec
from schemas.errors import DamageError, NotFoundError, SpecError, UnknownNameError, nearest
from schemas.layout import SiteLayout
from schemas.receipts import Failure, Manifest
from schemas.stage import RowsRef, site_of
from tasks.artifact_view import ArtifactView as ArtifactView
from tasks.store.artifacts import list_artifacts as _artifact_ids
from tasks.store.artifacts import read_artifact
from tasks.store.location import Location
from tasks.store.manifest import list_captures as _capture_ids
from tasks.store.manifest import read_manifest
from tasks.store.names import name_path, read_names
from tasks.store.paths import RUNS

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from tasks.loader import RowBatches

Root = str | Path | Location
LONGEST_NAME = 64
MOST_PARTITIONS = 50
"""Partitions that a message lists."""


class Capture:
    """A sealed capture. Nothing but its metadata is read until values are asked for."""

    def __init__(self, root: Location, capture_id: str) -> None:
        from tasks.store.sealed import SealedStore, open_group

        self.root, self.id = root, capture_id
        self.manifest: Manifest = read_manifest(root, capture_id)
        self._store = SealedStore(root, capture_id)
        self._group = open_group(root, capture_id)
        self.spec: CaptureSpec = CaptureSpec.model_validate(self._group.attrs["spec"])

    def __repr__(self) -> str:
        rows = ", ".join(f"{n:,} {space}" for space, n in self.manifest.rows.items())
        return f"<capture {self.id}: {len(self.sites)} sites, {rows}, {len(self.failures)} failed samples>"

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in order."""
        return tuple(str(layout.site) for layout in self.spec.layout.sites)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Samples that have no rows."""
        return self.manifest.failures

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions and origin, as noted when the capture was made."""
        found: Any = self._group.attrs["provenance"]
        return dict(found)

    @cached_property
    def samples(self) -> "pd.DataFrame":
        """One line per sample, by its key: length, ok, truncated, and the labels."""
        import pandas as pd

        from tasks.store.sample_table import read_samples

        table = read_samples(self.root, self.id)
        group: Any = self._group["samples"]
        columns: dict[str, Any] = {
            "length": table.lengths,
            "ok": np.asarray(group["ok"][:], dtype=bool),
            "truncated": table.truncated,
        }
        for name, values in table.labels.items():
            names = table.categories.get(name)
            columns[_free(name, columns)] = (
                values if names is None else pd.Categorical.from_codes(values.tolist(), pd.Index(names))
            )
        return pd.DataFrame(columns, index=pd.Index(table.keys, name="key"))

    def site(self, site: str) -> "xr.Dataset":
        """The rows of a site, lazily: `activation` (row, feature) with coordinates of each row.

        Coordinates: `sample` (its number), `key`, `position`, `token_id`, and every label (names, or numbers). `norm`
        and `outlier` are variables. Rows of failed samples are NaN; select `ok` to leave them out.

        Args:
            site: as in `sites`, or the module's path where only one site has it, or only one site's activations.

        Raises:
            UnknownNameError: if there is no such site, or several; the message lists them or the nearest.
        """
        return self._dataset(site, chunks=None)

    dataset = site

    def dask(self, site: str) -> "xr.Dataset":
        """The same as `site` with Dask arrays, one task per shard."""
        return self._dataset(site, chunks={"row": self._space(self._layout(site)).shard_rows})

    def torch_loader(
        self,
        site: str,
        *,
        shuffle: bool = True,
        batch_rows: int = 1024,
        seed: int = 0,
        drop_failed: bool = True,
        buffer_shards: int = 4,
    ) -> "RowBatches":
        """The rows of a site as batches for training: an iterable data set of torch.

        Iterate over it, or hand it to `torch.utils.data.DataLoader(loader, batch_size=None, num_workers=n,
        multiprocessing_context="spawn")`, whose workers take turns at shards. A batch is a dict: `x`, `sample`,
        `position`, `index`, `labels`. Every row comes once per epoch; the order follows from seed, epoch and the
        number of workers. Each iteration in this process is a new epoch; with workers, call `set_epoch` before.

        Args:
            site: as in `sites`, or the module's path where only one site has it.
            shuffle: draw batches from a buffer of shards in shuffled order; False: in store order.
            batch_rows: rows of a batch; the last one of an epoch (of a worker) may be short.
            seed: of the order.
            drop_failed: leave out rows of failed samples, which are NaN.
            buffer_shards: shards in memory per worker; more mix better.

        Raises:
            UnknownNameError: if there is no such site.
            SpecError: if a number is less than one.
        """
        from tasks.loader import RowBatches

        if batch_rows < 1 or buffer_shards < 1:
            raise SpecError(
                f"found batch_rows={batch_rows}, buffer_shards={buffer_shards}; both must be at least 1"
            )
        ref = RowsRef(capture=self.id, digest=self.id, site=str(self._layout(site).site))
        return RowBatches(
            self.root,
            ref,
            batch_rows=batch_rows,
            shuffle=shuffle,
            seed=seed,
            drop_failed=drop_failed,
            buffer_shards=buffer_shards,
        )

    def _dataset(self, site: str, chunks: dict[str, int] | None) -> "xr.Dataset":
        import xarray as xr

        from tasks.coordinates import row_coordinates

        layout = self._layout(site)
        self._require_rows()
        group = f"sites/{layout.site.key}"
        rows = xr.open_zarr(self._store, group=f"rows/{layout.space}", consolidated=False, chunks=chunks)
        found = xr.open_zarr(self._store, group=group, consolidated=False, chunks=chunks)
        number = [str(s.site) for s in self.spec.layout.sites_of(layout.space)].index(str(layout.site))
        for name in ("norm", "outlier"):
            found[name] = rows[name].isel(site=number)
        found = found.assign_coords({name: rows[name] for name in ("sample", "position", "token_id")})
        gradients = self.spec.layout.gradients
        if layout.site.quantity == "gradient_norm" and gradients is not None:
            found = found.assign_coords(parameter=("feature", list(gradients.parameters)))
        site_rows: xr.Dataset = found.assign_coords(
            row_coordinates(self._group, layout.space, self.samples, chunks)
        )
        return site_rows

    def _layout(self, site: str) -> SiteLayout:
        layouts = self.spec.layout.sites
        found = [s for s in layouts if str(s.site) == site] or [s for s in layouts if s.site.module == site]
        if not found:
            raise UnknownNameError(
                f"capture {self.id} has no site {site!r}; nearest: {nearest(site, self.sites)}"
            )
        activations = [s for s in found if s.site.quantity == "activation"]
        chosen = activations if len(activations) == 1 else found
        if len(chosen) > 1:
            every = ", ".join(str(s.site) for s in chosen)
            raise UnknownNameError(f"capture {self.id} has {len(chosen)} sites {site!r}: {every}; say which")
        return chosen[0]

    def _space(self, layout: SiteLayout) -> Any:
        return self.spec.layout.space(layout.space)

    def _require_rows(self) -> None:
        if self.spec.request.keep != "rows":
            raise NotFoundError(
                f"capture {self.id} keeps only the states of its fused methods, no rows; open the artifacts of its "
                "stages instead, or capture with `keep: rows`"
            )


def open_capture(root: Root, id_or_name: str) -> Capture:
    """A sealed capture.

    Args:
        root: the folder or URL that holds captures.
        id_or_name: its id, the beginning of its id where that is unique, or a name that points to it; `name/partition`
            where the data of that name are partitioned.

    Raises:
        NotFoundError: if there is none, or if it is not sealed.
        UnknownNameError: if a name points to several partitions; the message lists them.
        DamageError: if its manifest or metadata changed.
    """
    place = _location(root)
    return Capture(place, _resolve(place, id_or_name, "capture", _capture_ids(place)))


def open_artifact(root: Root, id_or_name: str) -> ArtifactView:
    """A finished artifact, named as for `open_capture`.

    Raises:
        NotFoundError: if there is none, or if it is not finished.
        DamageError: if it changed.
    """
    place = _location(root)
    return ArtifactView(place, _resolve(place, id_or_name, "artifact", _artifact_ids(place)))


def list_captures(root: Root) -> list[str]:
    """Ids of all sealed captures, sorted."""
    return _capture_ids(_location(root))


def list_artifacts(
    root: Root,
    method: str | None = None,
    *,
    capture: str | None = None,
    site: str | None = None,
    stage: str | None = None,
) -> list[Artifact]:
    """Finished artifacts, sorted by id; their arrays are not read.

    Args:
        root: where they lie.
        method: only those of this method.
        capture: only those that read this capture, by id, the first digits of one, or name.
        site: only those that read this site, `encoder.layer.5:out:0` or the module's path alone.
        stage: only those that a run below this root has made or found for a stage of this name.

    Raises:
        UnknownNameError: if no run has a stage of that name.
    """
    place = _location(root)
    wanted = None if capture is None else _resolve(place, capture, "capture", _capture_ids(place))
    ids = set(_artifact_ids(place))
    found = [read_artifact(place, a) for a in sorted(ids if stage is None else ids & _made_for(place, stage))]
    return [a for a in found if method in (None, a.stage.method) and _reads(a, wanted, site)]


def _made_for(root: Location, stage: str) -> set[str]:
    """Ids of the artifacts of a stage, of all runs together."""
    stages: dict[str, set[str]] = {}
    for name in (name for name in root.ls(RUNS) if name.endswith(".json")):
        try:
            made = json.loads(root.read(f"{RUNS}/{name}"))["outcome"]["artifacts"]
        except (ValueError, KeyError, TypeError) as error:
            raise DamageError(f"{root.url}/{RUNS}/{name} is damaged: {error!r}; remove it") from error
        for one in made:
            stages.setdefault(one["stage"], set()).add(one["id"])
    if stage not in stages:
        raise UnknownNameError(
            f"no run in {root.url} has a stage {stage!r}; nearest: {nearest(stage, stages)}"
        )
    return stages[stage]


def _reads(artifact: Artifact, capture: str | None, site: str | None) -> bool:
    return any(
        capture in (None, of) and site in (None, at, site_of(at).module) for of, at in artifact.stage.places
    )


def _location(root: Root) -> Location:
    return root if isinstance(root, Location) else Location(str(root))


def _resolve(root: Location, wanted: str, kind: str, ids: Sequence[str]) -> str:
    """The id that is meant."""
    if wanted in ids:
        return wanted
    pointed = _pointer(root, wanted, kind)
    if pointed is not None:
        return pointed
    found = [known for known in ids if wanted and known.startswith(wanted)]
    if len(found) > 1:
        raise UnknownNameError(
            f"{len(found)} {kind}s begin with {wanted!r}: {', '.join(found)}; give more digits"
        )
    if len(found) == 1:
        return found[0]
    known = [*(read_names(root) if kind == "capture" else ()), *ids]
    raise NotFoundError(
        f"{root.url} holds no finished {kind} {wanted!r} (of {len(ids)}); nearest: {nearest(wanted, known)}"
    )


def _pointer(root: Location, wanted: str, kind: str) -> str | None:
    """The id that `names/<name>.json` holds under the kind, or of one of its partitions."""
    name, _, partition = wanted.partition("/")
    if not name or len(name) > LONGEST_NAME:
        return None
    try:
        found = json.loads(root.read(name_path(name)))
    except NotFoundError:
        return None
    except ValueError as error:
        raise DamageError(
            f"{root.url}/{name_path(name)} is damaged: {error}; remove it and run again, or give an id"
        ) from error
    if kind == "capture" and "partitions" in found:
        return _partition(root, name, partition, found["partitions"])
    return str(found[kind]) if kind in found and not partition else None


def _partition(root: Location, name: str, partition: str, ids: dict[str, str]) -> str:
    """The capture of a partition, or of the only one there is."""
    if partition in ids:
        return ids[partition]
    if len(ids) == 1 and not partition:
        return next(iter(ids.values()))
    listed = ", ".join(list(ids)[:MOST_PARTITIONS]) + (" ..." if len(ids) > MOST_PARTITIONS else "")
    found = f"no partition {partition!r} of it" if partition else "no partition in the name"
    raise UnknownNameError(
        f"{name!r} below {root.url} stands for {len(ids)} partitions, and there is {found}; expected one of {listed}: "
        f"open_capture(root, {f'{name}/{next(iter(ids))}'!r})"
    )


def _free(name: str, taken: Any) -> str:
    return f"label_{name}" if name in taken else name
