"""Leading eigenpairs of a covariance from states that do not hold it, each with a bound on what was missed.

What is found is the spectrum of some M with 0 <= C - M <= gap I. So the i-th eigenvalue of C is no less than that of M, and no more than
`upper[i]`; and by Davis and Kahan (SIAM Journal on Numerical Analysis 7 (1970) 1) the sine of the largest angle between the top k
subspaces of both is at most gap / (values[k - 1] - upper[k]). Rounding moves C too: by what the eigensolver and the products leave, and by
what the last digits of a mean far from zero do when two sets of rows are joined.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics import moments, nystrom, spectrum, streaming, subspace
from tasks.numerics.moments import Precision, State, Weights

EPS = torch.finfo(torch.float64).eps


class Leading(NamedTuple):
    """Eigenpairs of a covariance, with what is known of their errors."""

    values: Float64[Tensor, " order"]
    """Falling; meaningless below the floor."""
    vectors: Float64[Tensor, "component feature"]
    """Orthonormal rows, of the values above the floor at least."""
    upper: Float64[Tensor, " order"]
    """No eigenvalue of the rows' covariance is larger than this at its place."""
    beyond: float
    """Nor is one that comes after all these."""
    gap: float
    """The largest eigenvalue of what was left out, at most."""
    trace: float
    """Exact."""
    floor: float
    """Nothing below can be told from rounding."""
    rank: int
    """Values above the floor."""
    residual: float
    """Of the eigensolver: largest |C v - lambda v| over lambda_1."""
    angle_estimate: float = math.inf
    """Sine of the angle of the first k vectors, if nothing was missed; see `from_product`."""
    relative_error: float = math.nan
    """Estimate of |C - M| over |C|, Frobenius."""
    rounding: float = 0.0
    """Norm of what rounding changes of C, beside the gap, at most."""

    def angle_bound(self, k: int) -> float:
        """The sine of the largest angle to the top k subspace of the rows is no larger; infinite where nothing is proven."""
        if not 0 < k <= len(self.values):
            return math.inf
        if k == self.vectors.shape[1]:
            return 0.0
        following = float(self.upper[k]) if k < len(self.upper) else self.beyond
        apart = float(self.values[k - 1]) - following
        return (self.gap + self.rounding) / apart if apart > 0 else math.inf


def from_moments(state: State, precision: Precision, weights: Weights, center: bool) -> Leading:
    """All eigenpairs, from products of features.

    Raises:
        MethodError: for less than two rows, values that overflow, or a failing eigensolver.
    """
    found = spectrum.resolve(state, precision, weights, center)
    return _exact(found.values, found.vectors, found.trace, found.floor, found.residual)


def from_triangle(state: State, weights: Weights, center: bool) -> Leading:
    """All eigenpairs, from a triangular factor: singular values are right to 1e-14 of the largest, and to the last digit of the mean.

    Raises:
        MethodError: for less than two rows.
    """
    moments.require(state, 2)
    divisor = moments.degrees(state, weights, center)
    rows, energy = _about(state, center)
    _, singular, vectors = torch.linalg.svd(rows, full_matrices=False)
    largest = float(singular[0]) if len(singular) else 0.0
    unit = max(64, rows.shape[1]) * EPS * largest + _shaken(state, center)
    values = singular.new_zeros(rows.shape[1])
    values[: len(singular)] = singular.square() / divisor
    found = _exact(values, spectrum.signed(vectors), energy / divisor, unit**2 / divisor, 0.0)
    root = values.sqrt() + unit / math.sqrt(divisor)
    return found._replace(upper=root.square(), rounding=(2 * largest + unit) * unit / divisor)


def from_stream(state: State, weights: Weights, center: bool) -> Leading:
    """What a truncated decomposition kept.

    Raises:
        MethodError: for less than two rows.
    """
    moments.require(state, 2)
    divisor = moments.degrees(state, weights, center)
    rows, energy = _about(state, center)
    squares, vectors = streaming.decompose(state | {"rows": rows})
    values = squares / divisor
    floor, rounding = _floor(state, values, len(rows), divisor, center)
    gap = streaming.missed(state) / divisor + rounding  # products of rows hide what lies below the floor
    rank = int((values > floor).sum())
    return Leading(
        values, spectrum.signed(vectors), values + gap, gap, gap, energy / divisor, floor, rank, 0.0
    )


