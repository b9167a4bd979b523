"""Scores of detectors, read for a page: how they spread beside those of normal rows, and which samples are the strangest.

Memory is bounded: of more than four million rows a seeded choice of pieces is read, and the page says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from schemas.artifact import Artifact
from tasks.anomaly_illustrations import ScoreHistogram
from tasks.cluster_rows import Indices
from tasks.figures import Vector
from tasks.measures import StageArtifact, number
from tasks.methods.anomaly_scores import POOLED, SCORES
from tasks.point_maps import evenly, in_order
from tasks.store.artifacts import open_arrays, read_artifact
from tasks.store.location import Location

CALIBRATED = "anomaly.calibrated"
MOST_ROWS, PIECE = 1 << 22, 1 << 16
MOST_SITES, LEAST_BINS, MOST_BINS = 4, 12, 60
DECADES = 50
"""Times the median that the largest of positive scores are, for a logarithmic axis."""
SEED = 0


class Scored(NamedTuple):
    """Rows with a score, those of failed samples left out, as are those whose sample has one score at another row."""

    row: Indices
    """[row]: over all captures laid end to end, rising."""
    score: Vector
    p: Vector | None
    """None where they are not calibrated."""
    n_rows: int
    """Of the stage."""
    n_read: int
    """Of which these were read, failed ones included."""


def score_histograms(root: Location, artifacts: Sequence[StageArtifact]) -> Iterator[ScoreHistogram]:
    """Of each stage that calibrated scores, at some sites evenly along the depth.

    Raises:
        NotFoundError, DamageError: if scores are gone or changed.
    """
    of_scores = [made for made in artifacts if made.artifact.stage.method == CALIBRATED]
    for stage in dict.fromkeys(made.stage for made in of_scores):
        members = in_order([made for made in of_scores if made.stage == stage])
        yield from (_histogram(root, members[n]) for n in evenly(len(members), MOST_SITES))


def shown_stages(artifacts: Sequence[StageArtifact]) -> list[tuple[StageArtifact, int]]:
    """One site of each stage whose strangest samples are shown, with the number of its sites.

    Stages that calibrated scores, and detectors that none of these, nor another detector, reads. Of the sites the one with most
    discoveries; of equals, and of `anomaly.combined`, which makes none, that with the largest share of flagged rows; of equals the last.
    """
    of_scores = [a for a in artifacts if a.artifact.stage.method == CALIBRATED]
    plain = [a for a in artifacts if a.artifact.stage.method in (*SCORES, POOLED)]
    read = {needed for a in (*of_scores, *plain) for needed in a.artifact.stage.needs}
    ours = [*of_scores, *(a for a in plain if a.artifact.id not in read)]
    found = []
    for stage in dict.fromkeys(made.stage for made in ours):
        members = in_order([made for made in ours if made.stage == stage])
        found_there = [
            tuple(number(made.artifact.result.get(field)) or 0.0 for field in ("discovered", "flagged"))
            for made in members
        ]
        best = max(range(len(members)), key=lambda n: (found_there[n], n))
        found.append((members[best], len(members)))
    return found


def scores_of(root: Location, made: StageArtifact) -> tuple[Artifact, Artifact | None]:
    """What holds the scores of a stage, and what holds those of normal rows."""
    if made.artifact.stage.method != CALIBRATED:
        return made.artifact, None
    scores, calibration = (
        read_artifact(root, made.artifact.stage.artifacts[port].artifact)
        for port in ("scores", "calibration")
    )
    return scores, calibration


def unpooled(root: Location, scores: Artifact) -> Artifact:
    """What holds scores of the rows themselves, where samples have one each."""
    while scores.stage.method == POOLED:
        scores = read_artifact(root, scores.stage.artifacts["scores"].artifact)
    return scores


def scored_rows(root: Location, scores: Artifact, calibrated: Artifact | None = None) -> Scored:
    """Scores with their p-values, whole or a seeded choice of pieces."""
    found = {"score": _along_rows(root, scores, "score")}
    if calibrated is not None:
        found["p"] = _along_rows(root, calibrated, "p_value")
    n_rows = sum(length for length, _ in found["score"])
    pieces = _pieces(n_rows)
    read = {
        name: np.concatenate([_read(parts, a, b) for a, b in pieces] or [np.zeros(0)])
        for name, parts in found.items()
    }
    row = np.concatenate([np.arange(a, b) for a, b in pieces] or [np.zeros(0, dtype=np.int64)])
    good = ~np.isnan(read["score"])
    return Scored(row[good], read["score"][good], read["p"][good] if "p" in read else None, n_rows, len(row))


Parts = list[tuple[int, Any]]
"""Rows and array of each capture, in order."""


def _along_rows(root: Location, artifact: Artifact, name: str) -> Parts:
    group: Any = open_arrays(root, artifact.id)
    captures = [ref.capture for ref in next(iter(artifact.stage.rows.values()))]
    names = [name] if name in artifact.arrays else [f"{capture}/{name}" for capture in captures]
    return [(artifact.arrays[each].shape[0], group[each]) for each in names]


def _pieces(n_rows: int) -> list[tuple[int, int]]:
    """All rows in pieces, or a seeded choice of pieces, ascending."""
    every = np.arange(0, n_rows, PIECE)
    kept = np.sort(np.random.default_rng(SEED).permutation(every)[: MOST_ROWS // PIECE])
    return [(int(a), min(int(a) + PIECE, n_rows)) for a in kept]


def _read(parts: Parts, start: int, stop: int) -> Vector:
    """Rows of captures laid end to end."""
    found, first = [np.zeros(0)], 0
    for length, array in parts:
        low, high = max(start - first, 0), min(stop - first, length)
        if low < high:
            found.append(np.asarray(array[low:high], dtype=np.float64))
        first += length
    return np.concatenate(found)


def rows_between(root: Location, scores: Artifact, start: int, stop: int) -> Vector:
    """Scores of some rows over all captures laid end to end; NaN for failed ones."""
    return _read(_along_rows(root, scores, "score"), start, stop)


def _histogram(root: Location, made: StageArtifact) -> ScoreHistogram:
    scores, calibration = scores_of(root, made)
    assert calibration is not None  # of a stage that calibrated
    judged, normal = scored_rows(root, scores), scored_rows(root, calibration)
    finite = [part.score[np.isfinite(part.score)] for part in (judged, normal)]
    edges, log = _edges(np.concatenate(finite))
    counts, normal_counts = (np.histogram(some, edges)[0].astype(np.int64) for some in finite)
    result: Mapping[str, Any] = made.artifact.result
    thresholds = np.asarray(made.arrays.get("threshold", np.zeros(0)), dtype=np.float64)
    low, high = number(result.get("rate_low")), number(result.get("rate_high"))
    return ScoreHistogram(
        made.stage, made.site, str(result["detector"]), edges, counts, normal_counts, log,
        tuple(thresholds[np.isfinite(thresholds)].tolist()), float(str(made.artifact.stage.config["alpha"])),
        None if low is None or high is None else (low, high), judged.n_rows, judged.n_read,
    )  # fmt: skip


def _edges(scores: Vector) -> tuple[Vector, bool]:
    """Of bins that hold all scores, and whether they are as wide as each other on a logarithmic axis."""
    if not len(scores):
        return np.linspace(0, 1, LEAST_BINS + 1), False
    bins = min(MOST_BINS, max(LEAST_BINS, round(2 * len(scores) ** (1 / 3))))
    low, high = float(scores.min()), float(scores.max())
    if low > 0 and high > DECADES * float(np.median(scores)):
        edges = np.geomspace(low, high, bins + 1)
        edges[0], edges[-1] = low, high  # which the logarithm rounds
        return edges, True
    return np.histogram_bin_edges(scores, bins), False
