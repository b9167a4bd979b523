"""Heads that map rows to codes, trained batch by batch to raise rate reductions: what they start from, a step, and rows as they are given.

States hold both heads (`feature.` and `cluster.` before the names of `code_heads`), the moments of Adam, mean and variance of the rows, and
sums of each epoch's rates.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import State
from tasks.numerics import code_heads, linear_probe, membership
from tasks.numerics.code_heads import PARTS, Head
from tasks.numerics.coding_rate import rate_of_codes, rate_of_memberships


class Training(Frozen):
    """What is learned, and for how long."""

    code: int = Field(default=32, ge=2)
    """Length of codes: room for all clusters' dimensions together."""
    hidden: int = Field(default=0, ge=0)
    """Rectified units of each head beside its linear map; 0: linear heads."""
    distortion: float = Field(default=0.5, ge=1e-9, le=1e3)
    """Root mean square error that codes of length 1 may have: epsilon."""
    smoothing: float = Field(default=0.2, gt=0, allow_inf_nan=False)
    """Price of the shares' entropy: eta. Around 1 / ln(batch_rows) a row's share in itself is that of all rows that do not look like it."""
    batch_rows: int = Field(default=256, ge=2)
    """Rows per step; smaller batches, at the end of shards, take steps smaller in proportion."""
    warmup: int = Field(default=10, ge=0)
    """Passes over the rows that raise R alone."""
    epochs: int = Field(default=30, ge=1)
    """Passes that raise R - R_c; the step size falls linearly from one to the next."""
    rate: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """Step size of Adam at first."""


def start(width: int, options: Training, seed: int) -> State:
    """Both heads as they are drawn, an optimiser and sums that have seen nothing."""
    head = code_heads.drawn(width, options.hidden, options.code, torch.Generator().manual_seed(seed))
    state = fresh(head, head) | linear_probe.unscaled(width)
    state |= {name: torch.zeros((), dtype=torch.int64) for name in ("pass", "updates")}
    epochs = options.warmup + options.epochs
    sums = ("epoch.rate", "epoch.clusters", "epoch.rows")
    return state | {name: torch.zeros(epochs, dtype=torch.float64) for name in sums}


def scaled(state: State, x: Tensor) -> Tensor:
    """Rows at mean 0 and one scale for all features."""
    z: Tensor = (x.double() - state["scale.mean"]) / scale(state)
    return z


def loss(state: State, z: Tensor, both: bool, options: Training) -> tuple[Tensor, Tensor, Tensor]:
    """R_c - R of a batch, which training lowers, then R and R_c; -R, R and NaN where R alone is raised."""
    code = code_heads.codes(head_of(state, "feature"), z)
    rate = rate_of_codes(code, options.distortion)
    if not both:
        return -rate, rate, torch.full_like(rate, math.nan)
    share = membership.doubly_stochastic(code_heads.codes(head_of(state, "cluster"), z), options.smoothing)
    parts = rate_of_memberships(code, share, options.distortion)
    return parts - rate, rate, parts


def trained(state: State, z: Tensor, number: int, options: Training) -> State:
    """A step of Adam, smaller in proportion for a smaller batch."""
    both = number > options.warmup
    names = [
        f"{head}.{part}" for head in (("feature", "cluster") if both else ("feature",)) for part in PARTS
    ]
    at = {name: state[name].detach().requires_grad_() for name in names}
    value, rate, parts = loss(state | at, z, both, options)
    slopes = torch.autograd.grad(value, list(at.values()), allow_unused=True)
    updates, size = state["updates"] + 1, options.rate * min(1.0, len(z) / options.batch_rows)
    if both:
        size *= 1 - (number - options.warmup - 1) / options.epochs
    moved: State = {"updates": updates}
    for name, slope in zip(names, slopes, strict=True):
        if slope is not None:
            moved |= linear_probe.adam(state, name, slope, size, int(updates))
    for name, told in (("rate", rate), ("clusters", parts), ("rows", torch.ones_like(rate))):
        moved[f"epoch.{name}"] = state[f"epoch.{name}"].clone()
        moved[f"epoch.{name}"][number - 1] += told.detach() * len(z)
    return state | moved


def fresh(feature: Head, cluster: Head) -> State:
    """Both heads, and an optimiser that has seen nothing."""
    state = {
        f"{name}.{part}": values
        for name, head in (("feature", feature), ("cluster", cluster))
        for part, values in head.items()
    }
    return state | {
        f"{kind}.{name}": torch.zeros_like(values)
        for kind in ("first", "second")
        for name, values in state.items()
    }


def head_of(state: State, name: str) -> Head:
    """One of the heads."""
    return {part: state[f"{name}.{part}"] for part in PARTS}


def scale(state: State) -> Tensor:
    """One number for all features: the root of their mean variance."""
    return (state["scale.square"].mean() / state["scale.n"]).sqrt()


def refuse_equal(state: State) -> None:
    """Refuse rows that do not vary.

    Raises:
        MethodError: always then.
    """
    n, square = float(state["scale.n"]), float(state["scale.square"].sum())
    if square <= 1e-14 * n * float(state["scale.mean"].square().sum()):
        raise MethodError(f"{n:.0f} good rows are all equal: there is nothing to cluster")