def from_product(
    state: State,
    q: Float64[Tensor, "feature column"],
    test: Float64[Tensor, "feature draw"],
    shift: Float64[Tensor, " feature"],
    components: int,
    weights: Weights,
    center: bool,
) -> Leading:
    """Eigenpairs of the best that C Q says of the covariance C; see `nystrom`.

    Args:
        state: `products` of q and of the test vectors beside it.
        q: orthonormal columns.
        test: random vectors.
        shift: that the products were taken about.
        components: for which the angle is estimated: that of the span of q's own best vectors, one multiplication before these.
        weights, center: as for moments.

    Raises:
        MethodError: for less than two rows.
    """
    moments.require(state, 2)
    divisor = moments.degrees(state, weights, center)
    p, energy = state["p"], state["energy"]
    if not center:
        mean = state["mean"] + shift
        mean_q = state["mean_q"] + shift @ torch.cat([q, test], 1)
        p, energy = p.addr(state["w"] * mean, mean_q), energy + state["w"] * mean.square().sum()
    y, product, trace = p[:, : q.shape[1]] / divisor, p[:, q.shape[1] :] / divisor, float(energy) / divisor
    values, vectors = nystrom.approximate(y, q)
    left = nystrom.frobenius_error(test, product, values, vectors)
    whole = math.hypot(left, float(torch.linalg.vector_norm(values)))
    floor, rounding = _floor(state, values, len(q), divisor, center)
    gap = max(0.0, trace - float(values.sum())) + 8 * EPS * trace + rounding
    ritz = subspace.ritz(y, q, trace)
    return Leading(
        values,
        spectrum.signed(vectors),
        values + gap,
        gap,
        gap,
        trace,
        floor,
        int((values > floor).sum()),
        0.0,
        angle_estimate=subspace.angle_estimate(ritz, min(components, len(values))),
        relative_error=left / whole if whole > 0 else math.nan,
    )


def narrowed(found: Leading, upper: Float64[Tensor, " order"], gap: float) -> Leading:
    """The same with what an earlier pass has proven of the eigenvalues, and of what was left out."""
    n = min(len(upper), len(found.upper))
    least = found.upper.clone()
    least[:n] = torch.minimum(least[:n], upper[:n].to(least))
    gap = min(gap, found.gap)
    return found._replace(
        upper=torch.minimum(least, found.values + gap), gap=gap, beyond=min(gap, found.beyond)
    )


def _exact(values: Tensor, vectors: Tensor, trace: float, floor: float, residual: float) -> Leading:
    rank = int((values > floor).sum())
    return Leading(values, vectors, values + floor, floor, floor, trace, floor, rank, residual)


def _shaken(state: State, center: bool) -> float:
    """Norm of the rows that rounding of means adds: each join takes the difference of two; none where the mean itself is part of it."""
    return 2 * EPS * float(state["w"].sqrt() * torch.linalg.vector_norm(state["mean"])) if center else 0.0


def _floor(state: State, values: Tensor, size: int, divisor: float, center: bool) -> tuple[float, float]:
    """The floor of values from products, and the norm of what rounding changes of C."""
    largest, shaken = (float(values[0]) if len(values) else 0.0), _shaken(state, center) / math.sqrt(divisor)
    floor = max(64, size) * EPS * largest + shaken**2
    return floor, floor + 2 * math.sqrt(max(0.0, largest)) * shaken


def _about(state: State, center: bool) -> tuple[Tensor, float]:
    """Rows whose products are those about the mean, or about the origin, and their energy."""
    rows, energy = state["rows"], float(state["energy"])
    if center:
        return rows, energy
    mean = state["mean"] * state["w"].sqrt()
    return torch.cat([rows, mean[None]]), energy + float(mean.square().sum())
