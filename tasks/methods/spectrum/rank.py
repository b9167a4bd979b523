"""How many directions of a site are signal, by four rules, and what noise has done to their eigenvalues.

Arrays: `eigenvalue`, one per feature, descending, NaN below the rounding floor; `population` and `alignment` are what the spiked model
tells of each: the eigenvalue without the bias of few rows, and the squared cosine between the component that the rows show and the one of
endless rows; `shrunk` is the eigenvalue of the best estimate of the covariance under the chosen loss; `log_evidence` of 1, 2, ...
components. NaN where a rule says nothing.

The rules take noise to be white, equally strong in every direction. Whether it is, `noise_misfit` tells; where it is not, compare with
rows whose columns were permuted.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.moments_state import caveats, merge, partial, start, state_config
from tasks.numerics import evidence, moments, spectrum, white_noise
from tasks.numerics.moments import Precision, Weights

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = dict.fromkeys(("eigenvalue", "population", "alignment", "shrunk", "log_evidence"), ("order",))
REFERENCE = (
    "Hard threshold: Gavish, Donoho, IEEE Transactions on Information Theory 60 (2014) 5040. Spiked model: Baik, Ben Arous, Peche, "
    "Annals of Probability 33 (2005) 1643; shrinkage: Donoho, Gavish, Johnstone, Annals of Statistics 46 (2018) 1742. Largest eigenvalue "
    "of noise: Johnstone, Annals of Statistics 29 (2001) 295. Evidence: Minka, NIPS 13 (2000)"
)
SEEDS = ()
MISFIT = 0.1
"""A larger difference from the law of white noise makes the rules that rest on it doubtful."""
FEW = 10
"""Rows or features with fewer have no law."""


class Config(Frozen):
    """How to count."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Probability that white noise alone has no eigenvalue that counts as signal."""
    loss: Literal["operator", "frobenius"] = "frobenius"
    """What `shrunk` makes smallest: the largest error of any direction's variance, or the sum of squared errors."""
    center: bool = True
    """Subtract the mean; off describes the second moment about the origin."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weights: Weights = "reliability"
    """What row weights mean: relative importance, or how often a row occurred."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """Numbers of components. None where the rows do not determine one."""

    n_rows: int
    n_eff: float
    """Rows after weighting: (sum w)^2 / sum w^2."""
    width: int
    """Features."""
    lived_in: int
    """Directions in which rows vary at all, beyond rounding; the rules see these."""
    noise: float | None
    """Variance of the noise in every direction: median eigenvalue over that of the Marchenko-Pastur law."""
    noise_edge: float | None
    """What the largest eigenvalue of such noise stays below, with the confidence asked for."""
    noise_misfit: float | None
    """Largest difference between the distribution of the eigenvalues below the edge and that law: 0 to 1."""
    above_noise: int | None
    """Eigenvalues above the noise's edge."""
    hard_threshold: int | None
    """Singular values above the best cut for unknown white noise."""
    minka: int | None
    """The number of components of largest evidence; needs as many rows as features."""
    signal_share: float | None
    """Share of the trace in what lies above the edge, noise and its bias taken out."""
    caveats: tuple[str, ...]


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All rules from the moments.

    Raises:
        MethodError: for less than two rows, or values that overflow.

    Cost: O(feature^3) once.
    """
    found = spectrum.resolve(state, config.precision, config.weights, config.center)
    n = moments.n_eff(state, config.weights)
    rows = n - 1 if config.center else n
    values = _lived_in(found, rows)
    law = _law(values, rows, config.confidence)
    logs = _log_evidence(values, n)
    population, alignment = _signal(values, rows, law)
    result = Result(
        n_rows=int(state["n"]),
        n_eff=n,
        width=len(found.values),
        lived_in=len(values),
        noise=None if law is None else law.noise,
        noise_edge=None if law is None else law.edge,
        noise_misfit=None if law is None else law.misfit,
        above_noise=None if law is None else law.above,
        hard_threshold=None if law is None else _hard(values, rows),
        minka=int(logs.argmax()) + 1 if logs is not None else None,
        signal_share=None if law is None else _share(population, law.noise, found.trace),
        caveats=_caveats(state, found, n, law),
    )
    arrays = {
        "eigenvalue": torch.where(found.values > found.floor, found.values, math.nan),
        "population": population,
        "alignment": alignment,
        "shrunk": _shrunk(population, alignment, law, config.loss),
        "log_evidence": population[:0] if logs is None else logs,
    }
    fill = {"shrunk": 0.0 if law is not None else math.nan}
    return result, {
        name: Array(_padded(part, len(found.values), fill.get(name, math.nan)), ARRAYS[name])
        for name, part in arrays.items()
    }


class _Law(Frozen):
    """White noise that fits the rows."""

    noise: float
    edge: float
    misfit: float
    above: int


def _lived_in(found: spectrum.Resolved, rows: float) -> Tensor:
    """Eigenvalues of the space that rows lie in: after a layer norm they have one direction less than features."""
    return found.values[: found.rank] if found.rank < min(len(found.values), round(rows)) else found.values


def _padded(part: Tensor, width: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(part, (0, width - len(part)), value=fill)


def _law(values: Tensor, rows: float, confidence: float) -> _Law | None:
    """None where there is nothing that noise could be told from."""
    there = min(len(values), round(rows))
    if there < FEW:
        return None
    noise = white_noise.level(values, rows)
    edge = noise * white_noise.largest(len(values), rows, confidence)
    above = int((values > edge).sum())
    if above > there // 2:  # the median is signal itself
        return None
    return _Law(noise=noise, edge=edge, misfit=white_noise.misfit(values, rows, noise, above), above=above)


def _hard(values: Tensor, rows: float) -> int:
    width = len(values)
    there = values[: min(width, round(rows))].clamp(min=0).sqrt()
    cut = white_noise.hard_threshold(min(width / rows, rows / width)) * there.quantile(0.5)
    return int((there > cut).sum())


def _signal(values: Tensor, rows: float, law: _Law | None) -> tuple[Tensor, Tensor]:
    """Population eigenvalues and alignments of what lies above the edge."""
    if law is None:
        return values[:0], values[:0]
    value, alignment = white_noise.signal(values, rows, law.noise)
    lost = torch.arange(len(value), device=value.device) >= law.above
    return value.masked_fill(lost, math.nan), alignment.masked_fill(lost, math.nan)


def _shrunk(population: Tensor, alignment: Tensor, law: _Law | None, loss: str) -> Tensor:
    """The noise's variance where nothing stands out."""
    if law is None:
        return population
    above = population - law.noise
    best = law.noise + (above if loss == "operator" else above * alignment)
    return best.nan_to_num(nan=law.noise)


def _share(population: Tensor, noise: float, trace: float) -> float:
    return float((population - noise).nansum()) / trace


def _log_evidence(values: Tensor, n: float) -> Tensor | None:
    if len(values) < 2 or n < len(values) or not bool((values > 0).all()):
        return None
    return evidence.log_evidence(values, round(n))


def _caveats(state: State, found: spectrum.Resolved, n: float, law: _Law | None) -> tuple[str, ...]:
    notes = caveats(state, found, n)
    if law is None:
        return (
            *notes,
            "too few rows or features, or too much signal, to tell noise from it: no rule of white noise applies",
        )
    if law.misfit > MISFIT:
        far = (
            f"the eigenvalues below the edge are {law.misfit:.2f} from those of white noise: rules of white noise count the noise's own "
            "shape as signal"
        )
        return (*notes, far)
    return notes
