"""The subspace of each cluster that was found elsewhere: directions, dimension and spectrum, and every row's cluster beside the rows.

`clustering.assign` takes this artifact, so that clusters of a graph, which knows its own rows alone, label any number of new rows by the
nearest subspace.

Arrays: `cluster` (row) is the cluster of a row, -1 for one that was not among those that were clustered; the others are those of
`clustering.k_subspaces`, clusters in the order that they have: `mean` (cluster_number, feature), `basis` (cluster_number, component,
feature), `eigenvalue` (cluster_number, order), `dimension` (cluster_number), `size` (cluster_number), `affinity` (cluster_number,
other_cluster).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.methods.grouped_moments import each
from tasks.numerics import k_subspaces, moments, subspace_dimensions
from tasks.numerics.symmetric import full

VERSION = 2
KIND = "map"
READS = {
    "x": RowsPort(),
    "clusters": ArtifactPort(
        "clustering.partition",
        others=(
            "clustering.stability",
            "clustering.attributed_graph",
            "clustering.leiden",
            "clustering.multilayer",
            "clustering.layerwise",
            "clustering.spectral",
            "clustering.sine_medoids",
        ),
    ),
}
ARRAYS = {
    "cluster": ("row",),
    "mean": ("cluster_number", "feature"),
    "basis": ("cluster_number", "component", "feature"),
    "eigenvalue": ("cluster_number", "order"),
    "dimension": ("cluster_number",),
    "size": ("cluster_number",),
    "affinity": ("cluster_number", "other_cluster"),
}
REFERENCE = "Pearson, Philosophical Magazine 2 (1901) 559: the plane of closest fit, of each cluster's rows"
SEEDS = ()
MOST_BYTES = 1 << 30
"""Of the moments of all clusters."""


class Config(Frozen):
    """Which subspaces are fitted."""

    dimension: int | None = Field(default=None, ge=1)
    """Of each; None: each its own, as many as stand out of white noise."""
    max_dimension: int = Field(default=32, ge=1)
    """Of any where each has its own."""
    kind: Literal["affine", "linear"] = "affine"
    """`linear` ones hold the origin."""
    unit_length: bool = False
    """Scale rows to length 1 first."""
    precision: Literal["float64", "float32"] = "float64"
    """Of products of features."""


class Result(Frozen):
    """The subspaces in numbers."""

    n_rows: int
    """Rows that have a cluster."""
    left_out: int
    """Rows without."""
    clusters: int
    dimension: int
    """The largest."""
    unit_length: bool
    """Whether rows were scaled to length 1."""
    residual_share: float
    """Sum of squared residuals over the rows' sum of squares about their mean (about the origin where subspaces are linear)."""
    one_subspace: float
    """The same for one subspace of the largest dimension for all rows: what clusters gain is below it."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if subspaces would hold all rows, or moments do not fit in memory.
    """
    width, clusters = inputs.widths["x"], len(inputs.artifacts["clusters"]["size"])
    if (config.dimension or 1) >= width:
        raise MethodError(
            f"subspaces of {config.dimension or 1} dimensions hold all rows of {width} features; lower `dimension`"
        )
    if (held := 8 * clusters * width**2) > MOST_BYTES:
        raise MethodError(
            f"moments of {clusters} clusters of {width} features take {held:,} bytes, at most {MOST_BYTES:,} are used; project the site "
            "first"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {"cluster": RowOutput("int64")}


def start(inputs: Inputs, config: Config) -> State:
    """Clustered rows, and their clusters."""
    found = inputs.artifacts["clusters"]
    row, order = found["row"].sort()
    return {"row": row, "label": found["cluster"][order], "clusters": torch.tensor(len(found["size"]))}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Looked up."""
    place = torch.searchsorted(carry["row"], block.index).clamp(max=len(carry["row"]) - 1)
    return {"cluster": torch.where(carry["row"][place] == block.index, carry["label"][place], -1)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Moments of each cluster's rows."""
    x, label = k_subspaces.scaled(block["x"], config.unit_length), outputs["cluster"]
    clusters = int(carry["clusters"])
    one = moments.empty(x.shape[1], x.device)
    state = {name: values.new_zeros((clusters, *values.shape)) for name, values in one.items()}
    for k, group in enumerate(each(state)):
        moments.partial(x[label == k], None, config.precision, group)
    return state | {"left_out": (label < 0).sum()}


def merge(a: State, b: State) -> State:
    """The moments of both."""
    names = moments.empty(0)
    out = {name: torch.empty_like(a[name]) for name in names}
    for group in zip(*(each({name: s[name] for name in names}) for s in (a, b, out)), strict=True):
        moments.merge(*group)
    return out | {"left_out": a["left_out"] + b["left_out"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Leading directions of each cluster.

    Raises:
        MethodError: if no row has a cluster.
    """
    n, affine = state["n"], config.kind == "affine"
    if not int(n.sum()):
        raise MethodError(
            "no row has a cluster: the clusters are of other rows; connect those of these captures"
        )
    groups = each({name: state[name] for name in moments.empty(0)})
    total, all_values = _together(groups, affine)
    fit, held = _fitted(groups, n, affine, config)
    most = int(held.max())
    result = Result(
        n_rows=int(n.sum()),
        left_out=int(state["left_out"]),
        clusters=int((n > 0).sum()),
        dimension=most,
        unit_length=config.unit_length,
        residual_share=fit.cost / total if total > 0 else 0.0,
        one_subspace=float(all_values[most:].sum()) / total if total > 0 else 0.0,
        caveats=_caveats(n, held, config),
    )
    arrays = {
        "mean": fit.subspaces.mean,
        "basis": fit.subspaces.basis,
        "eigenvalue": fit.eigenvalue,
        "dimension": held,
        "size": n,
        "affinity": k_subspaces.affinity(fit.subspaces.basis),
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _caveats(n: Tensor, held: Tensor, config: Config) -> tuple[str, ...]:
    notes = []
    full = int((held == config.max_dimension).sum()) if config.dimension is None else 0
    if full:
        notes.append(f"{full} of the subspaces have the most dimensions that they may; raise `max_dimension`")
    few = int(((n > 0) & (n <= held + 1)).sum())
    if few:
        notes.append(
            f"{few} of the subspaces have no more rows than span them: these lie in them whatever they are"
        )
    return tuple(notes)


def _together(groups: list[State], affine: bool) -> tuple[float, Tensor]:
    """Sum and eigenvalues of the squares of all rows, about their mean or the origin."""
    all_rows = groups[0]
    for group in groups[1:]:
        all_rows = moments.merge(all_rows, group)
    centre = moments.mean(all_rows) if affine else torch.zeros_like(all_rows["c"])
    values, _ = k_subspaces.principal(full(moments.move(all_rows, centre)["g"]))
    return float(values.sum()), values


def _fitted(groups: list[State], n: Tensor, affine: bool, config: Config) -> tuple[k_subspaces.Fit, Tensor]:
    """Subspaces of the dimension that is wanted, or of that which each shows."""
    if not affine:
        groups = [moments.move(group, torch.zeros_like(group["c"])) for group in groups]
    state = {name: torch.stack([group[name] for group in groups]) for name in ("n", "s", "g")}
    point, width = torch.stack([group["c"] for group in groups]), len(groups[0]["c"])
    if config.dimension is not None:
        held = torch.full_like(n, config.dimension)
        return k_subspaces.fitted(state, point, held, affine), held
    values = k_subspaces.fitted(state, point, torch.ones_like(n), affine).eigenvalue
    held = subspace_dimensions.held_by(values, n - int(affine), min(config.max_dimension, width - 1))
    return k_subspaces.fitted(state, point, held, affine), held
