"""Sealed captures of given rows, without any network, and stages over them."""

import hashlib
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.capture import CaptureRequest, CaptureSpec, MethodCall, StoreOptions
from schemas.data import Data, SklearnDigits
from schemas.layout import Layout, Site, SiteLayout, Space, UnitRef
from schemas.model import FactoryModel, Model
from schemas.receipts import Failure, FileDigest, Fingerprint, Receipt
from schemas.stage import ArtifactRef, EdgesRef, ResolvedStage, RowsRef, SeriesRef
from tasks.extract import known
from tasks.extract.models import network
from tasks.store.arrays import SampleTable, ShardWriter, create_capture
from tasks.store.location import Location
from tasks.store.paths import all_units, space_arrays, stored_dtype
from tasks.store.seal import seal, write_receipt

FINGERPRINT = Fingerprint(packages={}, device="cpu", threads=1, python="3.11", machine="test")
OnUnit = Callable[[CaptureSpec, UnitRef], dict[str, FileDigest]]


def make_capture(
    root: Location,
    arrays: Mapping[str, np.ndarray],
    sample_of_row: Sequence[int] | np.ndarray | None = None,
    labels: Mapping[str, Sequence[str] | np.ndarray] | None = None,
    *,
    keys: Sequence[str] | None = None,
    space: str = "tokens",
    shard_rows: int = 8,
    chunk_rows: int = 4,
    unit_shards: int = 2,
    dtype: str = "float32",
    failed: Sequence[int] = (),
    keep: str = "rows",
    fuse: Sequence[MethodCall] = (),
    name: str = "network",
    model: Model | None = None,
    on_unit: OnUnit | None = None,
) -> CaptureSpec:
    """Write and seal a capture of one row space.

    Args:
        root: where.
        arrays: `str(Site)`, or a module path, to [row, feature].
        sample_of_row: non-decreasing sample of each row; None: every row is a sample.
        labels: label to names (kept as codes) or numbers per sample.
        failed: samples whose rows become NaN and that are not ok.
        fuse: methods in the request, for a capture that keeps states.
        name: makes captures of equal layout different.
        model: the network that the rows are said to be of, for methods that read its weights; None: one that cannot be loaded.
        on_unit: makes further files of a unit, before it has its receipt.
    """
    sites = {_site(site): np.asarray(values, dtype=np.float64) for site, values in arrays.items()}
    n = len(next(iter(sites.values())))
    sample = np.arange(n) if sample_of_row is None else np.asarray(sample_of_row, dtype=np.int64)
    n_samples = int(sample.max()) + 1 if n else 0
    grid = Space(
        name=space,
        n_rows=n,
        per_sample=None,
        chunk_rows=chunk_rows,
        shard_rows=shard_rows,
        unit_shards=unit_shards,
    )
    layouts = tuple(
        SiteLayout(site=site, space=space, width=values.shape[1], feature_axis=2)
        for site, values in sites.items()
    )
    request = CaptureRequest(
        model=model or FactoryModel(factory="tests.helpers:none", arguments={"name": name}),
        data=Data(source=SklearnDigits()),
        sites=("**",),
        store=StoreOptions.model_validate({"dtype": dtype}),
        keep="states" if keep == "states" else "rows",
        fuse=tuple(fuse),
    )
    spec = CaptureSpec(
        request=request,
        weights="w" if model is None else network(model).digest,
        data="d",
        tokenizer=None,
        layout=Layout(n_samples=n_samples, spaces=(grid,), sites=layouts),
    )
    start = np.searchsorted(sample, np.arange(n_samples + 1)).astype(np.int64)
    table = _table(keys or [f"sample-{k:04d}" for k in range(n_samples)], start, space, labels or {})
    kept = None if on_unit or not root.is_local else _digest(spec, table, sites, sample, failed)
    if kept is not None and kept in _MADE:
        shutil.copytree(_MADE[kept], f"{root.url}/captures", dirs_exist_ok=True)
        return spec
    create_capture(root, spec, table, {})
    columns = _columns(spec, sites, sample, start, failed)
    for unit in all_units(spec):
        _write_unit(root, spec, unit, columns, failed, on_unit)
    seal(root, spec)
    _keep(root, spec, kept)
    return spec


_MADE: dict[str, Path] = {}
"""Captures that were made before, to be copied: making one takes some hundred fsyncs."""
_FOLDER = tempfile.TemporaryDirectory(prefix="subspan-captures-")


def _digest(spec: CaptureSpec, *parts: Any) -> str:
    return hashlib.sha256(spec.id.encode() + pickle.dumps(parts)).hexdigest()


