"""The samples that show each cluster best, and those it holds worst, read for a page."""

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.cluster_rows import sample_of_row, shown_samples
from tasks.example_illustrations import IMAGES, ClusterExamples, Shown, StageExamples
from tasks.measures import StageArtifact
from tasks.page import CaptureData
from tasks.store.location import Location

METHOD = "clustering.quality"
MOST_SITES, MOST_CLUSTERS = 2, 10


def cluster_examples(
    root: Location, artifacts: Sequence[StageArtifact], captures: Sequence[CaptureData]
) -> Iterator[StageExamples]:
    """Of the first sites of each stage that measured clusters.

    Raises:
        DamageError: if names of samples changed.
    """
    known, read = {capture.id: capture for capture in captures}, dict[str, int]()
    for made in artifacts:
        ours = made.artifact.stage.method == METHOD and all(capture in known for capture in made.captures)
        if not ours or "example" not in made.arrays or read.get(made.stage, 0) >= MOST_SITES:
            continue
        read[made.stage] = read.get(made.stage, 0) + 1
        yield _of_stage(root, made, [known[capture] for capture in made.captures])


def _of_stage(root: Location, made: StageArtifact, members: Sequence[CaptureData]) -> StageExamples:
    rows = np.asarray(made.arrays["clustered"])
    having = [int(k) for k in np.argsort(-rows, kind="stable") if rows[k] > 0]
    clusters = tuple(
        ClusterExamples(
            k,
            int(rows[k]),
            float(made.arrays["cluster_silhouette"][k]),
            float(made.arrays["misplaced"][k]),
            _shown(root, made, members, "example", k),
            _shown(root, made, members, "doubtful", k),
        )
        for k in having[:MOST_CLUSTERS]
    )
    return StageExamples(made.stage, made.site, clusters, len(having))


def _shown(
    root: Location, made: StageArtifact, members: Sequence[CaptureData], name: str, k: int
) -> tuple[Shown, ...]:
    """Each sample once, where it has several rows."""
    places = [sample_of_row(root, members, made.site, int(row)) for row in made.arrays[name][k] if row >= 0]
    found = dict.fromkeys(place for place in places if place is not None)
    return tuple(
        shown
        for number, sample in [*found][:IMAGES]
        for shown in shown_samples(root, members[number], [sample])
    )
