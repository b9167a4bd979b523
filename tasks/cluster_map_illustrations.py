"""Figures of clusters on a site's first two principal components, beside the classes that are known."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tasks.figures import percent
from tasks.illustrations import Illustration
from tasks.scatter import Dots, Panel, panels
from tasks.tables import short_site

CLUSTER_MAP = "cluster-map-"
"""What names of these figures begin with."""


class ClusterMap(NamedTuple):
    """Rows of a site, by their clusters and by what is known of them."""

    stage: str
    site: str
    clusters: Dots
    """Names are the clusters' numbers, with the class that each is matched with."""
    classes: Dots | None
    """The same rows; a class has the place of its cluster, others are the rest. None without a label."""
    label: str | None
    n_rows: int
    """Rows that have a cluster, of which the dots are a draw."""


def cluster_map_illustrations(maps: Sequence[ClusterMap]) -> Iterator[Illustration]:
    """One for each stage, its sites below each other."""
    for stage in dict.fromkeys(made.stage for made in maps):
        yield _illustration(stage, [made for made in maps if made.stage == stage])


def _illustration(stage: str, maps: Sequence[ClusterMap]) -> Illustration:
    both = all(made.classes is not None for made in maps)
    grid = [_line(made, both) for made in maps]
    first = maps[0]
    beside = (
        f" Right: the same rows by {first.label}; a class has the colour of the cluster it is matched with."
        if both
        else ""
    )
    counts = "; ".join(
        f"{short_site(made.site)}: {len(made.clusters.xy):,} of {made.n_rows:,} rows" for made in maps
    )
    return Illustration(
        f"{CLUSTER_MAP}{stage}",
        f"Map of clusters ({stage})",
        panels(grid),
        f"{counts}, on two principal components of the rows shown; grey: smaller clusters.{beside} Clusters that overlap here may "
        "be apart in other directions.",
        f"Scatter plots of clusters. {counts}.",
    )


def _line(made: ClusterMap, both: bool) -> list[Panel]:
    shares = made.clusters.shares or (0.0, 0.0)
    note = f"{percent(sum(shares))} of variance"
    line = [Panel(f"{short_site(made.site)}: clusters", "", made.clusters, note)]
    if both and made.classes is not None:
        line.append(Panel(str(made.label), "", made.classes, ""))
    return line
