"""What a page shows, made by hand: no network, no store."""

import numpy as np

from schemas.artifact import ArrayInfo, Artifact
from schemas.capture import SCHEMA_VERSION, CaptureSpec
from schemas.layout import Layout, Site, SiteLayout, Space, UnitRef
from schemas.outcome import RunOutcome, StageFailure
from schemas.receipts import Failure, FileDigest, Fingerprint, Manifest, Receipt
from schemas.run import RunSpec
from schemas.stage import ResolvedStage, RowsRef, SeriesRef
from tasks.findings import RowCounts
from tasks.illustrations import SampleMap
from tasks.measures import StageArtifact
from tasks.page import CaptureData, ReportData
from tasks.scatter import Dots

FINGERPRINT = Fingerprint(
    packages={"torch": "2.13.0"}, device="cpu", threads=1, python="3.11", machine="x86_64"
)
CAPTURE = "c" * 20
RUN = {
    "name": "demo",
    "captures": {
        "docs": {
            "model": {"name": "folder/of/weights"},
            "data": {"source": {"kind": "stdlib-docstrings"}},
            "sites": ["residual"],
        }
    },
    "stages": {"pca": {"method": "spectrum.pca"}},
    "report": {"title": "A <b>title</b> & more"},
}


def bert(depth: int = 3) -> list[str]:
    """Sites of a small network."""
    blocks = [
        f"encoder.layer.{i}{part}:out:0" for i in range(depth) for part in ("", ".attention", ".output.dense")
    ]
    return ["embeddings:out:0", *blocks]


def artifact(
    stage: str,
    method: str,
    site: str,
    result: dict,
    arrays: dict[str, np.ndarray] | None = None,
    *,
    config: dict | None = None,
    rows: int = 5000,
    capture: str = CAPTURE,
    other: str | None = None,
    beside: str | None = None,
) -> StageArtifact:
    """An artifact over the rows of a site; beside those of another capture, or another site, where one is named."""
    ref = RowsRef(capture=capture, digest=capture, site=site)
    second = ref.model_copy(update={"capture": other or capture, "site": beside or site})
    ports = {"x": (ref,)} if second == ref else {"x": (ref,), "y": (second,)}
    return _made(
        stage, ResolvedStage(method=method, version=1, config=config or {}, rows=ports), result, arrays, rows
    )


def series(
    stage: str,
    method: str,
    members: list[tuple[str, str]],
    result: dict,
    arrays: dict[str, np.ndarray],
) -> StageArtifact:
    """An artifact that was made from others, each of a capture and site."""
    refs = tuple(SeriesRef(artifact=f"{n:020d}", site=s, captures=(c,)) for n, (c, s) in enumerate(members))
    labels = [f"{c[:8]} {s}" for c, s in members]
    return _made(
        stage,
        ResolvedStage(method=method, version=1, config={}, series={"pca": refs}),
        {"labels": labels, **result},
        arrays,
        0,
    )


def _made(
    stage: str, resolved: ResolvedStage, result: dict, arrays: dict[str, np.ndarray] | None, rows: int
) -> StageArtifact:
    made = Artifact(
        schema_version=SCHEMA_VERSION,
        id=resolved.id,
        stage=resolved,
        result=result,
        arrays={
            n: ArrayInfo(dims=("order",), shape=a.shape, dtype=str(a.dtype))
            for n, a in (arrays or {}).items()
        },
        rows_used=rows,
        seconds=1.0,
        fingerprint=FINGERPRINT,
        finished="2026-01-01T00:00:00+00:00",
    )
    return StageArtifact(stage, made, arrays or {})


def interval(value: float, relative: float = 0.1) -> dict:
    """A number with its interval, as a result holds it."""
    return {
        "value": value,
        "corrected": value,
        "low": value * (1 - relative),
        "high": value * (1 + relative),
    }


def story(sites: list[str], capture: str = CAPTURE, factor: float = 1.0) -> tuple[StageArtifact, ...]:
    """What six methods give at each site; the dimension peaks in the middle, classes collapse with depth.

    Args:
        sites: shallow to deep.
        capture: whose rows.
        factor: of every linear dimension.
    """
    made = []
    for n, site in enumerate(sites):
        ratio = factor * (20 + 10 * n * (len(sites) - 1 - n))
        given = {
            "spectrum.summary": {"width": 64, "participation_ratio_unbiased": ratio, "anisotropy": 0.2, "components_90": 30,
                                 "anisotropy_low": 0.1, "anisotropy_high": 0.4},
            "spectrum.jackknife": {"participation_ratio": interval(0.98 * ratio), "anisotropy": interval(0.2, 0.05),
                                   "effective_rank": interval(1.5 * ratio)},
            "geometry.uniformity": {"entropy": interval(2.0 + 0.5 * n, 0.02), "entropy_uniform": 4.0,
                                    "distance": interval(0.9 - 0.1 * n, 0.02), "distance_uniform": 0.01},
            "geometry.dimension": {"twonn": interval(8.0 + n * (len(sites) - 1 - n), 0.03), "dimension": interval(8.5, 0.02)},
            "geometry.neural_collapse": {"nc1": interval(100.0 / 10**n), "vci": interval(0.9 - 0.2 * n, 0.02), "vci_random": 0.95,
                                         "nearest_is_label": 0.5, "nearest_is_label_low": 0.4, "nearest_is_label_high": 0.6},
            "geometry.rate_reduction": {"rate_reduction": interval(1.0 + n), "rate_reduction_random": 0.1,
                                        "rate_reduction_random_samples": 0.4},
        }  # fmt: skip
        made += [artifact(m.partition(".")[2], m, site, r, capture=capture) for m, r in given.items()]
    return tuple(made)


