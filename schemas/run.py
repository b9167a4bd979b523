"""A run: captures, stages and how to execute them."""

import fnmatch
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from schemas.base import Frozen
from schemas.capture import SCHEMA_VERSION, CaptureRequest
from schemas.data import Subset
from schemas.errors import SpecError, nearest
from schemas.execution import Execution
from schemas.stage import StageRequest
from schemas.urls import refuse_secrets

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Of a run, capture or stage: it becomes the name of a file."""


class ReportOptions(Frozen):
    """The HTML page at the end of a run."""

    title: str | None = None
    color_by: str | None = None
    """The label that colours the map of samples; None: the first one by name, of classes before numbers."""
    figures: tuple[str, ...] = ("png", "svg")
    """File formats of the figures beside the page."""


class Watch(Frozen):
    """What `subspan watch` asks of a run beyond `subspan run`."""

    sealed: tuple[Name, ...] = ()
    """Captures and stages that must be there already: what new data are judged by. A watch makes none of them."""


class RunSpec(Frozen):
    """One YAML file, or what the short form in the Prefect UI stands for."""

    schema_version: int = SCHEMA_VERSION
    name: Name
    root: str = Field("subspan-out", min_length=1)
    """A local folder or any fsspec URL that holds captures, artifacts, runs and reports."""
    captures: dict[Name, CaptureRequest] = Field(min_length=1)
    stages: dict[Name, StageRequest] = Field(default_factory=dict)
    execution: Execution = Execution()
    report: ReportOptions | None = ReportOptions()
    """None: no report."""
    watch: Watch | None = None
    """For data that are looked at again and again."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_secrets_and_newer(cls, data: object) -> object:
        refuse_secrets(data, "run")
        version = data.get("schema_version", SCHEMA_VERSION) if isinstance(data, dict) else SCHEMA_VERSION
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise SpecError(
                f"the run file has schema_version {version}, this subspan reads up to {SCHEMA_VERSION}: "
                "install a newer subspan, or write the file again for this one"
            )
        return data

    @model_validator(mode="after")
    def _check_names(self) -> "RunSpec":
        for name, stage in self.stages.items():
            for port, given in stage.inputs.items():
                if given.stage is not None and not fnmatch.filter(self.stages, given.stage):
                    raise SpecError(
                        f"stage {name!r}, port {port!r}: there is no stage {given.stage!r}; "
                        f"nearest: {nearest(given.stage, self.stages)}"
                    )
        return self

    def whole(self) -> "RunSpec":
        """The same run over all of its data."""
        captures = {
            name: request.model_copy(update={"data": request.data.model_copy(update={"subset": Subset()})})
            for name, request in self.captures.items()
        }
        return self.model_copy(update={"captures": captures})
