"""What the page of a run shows, read from the stores: artifacts, captures, the map of samples, and maps that stages made."""

import math
from typing import Any

import numpy as np
import zarr

from schemas.artifact import ArrayInfo
from schemas.outcome import RunOutcome
from schemas.run import RunSpec
from tasks.anomaly_examples import strange_samples
from tasks.anomaly_rows import score_histograms
from tasks.cluster_examples import cluster_examples
from tasks.cluster_maps import cluster_maps
from tasks.findings import RowCounts
from tasks.measures import StageArtifact
from tasks.page import CaptureData, ReportData
from tasks.point_maps import point_maps
from tasks.sample_map import map_of
from tasks.store.artifacts import open_arrays, read_artifact
from tasks.store.capture_spec import read_spec
from tasks.store.location import Location
from tasks.store.manifest import read_manifest
from tasks.store.receipts import read_receipts
from tasks.store.sealed import open_group

MOST_VALUES = 1 << 17
"""Larger arrays are not for a page."""
MOST_STEPS = 1 << 12
"""Arrays along rows are read where rows are this few, as steps of a training are."""


def gather(root: Location, outcome: RunOutcome, run: RunSpec) -> ReportData:
    """Everything that the page of a run needs.

    Costs one read of each small array, of the outlier flags, of at most 2 GB of a site for the map of samples and for each of clusters, and
    of at most four million scores of each detector at a few sites.

    Raises:
        NotFoundError: if an artifact or capture of the outcome is gone.
        DamageError: if one of them changed.
    """
    artifacts = tuple(stage_artifact(root, made.stage, made.id) for made in outcome.artifacts)
    captures = tuple(capture_data(root, made.name, made.id) for made in outcome.captures)
    color_by = run.report.color_by if run.report else None
    maps = tuple(point_maps(root, artifacts, captures, color_by))
    clusters = tuple(cluster_maps(root, artifacts, captures, color_by))
    examples = tuple(cluster_examples(root, artifacts, captures))
    samples = map_of(root, artifacts, captures, color_by)
    histograms = tuple(score_histograms(root, artifacts))
    strange = tuple(strange_samples(root, artifacts, captures, color_by))
    return ReportData(
        run, outcome, artifacts, captures, samples, maps, clusters, examples, histograms, strange
    )


def stage_artifact(root: Location, stage: str, artifact_id: str) -> StageArtifact:
    """An artifact with its small arrays."""
    artifact = read_artifact(root, artifact_id)
    members = {len(refs) for refs in artifact.stage.series.values()}
    small = [
        name
        for name, info in artifact.arrays.items()
        if _is_small(info) or _is_between(info, members) or _is_of_clusters(info)
    ]
    group: Any = open_arrays(root, artifact_id) if small else {}
    return StageArtifact(stage, artifact, {name: np.asarray(group[name][:]) for name in small})


def _is_small(info: ArrayInfo) -> bool:
    size = math.prod(info.shape)
    along_rows = info.dims[:1] == ("row",)
    return 0 < size <= MOST_VALUES and (info.shape[0] <= MOST_STEPS if along_rows else len(info.shape) == 1)


def _is_between(info: ArrayInfo, members: set[int]) -> bool:
    """Whether an array has a number between each two members of a series."""
    between = len(info.shape) == 2 and info.shape[0] == info.shape[1] and info.shape[0] in members
    return between and math.prod(info.shape) <= MOST_VALUES


def _is_of_clusters(info: ArrayInfo) -> bool:
    """Whether an array has some numbers for each cluster, or for rows in the order of clusters."""
    of_clusters = len(info.shape) == 2 and info.dims[0] in ("cluster_number", "bin")
    return of_clusters and 0 < math.prod(info.shape) <= MOST_VALUES


def capture_data(root: Location, name: str, capture_id: str) -> CaptureData:
    """A capture's spec, receipts, failures and outlier counts."""
    spec = read_spec(root, capture_id)
    receipts = tuple(read_receipts(root, capture_id).values())
    manifest = read_manifest(root, capture_id)
    multiple = spec.request.rows.outlier_multiple
    spaces = spec.layout.spaces if spec.request.keep == "rows" else ()
    group = open_group(root, capture_id)
    counts = tuple(RowCounts(s.n_rows, outliers(group, s.name, s.shard_rows), multiple) for s in spaces)
    return CaptureData(name, capture_id, spec, receipts, manifest, counts)


def outliers(group: zarr.Group, space: str, step: int) -> dict[str, int]:
    """Flagged rows of each site of a row space, read a shard at a time."""
    folder = f"rows/{space}"
    if f"{folder}/outlier" not in group:
        return {}
    flags: Any = group[f"{folder}/outlier"]
    sites: Any = group[folder].attrs["sites"]
    total = np.zeros(len(sites), dtype=np.int64)
    for start in range(0, flags.shape[0], step):
        total += np.count_nonzero(flags[start : start + step], axis=0)
    return dict(zip(sites, total.tolist(), strict=True))
