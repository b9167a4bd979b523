"""The spectrum of the empirical Fisher matrix, from gradients of samples.

Rows are per-sample gradients of the loss (a negative log likelihood); F = (1 / n) sum g g'. Its nonzero eigenvalues are those of the
products of rows, whatever the number of parameters.
"""

import math

import torch
from pydantic import Field

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import gram, spectrum

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {"eigenvalue": ("component",), "eigenvector": ("direction", "feature")}
REFERENCE = (
    "Empirical Fisher: Kunstner, Balles, Hennig, NeurIPS 2019, equation 3. Effective dimension at a point: Abbas et al., The power "
    "of quantum neural networks, Nature Computational Science 1 (2021), equation 2, without the average over parameters"
)
SEEDS = (197,)
MAX_ROWS = 8192


class Config(Frozen):
    """How many directions are kept, and the data size that the effective dimension supposes."""

    directions: int = Field(default=8, ge=0, le=256)
    """Leading eigenvectors that are kept; each is as long as the gradient."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Of the effective dimension: kappa = gamma n / (2 pi log n)."""
    data_size: int | None = Field(default=None, ge=3)
    """n of the effective dimension; None: the rows."""
    sample_rows: int | None = Field(default=None, ge=2)
    """Take a seeded sample of so many rows; None: all of them."""
    seed: int = 0
    """Of the sample."""


class Result(Frozen):
    """None where all gradients are zero."""

    n_rows: int
    width: int
    """d, parameters (or entries of the projection)."""
    trace: float
    """Of F: the mean squared norm of a gradient."""
    rank: int
    """Eigenvalues above the rounding floor; at most the rows."""
    largest: float | None
    participation_ratio: float | None
    effective_rank: float | None
    """exp of the entropy of the eigenvalue shares."""
    components_90: int | None
    """Eigenvalues that hold 90 % of the trace."""
    effective_dimension: float | None
    """sum log(1 + kappa f) / log kappa of F scaled to trace d."""
    effective_dimension_share: float | None
    """The same over d."""
    mean_gradient_share: float | None
    """Share of the trace that the mean gradient has: 0 at a minimum, 1 / n for gradients that have nothing in common."""
    residual: float
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Rows whose products are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Eigenvalues and leading directions.

    Raises:
        MethodError: for fewer than two rows.

    Cost: row^2 feature + row^3.
    """
    x = block["x"]
    if len(x) < 2:
        raise MethodError(f"found {len(x)} rows; gradients of at least two samples are needed")
    found = gram.components(x, center=False)
    values = found.variances / len(x)
    basis = gram.directions(x, found, config.directions, center=False)
    arrays = {
        "eigenvalue": Array(values, ARRAYS["eigenvalue"]),
        "eigenvector": Array(basis, ARRAYS["eigenvector"]),
    }
    return _result(x, values, found, config), arrays


def _result(x: torch.Tensor, values: torch.Tensor, found: gram.Components, config: Config) -> Result:
    some, trace = len(values) > 0, found.total / len(x)
    dimension = (
        _effective_dimension(values, x.shape[1], config.data_size or len(x), config.gamma) if some else None
    )
    mean = float(x.double().mean(0).square().sum())
    few = len(values) >= len(x) - 1 and x.shape[1] >= len(x)
    return Result(
        n_rows=len(x),
        width=x.shape[1],
        trace=trace,
        rank=len(values),
        largest=float(values[0]) if some else None,
        participation_ratio=spectrum.participation_ratio(values) if some else None,
        effective_rank=spectrum.effective_rank(values) if some else None,
        components_90=spectrum.components_for(values, 0.9, trace) if some else None,
        effective_dimension=dimension,
        effective_dimension_share=None if dimension is None else dimension / x.shape[1],
        mean_gradient_share=mean / trace if trace else None,
        residual=found.residual,
        caveats=("the rank is that of the sample: more rows would find more directions",) if few else (),
    )


def _effective_dimension(values: torch.Tensor, width: int, n: int, gamma: float) -> float | None:
    """None where kappa is not above 1."""
    kappa = gamma * n / (2 * math.pi * math.log(n))
    if kappa <= 1:
        return None
    scaled = values * width / values.sum()
    return float(torch.log1p(kappa * scaled).sum()) / math.log(kappa)