def _keep(root: Location, spec: CaptureSpec, digest: str | None) -> None:
    if digest is None:
        return
    place = _MADE[digest] = Path(_FOLDER.name) / digest
    place.mkdir()
    for found in Path(root.url, "captures").glob(f"{spec.id}*"):
        target = place / found.name
        if found.is_dir():
            shutil.copytree(found, target)
        else:
            shutil.copy(found, target)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as the store holds them."""
    if dtype != "bfloat16":
        return np.asarray(values).astype(dtype)
    import torch

    return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(torch.bfloat16).float().numpy()


def rows_ref(spec: CaptureSpec, site: str | None = None) -> RowsRef:
    """The rows of a site, the first one if none is named."""
    chosen = str(spec.layout.sites[0].site) if site is None else str(_site(site))
    return RowsRef(capture=spec.id, digest=spec.id, site=chosen)


def stage_of(
    method: str,
    rows: Mapping[str, RowsRef | Sequence[RowsRef]],
    artifacts: Mapping[str, str] | None = None,
    series: Mapping[str, Sequence[ResolvedStage]] | None = None,
    graphs: Mapping[str, EdgesRef] | None = None,
    **options: Any,
) -> ResolvedStage:
    """A stage with its defaults written out, as planning does."""
    from tasks.methods.contract import load_method

    module = load_method(method, ("tests",))
    return ResolvedStage(
        method=method,
        version=module.VERSION,
        config=module.Config(**options).model_dump(mode="json"),
        rows={port: (r,) if isinstance(r, RowsRef) else tuple(r) for port, r in rows.items()},
        artifacts={port: ArtifactRef(artifact=a) for port, a in (artifacts or {}).items()},
        series={port: tuple(map(_series_ref, members)) for port, members in (series or {}).items()},
        graphs=dict(graphs or {}),
    )


def _series_ref(stage: ResolvedStage) -> SeriesRef:
    (site,) = {site for _, site in stage.places}
    return SeriesRef(artifact=stage.id, site=site, captures=tuple(capture for capture, _ in stage.places))


def _site(text: str) -> Site:
    return Site.parse(text) if ":" in text else Site(module=text)


def _table(
    keys: Sequence[str], start: np.ndarray, space: str, labels: Mapping[str, Sequence[str] | np.ndarray]
) -> SampleTable:
    codes: dict[str, np.ndarray] = {}
    categories: dict[str, tuple[str, ...]] = {}
    for name, given in labels.items():
        values = np.asarray(given)
        if values.dtype.kind in "US":
            found, codes[name] = np.unique(values, return_inverse=True)
            categories[name] = tuple(str(v) for v in found)
        else:
            codes[name] = values
    return SampleTable(
        keys=list(keys),
        lengths=np.diff(start),
        labels=codes,
        categories=categories,
        row_start={space: start},
    )


def _columns(
    spec: CaptureSpec,
    sites: Mapping[Site, np.ndarray],
    sample: np.ndarray,
    start: np.ndarray,
    failed: Sequence[int],
) -> dict[str, np.ndarray]:
    space, n_sites = spec.layout.spaces[0].name, len(sites)
    position = np.arange(len(sample)) - start[sample]
    dead = np.isin(sample, list(failed))
    columns: dict[str, np.ndarray] = {
        f"rows/{space}/sample": sample,
        f"rows/{space}/position": position.astype(np.int32),
        f"rows/{space}/token_id": (sample % 7 + position).astype(np.int32),
        f"rows/{space}/outlier": np.zeros((len(sample), n_sites), dtype=bool),
    }
    norms = []
    for site, values in sites.items():
        stored = rounded(values, spec.request.store.dtype).astype(stored_dtype(spec.request.store.dtype))
        stored[dead] = np.nan
        columns[f"sites/{site.key}/activation"] = stored
        norms.append(np.linalg.norm(stored.astype(np.float64), axis=1))
    columns[f"rows/{space}/norm"] = np.stack(norms, axis=1).astype(np.float32)
    return columns


def _write_unit(
    root: Location,
    spec: CaptureSpec,
    unit: UnitRef,
    columns: Mapping[str, np.ndarray],
    failed: Sequence[int],
    on_unit: OnUnit | None,
) -> None:
    space = spec.layout.spaces[0]
    writer, files = ShardWriter(root, spec, spec.id), {}
    for plan in space_arrays(spec, space):
        for shard in space.unit_shard_range(unit.index):
            low, high = space.shard_bounds(shard)
            path, digest = writer.write(plan.path, shard, columns[plan.path][low:high])
            files[path] = digest
    if on_unit is not None:
        files.update(on_unit(spec, unit))
    low, high = space.unit_rows(unit.index)
    lost = sorted(set(columns[f"rows/{space.name}/sample"][low:high].tolist()) & set(failed))
    failures = tuple(Failure(sample=s, key=f"sample-{s:04d}", reason="planted") for s in lost)
    write_receipt(root, _receipt(spec, unit, files, high - low, failures))


def _receipt(
    spec: CaptureSpec,
    unit: UnitRef,
    files: Mapping[str, FileDigest],
    rows: int,
    failures: tuple[Failure, ...],
) -> Receipt:
    return Receipt(
        capture=spec.id,
        unit=unit,
        rows=rows,
        files=dict(files),
        failures=failures,
        seconds=1.0,
        forward_seconds=0.5,
        write_seconds=0.2,
        tokens=rows,
        padded_tokens=rows,
        peak_bytes=1,
        fingerprint=FINGERPRINT,
        worker="host:1",
        finished="2026-01-01T00:00:00+00:00",
    )


def trust_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take networks of the tests for those of a known package, whatever their file says."""
    monkeypatch.setattr(known, "KNOWN", (*known.KNOWN, "tests"))
    monkeypatch.setattr(known, "PROCESS_WIDE", re.compile("(?!)"))
