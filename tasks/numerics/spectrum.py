"""Eigenvalues of a covariance, how far they can be trusted, and the dimensions they imply.

Everywhere `values` are eigenvalues in descending order and `trace` is the exact trace from the moments: no
share of the whole depends on how many eigenvalues were kept.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from schemas.errors import MethodError
from tasks.numerics import moments
from tasks.numerics.moments import Precision, State, Weights

Values = Float64[Tensor, " component"]

RESIDUAL_LIMIT = 1e-10
"""A larger residual, relative to the largest eigenvalue, means that the eigensolver failed."""


class Eigen(NamedTuple):
    """An eigendecomposition of a symmetric matrix."""

    values: Float64[Tensor, " component"]
    """Descending."""
    vectors: Float64[Tensor, "component feature"]
    """Orthonormal rows; in each, the entry of largest magnitude is positive."""
    residual: float
    """Largest |C v - lambda v| over the largest |lambda|."""


_RESOLVED: Any = WeakTensorKeyDictionary()
"""By the products of a state: stages that share it share its decomposition."""


class Resolved(NamedTuple):
    """The spectrum of a state's covariance, and what rounding has left of it."""

    values: Float64[Tensor, " component"]
    """All eigenvalues, descending; meaningless below the floor."""
    vectors: Float64[Tensor, "component feature"]
    residual: float
    trace: float
    """Exact, from the diagonal."""
    floor: float
    rank: int
    """Eigenvalues above the floor."""


def resolve(
    state: State, precision: Precision = "float64", weights: Weights = "reliability", center: bool = True
) -> Resolved:
    """Decompose the covariance of a state; what was found is kept for as long as the state is, and not to be changed.

    Args:
        precision: with which the state was made; it sets the floor.

    Raises:
        MethodError: for less than two rows, values that overflow, or a failing eigensolver.
    """
    others = tuple(state[name] for name in ("n", "w", "w2", "c", "s"))
    known: dict[tuple[str, str, bool], tuple[tuple[Tensor, ...], Resolved]] = _RESOLVED.setdefault(
        state["g"], {}
    )
    asked = (precision, weights, center)
    if asked not in known or any(a is not b for a, b in zip(known[asked][0], others, strict=True)):
        known[asked] = (others, _resolved(state, precision, weights, center))
    return known[asked][1]


def _resolved(state: State, precision: Precision, weights: Weights, center: bool) -> Resolved:
    moments.require(state, 2)
    found = eigen(moments.covariance(state, weights, center))
    below = floor(found.values, moments.offset(state) if center else 0.0, precision)
    rank = int((found.values > below).sum())
    return Resolved(*found, trace=moments.trace(state, weights, center), floor=below, rank=rank)


def eigen(matrix: Float64[Tensor, "feature feature"]) -> Eigen:
    """Decompose in float64 on the matrix's device, or on the CPU when the device's solver fails the residual.

    Raises:
        MethodError: if the residual is above 1e-10 on the CPU too, or the matrix is not finite.

    Cost: O(feature^3), about 3 feature^2 numbers of memory beside the matrix.
    """
    if not bool(matrix.isfinite().all()):
        raise MethodError("the covariance is not finite: the rows overflow float64; scale them")
    found = _decompose(matrix) if matrix.device.type != "cpu" else None
    if found is None or not found.residual <= RESIDUAL_LIMIT:
        on_cpu = _decompose(matrix.cpu())
        found = Eigen(on_cpu.values.to(matrix.device), on_cpu.vectors.to(matrix.device), on_cpu.residual)
    if not found.residual <= RESIDUAL_LIMIT:
        raise MethodError(
            f"the eigensolver left a residual of {found.residual:.1e}, expected {RESIDUAL_LIMIT:.0e}; "
            f"the LAPACK of this torch build fails for {matrix.shape[0]} features"
        )
    return found


