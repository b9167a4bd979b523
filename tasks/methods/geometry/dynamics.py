"""The dynamics from one site to another as a linear map of observables: its eigenvalues, and how well it predicts.

Ports x and y are the same rows before and after, such as the ends of a block, or one layer of two checkpoints. The map is the least-
squares one on a dictionary of observables (extended dynamic mode decomposition), truncated to the rank that predicts held-out samples
best. Arrays, by mode, largest modulus first: `eigenvalue_real`, `eigenvalue_imaginary`, and `residual`, 0 for an eigenfunction of the
dynamics and large for what belongs to the dictionary; `rank_error` (rank) over `rank_tried`. Means are taken out on both sides.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import dictionary, joint_moments, koopman
from tasks.numerics.split import spread

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(), "y": RowsPort()}
ARRAYS = {
    "eigenvalue_real": ("mode",),
    "eigenvalue_imaginary": ("mode",),
    "residual": ("mode",),
    "rank_tried": ("rank",),
    "rank_error": ("rank",),
}
REFERENCE = (
    "Williams, Kevrekidis, Rowley, Journal of Nonlinear Science 25 (2015) 1307: the least-squares map of a dictionary; Otto, Rowley, "
    "Linearly recurrent autoencoder networks, SIADS 18 (2019) 558. Residuals: Colbrook, Townsend, CPAM 77 (2024) 221. Entropy: "
    "Information shapes Koopman representation (2025), as its code has it: of the centred covariance over its trace"
)
SEEDS = (23, 192)
MOST_BYTES = 1 << 31
SAME = 1.02
"""The least rank whose error is no more than so many times the smallest is taken."""


class Config(Frozen):
    """Which observables, and how they are tested."""

    observables: Literal["identity", "quadratic", "fourier"] = "identity"
    """The state itself; with all products of two of its coordinates; or with cosines of random projections."""
    components: int | None = Field(default=None, ge=1)
    """Principal components of both sites together that stand for the state; None: all features, or 10 for other observables than the
    identity. With components, everything is about these coordinates, and the rows are read twice."""
    features: int = Field(default=100, ge=1)
    """Cosines of `fourier`."""
    groups: int = Field(default=10, ge=3, le=100)
    """Groups that samples are spread into: each is predicted by the map of the others."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = Field(default=0, ge=0)
    """Of random projections."""


class Result(Frozen):
    """Errors are mean squares on held-out samples over those of predicting the mean: 1 says that nothing is predicted."""

    n_rows: int
    """Pairs."""
    n_groups: int
    """That hold rows."""
    width: int
    """Coordinates of the state."""
    n_observables: int
    state_share: float
    """Of the variance of both sites that these coordinates hold."""
    rank: int
    """Of the map: the least one that predicts as well as any, within 2 %."""
    error: Interval | None
    """Of the map. None without variance."""
    error_identity: Interval | None
    """Of saying that the state stays."""
    beats_identity: bool | None
    """Whether the map's interval lies below that of the identity."""
    spectral_radius: float | None
    """Largest modulus of an eigenvalue: above 1, a deviation from the mean grows."""
    n_modes_resolved: int
    """With a residual below a tenth of their modulus: eigenfunctions of the dynamics, not of the dictionary."""
    entropy_x: Interval | None
    """Of the covariance's eigenvalues as shares, in nats: 0 for one direction, ln width for all."""
    entropy_y: Interval | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if sites have different widths, or there are fewer features than components, or states take more than 2 GiB.
    """
    left, right = inputs.widths["x"], inputs.widths["y"]
    if left != right:
        raise MethodError(
            f"x and y have {left} and {right} features: a map has eigenvalues within one space only; connect sites of one width"
        )
    if config.components is not None and config.components > left:
        raise MethodError(f"asked for {config.components} components, but the sites have {left} features")
    size = max(
        left if _components(config) else 0, dictionary.size(_state_width(inputs, config), *_kind(config))
    )
    needed = config.groups * 8 * (2 * size) ** 2
    if needed > MOST_BYTES:
        raise MethodError(
            f"{config.groups} groups of {size} observables take {needed:,} bytes, at most {MOST_BYTES:,} are used; ask for fewer "
            "`groups`, `components` or `features`, or project the sites first"
        )


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried at first."""
    return {}


def one_pass(config: Config) -> bool:
    """Whether the features themselves are the observables."""
    return _components(config) is None


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on."""
    return config.model_dump(mode="json", exclude={"confidence"})


def partial(block: Block, carry: State, config: Config) -> State:
    """The joint moments of each group's observables."""
    x, y = (_observed(block[port], carry, config) for port in ("x", "y"))
    group = spread(block.sample, config.groups)
    states = [joint_moments.partial(x[group == g], y[group == g]) for g in range(config.groups)]
    return _stacked(states)


