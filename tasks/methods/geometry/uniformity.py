"""How evenly a site's rows point into all directions: entropy, distance to uniform directions, coding rate, and cosines of pairs.

Rows are scaled to length 1. Entropy, distance and coding rate have intervals by leaving samples out (tokens of one text count as one
group), and beside each stands what as many rows of uniform directions would give. Array: `eigenvalue`, of the second moment of the
directions about the origin, descending; their sum is 1.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import moments, white_noise
from tasks.numerics.moments import Precision
from tasks.numerics.split import spread

VERSION = 3
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"eigenvalue": ("order",)}
REFERENCE = (
    "Entropy: Kim, Kang, Hwang, Shin, Rhee, VNE, CVPR (2023). Distance: Fang, Li, Sun, Wang, Rethinking the uniformity metric in "
    "self-supervised learning, ICLR (2024). Coding rate: Ma, Derksen, Hong, Wright, IEEE PAMI 29 (2007) 1546, as in Yu et al., White-box "
    "transformers via sparse rate reduction (2023). Uniform directions: the Marchenko-Pastur law"
)
SEEDS = (94, 229)

SHORT, LONG = 1e-140, 1e140
"""Lengths between which squares of numbers neither vanish nor overflow."""


class Config(Frozen):
    """How many groups, and how exactly."""

    groups: int = Field(default=20, ge=5, le=200)
    """Groups that samples are spread into for the intervals; each costs one more covariance of memory and one more decomposition."""
    distortion: float = Field(default=0.5, gt=0)
    """Of the coding rate: root mean square error that a code of the directions may have, where rows have length 1."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found. None where the rows do not determine a number."""

    n_rows: int
    n_zero: int
    """Rows of length zero, which have no direction and are left out."""
    n_groups: int
    """That hold rows."""
    width: int
    """Features."""
    entropy: Interval | None
    """-sum l ln l over the eigenvalues l of the second moment of directions (von Neumann): 0 for one direction, ln width for all."""
    entropy_uniform: float
    """Of as many rows of uniform directions."""
    distance: Interval | None
    """Wasserstein distance of the directions, as a Gaussian, to uniform ones: sqrt(2) for one direction."""
    distance_uniform: float
    """Of as many rows of uniform directions."""
    coding_rate: Interval | None
    """1/2 ln det(I + width / distortion^2 Z^T Z / n) of directions Z: nats that a row takes."""
    coding_rate_uniform: float
    """Of as many rows of uniform directions."""
    mean_cosine: Interval | None
    """Of pairs of different rows: 1 for one direction, 0 for uniform ones."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the groups' covariances take more than 2 GiB.
    """
    grouped_moments.check(inputs.widths["x"], config.groups)


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried."""
    return {}


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on."""
    return grouped_moments.state_config(config) | {"rows": "directions"}


def partial(block: Block, carry: State, config: Config) -> State:
    """The moments of each group's directions, and how many rows have none.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    directions, length = _directions(block["x"])
    zero = length == 0
    weight = torch.ones_like(length) if block.weight is None else block.weight.double()
    weighted = replace(block, weight=weight.masked_fill(zero, 0.0)) if bool(zero.any()) else block
    state = grouped_moments.partial(directions, weighted, config)
    none = torch.zeros_like(state["n"])
    return state | {"zero": none.index_add(0, spread(block.sample, config.groups), zero.to(none.dtype))}


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1, or 0 where they have no direction, and a number that is 0 there."""
    z = x.double()
    length = torch.linalg.vector_norm(z, dim=1)
    if len(z) == 0 or bool(((length > SHORT) & (length < LONG)).all()):
        return z / length[:, None], length
    largest = z.abs().amax(1, keepdim=True)
    z = z / largest.where(largest > 0, 1.0)  # or squares of very large and small numbers would be none
    length = torch.linalg.vector_norm(z, dim=1)
    return z / length.where(length > 0, 1.0)[:, None], length


def merge(a: State, b: State) -> State:
    """The moments of both, group by group, and their rows without a direction."""
    return grouped_moments.merge(_directed(a), _directed(b)) | {"zero": a["zero"] + b["zero"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All numbers from all rows, and from all rows but each group's.

    Raises:
        MethodError: for less than two groups with rows.

    Cost: O(groups feature^3).
    """
    zero = int(state["zero"].sum())
    groups = grouped_moments.groups_of(_directed(state))
    total, width = grouped_moments.total(groups), inputs.widths["x"]
    whole = _measured(total, config.distortion)
    without = [_measured(rest, config.distortion) for rest in grouped_moments.leaving_out(groups)]
    n = moments.n_eff(total)
    rate_uniform = white_noise.mean_of(lambda x: torch.log1p(x / config.distortion**2), width / n) * width / 2
    result = Result(
        n_rows=int(total["n"]) + zero,
        n_zero=zero,
        n_groups=len(groups),
        width=width,
        entropy=grouped_moments.interval(whole.entropy, [w.entropy for w in without], config.confidence),
        entropy_uniform=math.log(width) - white_noise.mean_of(_x_log_x, width / n),
        distance=grouped_moments.interval(whole.distance, [w.distance for w in without], config.confidence),
        distance_uniform=math.sqrt(max(0.0, 2 - 2 * white_noise.mean_of(torch.sqrt, width / n))),
        coding_rate=grouped_moments.interval(whole.rate, [w.rate for w in without], config.confidence),
        coding_rate_uniform=rate_uniform,
        mean_cosine=grouped_moments.cosine_interval(
            whole.cosine, [w.cosine for w in without], config.confidence
        ),
        caveats=grouped_moments.caveats(len(groups), config.groups),
    )
    return result, {"eigenvalue": Array(whole.values, ARRAYS["eigenvalue"])}


def _directed(state: State) -> State:
    return {name: values for name, values in state.items() if name != "zero"}


class _Measured(NamedTuple):
    """Of some rows."""

    entropy: float
    distance: float
    rate: float
    cosine: float
    """Mean over pairs of different rows."""
    values: Tensor


def _measured(state: State, distortion: float) -> _Measured:
    mean, n = moments.mean(state), moments.n_eff(state)
    second = moments.covariance(state, center=False)
    values = torch.linalg.eigvalsh(second).flip(0).clamp(min=0)
    spread = torch.linalg.eigvalsh(second - torch.outer(mean, mean)).clamp(min=0)
    root = float(spread.sqrt().sum()) / math.sqrt(len(mean))
    return _Measured(
        float(torch.special.entr(values).sum()),
        math.sqrt(max(0.0, 2 - 2 * root)),  # |mean|^2 + tr S = 1
        float(torch.log1p(values * (len(mean) / distortion**2)).sum()) / 2,
        (n * float(mean.square().sum()) - 1) / (n - 1) if n > 1 else math.nan,
        values,
    )


def _x_log_x(values: Tensor) -> Tensor:
    found: Tensor = torch.special.xlogy(values, values)
    return found
