"""The subspace of a site on which responses depend, whatever the functions are: supervised components by Stein's lemma.

Responses are labels of samples: numbers, or classes (one indicator each), scaled to unit variance. Right for Gaussian rows; for others it
is the subspace of the best linear (order 1) or quadratic (order 2) prediction. Arrays: `singular_value` with `low` and `high`; `direction`
(component, feature), an orthonormal basis of the subspace, in which prefixes are those of fewer components; `strength` (response,
component). Directions act on rows less their mean.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError, nearest
from tasks.methods import grouped_moments
from tasks.methods.classes import class_label
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import jackknife, joint_moments, spectrum, stein
from tasks.numerics.split import spread

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "singular_value": ("component",),
    "low": ("component",),
    "high": ("component",),
    "direction": ("component", "feature"),
    "strength": ("response", "component"),
}
REFERENCE = (
    "Nonlinear multiple response regression and learning of latent spaces (2025), reconstructed from its abstract: index models by the "
    "generalised Stein lemma; first order: Brillinger (1982); second: Li, On principal Hessian directions, JASA 87 (1992) 1025. "
    "Uncertainty and the edge of noise are choices of this project"
)
SEEDS = (216,)
MOST_BYTES = 1 << 31
FEW = 10
"""Rows for each whitened axis, at least, where axes are chosen."""


class Config(Frozen):
    """Which responses, and how the subspace is found."""

    labels: tuple[str, ...] = ()
    """Labels that are responses, all together; none: the first that has classes."""
    order: Literal[1, 2] = 1
    """1 sees responses that rise or fall along a direction, 2 those that do the same on both sides (one more pass)."""
    components: int | None = Field(default=None, ge=1)
    """Of the subspace; None: as many as stand out of noise, one at least."""
    axes: int | None = Field(default=None, ge=1)
    """Principal components within which the subspace is sought; None: as many as hold 99 % of the variance, at most a tenth of the rows:
    others' variance is too small to divide by."""
    groups: int = Field(default=10, ge=3, le=100)
    """Groups that samples are spread into for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals, and of the edge of noise."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    """With all responses."""
    n_unlabelled: int
    """Rows without one of them, left out."""
    n_groups: int
    """That hold rows."""
    responses: tuple[str, ...]
    constant: tuple[str, ...]
    """Responses that do not vary, which say nothing."""
    axes: int
    """In which the subspace was sought."""
    axes_share: float
    """Of the variance that they hold."""
    dimension: int
    """Components kept."""
    dimension_seen: int
    """Singular values above the edge of noise, for as many independent samples."""
    largest: float
    """Singular value. Of order 1, its square is the largest variance of a response's mix, in unit variances, that is linear in the rows."""
    noise_edge: float
    """What the largest stays below with the confidence asked for if responses are unrelated, for independent samples."""
    noise_edge_rows: float
    """The same for independent rows; the truth of tokens lies between both."""
    subspace_error: float | None
    """Expected sum of squared sines of the angles between this subspace and that of endless samples."""
    variance_share: float
    """Of the rows' variance inside the subspace: small for what principal components would miss."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: without a label, or if states take more than 2 GiB.
    """
    responses = len(_names(inputs, config))
    width = inputs.widths["x"]
    axes = _most_axes(inputs, config)
    needed = 8 * config.groups * max((width + responses) ** 2, responses * axes**2 * (config.order - 1))
    if needed > MOST_BYTES:
        raise MethodError(
            f"{config.groups} groups of {responses} responses and {width} features take {needed:,} bytes, at most {MOST_BYTES:,} are used; "
            "ask for fewer `axes` or `groups`, or project the site first"
        )


def start(inputs: Inputs, config: Config) -> State:
    """Which classes there are."""
    sizes = [len(inputs.categories.get(label, ())) for label in _labels(inputs, config)]
    return {"sizes": torch.tensor(sizes)}


def one_pass(config: Config) -> bool:
    """Whether joint moments do."""
    return config.order == 1


def partial(block: Block, carry: State, config: Config) -> State:
    """Joint moments of rows and responses, by group; in the second pass, products of responses with two coordinates.

    Raises:
        MethodError: for a label that samples do not have.
    """
    y, known = _responses(block, carry, config)
    x, y, group = block["x"][known].double(), y[known], spread(block.sample[known], config.groups)
    states = []
    for g in range(config.groups):
        rows = group == g
        if "root" not in carry:
            states.append(joint_moments.partial(x[rows], y[rows]))
            continue
        z = (x[rows] - carry["mean"]) @ carry["root"]
        u = (y[rows] - carry["y_mean"]) * carry["y_scale"]
        states.append({"n": rows.sum(), "t": torch.einsum("nj,na,nb->jab", u, z, z), "u": u.sum(0)})
    return _stacked(states) | {"unlabelled": (~known).sum()[None]}