def spectrum(width: int, slope: float, first: float = 1.0) -> np.ndarray:
    """A power law whose first value is raised."""
    values = np.arange(1, width + 1.0) ** -slope
    values[0] *= first
    return values


def artifacts(sites: list[str], width: int = 32, rows: int = 5000) -> tuple[StageArtifact, ...]:
    """What spectrum.pca and spectrum.summary give; the dimension falls with depth."""
    made = []
    for index, site in enumerate(sites):
        values = spectrum(width, 0.5 + index / max(len(sites), 1), 1 + index)
        ratio = values.sum() ** 2 / (values**2).sum()
        arrays = {"eigenvalue": values, "eigenvalue_low": values * 0.9, "eigenvalue_high": values * 1.1}
        made.append(
            artifact(
                "pca", "spectrum.pca", site, {"width": width, "caveats": ["rows depend"]}, arrays, rows=rows
            )
        )
        result = {
            "width": width,
            "participation_ratio": 0.9 * ratio,
            "participation_ratio_unbiased": ratio,
            "anisotropy": values[0] / values.sum(),
            "anisotropy_low": 0.9 * values[0] / values.sum(),
            "anisotropy_high": 1.1 * values[0] / values.sum(),
            "caveats": ["rows depend"],
        }
        made.append(artifact("summary", "spectrum.summary", site, result, rows=rows))
    return tuple(made)


def receipt(index: int) -> Receipt:
    """Of one unit."""
    return Receipt(
        capture=CAPTURE,
        unit=UnitRef(space="tokens", index=index),
        rows=100,
        files={"sites/a/c/0": FileDigest(bytes=1000, blake3="0" * 64)},
        truncated=1,
        max_batch_difference=2e-6,
        seconds=2.0,
        forward_seconds=1.0,
        write_seconds=0.5,
        tokens=100,
        padded_tokens=110,
        peak_bytes=1,
        fingerprint=FINGERPRINT,
        worker="host:1",
        finished="2026-01-01T00:00:00+00:00",
    )


def capture(
    sites: list[str],
    width: int = 32,
    rows: int = 5000,
    failures: tuple[Failure, ...] = (),
    name: str = "docs",
    capture_id: str = CAPTURE,
) -> CaptureData:
    """A capture of texts."""
    tokens = Space(name="tokens", n_rows=rows, per_sample=None, chunk_rows=64, shard_rows=128, unit_shards=1)
    layouts = tuple(
        SiteLayout(site=Site.parse(s), space="tokens", width=width, feature_axis=2) for s in sites
    )
    spec = CaptureSpec(
        request=RunSpec.model_validate(RUN).captures["docs"],
        weights="w" * 64,
        data="d" * 64,
        tokenizer=None,
        layout=Layout(n_samples=400, spaces=(tokens,), sites=layouts),
    )
    counts = RowCounts(rows, {site: index for index, site in enumerate(sites)}, 10.0)
    manifest = Manifest(
        schema_version=1, capture=CAPTURE, files={}, receipts={}, failures=failures, truncated=2, rows={"tokens": rows},
        sealed="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return CaptureData(name, capture_id, spec, (receipt(0), receipt(1)), manifest, (counts,))


def sample_map(n: int = 400, classes: int = 3, label: str | None = "module") -> SampleMap:
    """Clouds of points, the last quarter in no named class."""
    rng = np.random.default_rng(0)
    codes = np.where(np.arange(n) % 4 == 3, -1, np.arange(n) % max(classes, 1)) if classes else np.full(n, -1)
    xy = rng.normal(size=(n, 2)) + codes[:, None]
    names = tuple(f"class {index}" for index in range(classes))
    return SampleMap(
        Dots(xy, names, codes, (0.4, 0.1), 5 if classes else 0), "encoder.layer.2:out:0", label, n
    )


def report_data(sites: list[str] | None = None, **changes: object) -> ReportData:
    """A whole run."""
    sites = bert() if sites is None else sites
    failures = (Failure(sample=7, key="module.<script>", reason="the network gave NaN"),)
    outcome = RunOutcome(
        run="demo",
        root="/data/out",
        stage_failures=(StageFailure(stage="twonn", site=sites[0], reason="too many rows"),) if sites else (),
    )
    data = ReportData(
        RunSpec.model_validate(RUN),
        outcome,
        artifacts(sites),
        (capture(sites, failures=failures),),
        sample_map(),
    )
    return data._replace(**changes)
