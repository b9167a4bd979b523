"""One method with its options and inputs."""

from pydantic import Field

from schemas.base import Frozen, content_id
from schemas.capture import MethodCall
from schemas.layout import Site

NETWORK = "network"
"""The site of a stage that reads a network rather than rows."""


def site_of(text: str) -> Site:
    """The site that a reference names; the network itself for one that reads a network."""
    return Site() if text == NETWORK else Site.parse(text)


class PortInput(Frozen):
    """What a user connects to a port of a method."""

    captures: tuple[str, ...] = ()
    """Names of captures in the run, or ids of sealed ones; rows and labels come from these."""
    sites: str = "**"
    """Glob over the sites of those captures; a stage runs once for each."""
    stage: str | None = None
    """For a port that takes an artifact: the stage of this run that makes it, for the same site."""


class StageRequest(MethodCall):
    """A stage as a user writes it: the method runs once per site."""

    inputs: dict[str, PortInput] = Field(default_factory=dict)
    """Port name to input; a method with a single port of rows may leave it out when the run has one capture."""
    sites: str = "**"
    """Glob over sites, where `inputs` is left out."""


class RowsRef(Frozen):
    """The rows of one site of one sealed capture."""

    capture: str
    """The capture's id."""
    digest: str
    """The id again for a planned capture; the content digest for one that was streamed from training."""
    site: str

    @property
    def label(self) -> str:
        """For messages and plots."""
        return f"{self.capture[:8]} {self.site}"


class ArtifactRef(Frozen):
    """The artifact of another stage."""

    artifact: str
    """The artifact's id."""


class ResolvedStage(Frozen):
    """A question with all its inputs named. Its content id names the artifact."""

    method: str
    version: int
    config: dict[str, object]
    """The full options, defaults included."""
    rows: dict[str, tuple[RowsRef, ...]] = Field(default_factory=dict)
    """Port to one or several captures' rows (several are read as one)."""
    artifacts: dict[str, ArtifactRef] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name of the artifact on disk."""
        return content_id(self)
