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
    """One for each map: clusters and colours are those of its site alone."""
    for number, made in enumerate(maps):
        yield _illustration(made, number)


def _illustration(made: ClusterMap, number: int) -> Illustration:
    shares = made.clusters.shares or (0.0, 0.0)
    line = [Panel("clusters", "", made.clusters, f"{percent(sum(shares))} of variance")]
    beside = ""
    if made.classes is not None:
        line.append(Panel(str(made.label), "", made.classes, ""))
        beside = f" Right: the same rows by {made.label}; a class has the colour of the cluster it is matched with, others are grey."
    count = f"{len(made.clusters.xy):,} of {made.n_rows:,} rows"
    return Illustration(
        f"{CLUSTER_MAP}{made.stage}-{number}",
        f"Map of clusters ({made.stage}, {short_site(made.site)})",
        panels([line]),
        f"{count}, on two principal components of those that are shown; grey: smaller clusters.{beside} Clusters that overlap here may be "
        "apart in other directions.",
        f"Scatter plot of {count} at {short_site(made.site)}, coloured by {len(made.clusters.names)} clusters.",
    )
