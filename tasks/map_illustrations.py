"""Figures of maps that stages made: each site's points on its map, and on two principal components, with what each keeps."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.illustrations import Illustration
from tasks.scatter import Dots, Panel, panels
from tasks.tables import short_site

MAP = "map-"
"""What names of these figures begin with."""


class PointMap(NamedTuple):
    """A site's points on the map and on two principal components."""

    site: str
    capture: str
    """As the run calls it; several are joined."""
    dots: Dots
    pca: Dots
    result: Mapping[str, Any]


class StageMaps(NamedTuple):
    """The maps of a stage, shallow to deep."""

    stage: str
    maps: tuple[PointMap, ...]
    label: str | None
    """What colours them."""
    n_sites: int
    """Of which the maps are a choice."""


def map_illustrations(stages: Sequence[StageMaps]) -> Iterator[Illustration]:
    """One figure for each stage."""
    yield from (_illustration(stage) for stage in stages if stage.maps)


def _illustration(stage: StageMaps) -> Illustration:
    first = stage.maps[0]
    n, drawn = int(first.result["n_points"]), len(first.dots.xy)
    what = "mean rows of samples" if first.result["points"] == "samples" else "rows"
    count = f"{n:,} {what}" if drawn == n else f"{drawn:,} of {n:,} {what}"
    colors = f", coloured by {stage.label}" if stage.label else ""
    left_out = stage.n_sites - len(stage.maps)
    more = f" {left_out} further sites are in the artifacts." if left_out else ""
    chance = f"{first.result['trustworthiness_chance']:.2f} and {first.result['kept_chance']:.0%}"
    numbers = ". ".join(
        f"At {short_site(each.site)}: {_note(each, '')}; of the components {_note(each, '_pca')}"
        for each in stage.maps
    )
    return Illustration(
        f"{MAP}{stage.stage}", f"UMAP beside principal components ({stage.stage})", panels(_grid(stage)),
        f"{count}{colors}. Trustworthiness is 1 where neighbours on a map are neighbours at the site; a map of random places would have "
        f"{chance} of neighbours. Distances between groups on a UMAP map, their sizes and densities are no measure.{more}",
        f"Scatter plots of {count}. {numbers}.",
    )  # fmt: skip


def _grid(stage: StageMaps) -> list[list[Panel]]:
    """Sites in columns; a single one has both of its maps in a row."""
    several = len({each.capture for each in stage.maps}) > 1
    above = [_panel(each, each.dots, "", "" if n else "UMAP", several) for n, each in enumerate(stage.maps)]
    below = [
        _panel(each, each.pca, "_pca", "" if n else "two principal components", several)
        for n, each in enumerate(stage.maps)
    ]
    return [above, below] if len(stage.maps) > 1 else [[*above, *below]]


def _panel(each: PointMap, dots: Dots, key: str, side: str, several: bool) -> Panel:
    capture = f", {each.capture}" if several else ""
    return Panel(f"{short_site(each.site)}{capture}", side, dots, _note(each, key).replace(", ", "\n"))


def _note(each: PointMap, key: str) -> str:
    trust, kept = each.result[f"trustworthiness{key}"], each.result[f"kept{key}"]
    return f"trustworthiness {trust:.3f}, {kept:.0%} of neighbours kept"
