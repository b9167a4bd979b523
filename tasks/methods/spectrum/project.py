"""Coordinates of every row in a basis of principal components, and what the basis leaves out.

Arrays: `coordinates` (row, component) holds V (x - mean); `residual` (row) the norm |x - mean - V^T V (x -
mean)|, computed from that difference and not from norms, so that it does not cancel. Rows of failed samples
are NaN.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import (
    Arrays,
    ArtifactPort,
    Block,
    Inputs,
    RowOutput,
    RowsPort,
    State,
)

VERSION = 1
KIND = "map"
READS = {"x": RowsPort(), "basis": ArtifactPort("spectrum.pca", one_width=True)}
ARRAYS = {"coordinates": ("row", "component"), "residual": ("row",)}
REFERENCE = "Pearson, Philosophical Magazine 2 (1901) 559: the plane of closest fit and the distance from it"
SEEDS = ()
TILE_ROWS = 512
"""Rows are multiplied in tiles of exactly this size, filled up with zeros, so that no bit depends on how rows are cut."""


class Config(Frozen):
    """Which part of the basis is used."""

    components: int | None = Field(default=None, ge=1)
    """Leading basis vectors to project on; None: all that the basis has."""


class Result(Frozen):
    """How well the basis describes the rows."""

    n_rows: int
    components: int
    """Coordinates per row."""
    explained: float | None
    """Share of the rows' squared distance from the mean that lies in the basis; None when that distance is
    0."""
    residual_rms: float | None
    """Root mean square of the residual norms; None without rows."""
    residual_max: float | None
    """Largest residual norm."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the basis is of another width, or smaller than asked for.
    """
    available, width = inputs.artifacts["basis"]["components"].shape
    if width != inputs.widths["x"]:
        raise MethodError(
            f"the basis has {width} features, the site has {inputs.widths['x']}; connect a stage of the same site"
        )
    if available == 0:
        raise MethodError(
            "the basis has no components: the rows of the pca stage are all equal; look at the site"
        )
    if (config.components or 0) > available:
        raise MethodError(
            f"the basis has {available} components, asked for {config.components}; keep more in the pca stage"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {
        "coordinates": RowOutput("float32", width=_n_components(inputs, config)),
        "residual": RowOutput("float32"),
    }


def start(inputs: Inputs, config: Config) -> State:
    """The basis and the mean, float64."""
    basis = inputs.artifacts["basis"]
    return {
        "components": basis["components"][: _n_components(inputs, config)].double(),
        "mean": basis["mean"].double(),
    }


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Coordinates and residual of each row, computed in float64."""
    pieces = [_project(rows, carry) for rows in torch.split(block["x"], TILE_ROWS)]
    coordinates, residual = (torch.cat([piece[n] for piece in pieces]) for n in (0, 1))
    return {"coordinates": coordinates.float(), "residual": residual.float()}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of squares, inside the basis and outside."""
    outside = outputs["residual"].double().square()
    return {
        "n": torch.tensor(len(block), dtype=torch.int64, device=outside.device),
        "inside": outputs["coordinates"].double().square().sum(),
        "outside": outside.sum(),
        "largest": outside.max() if len(block) else outside.sum(),
    }


def merge(a: State, b: State) -> State:
    """The sums of both."""
    added = {name: a[name] + b[name] for name in ("n", "inside", "outside")}
    return added | {"largest": torch.maximum(a["largest"], b["largest"])}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The shares of the sums."""
    n, inside, outside = int(state["n"]), float(state["inside"]), float(state["outside"])
    result = Result(
        n_rows=n,
        components=_n_components(inputs, config),
        explained=inside / (inside + outside) if inside + outside > 0 else None,
        residual_rms=(outside / n) ** 0.5 if n else None,
        residual_max=float(state["largest"]) ** 0.5 if n else None,
    )
    return result, {}


def _project(rows: Tensor, carry: State) -> tuple[Tensor, Tensor]:
    """Coordinates and residual of at most TILE_ROWS rows."""
    centred = carry["mean"].new_zeros(TILE_ROWS, rows.shape[1])
    centred[: len(rows)] = rows.double() - carry["mean"]
    coordinates = centred @ carry["components"].T
    residual = torch.linalg.vector_norm(centred - coordinates @ carry["components"], dim=1)
    return coordinates[: len(rows)], residual[: len(rows)]


def _n_components(inputs: Inputs, config: Config) -> int:
    return config.components or int(inputs.artifacts["basis"]["components"].shape[0])