def signed(vectors: Float64[Tensor, "component feature"]) -> Float64[Tensor, "component feature"]:
    """The same rows, each with a positive entry of largest magnitude (the first, among equals to 1e-6)."""
    size = vectors.abs()
    first = (size >= (1 - 1e-6) * size.amax(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1, keepdim=True)
    return vectors * torch.where(vectors.gather(1, first) < 0, -1.0, 1.0).double()


def floor(values: Values, offset: float, precision: Precision) -> float:
    """The eigenvalue below which rounding hides everything, for a spectrum of products of features.

    Products square the condition number: singular values below about 2e-7 of the largest (float64) or 7e-4
    (float32) are noise.

    Args:
        values: eigenvalues, largest first.
        offset: |mean - shift|^2 of the moments.
        precision: of the products.
    """
    unit = max(64, len(values)) * 2.2e-16 if precision == "float64" else 8 * 6.0e-8
    return unit * (max(0.0, float(values[0])) + offset)


def interval(values: Values, n: float, confidence: float) -> tuple[Values, Values]:
    """Confidence interval of each eigenvalue: lambda exp(-+ z sqrt(2/n)), for Gaussian rows (Anderson 1963).

    Wrong where eigenvalues nearly coincide, or where rows depend on each other, as tokens of one text do.
    """
    z = float(torch.special.ndtri(torch.tensor(0.5 + confidence / 2, dtype=torch.float64)))
    factor = math.exp(z * math.sqrt(2 / n))
    return values / factor, values * factor


def subspace_error(values: Values, k: int, n: float, further: int = 0, rest: float = 0.0) -> float:
    """Expected |sin Theta|_F^2 between the sample's and the population's top k subspaces, for Gaussian rows.

    (1/n) sum_{i <= k < j} lambda_i lambda_j / (lambda_i - lambda_j)^2 (Anderson 1963; Tyler 1981): infinite
    without a gap, and meaningless once it nears k.

    Args:
        further: directions beyond `values`, which a truncated decomposition did not keep.
        rest: variance in all of them; taken as evenly spread, which is the least that it can do.
    """
    if not 0 < k < len(values) + further:
        return 0.0
    top = values[:k, None]
    beyond, times = values[k:], torch.ones_like(values[k:])
    if further:
        beyond = torch.cat([beyond, values.new_full((1,), max(0.0, rest) / further)])
        times = torch.cat([times, times.new_full((1,), further)])
    return float((times * top * beyond / (top - beyond).square()).sum() / n)


def sampling_error(values: Values, k: int, n: float, rows: int, width: int, trace: float) -> float:
    """`subspace_error` of a sample's top k subspace, whichever of its eigenvalues are known; infinite where the rows do not tell.

    Args:
        values: leading eigenvalues, none negative, zero below the floor.
        n: effective rows.
        rows: degrees of freedom: one less than rows where their mean was taken out. As many components hold every row, whatever their
            population does.
        width: features.
        trace: of the covariance.
    """
    if rows <= k < width:
        return math.inf
    return subspace_error(values, k, n, width - len(values), trace - float(values.sum()))


def blocks(low: Values, high: Values) -> Int64[Tensor, " component"]:
    """Number the groups of neighbouring eigenvalues whose intervals overlap.

    Inside a group the data do not determine single vectors, only the space that they span.
    """
    apart = low[:-1] > high[1:]
    return torch.cat([apart.new_zeros(min(1, len(low))), apart]).to(torch.int64).cumsum(0)


def unexplained_area(values: Values, k: int, trace: float) -> float:
    """The variance that the nested subspaces of 1 to k components leave out, summed over them.

    This is the accumulated unexplained variance, minimised by the flag of principal subspaces (Pennec 2018).
    """
    return float((trace - values[:k].cumsum(0)).clamp(min=0).sum())


def participation_ratio(values: Values) -> float:
    """(sum lambda)^2 / sum lambda^2. Biased down unless rows outnumber features some ten times."""
    return _ratio(float(values.sum()) ** 2, float(values.square().sum()))


def participation_ratio_unbiased(trace: float, square: float, fourth: float, n: float) -> float:
    """The participation ratio with both traces estimated without bias, for any distribution of the rows.

    Himeno, Yamada 2014: with S the covariance (divisor n - 1), Q = sum |x - mean|^4 / (n - 1) and
    c = (n - 1) / (n (n - 2)(n - 3)):
    tr(Sigma^2) = c [(n-1)(n-2) tr(S^2) + (tr S)^2 - n Q] and
    (tr Sigma)^2 = c [2 tr(S^2) + (n^2 - 3n + 1)(tr S)^2 - n Q].

    Args:
        trace: tr S.
        square: tr(S^2).
        fourth: sum over rows of |x - mean|^4.
        n: rows; the effective number where rows are weighted, which is an approximation.

    Returns:
        NaN for less than four rows, or when the estimate of tr(Sigma^2) is not positive.
    """
    if n < 4:
        return math.nan
    q = n * fourth / (n - 1)
    below = (n - 1) * (n - 2) * square + trace**2 - q
    above = 2 * square + (n**2 - 3 * n + 1) * trace**2 - q
    return _ratio(above, below) if below > 0 else math.nan


def participation_ratio_of(
    state: State, values: Values, trace: float, weights: Weights = "reliability"
) -> float:
    """The same from moments; weighted sums are rescaled to the effective number of rows, an approximation."""
    n = moments.n_eff(state, weights)
    fourth = moments.fourth(state) * n / float(state["w"])
    return participation_ratio_unbiased(trace, float(values.square().sum()), fourth, n)


def effective_rank(values: Values) -> float:
    """exp of the entropy of the eigenvalues' shares (Roy, Vetterli 2007). Biased down when rows are few."""
    shares = values.clamp(min=0) / values.clamp(min=0).sum()
    return math.exp(float(torch.special.entr(shares).sum())) if float(values.sum()) > 0 else math.nan


def stable_rank(values: Values, trace: float) -> float:
    """trace / lambda_1, that is |X|_F^2 / |X|_2^2 of the centred rows."""
    return _ratio(trace, float(values[0]))


def top_share(values: Values, k: int, trace: float) -> float:
    """The share of the trace in the k largest eigenvalues; with k = 1, the anisotropy."""
    return _ratio(min(float(values[:k].sum()), trace), trace)


def components_for(values: Values, share: float, trace: float) -> int:
    """The least number of components that hold this share of the trace; all if rounding leaves it out."""
    reached = values.cumsum(0) >= share * trace * (1 - 1e-12)
    return int(reached.to(torch.uint8).argmax()) + 1 if bool(reached.any()) else len(values)


def _decompose(matrix: Tensor) -> Eigen:
    ascending, columns = torch.linalg.eigh(matrix)
    values, vectors = ascending.flip(0), signed(columns.T.flip(0))
    left = torch.linalg.vector_norm(vectors @ matrix - values[:, None] * vectors, dim=1).max()
    scale = float(values.abs().max())
    return Eigen(values, vectors, float(left) / scale if scale > 0 else 0.0)


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan
