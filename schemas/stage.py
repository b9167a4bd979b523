"""One method with its options and inputs."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, model_serializer

from schemas.base import Frozen, content_id
from schemas.capture import MethodCall
from schemas.layout import Site

NETWORK = "network"
"""The site of a stage that reads a network rather than rows."""


MOST_NAMED = 3
"""Sites that the name of several spells out."""


def spanning(sites: Sequence[str]) -> str:
    """A name for some sites together: each once; of many the first, the last, and how many there are between."""
    unique = list(dict.fromkeys(sites))
    shown = unique if len(unique) <= MOST_NAMED else [unique[0], f"{len(unique) - 2} more", unique[-1]]
    return " | ".join(shown)


def site_of(text: str) -> Site:
    """The site that a reference names; the network itself for one that reads a network."""
    return Site() if text == NETWORK else Site.parse(text)


HOLDERS = ("{module}", "{parent}", "{grandparent}")
"""In the name of a parameter: the path of the module of the site, or that the site's parameter belongs to; of the module that holds it; of
the one that holds that."""


def parameter_name(name: str, site: Site) -> str:
    """The name in the network of a parameter that a method names relative to a site; what holds the network is the network."""
    path = site.module.rpartition(".")[0] if site.is_parameter else site.module
    for place in HOLDERS:
        name = name.replace(place, path)
        path = path.rpartition(".")[0]
    return name.lstrip(".")


class PortInput(Frozen):
    """What a user connects to a port of a method."""

    captures: tuple[str, ...] = ()
    """Names of captures in the run, or ids of sealed ones; rows and labels come from these."""
    sites: str = "**"
    """Glob over the sites of those captures, as in a capture's `sites`; a stage runs once for each."""
    stage: str | None = None
    """For a port that takes an artifact: the stage of this run that makes it, for the same site. For a port that takes
    several: the stage or stages (`pca_*`) whose artifacts at all these `sites` it takes; left out, all stages of the method."""
    codes: str | None = None
    """For a port of rows: a stage of this run that codes the rows of the same captures and sites, such as one of `compression.klt`.
    What its codes stand for is read in the place of the rows."""
    edges: str | None = None
    """For a port that takes a graph: path or URL of a file of edges between samples. `.csv` and `.tsv` have the header `source,target` or
    `source,target,weight`, `.parquet` and `.npz` columns or arrays of these names. Ids are the samples' keys or, where none of them is
    one, rows of the data, from 0. Edges have no direction; the stage's site must have one row per sample."""


class StageRequest(MethodCall):
    """A stage as a user writes it: the method runs once per site."""

    inputs: dict[str, PortInput] = Field(default_factory=dict)
    """Port name to input; a method with a single port of rows may leave it out when the run has one capture."""
    sites: str = "**"
    """Glob over sites, where `inputs` is left out."""
    pairs: Literal["each", "all"] = "each"
    """How the sites of two ports of rows meet. `each`: where both have the same sites those of one name, else those of one place in the
    order, as of each layer and the next. `all`: every site of one port with every site of the other, two sites only once: one glob over
    both compares each layer with each other."""
    partitions: Literal["together", "each"] = "together"
    """What a stage makes of captures that are partitioned by file. `together`: one artifact over all partitions. `each`: one for each,
    so that a new file adds one and makes no other anew; all ports of rows are taken apart, and an artifact of a stage that did the same is
    that of the same partition."""


class RowsRef(Frozen):
    """The rows of one site of one sealed capture."""

    capture: str
    """The capture's id."""
    digest: str
    """The id again for a planned capture; the content digest for one that was streamed from training."""
    site: str
    codes: str | None = None
    """The artifact whose codes are read in the place of the rows."""

    @model_serializer(mode="wrap")
    def _without_what_is_none(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Stages that read rows keep the ids that they had before there were codes."""
        found = plain(self)
        if self.codes is None:
            found.pop("codes", None)
        return found

    @property
    def label(self) -> str:
        """For messages and plots."""
        return f"{self.capture[:8]} {self.site}" + (f" (codes {self.codes[:8]})" if self.codes else "")


class ArtifactRef(Frozen):
    """The artifact of another stage."""

    artifact: str
    """The artifact's id."""


class SeriesRef(ArtifactRef):
    """An artifact of a series, and what it was made from."""

    site: str
    captures: tuple[str, ...]
    """Their ids."""


class EdgesRef(Frozen):
    """A file of edges, as it was when the run was planned."""

    url: str
    """Where it lies; no part of a stage's id, so that a moved file makes no other artifact."""
    bytes: int
    blake3: str
    """Of its content."""


class ResolvedStage(Frozen):
    """A question with all its inputs named. Its content id names the artifact."""

    method: str
    version: int
    config: dict[str, object]
    """The full options, defaults included."""
    rows: dict[str, tuple[RowsRef, ...]] = Field(default_factory=dict)
    """Port to one or several captures' rows (several are read as one)."""
    artifacts: dict[str, ArtifactRef] = Field(default_factory=dict)
    series: dict[str, tuple[SeriesRef, ...]] = Field(default_factory=dict)
    """Port to several artifacts, in order."""
    graphs: dict[str, EdgesRef] = Field(default_factory=dict)
    """Port to a file of edges between the samples of the first port of rows."""

    @model_serializer(mode="wrap")
    def _without_what_is_none(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Stages without a series, or a graph, keep the id that they had before there were any."""
        found = plain(self)
        for name in ("series", "graphs"):
            if not getattr(self, name):
                found.pop(name, None)
        return found

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of the artifacts that it reads."""
        several = [ref.artifact for refs in self.series.values() for ref in refs]
        codes = [ref.codes for refs in self.rows.values() for ref in refs if ref.codes is not None]
        return (*(ref.artifact for ref in self.artifacts.values()), *several, *dict.fromkeys(codes))

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Capture and site of the rows that it reads, or that a series it reads was made from; each once."""
        rows = [(ref.capture, ref.site) for refs in self.rows.values() for ref in refs]
        made = [
            (capture, ref.site) for refs in self.series.values() for ref in refs for capture in ref.captures
        ]
        return tuple(dict.fromkeys(rows + made))

    @property
    def partner(self) -> str:
        """The site of the second port of rows where it is another than the first's; empty elsewhere."""
        sites = [refs[0].site for refs in self.rows.values()]
        return sites[1] if len(sites) > 1 and sites[1] != sites[0] else ""

    @property
    def id(self) -> str:
        """The name of the artifact on disk."""
        if not self.graphs:
            return content_id(self)
        of_content = {port: edges.model_copy(update={"url": ""}) for port, edges in self.graphs.items()}
        return content_id(self.model_copy(update={"graphs": of_content}))
