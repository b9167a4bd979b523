"""A small capture made by hand: spec, sample table, blocks of known values, receipts."""

from collections.abc import Iterator

import numpy as np

from schemas.capture import CaptureRequest, CaptureSpec, StoreOptions
from schemas.data import Data, SklearnDigits
from schemas.layout import Layout, Site, SiteLayout, Space, UnitRef
from schemas.model import FactoryModel
from schemas.receipts import Failure, Fingerprint, Manifest, Receipt
from tasks.store.arrays import SampleTable, ShardWriter, create_capture
from tasks.store.location import Location
from tasks.store.paths import ArrayPlan, all_units, space_arrays
from tasks.store.seal import seal, write_receipt

FINGERPRINT = Fingerprint(packages={}, device="cpu", threads=1, python="3.11", machine="test")
SITES = (Site(module="encoder.layer.0"), Site(module="encoder.layer.1", side="in", element="0"))
PROVENANCE = {"git": "0" * 40}


def make_spec(
    n_rows: int = 25,
    *,
    width: int = 6,
    chunk_rows: int = 4,
    shard_rows: int = 8,
    unit_shards: int = 2,
    dtype: str = "float32",
    codec: str = "lz4",
    keep: str = "rows",
    n_samples: int = 5,
    name: str = "tests.networks:tiny",
) -> CaptureSpec:
    """A capture with a token space (two sites) and a sample space (one site)."""
    request = CaptureRequest.model_validate(
        {
            "model": FactoryModel(factory=name),
            "data": Data(source=SklearnDigits()),
            "sites": ("**",),
            "store": StoreOptions.model_validate({"dtype": dtype, "codec": codec}),
            "keep": keep,
        }
    )
    sizes = {"chunk_rows": chunk_rows, "shard_rows": shard_rows, "unit_shards": unit_shards}
    spaces = (
        Space(name="tokens", n_rows=n_rows, per_sample=None, **sizes),
        Space(name="sample", n_rows=n_samples, per_sample=1, **sizes),
    )
    sites = (
        *(SiteLayout(site=site, space="tokens", width=width, feature_axis=2) for site in SITES),
        SiteLayout(site=Site(module="pooler"), space="sample", width=3, feature_axis=1),
    )
    layout = Layout(n_samples=n_samples, spaces=spaces, sites=sites)
    return CaptureSpec(request=request, weights="w", data="d", tokenizer="t", layout=layout)


def make_samples(spec: CaptureSpec) -> SampleTable:
    """Keys, lengths and labels that fit the layout."""
    n, rows = spec.layout.n_samples, spec.layout.space("tokens").n_rows
    start = np.linspace(0, rows, n + 1).astype(np.int64)
    return SampleTable(
        keys=[f"größe/{index}" for index in range(n)],
        lengths=np.diff(start),
        labels={"kind": np.arange(n) % 2, "size": np.arange(n) / 3},
        categories={"kind": ("even", "odd")},
        row_start={"tokens": start, "sample": np.arange(n + 1, dtype=np.int64)},
    )


def full_values(plan: ArrayPlan) -> np.ndarray:
    """The values of a whole array; the same on every call."""
    seed = sum(plan.path.encode())
    rng = np.random.default_rng(seed)
    kind = np.dtype(plan.dtype).kind
    if kind == "f":
        return rng.standard_normal(plan.shape).astype(plan.dtype)
    return rng.integers(0, 2 if kind == "b" else 1000, plan.shape).astype(plan.dtype)


def plans(spec: CaptureSpec) -> Iterator[ArrayPlan]:
    """Every sharded array of a capture."""
    for space in spec.layout.spaces:
        yield from space_arrays(spec, space)


def do_unit(root: Location, spec: CaptureSpec, unit: UnitRef, failures: tuple[Failure, ...] = ()) -> Receipt:
    """Write the shards of a unit, then its receipt."""
    writer, space = ShardWriter(root, spec, spec.id), spec.layout.space(unit.space)
    files = {}
    for plan in space_arrays(spec, space):
        for shard in space.unit_shard_range(unit.index):
            first, last = space.shard_bounds(shard)
            path, digest = writer.write(plan.path, shard, full_values(plan)[first:last])
            files[path] = digest
    first, last = space.unit_rows(unit.index)
    receipt = make_receipt(spec, unit, files=files, rows=last - first, failures=failures)
    write_receipt(root, receipt)
    return receipt


def make_receipt(spec: CaptureSpec, unit: UnitRef, **fields: object) -> Receipt:
    """A receipt with plausible numbers."""
    defaults = {
        "capture": spec.id,
        "unit": unit,
        "rows": 0,
        "files": {},
        "seconds": 1.0,
        "forward_seconds": 0.5,
        "write_seconds": 0.2,
        "tokens": 1,
        "padded_tokens": 1,
        "peak_bytes": 1,
        "fingerprint": FINGERPRINT,
        "worker": "host:1",
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return Receipt.model_validate({**defaults, **fields})


def make_capture(root: Location, spec: CaptureSpec) -> Manifest:
    """A sealed capture of known values."""
    create_capture(root, spec, make_samples(spec), PROVENANCE)
    for unit in all_units(spec):
        do_unit(root, spec, unit)
    return seal(root, spec)