def merge(a: State, b: State) -> State:
    """Of both, group by group."""
    unlabelled = {"unlabelled": a["unlabelled"] + b["unlabelled"]}
    pairs = list(zip(_each(a), _each(b), strict=True))
    if "u" in a:
        return _stacked([{name: x[name] + y[name] for name in x} for x, y in pairs]) | unlabelled
    return _stacked([joint_moments.merge(x, y) for x, y in pairs]) | unlabelled


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """For order 2: means, whitening and scales, from the first pass."""
    if config.order == 1 or "root" in carry:
        return None
    found = _first(_merged(_filled(state)), _axes(state, config))
    named = {"mean": found.mean, "root": found.root, "y_mean": found.y_mean, "y_scale": found.y_scale}
    return carry | named | {"covariance": found.covariance}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The subspace of all rows, and of all but each group's.

    Raises:
        MethodError: for rows in less than three groups, or responses of which none varies.

    Cost: O(groups (feature^3 + response axis^3)).
    """
    filled = _filled(state)
    first = config.order == 1
    whole = _merged(filled)
    axes = _axes(state, config) if first else carry["root"].shape[1]
    found = _first(whole, axes) if first else _second(whole, carry)
    rest = grouped_moments.leaving_out(filled, joint_moments.merge if first else _added)
    without = [_first(part, axes) if first else _second(part, carry) for part in rest]
    if not bool((found.y_scale > 0).any()):
        raise MethodError(
            f"no response varies ({', '.join(_names(inputs, config)[:5])}): one class only; choose another label"
        )
    return _answer(found, without, state, inputs, config)


class _Found(NamedTuple):
    """Of some rows."""

    mean: Tensor
    covariance: Tensor
    root: Tensor
    """[feature, axis]"""
    y_mean: Tensor
    y_scale: Tensor
    """One over the standard deviation; 0 for a constant."""
    matrix: Tensor
    """[column, axis], columns of responses."""

    def decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Left vectors, singular values, right vectors."""
        left, values, right = torch.linalg.svd(self.matrix, full_matrices=False)
        return left, values, right

    def directions(self, k: int) -> Tensor:
        """Orthonormal rows in the space of features; the first j of them span the first j functions."""
        columns = self.root @ self.decomposed()[2][:k].T
        basis: Tensor = torch.linalg.qr(columns).Q.T.contiguous()
        return basis


def _first(state: State, axes: int) -> _Found:
    about = joint_moments.centred(state)
    left, g = int(state["left"]), about["g"] / about["n"]
    covariance, spread = g[:left, :left], g[left:, left:].diagonal()
    size = state["c"][left:].square() + spread
    varies = spread > 1e-12 * size
    scale = torch.where(varies, spread.where(varies, 1.0).rsqrt(), 0.0)
    root = stein.whitening(covariance, axes)
    return _Found(
        about["c"][:left],
        covariance,
        root,
        about["c"][left:],
        scale,
        scale[:, None] * g[left:, :left] @ root,
    )


def _second(state: State, carry: State) -> _Found:
    n, axes = state["n"], carry["root"].shape[1]
    unit = torch.eye(axes, dtype=torch.float64, device=state["t"].device)
    matrix = state["t"] / n - (state["u"] / n)[:, None, None] * unit  # less E[y] E[z z^T]
    fixed = (carry["mean"], carry["covariance"], carry["root"], carry["y_mean"], carry["y_scale"])
    return _Found(*fixed, matrix.reshape(-1, axes))


