"""Each row's cluster among subspaces that were found before, how far it is, how sure and how likely: also for rows of other captures.

Clusters are the nearest subspace of an artifact of `clustering.k_subspaces`, `bases` or `sine_medoids`, and the likeliest component of one
of `clustering.mixture`. Posteriors and likelihoods are those of the mixture; of subspaces, those of the Gaussians that their clusters'
sizes and spectra imply, with one noise variance for all, as nearness has it.

Arrays: `cluster` (row) counts as the artifact's arrays do, `distance` (row) is the norm of what its subspace leaves out of the row,
computed from that difference, and `margin` (row) 1 - distance / the least distance to another subspace: 0 for a row that another holds as
well, 1 for one inside its own. `posterior` (row) is the chance that the row belongs to its cluster, and `log_likelihood` (row) the log of
its density, in nats: the lowest are outliers. Rows of failed samples have cluster -1 and NaN.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.classes import carried_classes, class_label, counted_classes
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import k_subspaces, low_rank_mixture
from tasks.numerics.agreement import Agreement, agreement
from tasks.numerics.k_subspaces import Subspaces
from tasks.numerics.low_rank_mixture import Mixture, Spectra

VERSION = 3
KIND = "map"
READS = {
    "x": RowsPort(labels=True),
    "subspaces": ArtifactPort(
        "clustering.k_subspaces",
        others=("clustering.bases", "clustering.sine_medoids", "clustering.mixture"),
        one_width=True,
    ),
}
DTYPES = {
    "cluster": "int64",
    "distance": "float32",
    "margin": "float32",
    "posterior": "float32",
    "log_likelihood": "float64",
}
ARRAYS = dict.fromkeys(DTYPES, ("row",))
REFERENCE = (
    "Bradley, Mangasarian, Journal of Global Optimization 16 (2000) 23: the nearest plane; Tipping, Bishop, Neural Computation 11 (1999) "
    "443, section 4: posteriors"
)
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
    posterior_mean: float | None
    log_likelihood: float | None
    """Of a row, mean, in nats."""
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
    return {name: RowOutput(dtype) for name, dtype in DTYPES.items()}


def start(inputs: Inputs, config: Config) -> State:
    """The mixture, and the label to compare with."""
    found, result = inputs.artifacts["subspaces"], inputs.results["subspaces"]
    likeliest = "weight" in found
    present = torch.nonzero(found["weight" if likeliest else "size"] > 0).flatten()
    mixture = _mixture(found, present)
    carry = {"mean": mixture.subspaces.mean, "basis": mixture.subspaces.basis, "present": present}
    carry |= {name: getattr(mixture, name) for name in ("variance", "noise", "weight")}
    carry |= {"unit": torch.tensor(bool(result["unit_length"])), "likeliest": torch.tensor(likeliest)}
    carry |= {"clusters": torch.tensor(len(found["size"]))}
    return carry | carried_classes(inputs, config.label)


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Computed in float64.

    Raises:
        MethodError: for rows that are not finite, or so large that their squares are not.
    """
    k_subspaces.require_finite(block["x"])
    x = k_subspaces.scaled(block["x"], bool(carry["unit"]))
    found = Mixture(
        Subspaces(carry["mean"], carry["basis"]), carry["variance"], carry["noise"], carry["weight"]
    )
    pieces = [_tile(rows, found, bool(carry["likeliest"])) for rows in torch.split(x, TILE_ROWS)]
    columns = [torch.cat(column) for column in zip(*pieces, strict=True)]
    made = dict(zip(DTYPES, columns, strict=True)) | {"cluster": carry["present"][columns[0]]}
    return {name: made[name].to(getattr(torch, dtype)) for name, dtype in DTYPES.items()}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums, and rows of each cluster and class."""
    distance, margin, cluster = (outputs[name] for name in ("distance", "margin", "cluster"))
    clusters = int(carry["clusters"])
    return {
        "size": torch.bincount(cluster, minlength=clusters),
        "table": counted_classes(block, cluster, carry, clusters),
        "square": distance.double().square().sum(),
        "margin": margin.double().sum(),
        "posterior": outputs["posterior"].double().sum(),
        "log_likelihood": outputs["log_likelihood"].sum(),
        "ties": (margin < 0.05).sum(),
        "largest": distance.double().max() if len(block) else margin.double().sum(),
    }


def merge(a: State, b: State) -> State:
    """The sums of both."""
    added = {name: a[name] + b[name] for name in a if name != "largest"}
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
        posterior_mean=float(state["posterior"]) / n if n else None,
        log_likelihood=float(state["log_likelihood"]) / n if n else None,
        near_ties=int(state["ties"]) / n if n else None,
        largest_share=int(state["size"].max()) / n if n else None,
        label=config.label,
        **(dict.fromkeys(Agreement._fields) if found is None else found._asdict()),
    )
    return result, {}


def _mixture(found: Mapping[str, Tensor], present: Tensor) -> Mixture:
    """The components, or those that clusters imply, of some numbers."""

    def some(*names: str) -> list[Tensor]:
        return [found[name][present].double() for name in names]

    if "weight" in found:
        return Mixture(Subspaces(*some("mean", "basis")), *some("variance", "noise", "weight"))
    spectra = Spectra(*some("mean", "eigenvalue", "basis"))
    return low_rank_mixture.implied(spectra, found["size"][present], found["dimension"][present])


def _tile(rows: Tensor, found: Mixture, likeliest: bool) -> tuple[Tensor, ...]:
    """Cluster, distance, margin, posterior and log likelihood of at most TILE_ROWS rows."""
    tile = rows.new_zeros(TILE_ROWS, rows.shape[1])
    tile[: len(rows)] = rows
    seen = low_rank_mixture.seen(tile, found)
    cluster = seen.chance.argmax(1) if likeliest else seen.residual.argmin(1)
    apart, at = k_subspaces.distances(tile, found.subspaces), cluster[:, None]
    distance = apart.gather(1, at)[:, 0]
    others = apart.scatter(1, at, torch.inf).amin(1)
    margin = (1 - distance / others.where(others > 0, torch.inf)).where(others > 0, 0.0).clamp(0, 1)
    made = (cluster, distance, margin, seen.chance.gather(1, at)[:, 0], seen.log_density)
    return tuple(values[: len(rows)] for values in made)
