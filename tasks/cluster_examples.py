"""The samples that show each cluster best, and those it holds worst, read for a page."""

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.cluster_rows import samples_of_rows, shown_samples
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
    kept = having[:MOST_CLUSTERS]
    best, worst = (_shown(root, made, members, name, kept) for name in ("example", "doubtful"))
    clusters = tuple(
        ClusterExamples(
            k,
            int(rows[k]),
            float(made.arrays["cluster_silhouette"][k]),
            float(made.arrays["misplaced"][k]),
            best[n],
            worst[n],
        )
        for n, k in enumerate(kept)
    )
    return StageExamples(made.stage, made.site, clusters, len(having))


def _shown(
    root: Location, made: StageArtifact, members: Sequence[CaptureData], name: str, kept: Sequence[int]
) -> list[tuple[Shown, ...]]:
    """The samples of each kept cluster, each once where it has several rows."""
    rows = np.asarray(made.arrays[name])[list(kept)]
    places = samples_of_rows(root, members, made.site, rows.ravel())
    width = rows.shape[1]
    lines = [
        [*dict.fromkeys(place for place in places[n * width : (n + 1) * width] if place is not None)][:IMAGES]
        for n in range(len(kept))
    ]
    known = {
        number: shown_samples(root, capture, [s for line in lines for m, s in line if m == number])
        for number, capture in enumerate(members)
    }
    return [tuple(known[number][sample] for number, sample in line) for line in lines]