def _answer(
    found: _Found, without: list[_Found], state: State, inputs: Inputs, config: Config
) -> tuple[Result, Arrays]:
    left, values, _ = found.decomposed()
    n, axes = int(state["n"].sum()), found.root.shape[1]
    samples = min(n, inputs.n_samples)
    edge, edge_rows = (
        stein.noise_edge(axes, len(found.matrix), m, config.order, config.confidence) for m in (samples, n)
    )
    seen = int((values > edge).sum())
    k = min(config.components or max(1, seen), len(values))
    rest = [part.decomposed()[1] for part in without]
    ends = [
        jackknife.estimate(float(values[i]), [float(r[i]) for r in rest], config.confidence) for i in range(k)
    ]
    basis = found.directions(k)
    error = jackknife.spread(basis, [part.directions(k) for part in without])
    trace = float(found.covariance.trace())
    names = _names(inputs, config)
    held = (found.covariance @ found.root * found.root).sum(0) * found.root.square().sum(0).reciprocal()
    result = Result(
        n_rows=n,
        n_unlabelled=int(state["unlabelled"].sum()),
        n_groups=len(without),
        responses=names,
        constant=tuple(name for name, s in zip(names, found.y_scale.tolist(), strict=True) if not s > 0),
        axes=axes,
        axes_share=min(1.0, float(held.sum()) / trace) if trace > 0 else 0.0,
        dimension=k,
        dimension_seen=seen,
        largest=float(values[0]) if len(values) else 0.0,
        noise_edge=edge,
        noise_edge_rows=edge_rows,
        subspace_error=error if math.isfinite(error) and len(basis) else None,
        variance_share=float((basis @ found.covariance * basis).sum()) / trace if trace > 0 else 0.0,
        caveats=_caveats(n, axes, seen, config),
    )
    mix = (left[:, :k] * values[:k]).reshape(len(names), -1, k)
    arrays = {
        "singular_value": values[:k],
        "low": torch.tensor([end.low for end in ends], dtype=torch.float64),
        "high": torch.tensor([end.high for end in ends], dtype=torch.float64),
        "direction": spectrum.signed(basis),
        "strength": torch.linalg.vector_norm(mix, dim=1),
    }
    return result, {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}


def _labels(inputs: Inputs, config: Config) -> tuple[str, ...]:
    return config.labels or (class_label(inputs, None),)


def _names(inputs: Inputs, config: Config) -> tuple[str, ...]:
    """Of all responses."""
    found: list[str] = []
    for label in _labels(inputs, config):
        classes = inputs.categories.get(label)
        found += [label] if classes is None else [f"{label}={name}" for name in classes]
    return tuple(found)


def _responses(block: Block, carry: State, config: Config) -> tuple[Tensor, Tensor]:
    """[row, response], and which rows have all."""
    labels = config.labels or (min(n for n, v in block.labels.items() if not v.is_floating_point()),)
    columns, known = [], torch.ones(len(block), dtype=torch.bool, device=block.sample.device)
    for label, size in zip(labels, carry["sizes"].tolist(), strict=True):
        values = block.labels.get(label)
        if values is None:
            raise MethodError(f"samples have no label {label!r}; nearest: {nearest(label, block.labels)}")
        if size:
            known &= values >= 0
            columns.append(torch.nn.functional.one_hot(values.clamp(min=0), size).double())
        else:
            known &= values.double().isfinite()
            columns.append(values.double()[:, None])
    return torch.cat(columns, 1), known


def _most_axes(inputs: Inputs, config: Config) -> int:
    width = inputs.widths["x"]
    return min(width, config.axes or max(1, inputs.n_rows // FEW))


def _axes(state: State, config: Config) -> int:
    """How many to whiten."""
    whole = _merged(_filled(state))
    left, n = int(whole["left"]), int(whole["n"])
    if config.axes is not None:
        return min(config.axes, left)
    covariance = joint_moments.centred(whole)["g"][:left, :left]
    return stein.axes_for(covariance, 0.99, max(1, n // FEW))


def _each(state: State) -> list[State]:
    return grouped_moments.each({name: v for name, v in state.items() if name != "unlabelled"})


def _filled(state: State) -> list[State]:
    """Groups that hold rows.

    Raises:
        MethodError: if less than three do.
    """
    found = [group for group in _each(state) if int(group["n"])]
    if len(found) < 3:
        raise MethodError(
            f"rows with the responses fall into {len(found)} groups of samples, expected 3 or more; capture more samples"
        )
    return found


def _merged(groups: list[State]) -> State:
    whole = groups[0]
    for group in groups[1:]:
        whole = _added(whole, group) if "u" in whole else joint_moments.merge(whole, group)
    return whole


def _added(a: State, b: State) -> State:
    return {name: a[name] + b[name] for name in a}


def _stacked(states: list[State]) -> State:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _caveats(n: int, axes: int, seen: int, config: Config) -> tuple[str, ...]:
    kind = "even" if config.order == 1 else "odd"
    notes = [f"functions that are {kind} along a direction are not seen by order {config.order}"]
    if n < FEW * axes:
        notes.append(f"{n} rows for {axes} axes: ask for fewer `axes`")
    if not seen:
        notes.append("no direction stands out of noise: the one that is kept is arbitrary")
    return tuple(notes)
