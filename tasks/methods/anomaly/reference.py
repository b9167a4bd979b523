"""What normal rows are like: their mean, or those of their classes, and how they spread about it.

Connect normal rows alone. One pass; without a label it is the pass that `spectrum.pca` takes. Covariances of few rows are drawn towards
equal variance in every direction by as much as pays, so that a distance is finite for every row; without that, directions in which
normal rows never varied are left out, and so is what is strange along them.

Arrays: `code` (class) and `mean` (class, feature), a single class without a label; `whitening` (component, feature), whose product with a
row minus its class's mean has the Mahalanobis distance as its length; `background_mean` (feature) and `background_whitening`
(component, feature), the same of all rows about one mean, shrunk alike; `eigenvalue` (component) of the covariance inside classes before
it is shrunk, descending. Covariances are divided by rows.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import moments_state
from tasks.methods.classes import carried, class_label, codes_of
from tasks.methods.contract import Array, Arrays, Block, Inputs, Reduces, RowsPort, State
from tasks.numerics import class_moments, moments, shrinkage, spectrum
from tasks.numerics.moments import Precision
from tasks.numerics.symmetric import full

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "code": ("class",),
    "mean": ("class", "feature"),
    "whitening": ("component", "feature"),
    "background_mean": ("feature",),
    "background_whitening": ("component", "feature"),
    "eigenvalue": ("component",),
}
REFERENCE = (
    "Lee, Lee, Lee, Shin, A simple unified framework for detecting out-of-distribution samples, NeurIPS (2018): class means and one "
    "covariance. Ren et al., A simple fix to Mahalanobis distance (2021): the background. Shrinkage: Ledoit, Wolf, Journal of Multivariate "
    "Analysis 88 (2004) 365; Chen et al., IEEE Transactions on Signal Processing 58 (2010) 5016"
)
SEEDS = ()


class Config(Frozen):
    """Which classes, and how few rows are dealt with."""

    label: str | None = None
    """A label with classes, whose means are told apart; None: one mean."""
    shrinkage: Literal["ledoit_wolf", "oracle", "none"] | None = None
    """How covariances are shrunk: by the rows' fourth moment, which rows with classes do not keep; by the rule for Gaussian rows; not at
    all. None: `ledoit_wolf` without a label, `oracle` with one."""
    precision: Precision = "float64"
    """Of the products of features, without a label: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the largest
    eigenvalue."""
    weight_label: str | None = Field(default=None)
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    width: int
    """Features."""
    n_classes: int
    """That occur; 1 without a label."""
    classes: tuple[str, ...]
    """Their names, in the order of the arrays; none without a label."""
    shrinkage: Literal["ledoit_wolf", "oracle", "none"]
    intensity: float
    """Of the covariance inside classes."""
    background_intensity: float
    rank: int
    """Directions of the covariance inside classes above the rounding floor."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the label names no classes, or their rows keep no fourth moment.
    """
    if config.label is None:
        return
    class_label(inputs, config.label)
    if config.shrinkage == "ledoit_wolf":
        raise MethodError(
            "shrinkage: ledoit_wolf takes the fourth moment about one mean, found classes of the label "
            f"{config.label!r}; take `oracle`, or leave the label out"
        )


def start(inputs: Inputs, config: Config) -> State:
    """The label, where there is one."""
    return {} if config.label is None else {"label": carried(class_label(inputs, config.label))}


def reduces(carry: State, config: Config) -> Reduces:
    """The moments that PCA takes, or those of classes."""
    if not carry:
        return Reduces(moments_state.partial, moments_state.merge, moments_state.state_config(config))
    return Reduces(class_partial, class_moments.merge, {"weight_label": config.weight_label})


def partial(block: Block, carry: State, config: Config) -> State:
    """Of the carry's kind."""
    return reduces(carry, config).partial(block, carry, config)


