"""The dimensions and shape of a site's spectrum in numbers, each with what limits it."""

import math

import torch
from pydantic import Field

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.moments_state import caveats, merge, partial, start, state_config
from tasks.numerics import moments, spectrum
from tasks.numerics.moments import Precision, Weights

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"cumulative_share": ("order",), "eigenvalue": ("order",)}
REFERENCE = (
    "Participation ratio without bias: Himeno, Yamada, Journal of Multivariate Analysis 130 (2014) 27. Effective rank: Roy, "
    "Vetterli, EUSIPCO (2007). Intervals: Anderson 1963"
)
SEEDS = (57, 16, 154, 206)


class Config(Frozen):
    """What to report, and how exactly."""

    top: int = Field(default=10, ge=1)
    """Spectral concentration is the share of the trace in so many largest eigenvalues."""
    center: bool = True
    """Subtract the mean; off describes the second moment about the origin."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the interval of the anisotropy."""
    weights: Weights = "reliability"
    """What row weights mean: relative importance, or how often a row occurred."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """Dimensions count features; shares lie in [0, 1]. None where the rows do not determine a number."""

    n_rows: int
    n_eff: float
    """Rows after weighting: (sum w)^2 / sum w^2."""
    width: int
    """Features."""
    trace: float
    """Total variance."""
    participation_ratio: float | None
    """(sum lambda)^2 / sum lambda^2 of the sample ("hard rank"): biased down unless rows outnumber features
    ten times."""
    participation_ratio_unbiased: float | None
    """The same with both sums estimated without bias; holds for few rows and for heavy tails."""
    effective_rank: float | None
    """exp of the entropy of the shares ("soft rank"): biased down when rows are few."""
    stable_rank: float | None
    """trace / lambda_1."""
    numerical_rank: int
    """Eigenvalues above the rounding floor."""
    anisotropy: float | None
    """lambda_1 / trace; above 1 / width even for isotropic rows, by about (1 + sqrt(width / n))^2."""
    anisotropy_low: float | None
    anisotropy_high: float | None
    """Interval from lambda_1 alone (Anderson, Gaussian rows), the other eigenvalues held."""
    concentration: float | None
    """Share of the trace in the `top` largest eigenvalues."""
    components_90: int | None
    components_95: int | None
    components_99: int | None
    """Components that hold 90, 95 and 99 % of the trace."""
    active_share: float | None
    """components_99 / width: the part of the space that is used."""
    utilisation: float | None
    """Harmonic mean of participation_ratio / width and effective_rank / width: a reconstruction of the
    spectral utilisation index, whose published formula was not at hand."""
    residual: float
    """Of the eigendecomposition: largest |C v - lambda v| over lambda_1."""
    caveats: tuple[str, ...]


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All numbers from the moments.

    Raises:
        MethodError: for less than two rows, or values that overflow.

    Cost: O(feature^3) once.
    """
    found = spectrum.resolve(state, config.precision, config.weights, config.center)
    values = torch.where(found.values > found.floor, found.values, 0.0)
    shown = torch.where(found.values > found.floor, found.values, math.nan)
    arrays = {"eigenvalue": shown, "cumulative_share": (values.cumsum(0) / found.trace).clamp(max=1.0)}
    named = {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}
    return _result(state, found, values, config), named


def _result(state: State, found: spectrum.Resolved, values: torch.Tensor, config: Config) -> Result:
    width, n = len(values), moments.n_eff(state, config.weights)
    needed = _components(values, found.trace) if found.rank else (None, None, None)
    hard, soft = spectrum.participation_ratio(values), spectrum.effective_rank(values)
    low, high = _anisotropy(values, found.trace, n, config.confidence)
    return Result(
        n_rows=int(state["n"]),
        n_eff=n,
        width=width,
        trace=found.trace,
        participation_ratio=_known(hard),
        participation_ratio_unbiased=_known(_unbiased(state, values, found.trace, config)),
        effective_rank=_known(soft),
        stable_rank=_known(spectrum.stable_rank(values, found.trace)),
        numerical_rank=found.rank,
        anisotropy=_known(spectrum.top_share(values, 1, found.trace)),
        anisotropy_low=_known(low),
        anisotropy_high=_known(high),
        concentration=_known(spectrum.top_share(values, config.top, found.trace)),
        components_90=needed[0],
        components_95=needed[1],
        components_99=needed[2],
        active_share=None if needed[2] is None else needed[2] / width,
        utilisation=_known(2 * hard * soft / ((hard + soft) * width)),
        residual=found.residual,
        caveats=_caveats(state, found, config),
    )


def _components(values: torch.Tensor, trace: float) -> tuple[int, int, int]:
    ninety, most, nearly_all = (spectrum.components_for(values, share, trace) for share in (0.9, 0.95, 0.99))
    return ninety, most, nearly_all


def _unbiased(state: State, values: torch.Tensor, trace: float, config: Config) -> float:
    """Unknown about the origin."""
    if not config.center:
        return math.nan
    return spectrum.participation_ratio_of(state, values, trace, config.weights)


def _anisotropy(values: torch.Tensor, trace: float, n: float, confidence: float) -> tuple[float, float]:
    """The interval of lambda_1 / trace when only lambda_1 varies."""
    if not float(values[0]) > 0:
        return math.nan, math.nan
    rest = max(0.0, trace - float(values[0]))
    low, high = (float(bound[0]) for bound in spectrum.interval(values[:1], n, confidence))
    return low / (low + rest), high / (high + rest)


def _caveats(state: State, found: spectrum.Resolved, config: Config) -> tuple[str, ...]:
    n = moments.n_eff(state, config.weights)
    weighted = config.weights == "reliability" and abs(n - int(state["n"])) > 1e-9 * n
    extra = ("rows are weighted: the unbiased participation ratio takes n_eff for n, an approximation",)
    return caveats(state, found, n) + (extra if weighted else ())


def _known(number: float) -> float | None:
    """None for what the rows do not determine."""
    return number if math.isfinite(number) else None