def merge(a: State, b: State) -> State:
    """Of both, group by group."""
    pairs = zip(grouped_moments.each(a), grouped_moments.each(b), strict=True)
    return _stacked([joint_moments.merge(*pair) for pair in pairs])


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """After the first pass: the components of both sites together."""
    wanted = _components(config)
    if wanted is None or carry:
        return None
    whole = _total(state)
    left = int(whole["left"])
    both = koopman.parts(whole)
    means = (whole["c"] + whole["s"] / whole["n"]).view(2, left)
    apart = (means[0] - means[1]) / 2
    pooled = (both.xx + both.yy) / 2 + torch.outer(apart, apart)
    values, vectors = torch.linalg.eigh(pooled)
    kept = min(wanted, left)
    basis = vectors.flip(1)[:, :kept]
    scale = values[-1].clamp(min=0).sqrt()
    share = values.flip(0)[:kept].sum() / values.sum() if float(values.sum()) > 0 else values.new_ones(())
    return {
        "basis": basis / scale.where(scale > 0, 1.0),
        "mean": means.mean(0),
        "share": share,
    } | dictionary.drawn(kept, config.features, config.seed)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Errors of all ranks on each group by the map of the others, and the eigenvalues of the map of all rows.

    Raises:
        MethodError: for pairs in less than three groups.

    Cost: O(groups observable^3).
    """
    groups = [group for group in grouped_moments.each(state) if int(group["n"])]
    if len(groups) < 3:
        raise MethodError(
            f"pairs of rows fall into {len(groups)} groups of samples, expected 3 or more; capture more samples, or connect captures "
            "of the same ones"
        )
    width = _state_width(inputs, config)
    whole = _total(state)
    found = _tested(groups, width)
    rank = _least(found.ranks, found.errors.sum(0) / found.means.sum())
    modes = koopman.modes(whole, rank)
    resolved = modes.residual < 0.1 * modes.value.abs()
    error = _ratio(found.errors[:, found.ranks.index(rank)], found.means, config)
    identity = _ratio(found.identity, found.means, config)
    left = int(whole["left"])
    result = Result(
        n_rows=int(whole["n"]),
        n_groups=len(groups),
        width=width,
        n_observables=left,
        state_share=float(carry["share"]) if carry else 1.0,
        rank=rank,
        error=error,
        error_identity=identity,
        beats_identity=_below(error, identity),
        spectral_radius=float(modes.value[0].abs()) if len(modes.value) else None,
        n_modes_resolved=int(resolved.sum()),
        entropy_x=_entropy(groups, slice(0, width), config),
        entropy_y=_entropy(groups, slice(left, left + width), config),
        caveats=_caveats(whole, left, rank, config),
    )
    arrays = {
        "eigenvalue_real": modes.value.real.contiguous(),
        "eigenvalue_imaginary": modes.value.imag.contiguous(),
        "residual": modes.residual,
        "rank_tried": torch.tensor(found.ranks),
        "rank_error": found.errors.sum(0) / found.means.sum(),
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Tested(NamedTuple):
    """Sums of squared errors of each group's rows."""

    ranks: list[int]
    errors: Tensor
    """[group, rank]"""
    means: Tensor
    identity: Tensor


def _tested(groups: list[State], width: int) -> _Tested:
    rows = []
    for test, train in zip(groups, grouped_moments.leaving_out(groups, joint_moments.merge), strict=True):
        n = float(test["n"])
        errors = koopman.held_out_error(train, test, width)
        rows.append(torch.cat([errors, errors.new_tensor([koopman.identity_error(test, width)])]) * n)
    table = torch.stack(rows).cpu()
    return _Tested(koopman.ranks(int(groups[0]["left"])), table[:, :-2], table[:, -2], table[:, -1])


def _least(ranks: list[int], errors: Tensor) -> int:
    if not bool(errors.isfinite().all()):
        return ranks[0]
    good = errors <= SAME * errors.min() + 1e-12
    return ranks[int(good.to(torch.uint8).argmax())]


def _ratio(errors: Tensor, means: Tensor, config: Config) -> Interval | None:
    if not float(means.sum()) > 0:
        return None
    without = ((errors.sum() - errors) / (means.sum() - means)).tolist()
    return grouped_moments.interval(float(errors.sum() / means.sum()), without, config.confidence)


def _entropy(groups: list[State], of: slice, config: Config) -> Interval | None:
    def entropy(state: State) -> float:
        return koopman.entropy(joint_moments.centred(state)["g"][of, of])

    rest = [entropy(part) for part in grouped_moments.leaving_out(groups, joint_moments.merge)]
    return grouped_moments.interval(entropy(_merged(groups)), rest, config.confidence)


def _below(a: Interval | None, b: Interval | None) -> bool | None:
    if a is None or b is None or a.high is None or b.low is None:
        return None
    return a.high < b.low


def _components(config: Config) -> int | None:
    return config.components or (None if config.observables == "identity" else 10)


def _state_width(inputs: Inputs, config: Config) -> int:
    return min(inputs.widths["x"], _components(config) or inputs.widths["x"])


def _kind(config: Config) -> tuple[dictionary.Kind, int]:
    return config.observables, config.features


def _observed(rows: Tensor, carry: State, config: Config) -> Tensor:
    if not carry:
        return rows.double()
    z = (rows.double() - carry["mean"]) @ carry["basis"]
    return dictionary.observables(z, config.observables, carry["frequency"], carry["phase"])


def _merged(groups: list[State]) -> State:
    whole = groups[0]
    for group in groups[1:]:
        whole = joint_moments.merge(whole, group)
    return whole


def _total(state: State) -> State:
    """Of all groups.

    Raises:
        MethodError: if there are no pairs.
    """
    groups = [group for group in grouped_moments.each(state) if int(group["n"])]
    if not groups:
        raise MethodError(
            "no row of x has a partner in y: sample keys or positions differ; connect captures of the same data"
        )
    return _merged(groups)


def _stacked(states: list[State]) -> State:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _caveats(whole: State, observables: int, rank: int, config: Config) -> tuple[str, ...]:
    notes = ["means are taken out on both sides: a shift of all rows alike is no part of the eigenvalues"]
    n = int(whole["n"])
    if n < 10 * observables:
        notes.append(f"{n} pairs for {observables} observables: eigenvalues of small modulus are noise")
    if rank < observables:
        notes.append(f"the map acts on the {rank} leading of {observables} directions of the observables")
    if math.isclose(float(whole["g"].diagonal()[:observables].sum()), 0):
        notes.append("x does not vary")
    return tuple(notes)
