"""Rows that one row each stands for up to its length and sign, and how few directions hold each such cluster: a dictionary of local bases.

Rows are clustered about medoids in the sines of the angles between them, then each cluster gets the principal directions through the origin
that its rows of length 1 need for a root mean square of relative errors of at most `tolerance`; one basis for all rows, and bases of
clusters of the same sizes that rows are dealt to by chance, stand beside. Angles are seen from the origin: no mean is subtracted. The draw
of `sample_rows` is one of CLARA; bases hold for other rows as far as these are like them.

Arrays, clusters with most rows first: `cluster` and `row` (sampled) give each row's cluster and its number over all captures laid end to
end, -1 for rows of zeros, which have no direction; `medoid` (cluster_number) is the row that stands for a cluster, `size` its rows,
`dimension` the directions that it needs, `mean` (cluster_number, feature) zeros and `basis` (cluster_number, component, feature) these
directions, zeros beyond, `eigenvalue` (cluster_number, order) the second moments along all principal directions of its rows of length 1,
`error_rms` and `error_largest` (cluster_number) the relative errors that rows have, computed from what the bases leave of them;
`number` and `silhouette` (candidate) the numbers of clusters that were tried.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.classes import class_label
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import medoids, sines
from tasks.numerics.agreement import Agreement, agreement, counted
from tasks.numerics.distances import directions
from tasks.numerics.medoids import Medoids

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    **dict.fromkeys(("cluster", "row"), ("sampled",)),
    **dict.fromkeys(("medoid", "size", "dimension", "error_rms", "error_largest"), ("cluster_number",)),
    "mean": ("cluster_number", "feature"),
    "basis": ("cluster_number", "component", "feature"),
    "eigenvalue": ("cluster_number", "order"),
    **dict.fromkeys(("number", "silhouette"), ("candidate",)),
}
REFERENCE = (
    "Daniel, Casenave, Akkari, Ryckelynck, arXiv 2108.12291 (2021): sine dissimilarity and local bases. Schubert, Rousseeuw, Information "
    "Systems 101 (2021) 101804: PAM. Rousseeuw, Journal of Computational and Applied Mathematics 20 (1987) 53: the silhouette"
)
SEEDS = (34,)
WEAK = 0.25
"""Silhouettes up to it show no substantial structure (Kaufman, Rousseeuw 1990, table 4)."""


class Config(Frozen):
    """How many clusters, and how well bases are to hold their rows."""

    clusters: int | None = Field(default=None, ge=2)
    """How many; None: as many as give the largest silhouette."""
    max_clusters: int = Field(default=10, ge=2)
    """Most that are tried when `clusters` is None."""
    tolerance: float = Field(default=0.1, ge=1e-6, lt=1)
    """Root mean square of the relative errors of a cluster's rows, at most; 0.1 keeps 99 % of the squares of rows of length 1."""
    label: str | None = None
    """A label with classes, to compare the clusters with; nothing else reads it."""
    sample_rows: int | None = Field(default=None, ge=3)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=5000, ge=3)
    """Refuse more rows than this; time and memory grow with their square."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the draw, and of the clusters by chance."""


