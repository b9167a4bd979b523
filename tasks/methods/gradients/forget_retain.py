"""Gradients of what is to be forgotten, split into what moves the retained loss and what does not.

Rows are per-sample gradients of one loss, labelled. The tangential part of a forget gradient lies in the leading subspace of the
retain gradients; a step along the normal part leaves, to first order, the retain loss as it is.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.classes import class_code, class_label, rows_of_class
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import gram

VERSION = 2
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {"tangential": ("forget",), "direction": ("feature",), "retain_basis": ("component", "feature")}
REFERENCE = (
    "Geometric-Disentangelment Unlearning (2025): tangential and normal part of forget gradients with respect to the subspace of "
    "retain gradients; the size of that subspace by its share of energy is a choice of this project"
)
SEEDS = (258,)
MAX_ROWS = 8192


class Config(Frozen):
    """Which samples, and how large the retain subspace is."""

    label: str | None = None
    """The label that tells the two sets; None: the first that names classes."""
    forget: str | None = None
    """Its class that is to be forgotten; None: the first."""
    retain: str | None = None
    """Its class that is retained; None: the second."""
    energy: float = Field(default=0.9, gt=0, le=1)
    """Share of the retain gradients' squared norm that the subspace holds."""
    most: int = Field(default=256, ge=1)
    """Largest dimension of the subspace."""


class Result(Frozen):
    """Shares lie in [0, 1]; None where a set has no gradients."""

    n_forget: int
    n_retain: int
    width: int
    dimension: int
    """Of the retain subspace."""
    energy: float | None
    """Share of the retain gradients in it."""
    tangential: float | None
    """Share of the forget gradients' squared norm inside it."""
    tangential_low: float | None
    tangential_high: float | None
    """Quartiles over forget samples."""
    tangential_null: float
    """Of random gradients, dimension / width."""
    cosine: float | None
    """Between the mean forget and the mean retain gradient."""
    retain_change: float | None
    """Change of the mean retain loss by a unit step up the mean forget gradient, to first order."""
    retain_change_normal: float | None
    """The same along its normal part, scaled to a unit step."""
    forget_change_normal: float | None
    """Change of the mean forget loss along that step, over that of the plain step: what is given up."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Rows that are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The split of every forget gradient, and of their mean.

    Raises:
        MethodError: if the classes are not there, are the same, or have no rows.

    Cost: row^2 feature, and as many rows of a feature as the subspace has dimensions.
    """
    label = class_label(inputs, config.label)
    forget_code, retain_code = (
        class_code(inputs, label, config.forget, 0),
        class_code(inputs, label, config.retain, 1),
    )
    if forget_code == retain_code:
        raise MethodError(f"forget and retain are the same class of {label!r}; name two")
    forget, retain = (rows_of_class(block, label, code).double() for code in (forget_code, retain_code))
    if len(forget) == 0 or len(retain) == 0:
        raise MethodError(f"found {len(forget)} rows to forget and {len(retain)} to retain; both are needed")
    found = gram.components(retain, center=False)
    k = _dimension(found, config)
    basis = gram.directions(retain, found, k, center=False) if k else retain[:0]
    inside = (forget @ basis.T).square().sum(1) / forget.square().sum(1)
    mean, kept = forget.mean(0), retain.mean(0)
    normal = mean - (mean @ basis.T) @ basis
    arrays = {"tangential": inside, "direction": normal, "retain_basis": basis}
    shares = (found.variances[:k].sum() / found.total if found.total else None, inside)
    return _result(forget, retain, shares, (mean, kept, normal), k), {
        name: Array(values, ARRAYS[name]) for name, values in arrays.items()
    }


def _dimension(found: gram.Components, config: Config) -> int:
    if not len(found.variances):
        return 0
    needed = int((found.variances.cumsum(0) < config.energy * found.total * (1 - 1e-12)).sum()) + 1
    return min(needed, config.most, len(found.variances))


def _result(
    forget: Tensor,
    retain: Tensor,
    shares: tuple[Tensor | None, Tensor],
    means: tuple[Tensor, Tensor, Tensor],
    k: int,
) -> Result:
    energy, inside = shares
    mean, kept, normal = means
    some = inside.isfinite()  # of rows that are not zero
    energies, inside = forget.square().sum(1)[some], inside[some].clamp(max=1)
    share = float((inside * energies).sum() / energies.sum()) if len(inside) else None
    size, rest, other = (float(torch.linalg.vector_norm(v)) for v in (mean, normal, kept))
    moves = rest > 1e-12 * size
    return Result(
        n_forget=len(forget),
        n_retain=len(retain),
        width=forget.shape[1],
        dimension=k,
        energy=None if energy is None else min(1.0, float(energy)),
        tangential=share,
        tangential_low=float(inside.quantile(0.25)) if len(inside) else None,
        tangential_high=float(inside.quantile(0.75)) if len(inside) else None,
        tangential_null=k / forget.shape[1],
        cosine=float(mean @ kept) / (size * other) if size and other else None,
        retain_change=float(mean @ kept) / size if size else None,
        retain_change_normal=float(normal @ kept) / rest if moves else None,
        forget_change_normal=rest / size if size else None,
        caveats=()
        if moves
        else (
            "the mean forget gradient lies inside the retain subspace: nothing can be forgotten without cost",
        ),
    )
