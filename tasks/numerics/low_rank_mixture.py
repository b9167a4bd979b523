"""Mixtures of Gaussians that are equally wide in all directions but a few: densities, and what raises the likelihood (EM).

Component k has mean m, orthonormal directions u_j with variances v_j, and the noise variance s in the other directions, so that its
covariance is C = s I + sum_j (v_j - s) u_j u_j^T. With the D features of z = x - m, by the Woodbury identity,

    z^T C^-1 z = |z - sum_j u_j u_j^T z|^2 / s + sum_j (u_j^T z)^2 / v_j,      log |C| = sum_j log v_j + (D - d) log s.

Given chances r of rows to belong to components, the likelihood is largest for the leading eigenvectors and eigenvalues of the covariances
weighted by r, and for s the mean of the other eigenvalues (Tipping, Bishop, Neural Computation 11 (1999) 443, sections 3.2 and 4).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import cluster_moments, k_subspaces, subspace_starts
from tasks.numerics.cluster_moments import Points, State
from tasks.numerics.k_subspaces import TILE, Rows, Subspaces

LEAST_CHANCE = 1e-16
"""Chances below it are taken as 0: rows that are surely elsewhere cost nothing."""
FLOOR = 1e-8
"""Of noise variances, as a share of the rows' variance a feature: the likelihood has no bound without one."""
LEAST_SQUARE = 1e-100
"""Least noise variance of clusters of equal rows: densities are finite."""
ROUNDS = 200
"""On a sample, at most."""


class Mixture(NamedTuple):
    """Components; directions beyond a component's dimension are zeros, and their variance is that of its noise."""

    subspaces: Subspaces
    variance: Float64[Tensor, "cluster direction"]
    noise: Float64[Tensor, " cluster"]
    weight: Float64[Tensor, " cluster"]
    """They sum to 1."""


class Seen(NamedTuple):
    """Rows beside a mixture."""

    log_density: Float64[Tensor, " row"]
    chance: Float64[Tensor, "row cluster"]
    """To belong to each component, given the row."""
    residual: Float64[Tensor, "row cluster"]
    """Squared distance to each component's subspace."""


class Spectra(NamedTuple):
    """Of weighted covariances, zeros without rows."""

    mean: Float64[Tensor, "cluster feature"]
    value: Float64[Tensor, "cluster feature"]
    """Falling."""
    direction: Float64[Tensor, "cluster direction feature"]
    """The leading ones."""


class Rules(NamedTuple):
    """What mixtures are looked for among."""

    affine: bool
    """Whether components have means that are not 0."""
    shared: bool
    """Whether all have one noise variance."""
    floor: float
    """Least noise variance."""
    width: int
    """Features of rows, those among them that are known by their square alone."""


class Run(NamedTuple):
    """A mixture that was fitted to a sample."""

    mixture: Mixture
    log_likelihood: float
    """Of a row, mean."""
    spare: bool
    """Whether every component has more rows than span it."""


