"""Where K subspaces begin: on a sample, by draws that are improved until no row moves, and by what many draws agree on.

Draws are those of k-means++ from residuals: a row, with the subspace of the rows that point most nearly its way, then rows with chances
that grow with their distance to what is there. While a draw improves, directions are turned towards their rows' leading ones by steps of
orthogonal iteration, none of which raises the sum of squared residuals. When no row moves any more they are decomposed, and it goes on
until that moves none either.

An ensemble (Lipor, Hong, Tan, Balzano, Information and Inference 10 (2021) 73) joins rows that many draws of few rounds put together: the
spectral clusters of that graph are starts too. How many others each row is joined with has no value that is best everywhere: a few are
tried.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tasks.numerics import affinity
from tasks.numerics.k_subspaces import Rows, Subspaces, filled, principal, repaired, residuals
from tasks.numerics.partition import partition

ROUNDS = 300
"""Of improving a draw, at most; a few tens are usual."""
FIRST_ROUNDS = 3
"""Of each draw of an ensemble."""
MORE = 5
"""Times as many draws in an ensemble."""
JOINED = (5, 20)
ROUNDING = 64 * torch.finfo(torch.float64).eps
"""Of squared residuals, over squares of rows."""
TURNS = 2
"""Steps of orthogonal iteration a round."""


class Start(NamedTuple):
    """Subspaces that have been fitted to a sample."""

    subspaces: Subspaces
    label: Int64[Tensor, " row"]
    cost: float
    """Sum of squared residuals."""


def begun(
    x: Rows, clusters: int, dimension: int, affine: bool, starts: int, ensemble: bool, rng: torch.Generator
) -> list[Start]:
    """The best draw, and the best clusters that draws agree on; least residuals first.

    Args:
        x: rows of a sample, more than (dimension + 1) each cluster would take.
        clusters: subspaces.
        dimension: of each.
        affine: whether they need not hold the origin.
        starts: draws that are improved until no row moves.
        ensemble: whether these are the best of more draws, and clusters that those agree on are starts too.
        rng: of the draws.

    Returns:
        Residuals are those along the directions in which so many subspaces can lie, where all is done.

    Cost: a round 4 row clusters^2 (dimension + 1)^2 flops; an ensemble row^2 clusters products beside its draws.
    """
    centre, few = leading_space(x, clusters * (dimension + 1), affine)
    x = (x - centre) @ few.T
    held = torch.full((clusters,), dimension, device=x.device)
    places = [drawn(x, clusters, dimension, affine, rng) for _ in range(starts * (MORE if ensemble else 1))]
    groups = [places]
    if ensemble:
        short = [improved(x, place, held, affine, FIRST_ROUNDS) for place in places]
        best = sorted(short, key=lambda run: run.cost)[:starts]
        labels = agreed(torch.stack([run.label for run in short]), clusters)
        groups = [[run.subspaces for run in best], [_of_clusters(x, label, held, affine) for label in labels]]
    found = [
        min((improved(x, place, held, affine) for place in group), key=lambda run: run.cost)
        for group in groups
    ]
    return sorted((_widened(run, centre, few, affine) for run in found), key=lambda run: run.cost)


def _widened(run: Start, centre: Tensor, few: Tensor, affine: bool) -> Start:
    """With all features again."""
    mean = run.subspaces.mean @ few + centre if affine else run.subspaces.mean @ few
    return run._replace(subspaces=Subspaces(mean, run.subspaces.basis @ few))


def _of_clusters(
    x: Rows, label: Int64[Tensor, " row"], held: Int64[Tensor, " cluster"], affine: bool
) -> Subspaces:
    nothing = Subspaces(x.new_zeros(len(held), x.shape[1]), x.new_zeros(len(held), 1, x.shape[1]))
    return refitted(x, label, torch.zeros_like(x[:, 0]), nothing, held, affine, exact=True)


def agreed(labels: Int64[Tensor, "run row"], clusters: int) -> Iterator[Int64[Tensor, " row"]]:
    """Clusters of rows that runs put together, for each number of others that rows are joined with."""
    for count in joined(labels.shape[1], clusters):
        graph = affinity.together(labels, clusters, count)
        vectors = affinity.embed(graph, clusters, seed=0).vectors
        found = partition(vectors[:, :clusters], clusters, 10, seed=0).cluster
        yield torch.from_numpy(found).to(labels.device)


def joined(rows: int, clusters: int) -> list[int]:
    """Numbers of others that are tried: few, some, and half of a cluster's rows."""
    return sorted({min(count, rows - 1) for count in (*JOINED, max(1, rows // (2 * clusters)))})


def leading_space(
    x: Rows, directions: int, affine: bool
) -> tuple[Float64[Tensor, " feature"], Float64[Tensor, "direction feature"]]:
    """A point, and the leading directions of the rows about it."""
    centre = x.mean(0) if affine else torch.zeros_like(x[0])
    return centre, torch.linalg.svd(x - centre, full_matrices=False).Vh[:directions]


def drawn(x: Rows, clusters: int, dimension: int, affine: bool, rng: torch.Generator) -> Subspaces:
    """Each through a drawn row and those nearest to its direction, or to itself where subspaces are affine."""
    chance = torch.ones(len(x), dtype=torch.float64)
    near: Tensor | None = None
    parts = []
    for _ in range(clusters):
        weight = chance if float(chance.sum()) > 0 else torch.ones_like(chance)
        seed = x[int(torch.multinomial(weight, 1, generator=rng))]
        parts.append(_through(x, seed, dimension, affine))
        left = residuals(x, parts[-1])[:, 0]
        near = left if near is None else torch.minimum(near, left)
        chance = near
    return Subspaces(torch.cat([p.mean for p in parts]), torch.cat([p.basis for p in parts]))


def improved(
    x: Rows, found: Subspaces, held: Int64[Tensor, " cluster"], affine: bool, rounds: int = ROUNDS
) -> Start:
    """Subspaces after rows and subspaces have been fitted to each other in turn.

    Args:
        x: rows.
        found: where they begin.
        held: dimension of each.
        affine: whether they need not hold the origin.
        rounds: at most.
    """
    exact, before = False, None
    rounding = ROUNDING * (x - x.mean(0) if affine else x).square().sum(1)
    for _ in range(rounds):
        least, label = _moved(x, found, before, rounding)
        still = before is not None and torch.equal(label, before)
        if still and exact:
            break
        exact, before = still, label
        found = refitted(x, label, least, found, held, affine, exact)
    least, label = _moved(x, found, before, rounding)
    return Start(found, label, float(least.sum()))


def _moved(
    x: Rows, found: Subspaces, before: Int64[Tensor, " row"] | None, rounding: Float64[Tensor, " row"]
) -> tuple[Float64[Tensor, " row"], Int64[Tensor, " row"]]:
    """Least residuals, and whose they are. A row stays where it was unless that lowers its residual by more than rounding: rows that
    several subspaces hold would move for ever."""
    every = residuals(x, found)
    least, label = every.min(1)
    if before is None:
        return least, label
    gain = every.gather(1, before[:, None])[:, 0] - least
    return least, torch.where(gain > rounding, label, before)


def refitted(
    x: Rows,
    label: Int64[Tensor, " row"],
    least: Float64[Tensor, " row"],
    found: Subspaces,
    held: Int64[Tensor, " cluster"],
    affine: bool,
    exact: bool,
) -> Subspaces:
    """Subspaces of the rows that were given to each; those without rows go through the furthest."""
    size = torch.bincount(label, minlength=len(held))
    mean = torch.zeros_like(found.mean)
    if affine:
        mean.index_add_(0, label, x).div_(size.clamp(min=1)[:, None])
    order = torch.argsort(label, stable=True)
    parts = torch.split((x - mean[label])[order], size.tolist())
    most = int(held.max())
    leading = torch.stack([_leading(z, most) for z in parts]) if exact else _turned(parts, found.basis, most)
    basis = leading * (torch.arange(most, device=x.device) < held[:, None])[:, :, None]
    empty = torch.nonzero(size == 0).flatten()
    far = x[torch.argsort(-least, stable=True)[: len(empty)]]
    return repaired(Subspaces(mean, basis), empty, far, affine)


def _turned(
    parts: Sequence[Tensor], basis: Tensor, most: int
) -> Float64[Tensor, "cluster direction feature"]:
    """Directions after steps of orthogonal iteration with the scatter of each cluster's rows."""
    columns = torch.nn.functional.pad(basis, (0, 0, 0, max(0, most - basis.shape[1])))[:, :most].mT
    for _ in range(TURNS):
        products = [z.T @ (z @ u) for z, u in zip(parts, columns, strict=True)]
        columns = torch.linalg.qr(torch.stack(products)).Q
    return columns.mT.contiguous()


def _leading(z: Rows, most: int) -> Float64[Tensor, "direction feature"]:
    """Leading directions of rows, zeros beyond those that they fill, by the smaller of both products."""
    out = z.new_zeros(most, z.shape[1])
    if len(z) >= z.shape[1]:
        values, directions = principal(z.T @ z)
    else:
        _, s, directions = torch.linalg.svd(z, full_matrices=False)
        values = s.square()
    out[: len(directions)] = (directions * filled(values)[:, None])[:most]
    return out


def _through(x: Rows, seed: Float64[Tensor, " feature"], dimension: int, affine: bool) -> Subspaces:
    """The subspace of the rows nearest to a seed."""
    if affine:
        apart = (x - seed).square().sum(1)
    else:
        length = x.norm(dim=1)
        apart = -(x @ seed).abs() / length.where(length > 0, torch.inf)
    rows = x[torch.topk(apart, min(dimension + 1, len(x)), largest=False).indices]
    mean = rows.mean(0) if affine else torch.zeros_like(rows[0])
    return Subspaces(mean[None], _leading(rows - mean, dimension)[None])
