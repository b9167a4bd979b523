"""Directions along which a site is not Gaussian, from its fourth cumulants: a sum of rank-one terms by the subspace power method.

Rows are brought to uncorrelated coordinates of unit variance in a few principal components; what their fourth moments have beyond those of
a Gaussian is a symmetric tensor. For independent sources mixed linearly its terms are the sources, and weights their excess kurtoses:
positive where few rows are far out, negative where rows fall into two heaps. Arrays: `weight` with `low` and `high`; `fit`, 1 where a term
lies in the tensor's range; `direction` (component, feature): rows less their mean, times it, give the source up to its scale; `pattern`
(component, feature): how the source shows in the features. Both have length 1.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import jackknife, moments, stein, symmetric_tensor
from tasks.numerics.moments import Precision
from tasks.numerics.split import spread
from tasks.numerics.symmetric_tensor import Terms

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "weight": ("component",),
    "low": ("component",),
    "high": ("component",),
    "fit": ("component",),
    "direction": ("component", "feature"),
    "pattern": ("component", "feature"),
}
REFERENCE = (
    "Kileel, Pereira, Subspace power method for symmetric tensor decomposition (2019), for tensors of order 4. Fourth cumulants of "
    "independent sources: Comon, Signal Processing 36 (1994) 287. Number of terms by Gaussian rows: a choice of this project"
)
SEEDS = (40,)
MOST_SIMULATED = 4000
"""Gaussian rows of a draw; noise of more rows is less by the root of their number."""


class Config(Frozen):
    """How large the tensor is, and how many terms it has."""

    components: int = Field(default=10, ge=1, le=20)
    """Principal components that the tensor is of."""
    terms: int | None = Field(default=None, ge=1)
    """None: as many as eigenvalues of the tensor's flattening stand out of those of Gaussian rows, one at least."""
    starts: int = Field(default=10, ge=1)
    """Climbs for each term; the best is taken."""
    draws: int = Field(default=20, ge=5)
    """Of Gaussian rows, for what stands out: the largest of them is the edge."""
    groups: int = Field(default=10, ge=3, le=100)
    """Groups that samples are spread into for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    precision: Precision = "float64"
    """Of the products of features that give the components."""
    seed: int = Field(default=0, ge=0)
    """Of starts and draws."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    n_groups: int
    """That hold rows."""
    width: int
    components: int
    """With variance; the tensor's size."""
    components_share: float
    """Of the variance that they hold."""
    terms: int
    terms_seen: int
    """Eigenvalues of the flattening above the edge."""
    noise_edge: float
    """Largest eigenvalue of as many Gaussian rows as there are samples: rows of one sample depend on each other."""
    noise_edge_rows: float
    """The same for as many independent rows; the truth of tokens lies between both."""
    residual: float
    """Norm of what the terms leave of the tensor, over the tensor's: the certificate. 0 for independent sources and endless rows."""
    residual_noise: float
    """Norm of the tensor of as many independent Gaussian rows over this tensor's: a residual no larger is noise."""
    strongest: float
    """Weight of the largest magnitude."""
    worst_fit: float
    """Least of the terms' fits."""
    mutual_cosine: float
    """Largest of two terms in the uncorrelated coordinates: 0 for independent sources."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for more components than features, or moments of more than 2 GiB.
    """
    width = inputs.widths["x"]
    if 8 * width**2 > grouped_moments.MOST_BYTES:
        raise MethodError(f"{width} features are too many for their products; project the site first")
    size = min(width, config.components)
    most = size * (size + 1) // 2
    if config.terms is not None and config.terms > most:
        raise MethodError(f"asked for {config.terms} terms, {size} components have {most} at most")


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried at first."""
    return {}


def one_pass(config: Config) -> bool:
    """Fourth moments need the components first."""
    return False


def partial(block: Block, carry: State, config: Config) -> State:
    """Moments of rows; in the second pass, second and fourth moments of coordinates, by group.

    Raises:
        MethodError: for rows that are not finite.
    """
    if not carry:
        return moments.partial(block["x"], None, config.precision)
    z = (block["x"].double() - carry["mean"]) @ carry["root"]
    group = spread(block.sample, config.groups)
    states = []
    for g in range(config.groups):
        part = z[group == g]
        pairs = torch.einsum("na,nb->nab", part, part).flatten(1)
        states.append({"n": (group == g).sum(), "second": part.T @ part, "fourth": pairs.T @ pairs})
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def merge(a: State, b: State) -> State:
    """Of both."""
    return {name: a[name] + b[name] for name in a} if "fourth" in a else moments.merge(a, b)


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """After the first pass: the mean and the coordinates.

    Raises:
        MethodError: for less than two rows, or rows that do not vary.
    """
    if carry:
        return None
    moments.require(state, 2)
    covariance = moments.covariance(state) * (1 - 1 / float(state["n"]))
    root = stein.whitening(covariance, config.components)
    if not root.shape[1]:
        raise MethodError("the rows do not vary: they have no fourth cumulants; choose another site")
    return {"mean": moments.mean(state), "root": root, "covariance": covariance}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Terms of all rows, and cumulants along them of all rows but each group's.

    Raises:
        MethodError: for rows in less than three groups.

    Cost: O(component^6) for each term.
    """
    there = torch.nonzero(state["n"]).flatten().tolist()
    if len(there) < 3:
        raise MethodError(f"samples fall into {len(there)} groups, expected 3 or more; capture more samples")
    total = {name: values.sum(0) for name, values in state.items()}
    tensor = _cumulant(total)
    n, d = int(total["n"]), tensor.shape[0]
    edge, noise = _gaussian(n, d, config)
    dependent = math.sqrt(n / min(n, inputs.n_samples))
    seen = int((torch.linalg.eigvalsh(tensor.reshape(d * d, d * d)).abs() > edge * dependent).sum())
    terms = symmetric_tensor.decompose(
        tensor, config.terms or max(1, min(seen, d)), config.starts, config.seed
    )
    rest = [
        _along(_cumulant({name: total[name] - values[g] for name, values in state.items()}), terms)
        for g in there
    ]
    root, covariance = carry["root"], carry["covariance"]
    direction = torch.nn.functional.normalize(terms.vector @ root.T, dim=1)
    held = (covariance @ root * root).sum(0) / root.square().sum(0)
    size = float(torch.linalg.vector_norm(tensor))
    result = Result(
        n_rows=n,
        n_groups=len(there),
        width=inputs.widths["x"],
        components=d,
        components_share=min(1.0, float(held.sum() / covariance.trace())),
        terms=len(terms.weight),
        terms_seen=seen,
        noise_edge=edge * dependent,
        noise_edge_rows=edge,
        residual=terms.residual,
        residual_noise=noise / size if size > 0 else 0.0,
        strongest=float(terms.weight[0]) if len(terms.weight) else 0.0,
        worst_fit=float(terms.value.min()) if len(terms.value) else 0.0,
        mutual_cosine=_mutual(terms.vector),
        caveats=_caveats(seen, terms, noise / size if size > 0 else math.inf, config, d),
    )
    low, high = _bounds(terms, rest, config)
    arrays = {
        "weight": terms.weight,
        "low": low,
        "high": high,
        "fit": terms.value,
        "direction": _signed(direction, direction),
        "pattern": _signed(torch.nn.functional.normalize(direction @ covariance, dim=1), direction),
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _cumulant(total: State) -> Tensor:
    n, second = total["n"], total["second"] / total["n"]
    d = len(second)
    fourth = (total["fourth"] / n).reshape(d, d, d, d)
    return symmetric_tensor.fourth_cumulant(fourth, second)


def _along(tensor: Tensor, terms: Terms) -> list[float]:
    """The cumulant of the coordinate along each term."""
    v = terms.vector
    found: list[float] = torch.einsum("abcd,ta,tb,tc,td->t", tensor, v, v, v, v).tolist()
    return found


def _bounds(terms: Terms, rest: list[list[float]], config: Config) -> tuple[Tensor, Tensor]:
    """Ends of the weights' intervals, which shift by what a term's cumulant does; NaN where its sign is not certain."""
    ends = []
    for k, weight in enumerate(terms.weight.tolist()):
        sign = math.copysign(1.0, weight)
        values = [sign * each[k] for each in rest]
        centre = sum(values) / len(values)  # of all rows, but for the bias of leaving out
        found = jackknife.estimate(centre, values, config.confidence)
        scale = abs(weight) / centre if centre > 0 else math.nan
        ends.append(sorted((sign * scale * found.low, sign * scale * found.high)))
    table = torch.tensor(ends, dtype=torch.float64).reshape(-1, 2)
    return table[:, 0].contiguous(), table[:, 1].contiguous()


def _gaussian(n: int, d: int, config: Config) -> tuple[float, float]:
    """The largest eigenvalue of the flattening over draws, and the tensor's mean norm, for n Gaussian rows."""
    rng = torch.Generator().manual_seed(config.seed + 1)
    m = min(n, MOST_SIMULATED)
    edges, norms = [], []
    for _ in range(config.draws):
        z = torch.randn(m, d, dtype=torch.float64, generator=rng)
        pairs = torch.einsum("na,nb->nab", z, z).flatten(1)
        tensor = _cumulant({"n": torch.tensor(m), "second": z.T @ z, "fourth": pairs.T @ pairs})
        edges.append(float(torch.linalg.eigvalsh(tensor.reshape(d * d, d * d)).abs().max()))
        norms.append(float(torch.linalg.vector_norm(tensor)))
    shrink = math.sqrt(m / n)
    return max(edges) * shrink, sum(norms) / len(norms) * shrink


def _mutual(vector: Tensor) -> float:
    cosines = (vector @ vector.T).abs()
    cosines.fill_diagonal_(0)
    return float(cosines.max()) if len(vector) > 1 else 0.0


def _signed(rows: Tensor, by: Tensor) -> Tensor:
    """Rows turned so that the largest entry of another is positive."""
    first = by.abs().argmax(1, keepdim=True)
    return rows * torch.where(by.gather(1, first) < 0, -1.0, 1.0).to(rows)


def _caveats(seen: int, terms: Terms, noise: float, config: Config, d: int) -> tuple[str, ...]:
    notes = [
        "fourth moments rest on the rows that are furthest out: look at them before believing a large weight"
    ]
    if not seen:
        notes.append("nothing stands out of Gaussian rows: the terms are noise")
    if seen > d and config.terms is None:
        notes.append(f"{seen} eigenvalues stand out, {d} terms were taken: set `terms` to see more")
    if terms.residual > 2 * noise:
        notes.append(
            "more than noise is left: the terms do not describe the tensor, sources are not independent"
        )
    return tuple(notes)
