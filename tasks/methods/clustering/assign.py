"""Each row's nearest of K subspaces that were found before, how far it is, and how much further the next: also for rows of other captures.

Arrays: `cluster` (row) is the subspace, as the arrays of `clustering.k_subspaces`, `bases` or `sine_medoids` count them, `distance` (row)
the norm of what it leaves out of the row, computed from that difference, and `margin` (row) 1 - distance / distance to the second nearest:
0 for a row between both, 1 for one inside its own. Rows of failed samples have cluster -1 and NaN.
"""

import torch
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.classes import carried, class_label, counted_classes
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import k_subspaces
from tasks.numerics.agreement import Agreement, agreement
from tasks.numerics.k_subspaces import Subspaces

VERSION = 1
KIND = "map"
READS = {
    "x": RowsPort(labels=True),
    "subspaces": ArtifactPort(
        "clustering.k_subspaces", others=("clustering.bases", "clustering.sine_medoids"), one_width=True
    ),
}
ARRAYS = {"cluster": ("row",), "distance": ("row",), "margin": ("row",)}
REFERENCE = "Bradley, Mangasarian, Journal of Global Optimization 16 (2000) 23: the nearest plane"
SEEDS = ()
TILE_ROWS = 512
"""Rows are multiplied in tiles of exactly this size, filled up with zeros, so that no bit depends on how rows are cut."""


class Config(Frozen):
    """What rows are compared with."""

    label: str | None = None
    """A label with classes, to compare the clusters with; nothing else reads it."""


class Result(Frozen):
    """How near rows are to their subspaces."""

    n_rows: int
    distance_rms: float | None
    """Root mean square of the distances; None without rows."""
    distance_max: float | None
    margin_mean: float | None
    near_ties: float | None
    """Share of rows with a margin below 0.05: another subspace holds them about as well."""
    largest_share: float | None
    """Of the rows, in the largest cluster."""
    label: str | None
    accuracy: float | None
    """Share of labelled rows that the best one-to-one map of clusters to classes has right; None without a label."""
    purity: float | None
    adjusted_rand: float | None
    normalised_mutual_information: float | None


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the subspaces are of another width, or there is no such label.
    """
    width = inputs.artifacts["subspaces"]["mean"].shape[1]
    if width != inputs.widths["x"]:
        raise MethodError(
            f"the subspaces have {width} features, the site has {inputs.widths['x']}; connect a stage of a site of that width"
        )
    if config.label is not None:
        class_label(inputs, config.label)


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {"cluster": RowOutput("int64"), "distance": RowOutput("float32"), "margin": RowOutput("float32")}


def start(inputs: Inputs, config: Config) -> State:
    """The subspaces, and the label to compare with."""
    found = inputs.artifacts["subspaces"]
    present = torch.nonzero(found["size"] > 0).flatten()
    unit = torch.tensor(bool(inputs.results["subspaces"]["unit_length"]))
    carry = {name: found[name][present].double() for name in ("mean", "basis")}
    carry |= {"unit": unit, "present": present, "clusters": torch.tensor(len(found["size"]))}
    if config.label is None:
        return carry | {"classes": torch.tensor(0)}
    return carry | {
        "classes": torch.tensor(len(inputs.categories[config.label])),
        "label": carried(config.label),
    }


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Computed in float64.

    Raises:
        MethodError: for rows that are not finite.
    """
    k_subspaces.require_finite(block["x"])
    x = k_subspaces.scaled(block["x"], bool(carry["unit"]))
    found = Subspaces(carry["mean"], carry["basis"])
    pieces = [_nearest(rows, found) for rows in torch.split(x, TILE_ROWS)]
    cluster, distance, margin = (torch.cat([piece[n] for piece in pieces]) for n in range(3))
    return {
        "cluster": carry["present"][cluster],
        "distance": distance.float(),
        "margin": margin.float(),
    }


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums, and rows of each cluster and class."""
    distance, margin, cluster = (outputs[name] for name in ("distance", "margin", "cluster"))
    clusters = int(carry["clusters"])
    return {
        "size": torch.bincount(cluster, minlength=clusters),
        "table": counted_classes(block, cluster, carry, clusters),
        "square": distance.double().square().sum(),
        "margin": margin.double().sum(),
        "ties": (margin < 0.05).sum(),
        "largest": distance.double().max() if len(block) else margin.double().sum(),
    }


def merge(a: State, b: State) -> State:
    """The sums of both."""
    added = {name: a[name] + b[name] for name in ("size", "table", "square", "margin", "ties")}
    return added | {"largest": torch.maximum(a["largest"], b["largest"])}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means of the sums."""
    n = int(state["size"].sum())
    found = agreement(state["table"].cpu().numpy())
    result = Result(
        n_rows=n,
        distance_rms=(float(state["square"]) / n) ** 0.5 if n else None,
        distance_max=float(state["largest"]) if n else None,
        margin_mean=float(state["margin"]) / n if n else None,
        near_ties=int(state["ties"]) / n if n else None,
        largest_share=int(state["size"].max()) / n if n else None,
        label=config.label,
        **(dict.fromkeys(Agreement._fields) if found is None else found._asdict()),
    )
    return result, {}


def _nearest(rows: Tensor, found: Subspaces) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster, distance and margin of at most TILE_ROWS rows."""
    tile = rows.new_zeros(TILE_ROWS, rows.shape[1])
    tile[: len(rows)] = rows
    square = k_subspaces.residuals(tile, found)
    cluster = square.argmin(1)
    distance = torch.zeros_like(square[:, 0])
    for k, (mean, basis) in enumerate(zip(*found, strict=True)):
        left = tile - mean
        left -= (left @ basis.T) @ basis
        distance = torch.where(cluster == k, torch.linalg.vector_norm(left, dim=1), distance)
    others = square.scatter(1, cluster[:, None], torch.inf).amin(1).sqrt()
    margin = (1 - distance / others.where(others > 0, torch.inf)).where(others > 0, 0.0).clamp(0, 1)
    return cluster[: len(rows)], distance[: len(rows)], margin[: len(rows)]