def seen(
    x: Float[Tensor, "row feature"],
    found: Mixture,
    outside: Float64[Tensor, " row"] | None = None,
    width: int | None = None,
) -> Seen:
    """Log densities of rows and their chances to belong to components, in float64.

    Args:
        x: rows.
        found: components, some with a weight.
        outside: square of what rows have in features beyond those of x, where components have noise alone; None for none.
        width: features with those; None for those of x.

    Raises:
        MethodError: for rows that are not finite, or so large that their squares are not.

    Cost: 2 row cluster (direction + 1) feature flops, and the memory of a few rows beside what is returned.
    """
    rest = torch.zeros_like(x[:, 0], dtype=torch.float64) if outside is None else outside
    parts = [
        _seen(rows, other, found, width or x.shape[1])
        for rows, other in zip(torch.split(x, TILE), torch.split(rest, TILE), strict=True)
    ]
    made = Seen(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    if not bool(made.log_density.isfinite().all()):
        k_subspaces.require_finite(x)
        raise MethodError(
            f"squares of the rows overflow: largest value {float(x.abs().max()):g}; scale the rows"
        )
    return made


def _seen(x: Tensor, outside: Tensor, found: Mixture, width: int) -> Seen:
    whole, along = k_subspaces.split(x, found.subspaces)
    left = (whole - along.sum(1)).clamp_(min=0) + outside[:, None]
    square = left / found.noise + torch.einsum("rdk,kd->rk", along, 1 / found.variance)
    logs = found.variance.log().sum(1) + (width - found.variance.shape[1]) * found.noise.log()
    joint = found.weight.log() - 0.5 * (square + logs + width * math.log(2 * math.pi))
    total = torch.logsumexp(joint, 1)
    return Seen(total, torch.exp(joint - total[:, None]), left)


def kept(chance: Float64[Tensor, "row cluster"]) -> Float64[Tensor, "row cluster"]:
    """Chances without those that no sum would show."""
    shown: Tensor = chance.where(chance >= LEAST_CHANCE, 0.0)
    return shown


def entropy(chance: Float64[Tensor, "row cluster"]) -> Float64[Tensor, " row"]:
    """Of each row's chances, in nats."""
    nats: Tensor = torch.special.entr(chance).sum(1)
    return nats


def spectra(state: State, point: Points, most: int, affine: bool) -> Spectra:
    """Eigenvalues and leading eigenvectors of the components' covariances.

    Args:
        state: of `cluster_moments.weighted`.
        point: that it is about; the origin where components have no means.
        most: eigenvectors.
        affine: whether covariances are about the means.

    Cost: O(cluster feature^3).
    """
    clusters, features = point.shape
    mean, value = torch.zeros_like(point), torch.zeros_like(point)
    direction = point.new_zeros(clusters, most, features)
    for k in torch.nonzero(state["n"]).flatten().tolist():
        n = state["n"][k]
        if affine:
            mean[k] = point[k] + state["s"][k] / n
        values, directions = k_subspaces.principal(cluster_moments.scatter(state, k, affine))
        value[k], direction[k] = values / n, directions[:most]
    return Spectra(mean, value, direction)


def fitted(
    found: Spectra,
    n: Tensor,
    held: Int64[Tensor, " cluster"],
    rules: Rules,
    outside: Float64[Tensor, " cluster"] | None = None,
) -> Mixture:
    """The components of largest likelihood; one without rows has no weight.

    Args:
        found: the weighted covariances.
        n: [cluster] sums of weights.
        held: dimension of each, no larger than directions and less than features.
        rules: what is looked for.
        outside: sums of weighted squares in features beyond; None for none.
    """
    most = int(held.max())
    inside = torch.arange(most, device=held.device) < held[:, None]
    n, leading = n.double(), found.value[:, :most]
    rest = n * (found.value.sum(1) - (leading * inside).sum(1))
    rest = rest.clamp(min=0) if outside is None else rest.clamp(min=0) + outside
    degrees = n * (rules.width - held)
    groups = [torch.arange(len(n))] if rules.shared else [torch.tensor([k]) for k in range(len(n))]
    noise = torch.full_like(n, rules.floor)
    for group in groups:
        some = group.to(n.device)
        share = (n[some, None] * inside[some])[inside[some]]
        noise[some] = level(
            leading[some][inside[some]],
            share,
            float(rest[some].sum()),
            float(degrees[some].sum()),
            rules.floor,
        )
    variance = torch.where(inside, torch.maximum(leading, noise[:, None]), noise[:, None])
    return Mixture(
        Subspaces(found.mean, found.direction[:, :most] * inside[:, :, None]), variance, noise, n / n.sum()
    )


def implied(found: Spectra, size: Int64[Tensor, " cluster"], held: Int64[Tensor, " cluster"]) -> Mixture:
    """The Gaussians that clusters of rows are taken for, with one noise variance, as where rows belong to the nearest subspace.

    Args:
        found: covariances of clusters.
        size: rows of each.
        held: dimension of each.
    """
    width = found.mean.shape[1]
    squares = float(size.double() @ found.value.sum(1)) / (int(size.sum()) * width)
    floor = max(FLOOR * squares, LEAST_SQUARE)
    return fitted(found, size, held, Rules(affine=True, shared=True, floor=floor, width=width))


def level(
    leading: Float64[Tensor, " value"],
    share: Float64[Tensor, " value"],
    rest: float,
    degrees: float,
    floor: float,
) -> float:
    """The noise variance s of largest likelihood where no leading variance may be less: those that would be are pooled with the rest.

    It lowers sum_i w_i (log v_i + l_i / v_i) + m log s + t / s over all s and v_i >= s, which is convex in their inverses.

    Args:
        leading: l, eigenvalues.
        share: w, how much each counts.
        rest: t, sum of the other squares.
        degrees: m, how many those are.
        floor: the least.
    """
    order = torch.argsort(leading)
    for value, count in zip(leading[order].tolist(), share[order].tolist(), strict=True):
        if value * degrees >= rest:
            break
        rest, degrees = rest + count * value, degrees + count
    return max(rest / degrees, floor) if degrees > 0 else floor


def parameters(held: Int64[Tensor, " cluster"], width: int, affine: bool, shared: bool) -> int:
    """Free numbers of a mixture: weights, means, directions, variances and noise."""
    count, means = len(held), width * len(held) if affine else 0
    directions = int((held * width - held * (held - 1) // 2).sum())  # with the variances along them
    return directions + means + (1 if shared else count) + count - 1


def settled(
    x: Rows, begun: list[Subspaces], held: Int64[Tensor, " cluster"], rules: Rules, tolerance: float
) -> Mixture:
    """The best mixture of a sample: from each of some subspaces, rounds until one raises the mean log likelihood by less than a tolerance.

    Rounds are run along the directions in which so many subspaces can lie; what rows have beyond counts as noise. A mixture with a
    component that its rows span is taken where there is no other: such components have no bound but the floor.

    Args:
        x: rows of a sample.
        begun: subspaces; rows begin in the nearest.
        held: dimension of each.
        rules: what is looked for.
        tolerance: of the log likelihood of a row.
    """
    centre, few = subspace_starts.leading_space(x, len(held) * (int(held.max()) + 1), rules.affine)
    z = x - centre
    y = z @ few.T
    outside = (z.square().sum(1) - y.square().sum(1)).clamp(min=0)
    labels = [k_subspaces.nearest(x, place)[1] for place in begun]
    runs = [_improved(y, outside, label, held, rules, tolerance) for label in labels]
    best = max(runs, key=lambda run: (run.spare, run.log_likelihood)).mixture
    mean = best.subspaces.mean @ few + centre if rules.affine else torch.zeros_like(best.subspaces.mean @ few)
    return best._replace(subspaces=Subspaces(mean, best.subspaces.basis @ few))


def _improved(y: Rows, outside: Tensor, label: Tensor, held: Tensor, rules: Rules, tolerance: float) -> Run:
    chance = torch.nn.functional.one_hot(label, len(held)).double()
    now, before, n = -math.inf, -math.inf, chance.sum(0)
    point = torch.zeros(len(held), y.shape[1], dtype=torch.float64, device=y.device)
    for _ in range(ROUNDS):
        state = cluster_moments.weighted(y, kept(chance), point, "float64")
        n = state["n"]
        found = fitted(
            spectra(state, point, int(held.max()), rules.affine), n, held, rules, kept(chance).T @ outside
        )
        before, at = now, seen(y, found, outside, rules.width)
        now, chance = float(at.log_density.mean()), at.chance
        if now - before <= tolerance:
            break
    return Run(found, now, bool((n > held + 1).all()))
