"""How good clusters are where no label tells: silhouettes by subspaces, coding-rate gain over chance, and the rows that show each best.

A row's silhouette compares its distance to its own cluster's subspace with that to the nearest other one. The coding-rate gain is what
rows, scaled to length 1, take fewer nats for when coded cluster by cluster; clusters that say nothing gain too, the more the smaller they
are, so what random clusters of the same sizes gain stands beside it. A row belongs to the cluster that it has in `clustering.bases`; with
`clustering.k_subspaces`, `mixture` or `sine_medoids` to the nearest subspace.

Arrays: `cluster` (row) a row's own cluster, -1 for none; `silhouette` (row), NaN where there is none. For each cluster, in the order of the
subspaces: `clustered` (cluster_number) its rows, `cluster_silhouette` (cluster_number) their mean, `misplaced` (cluster_number) the share
of them that another subspace is nearer to, `cluster_rate` (cluster_number) nats a row; `example` (cluster_number, place) the rows of
largest silhouette, `doubtful` (cluster_number, place) those of least. Rows are counted over all captures laid end to end; -1 where there
are fewer.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import k_subspaces
from tasks.numerics.coding_rate import rate, rate_of_part
from tasks.numerics.k_subspaces import Subspaces
from tasks.numerics.silhouettes import silhouettes
from tasks.numerics.symmetric import add_gram, full

VERSION = 2
KIND = "map"
READS = {
    "x": RowsPort(),
    "subspaces": ArtifactPort(
        "clustering.bases",
        others=("clustering.k_subspaces", "clustering.mixture", "clustering.sine_medoids"),
        aligned=True,
        one_width=True,
    ),
}
ARRAYS = {
    "cluster": ("row",),
    "silhouette": ("row",),
    "clustered": ("cluster_number",),
    "cluster_silhouette": ("cluster_number",),
    "misplaced": ("cluster_number",),
    "cluster_rate": ("cluster_number",),
    "example": ("cluster_number", "place"),
    "doubtful": ("cluster_number", "place"),
}
REFERENCE = (
    "Rousseeuw, Journal of Computational and Applied Mathematics 20 (1987) 53: silhouettes; Yu, Chan, You, Song, Ma, NeurIPS (2020): the "
    "coding-rate gain, eq. 8"
)
SEEDS = ()
MOST_BYTES = 1 << 30
"""Of the second moments of all clusters."""
FEW = 5
"""Rows for each direction of a subspace below which distances of rows that it was fitted to say little."""


NEAR = 1.15
"""Times what the law says that random clusters save, up to which clusters save about as much: gains of random ones lie around it."""


class Config(Frozen):
    """What is kept, and how exactly rows are coded."""

    examples: int = Field(default=8, ge=1)
    """Rows that are kept of each cluster."""
    distortion: float = Field(default=0.5, ge=1e-9, le=1e3)
    """Root mean square error that a code of rows of length 1 may have."""


class Result(Frozen):
    """Over all clusters; rates in nats a row."""

    n_rows: int
    """Rows that have a cluster."""
    left_out: int
    """Rows without."""
    clusters: int
    """That have rows."""
    silhouette: float
    """Mean over rows: 1 where every row lies inside its own subspace and in no other, 0 where clusters tell nothing."""
    worst_silhouette: float
    """Mean over the rows of the cluster where it is least."""
    misplaced: float
    """Share of rows that another subspace is nearer to than their own."""
    rate: float
    """Of all rows together."""
    rate_clusters: float
    """Mean over rows of their cluster's rate."""
    rate_gain: float
    """What clusters save."""
    rate_gain_random: float | None
    """What random clusters of these sizes would; None for fewer rows than directions."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if second moments do not fit in memory, or there is one subspace.
    """
    clusters, width = inputs.artifacts["subspaces"]["basis"].shape[0], inputs.widths["x"]
    if clusters < 2:
        raise MethodError("found one subspace, a silhouette compares two or more; raise `clusters`")
    if (held := 8 * clusters * width**2) > MOST_BYTES:
        raise MethodError(
            f"second moments of {clusters} clusters of {width} features take {held:,} bytes, at most {MOST_BYTES:,} are used; project the "
            "site first"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {
        "cluster": RowOutput("int64"),
        "silhouette": RowOutput("float32"),
    }


def start(inputs: Inputs, config: Config) -> State:
    """The subspaces that have rows."""
    found = inputs.artifacts["subspaces"]
    present = torch.nonzero(found["size"] > 0).flatten()
    place = torch.full((len(found["size"]),), -1).scatter(0, present, torch.arange(len(present)))
    unit = torch.tensor(bool(inputs.results["subspaces"]["unit_length"]))
    carry = {name: found[name][present].double() for name in ("mean", "basis")}
    return carry | {"present": present, "place": place, "unit": unit, "dimension": found["dimension"]}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """In float64.

    Raises:
        MethodError: for rows that are not finite.
    """
    k_subspaces.require_finite(block["x"])
    x = k_subspaces.scaled(block["x"], bool(carry["unit"])).double()
    own = block.aligned.get("subspaces", {}).get("cluster")
    there = torch.ones_like(block.index, dtype=torch.bool) if own is None else own >= 0
    mine = None if own is None else carry["place"][own[there]]
    made = silhouettes(x[there], Subspaces(carry["mean"], carry["basis"]), mine)
    cluster = torch.full_like(block.index, -1)
    cluster[there] = carry["present"][made.own]
    silhouette = torch.full(there.shape, torch.nan, device=there.device)
    silhouette[there] = made.silhouette.float()
    return {"cluster": cluster, "silhouette": silhouette}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums and second moments of clusters, and the best and worst of their rows."""
    own, silhouette, clusters = outputs["cluster"], outputs["silhouette"].double(), len(carry["place"])
    there = own >= 0
    x = k_subspaces.scaled(block["x"], True)
    state = {
        "n": torch.bincount(own[there], minlength=clusters),
        "silhouette": silhouette.new_zeros(clusters).index_add(0, own[there], silhouette[there]),
        "misplaced": torch.bincount(own[there & (silhouette < 0)], minlength=clusters),
        "g": x.new_zeros(clusters, x.shape[1], x.shape[1]),
        "left_out": (~there).sum(),
    }
    for k in torch.unique(own[there]).tolist():
        add_gram(state["g"][k], x[own == k])
    state["g"] = torch.triu(state["g"])
    for name, values in (("example", -silhouette), ("doubtful", silhouette)):
        rows = [torch.nonzero(own == k).flatten() for k in range(clusters)]
        found = [_least(values[some], block.index[some], config.examples) for some in rows]
        state |= _named(name, found)
    return state


def merge(a: State, b: State) -> State:
    """The sums of both, and the best and worst of all rows."""
    out = {name: a[name] + b[name] for name in ("n", "silhouette", "misplaced", "g", "left_out")}
    for name in ("example", "doubtful"):
        value, row = (torch.cat([a[f"{name}.{part}"], b[f"{name}.{part}"]], 1) for part in ("value", "row"))
        most = a[f"{name}.row"].shape[1]
        out |= _named(name, [_least(v, r, most) for v, r in zip(value, row, strict=True)])
    return out


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means, and the rates of clusters.

    Cost: O(cluster feature^3).

    Raises:
        MethodError: if no row has a cluster.
    """
    n = state["n"]
    if not int(n.sum()):
        raise MethodError(
            "no row has a cluster: the clusters are of other rows; connect those of these captures"
        )
    some, each = n > 0, n.clamp(min=1)
    silhouette = torch.where(some, state["silhouette"] / each, torch.nan)
    rates = _rates(state["g"], n, config.distortion)
    result = Result(
        n_rows=int(n.sum()),
        left_out=int(state["left_out"]),
        clusters=int(some.sum()),
        silhouette=float(state["silhouette"].sum() / n.sum()),
        worst_silhouette=float(silhouette[some].min()),
        misplaced=float(state["misplaced"].sum() / n.sum()),
        rate=rates.together,
        rate_clusters=rates.clusters,
        rate_gain=max(0.0, rates.together - rates.clusters),
        rate_gain_random=rates.random_gain,
        caveats=_caveats(n, carry["dimension"], rates),
    )
    arrays = {
        "cluster_silhouette": silhouette,
        "misplaced": torch.where(some, state["misplaced"] / each, torch.nan),
        "cluster_rate": rates.of_cluster,
        "clustered": n,
        "example": state["example.row"],
        "doubtful": state["doubtful.row"],
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Rates(NamedTuple):
    together: float
    clusters: float
    random_gain: float | None
    of_cluster: Tensor


def _rates(g: Tensor, n: Tensor, distortion: float) -> _Rates:
    """From sums of products of each cluster's rows, upper triangles."""
    share, second = n / n.sum(), full(g.sum(0)) / n.sum()
    together = rate(second, distortion)
    found = [rate(full(g[k]) / n[k], distortion) if int(n[k]) else math.nan for k in range(len(n))]
    of_cluster = torch.tensor(found, dtype=torch.float64, device=g.device)
    values = torch.linalg.eigvalsh(second).clamp(min=0)
    independent = int(n.sum()) > int((values > 1e-12 * values.max()).sum())
    parts = [float(f) * rate_of_part(values, float(n.sum()), float(f), distortion) for f in share[n > 0]]
    known = independent and math.isfinite(sum(parts))
    gain = max(0.0, together - sum(parts)) if known else None
    return _Rates(together, float((of_cluster.nan_to_num() * share).sum()), gain, of_cluster)


def _least(values: Tensor, row: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The smallest values and their rows, ties to the smaller row; inf and -1 in free places."""
    order = torch.argsort(torch.where(row < 0, torch.iinfo(torch.int64).max, row), stable=True)
    order = order[torch.argsort(values[order], stable=True)][:most]
    free = (0, most - len(order))
    pad = torch.nn.functional.pad
    return pad(values[order], free, value=math.inf), pad(row[order], free, value=-1)


def _named(name: str, found: list[tuple[Tensor, Tensor]]) -> State:
    value, row = (torch.stack([each[part] for each in found]) for part in (0, 1))
    return {f"{name}.value": value, f"{name}.row": row}


def _caveats(n: Tensor, dimension: Tensor, rates: _Rates) -> tuple[str, ...]:
    notes = []
    few = int(((n > 0) & (n < FEW * (dimension + 1))).sum())
    if few:
        notes.append(
            f"{few} of the clusters have fewer than {FEW} rows for each direction of their subspace, fitted to them: distances say little"
        )
    gain = rates.together - rates.clusters
    if rates.random_gain is not None and gain <= NEAR * rates.random_gain:
        notes.append(
            "random clusters of these sizes would save about as many nats: the clusters are hardly a shorter code"
        )
    return tuple(notes)