class Result(Frozen):
    """Clusters and bases in numbers."""

    n_rows: int
    n_zero: int
    """Rows of zeros, in no cluster."""
    clusters: int
    chosen_by: str
    """`option` or `silhouette`."""
    silhouette: float
    """Of the clusters, in sines: 1 for clusters far apart, near 0 the number means little."""
    candidates: tuple[int, ...]
    """The three numbers of clusters with the largest silhouettes, best first."""
    sine: float
    """Mean over rows of the sine to their medoid: what one direction for each cluster loses."""
    unit_length: bool
    """Whether bases are those of rows scaled to length 1; always."""
    dimension_local: float
    """Mean over rows of the directions that their cluster needs for the tolerance."""
    dimension_largest: int
    dimension_dealt: float
    """`dimension_local` where rows are dealt by chance to clusters of the same sizes: fewer rows need fewer directions."""
    dimension_global: int
    """Directions that one basis for all rows needs for the tolerance."""
    directions: int
    """Of all clusters' bases together: what the dictionary stores."""
    error_rms: float
    """Root mean square over rows of the relative errors, computed from what the bases leave of them."""
    error_largest: float
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
        MethodError: if there is no such label, or there are fewer rows than clusters.
    """
    if config.label is not None:
        class_label(inputs, config.label)
    n = min(inputs.n_rows, config.sample_rows or inputs.n_rows)
    if n <= (config.clusters or 2):
        raise MethodError(
            f"found {n} rows for {config.clusters or 2} clusters; lower `clusters` or draw more rows"
        )


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Clusters, then their bases.

    Raises:
        MethodError: if rows have fewer directions than clusters are asked for.

    Cost: O(row^2 feature), (5 + 2 cluster) row^2 for each exchange of medoids and number of clusters, and three decompositions of all rows;
    24 row^2 bytes.
    """
    unit, kept = directions(block["x"])
    d = sines.pairwise(unit)
    tried = _tried(d, config)
    scores = torch.tensor([medoids.silhouette(d, found.cluster) for found in tried], dtype=torch.float64)
    best = int(scores.argmax())
    local = _bases(unit, tried[best].cluster, config.tolerance)
    result = _result(block, unit, kept, tried, scores, local, config)
    return result, _arrays(block, kept, tried, scores, local)


class _Bases(NamedTuple):
    basis: Float64[Tensor, "cluster direction feature"]
    eigenvalue: Float64[Tensor, "cluster order"]
    dimension: Tensor
    size: Tensor
    error: Tensor
    """[row]: relative."""
    cluster: Tensor
    """[row]"""


def _tried(d: Tensor, config: Config) -> list[Medoids]:
    """Clusters for each number that is asked for, ascending."""
    start = medoids.built(d, config.clusters or min(config.max_clusters, len(d) - 1))
    need = config.clusters or 2
    if len(start) < need:
        raise MethodError(
            f"{len(d)} rows have {len(start)} different directions up to sign, {need} clusters need as many; lower `clusters`, or "
            "look at rows that differ"
        )
    numbers = [config.clusters] if config.clusters else range(2, len(start) + 1)
    return [medoids.improved(d, start[:k]) for k in numbers]


def _bases(unit: Tensor, cluster: Tensor, tolerance: float) -> _Bases:
    """The fewest directions of each cluster that meet the tolerance."""
    size = torch.bincount(cluster)
    parts = [unit[cluster == k] for k in range(len(size))]
    found = [torch.linalg.svd(part, full_matrices=False) for part in parts]
    dimension = torch.tensor([needed(s, tolerance) for _, s, _ in found], device=unit.device)
    basis = unit.new_zeros(len(size), int(dimension.max()), unit.shape[1])
    eigenvalue = unit.new_zeros(len(size), unit.shape[1])
    error = unit.new_zeros(len(unit))
    for k, (part, (_, s, vh)) in enumerate(zip(parts, found, strict=True)):
        some = vh[: int(dimension[k])]
        basis[k, : len(some)], eigenvalue[k, : len(s)] = some, s.square() / len(part)
        error[cluster == k] = torch.linalg.vector_norm(part - (part @ some.T) @ some, dim=1)
    return _Bases(basis, eigenvalue, dimension, size, error, cluster)


def needed(singular: Float64[Tensor, " order"], tolerance: float) -> int:
    """Directions that leave a root mean square of at most the tolerance, of rows of length 1 with these singular values."""
    square = singular.square()
    left = torch.cat([square.flip(0).cumsum(0).flip(0), square.new_zeros(1)])
    return int((left > tolerance**2 * square.sum()).sum())


