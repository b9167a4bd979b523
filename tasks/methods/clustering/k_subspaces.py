"""Rows in K subspaces, each row in the nearest: any number of rows in bounded memory, one read of them a round.

A sample of the rows comes first: starts are found on it and improved until no row of it moves, and the best goes on with all rows, until
a round lowers the sum of squared residuals by less than `tolerance` of it. Where no dimension is asked for, each subspace gets its own on
the sample, and once more when all rows have been read for the first time. A subspace that loses all its rows is put through a row that is
far from all.

Arrays, subspaces with most rows first: `mean` (cluster_number, feature) is a point of each subspace, `basis` (cluster_number, component,
feature) its orthonormal directions, zeros beyond its `dimension` (cluster_number), `eigenvalue` (cluster_number, order) the variances of
its rows along their own principal directions, `size` (cluster_number) its rows, `affinity` (cluster_number, other_cluster) the root mean
square of the cosines of principal angles between subspaces, `cost` (round) the mean squared residual of each round before subspaces were
fitted again, never rising while dimensions stay.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.classes import carried_classes, class_label, counted_classes
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import cluster_moments, k_subspaces, row_sample, subspace_dimensions, subspace_starts
from tasks.numerics.agreement import Agreement, agreement
from tasks.numerics.k_subspaces import Subspaces

VERSION = 3
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "mean": ("cluster_number", "feature"),
    "basis": ("cluster_number", "component", "feature"),
    "eigenvalue": ("cluster_number", "order"),
    "dimension": ("cluster_number",),
    "size": ("cluster_number",),
    "affinity": ("cluster_number", "other_cluster"),
    "cost": ("round",),
}
REFERENCE = (
    "Bradley, Mangasarian, Journal of Global Optimization 16 (2000) 23: K planes; Tseng, Journal of Optimization Theory and Applications "
    "105 (2000) 249: nearest q-flats. Starts by an ensemble: Lipor, Hong, Tan, Balzano, Information and Inference 10 (2021) 73"
)
SEEDS = ()
MOST_BYTES = 4 << 30
"""Of the moments of all clusters."""


class Config(Frozen):
    """How many subspaces of which kind are looked for, and how."""

    clusters: int = Field(default=8, ge=1)
    """How many subspaces."""
    dimension: int | None = Field(default=None, ge=1)
    """Of each; too few cost much: `eigenvalue` shows where more would be better. None: each its own, what stands out of white noise."""
    max_dimension: int = Field(default=16, ge=1)
    """Of any where each has its own."""
    kind: Literal["affine", "linear"] = "affine"
    """`linear` ones hold the origin."""
    unit_length: bool = False
    """Scale rows to length 1 first, so that long ones count no more than short ones."""
    start_rows: int = Field(default=2000, ge=10)
    """Rows of the sample on which starts are tried; all where there are no more."""
    start: Literal["ensemble", "seeding"] = "ensemble"
    """`seeding`: draws. `ensemble`: the best of five times as many, and clusters of rows that most of these put together."""
    starts: int = Field(default=10, ge=1)
    """Draws that are improved until no row of the sample moves; the start of least residuals goes on."""
    rounds: int = Field(default=30, ge=1)
    """Reads of all rows after the sample, at most."""
    tolerance: float = Field(default=1e-4, ge=0, lt=1)
    """Stop when a round lowers the sum of squared residuals by less than this share of it."""
    label: str | None = None
    """A label with classes, to compare the clusters with; nothing else reads it."""
    precision: Literal["float64", "float32"] = "float64"
    """Of products of features; residuals are always float64."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the starts."""