def class_partial(block: Block, carry: State, config: Config) -> State:
    """Moments of each class's rows.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    return class_moments.partial(block["x"], codes_of(block, carry["label"]), block.weight)


def merge(a: State, b: State) -> State:
    """Of both sets of rows."""
    return class_moments.merge(a, b) if "code" in a else moments_state.merge(a, b)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means, and roots of inverse covariances.

    Raises:
        MethodError: for less than two rows, or if the eigensolver fails.

    Cost: O(feature^3).
    """
    found = _of_classes(state) if carry else _of_all(state, config)
    how = config.shrinkage or ("oracle" if carry else "ledoit_wolf")
    inside = _intensity(found.inside, found.rows, found.fourth, how)
    around = _intensity(found.background, found.rows, found.fourth, how) if carry else inside
    values = spectrum.eigen(found.inside).values
    rank = int((values > spectrum.floor(values, 0.0, "float64")).sum())
    whitening = shrinkage.whitening(shrinkage.shrunk(found.inside, inside))
    arrays = {
        "code": found.code,
        "mean": found.mean,
        "whitening": whitening,
        "background_mean": found.centre,
        "background_whitening": shrinkage.whitening(shrinkage.shrunk(found.background, around))
        if carry
        else whitening,
        "eigenvalue": values,
    }
    result = Result(
        n_rows=found.n,
        width=len(values),
        n_classes=len(found.mean),
        classes=_names(found.code, inputs, config),
        shrinkage=how,
        intensity=inside,
        background_intensity=around,
        rank=rank,
        caveats=tuple(_notes(rank, len(values), found, inside)),
    )
    return result, {name: Array(values.contiguous(), ARRAYS[name]) for name, values in arrays.items()}


def _names(code: Tensor, inputs: Inputs, config: Config) -> tuple[str, ...]:
    if config.label is None:
        return ()
    names = inputs.categories[class_label(inputs, config.label)]
    return tuple(names[place] for place in code.tolist())


class _Found(NamedTuple):
    """Moments of rows, divided by rows."""

    n: int
    rows: float
    """Effective."""
    code: Tensor
    mean: Float64[Tensor, "class feature"]
    centre: Float64[Tensor, " feature"]
    inside: Float64[Tensor, "feature feature"]
    background: Float64[Tensor, "feature feature"]
    fourth: float
    """Sum over rows of |x - centre|^4, scaled to effective rows; 0 where it is not known."""


def _of_all(state: State, config: Config) -> _Found:
    moments.require(state, 2)
    centre, rows = moments.mean(state), moments.n_eff(state)
    covariance = moments.covariance(state) * (moments.degrees(state) / float(state["w"]))
    fourth = moments.fourth(state) * rows / float(state["w"])
    code = torch.full((1,), -1, dtype=torch.int64, device=centre.device)
    return _Found(int(state["n"]), rows, code, centre[None], centre, covariance, covariance, fourth)


def _of_classes(state: State) -> _Found:
    n, weight = int(state["n"].sum()), state["w"]
    if n <= len(weight):
        raise MethodError(
            f"found {n} rows of {len(weight)} classes, expected more rows than classes; capture more samples, or leave the label out"
        )
    whole = float(weight.sum())
    centre = (weight[:, None] * state["mean"]).sum(0) / whole
    apart = state["mean"] - centre
    inside = full(state["g"]) / whole
    between = (apart.T * weight) @ apart / whole
    rows = whole**2 / float(state["w2"].sum())
    return _Found(n, rows, state["code"], state["mean"], centre, inside, inside + between, 0.0)


def _intensity(covariance: Tensor, rows: float, fourth: float, how: str) -> float:
    if how == "none" or not float(covariance.trace()) > 0:
        return 0.0
    if how == "oracle":
        return shrinkage.oracle(covariance, rows)
    return shrinkage.ledoit_wolf(covariance, rows, fourth)


def _notes(rank: int, width: int, found: _Found, intensity: float) -> list[str]:
    notes = []
    if not rank:
        notes.append(
            "normal rows do not vary: every row scores 0; look at the site, or take `anomaly.residual` with `components: 0`"
        )
    elif rank < width and not intensity:
        notes.append(
            f"normal rows vary along {rank} of {width} directions: what is strange along the others alone is not seen; shrink, or take "
            "`anomaly.residual` beside"
        )
    if found.rows < 10 * width:
        notes.append(
            f"{found.rows:.0f} effective rows for {width} features: normal rows score lower here than new ones; calibrate on other rows"
        )
    return notes