def _dealt(unit: Tensor, size: Tensor, config: Config) -> float:
    """Mean over rows of the directions that clusters of these sizes need, when rows are dealt to them by chance."""
    order = torch.randperm(len(unit), generator=torch.Generator().manual_seed(config.seed)).to(unit.device)
    parts = torch.split(unit[order], size.tolist())
    return sum(len(part) * _needed_by(part, config.tolerance) for part in parts) / len(unit)


def _needed_by(part: Tensor, tolerance: float) -> int:
    return needed(torch.linalg.svdvals(part), tolerance)


def _result(
    block: Block,
    unit: Tensor,
    kept: Tensor,
    tried: list[Medoids],
    scores: Tensor,
    local: _Bases,
    config: Config,
) -> Result:
    best = int(scores.argmax())
    found = _agreement(block, kept, local, config.label)
    mean = float((local.size * local.dimension).sum()) / len(unit)
    together, dealt = _needed_by(unit, config.tolerance), _dealt(unit, local.size, config)
    return Result(
        n_rows=len(block),
        n_zero=len(block) - len(unit),
        clusters=len(local.size),
        chosen_by="option" if config.clusters else "silhouette",
        silhouette=float(scores[best]),
        candidates=tuple(len(tried[int(c)].medoid) for c in torch.argsort(-scores, stable=True)[:3]),
        sine=tried[best].cost / len(unit),
        unit_length=True,
        dimension_local=mean,
        dimension_largest=int(local.dimension.max()),
        dimension_dealt=dealt,
        dimension_global=together,
        directions=int(local.dimension.sum()),
        error_rms=float(local.error.square().mean().sqrt()),
        error_largest=float(local.error.max()),
        label=config.label,
        **(dict.fromkeys(Agreement._fields) if found is None else found._asdict()),
        caveats=_caveats(unit, local, float(scores[best]), mean, dealt),
    )


def _agreement(block: Block, kept: Tensor, local: _Bases, label: str | None) -> Agreement | None:
    """Of the clusters with the label's classes."""
    if label is None:
        return None
    code = block.labels[label][kept].cpu().numpy()
    table = counted(local.cluster.cpu().numpy(), code, len(local.size), int(code.max(initial=0)) + 1)
    return agreement(table)


def _caveats(unit: Tensor, local: _Bases, silhouette: float, mean: float, dealt: float) -> tuple[str, ...]:
    notes = []
    if silhouette <= WEAK:
        notes.append(
            f"a silhouette of {silhouette:.2f}, not above {WEAK}: rows hardly fall into clusters of directions"
        )
    if mean >= dealt:
        notes.append(
            "clusters dealt by chance need no more directions: the local bases hold what few rows hold"
        )
    spanned = int((local.dimension >= local.size).sum())
    if spanned:
        notes.append(
            f"{spanned} clusters need as many directions as they have rows: no others are known to lie in them"
        )
    common = float(unit.mean(0).square().sum())
    if common > 0.5:
        notes.append(
            f"{common:.0%} of the squares of rows of length 1 is that of their mean: angles between rows are small for "
            "what all have in common"
        )
    return tuple(notes)


def _arrays(block: Block, kept: Tensor, tried: list[Medoids], scores: Tensor, local: _Bases) -> Arrays:
    found, clusters = tried[int(scores.argmax())], len(local.size)
    cluster = torch.full_like(block.index, -1)
    cluster[kept] = found.cluster
    member = torch.nn.functional.one_hot(found.cluster, clusters).to(local.error).T
    arrays = {
        "cluster": cluster,
        "row": block.index,
        "medoid": block.index[kept[found.medoid]],
        "size": local.size,
        "dimension": local.dimension,
        "error_rms": (member @ local.error.square() / local.size).sqrt(),
        "error_largest": (member * local.error).amax(1),
        "mean": torch.zeros_like(local.basis[:, 0]),
        "basis": local.basis,
        "eigenvalue": local.eigenvalue,
        "number": torch.tensor([len(each.medoid) for each in tried]),
        "silhouette": scores,
    }
    return {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}