class Result(Frozen):
    """The subspaces in numbers."""

    n_rows: int
    clusters: int
    """Subspaces that have rows."""
    dimension: int
    """Of each subspace; the largest where each has its own."""
    unit_length: bool
    """Whether rows were scaled to length 1."""
    rounds: int
    """Reads of all rows after the sample."""
    converged: bool
    """Whether the last round lowered the residuals by less than the tolerance."""
    residual_share: float
    """Sum of squared residuals over the rows' sum of squares about their mean (about the origin where subspaces are linear)."""
    one_subspace: float
    """The same for one subspace of that dimension for all rows: what clusters gain is below it."""
    largest_share: float
    """Of the rows, in the largest cluster."""
    label: str | None
    accuracy: float | None
    """Share of labelled rows that the best one-to-one map of clusters to classes has right; None without a label."""
    purity: float | None
    adjusted_rand: float | None
    normalised_mutual_information: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no such label, or subspaces take more rows, features or bytes than there are.
    """
    if config.label is not None:
        class_label(inputs, config.label)
    least = config.dimension or 1
    width, need = inputs.widths["x"], config.clusters * (least + 1)
    if least >= width:
        raise MethodError(
            f"subspaces of {least} dimensions hold all rows of {width} features; lower `dimension`"
        )
    if inputs.n_rows < need:
        raise MethodError(
            f"found {inputs.n_rows} rows, {config.clusters} subspaces of {least} dimensions need at least {need}; lower "
            "`clusters` or `dimension`, or capture more samples"
        )
    if config.start_rows < need:
        raise MethodError(
            f"{config.clusters} subspaces start on at least {need} rows, found `start_rows` {config.start_rows}; raise it"
        )
    if (held := 8 * config.clusters * width**2) > MOST_BYTES:
        raise MethodError(
            f"moments of {config.clusters} clusters of {width} features take {held:,} bytes, at most {MOST_BYTES:,} are used; project the "
            "site first"
        )


def start(inputs: Inputs, config: Config) -> State:
    """The label to compare with."""
    return carried_classes(inputs, config.label)


def state_config(config: Config) -> dict[str, object]:
    """All options have a part in what is carried."""
    return config.model_dump(mode="json")


def partial(block: Block, carry: State, config: Config) -> State:
    """A sample of the rows first; then what each subspace needs to be fitted again, and which rows are far.

    Raises:
        MethodError: for rows that are not finite.
    """
    x = k_subspaces.scaled(block["x"], config.unit_length)
    if "basis" not in carry:
        k_subspaces.require_finite(block["x"])
        return row_sample.of_rows(block.index, x.double(), config.start_rows)
    least, label = k_subspaces.nearest(x, Subspaces(carry["mean"], carry["basis"]))
    if not bool(least.isfinite().all()):
        k_subspaces.require_finite(block["x"])
    point = cluster_moments.shifts(carry["mean"])
    state = cluster_moments.partial(x, label, point, config.precision)
    counts = {"residual": least.sum(), "table": counted_classes(block, label, carry, config.clusters)}
    return state | counts | _far(x, least, config.clusters)


def merge(a: State, b: State) -> State:
    """The sample, or the moments, of both."""
    if "key" in a:
        return row_sample.merge(a, b)
    rows, residual = (torch.cat([a[name], b[name]]) for name in ("far", "far.residual"))
    added = {name: a[name] + b[name] for name in ("residual", "table")}
    return cluster_moments.merge(a, b) | added | _far(rows, residual, len(a["far"]))


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """The subspaces that the next round measures rows against; None when they have settled.

    Raises:
        MethodError: if there are fewer good rows than subspaces need.
    """
    if "key" in state:
        return carry | _first(state, config)
    if _settled(state, carry, config) or len(carry["cost"]) + 1 >= config.rounds:
        return None
    affine, point, held = config.kind == "affine", cluster_moments.shifts(carry["mean"]), carry["held"]
    fit = k_subspaces.fitted(state, point, held, affine)
    if config.dimension is None and len(carry["cost"]) == 0:
        held = subspace_dimensions.held_by(
            fit.eigenvalue, state["n"] - int(affine), min(config.max_dimension, inputs.widths["x"] - 1)
        )
        fit = k_subspaces.fitted(state, point, held, affine)
    empty = torch.nonzero(state["n"] == 0).flatten()
    found = k_subspaces.repaired(fit.subspaces, empty, state["far"], affine)
    cost = torch.cat([carry["cost"], state["residual"][None]])
    return carry | {"mean": found.mean, "basis": found.basis, "held": held, "cost": cost}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The subspaces, fitted to their rows once more.

    Cost: O(clusters feature^3).
    """
    affine, point = config.kind == "affine", cluster_moments.shifts(carry["mean"])
    order = torch.argsort(-state["n"], stable=True)
    sorted_state = {name: state[name][order] for name in ("n", "s", "g")}
    held = carry["held"][order]
    fit, most = k_subspaces.fitted(sorted_state, point[order], held, affine), int(held.max())
    together, _ = k_subspaces.principal(cluster_moments.pooled(state, point, affine))
    total, n = float(together.sum()), int(state["n"].sum())
    found = agreement(state["table"][order].cpu().numpy())
    size = state["n"][order]
    costs = torch.cat([carry["cost"], state["residual"][None]])
    settled = _settled(state, carry, config)
    result = Result(
        n_rows=n,
        clusters=int((size > 0).sum()),
        dimension=most,
        unit_length=config.unit_length,
        rounds=len(costs),
        converged=settled,
        residual_share=fit.cost / total if total > 0 else 0.0,
        one_subspace=float(together[most:].sum()) / total if total > 0 else 0.0,
        largest_share=int(size[0]) / n,
        label=config.label,
        **_agreed(found),
        caveats=_caveats(size, held, settled, config),
    )
    arrays = {
        "mean": fit.subspaces.mean,
        "basis": fit.subspaces.basis,
        "eigenvalue": fit.eigenvalue,
        "dimension": held,
        "size": size,
        "affinity": k_subspaces.affinity(fit.subspaces.basis),
        "cost": costs / n,
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _first(state: State, config: Config) -> State:
    """The best start on the sample."""
    x, need = row_sample.values(state), config.clusters * ((config.dimension or 1) + 1)
    if len(x) < need:
        raise MethodError(f"found {len(x)} good rows, these options need at least {need}")
    rng, device = torch.Generator().manual_seed(config.seed), x.device
    how = (config.kind == "affine", config.starts, config.start == "ensemble", rng)
    if config.dimension is None:
        most = min(config.max_dimension, x.shape[1] - 1)
        found, held, _ = subspace_dimensions.begun(x.cpu(), config.clusters, most, *how)
    else:
        found = subspace_starts.begun(x.cpu(), config.clusters, config.dimension, *how)[0].subspaces
        held = torch.full((config.clusters,), config.dimension)
    begun = {"mean": found.mean, "basis": found.basis, "held": held, "cost": found.mean.new_zeros(0)}
    return {name: values.to(device) for name, values in begun.items()}


def _settled(state: State, carry: State, config: Config) -> bool:
    """Whether a round has lowered the residuals by less than the tolerance."""
    if len(carry["cost"]) == 0:
        return float(state["residual"]) == 0
    before, now = float(carry["cost"][-1]), float(state["residual"])
    return before - now <= config.tolerance * before


def _far(x: Tensor, residual: Tensor, most: int) -> State:
    """The rows furthest from all subspaces, furthest first; free places hold zeros and -1."""
    order = torch.argsort(-residual, stable=True)[:most]
    free = most - len(order)
    return {
        "far": torch.nn.functional.pad(x[order].double(), (0, 0, 0, free)),
        "far.residual": torch.nn.functional.pad(residual[order], (0, free), value=-1.0),
    }


def _agreed(found: Agreement | None) -> dict[str, float | None]:
    return dict.fromkeys(Agreement._fields) if found is None else dict(found._asdict())


def _caveats(size: Tensor, held: Tensor, settled: bool, config: Config) -> tuple[str, ...]:
    notes = []
    if not settled:
        notes.append(f"residuals still fell after {config.rounds} rounds; raise `rounds`")
    full = int((held == config.max_dimension).sum()) if config.dimension is None else 0
    if full:
        notes.append(f"{full} subspaces have the most dimensions that they may; raise `max_dimension`")
    few = int(((size > 0) & (size <= held + 1)).sum())
    if few:
        notes.append(
            f"{few} subspaces have no more rows than span them: their residuals are 0 whatever the rows"
        )
    if bool((size == 0).any()):
        notes.append(f"{int((size == 0).sum())} subspaces have no rows; lower `clusters`")
    return tuple(notes)
