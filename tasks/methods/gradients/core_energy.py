"""How much of a gradient lies in a small core subspace, over training, beside what a random subspace holds.

Rows are gradients (or updates) of one matrix in order. The energy of P is |P' G|_F^2 / |G|_F^2, measured at each step in the step's
own leading left singular vectors, in those of the first step, and in those of all steps together.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics.spectrum import eigen

VERSION = 3
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {"own": ("row",), "first": ("row",), "common": ("row",), "energy": ("row",)}
REFERENCE = (
    "Randomized Gradient Subspaces for Efficient Large Language Model Training (2025): share of gradient energy in a core subspace, "
    "over time and depth. The common subspace is that of the sum of G G' over steps, a choice of this project; the curvature measure "
    "of the paper is not run"
)
SEEDS = (60,)
MAX_ROWS = 65536


class Config(Frozen):
    """The size of the core."""

    rank: int = Field(default=8, ge=1)
    """r: dimensions of the core; no more than the smaller side of the matrix."""


class Result(Frozen):
    """Shares of energy lie in [0, 1]; None where no gradient has any."""

    n_rows: int
    rows: int
    """m, of the matrix."""
    columns: int
    rank: int
    """Used."""
    own: float | None
    """Mean share in each step's own core: the most that r dimensions can hold."""
    first: float | None
    """Mean share of later steps in the core of the first."""
    common: float | None
    """Share of all energy in the core of all steps together: the most that one fixed subspace can hold."""
    bulk: float | None
    """1 - common: what a fixed core loses."""
    null: float
    """Share that random subspaces of the cores' own dimensions hold on average: r / m where no step has a lower rank."""
    first_null: float
    """The same for the core of the first step."""
    common_null: float
    """The same for the core of all steps."""
    slope: float | None
    """Change of the own share from the first to the last step of a straight line through it."""
    zero_steps: int
    """Steps without any gradient, left out."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Steps that are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Energies of all steps.

    Raises:
        MethodError: for no rows at all.

    Cost: a singular value decomposition per step, and m^3 once.
    """
    x, (m, n) = matrices.in_order(block), matrices.sides(inputs)
    if len(x) == 0:
        raise MethodError("found no steps; gradients of at least one step are needed")
    rank = min(config.rank, m, n)
    steps = [row.reshape(m, n).double() for row in x]
    energy = torch.stack([step.square().sum() for step in steps])
    scatter = sum((step @ step.T for step in steps), torch.zeros(m, m, dtype=torch.float64, device=x.device))
    common = _leading(scatter, rank)
    start = matrices.left_basis(
        steps[int(torch.nonzero(energy)[0, 0])] if bool(energy.any()) else steps[0], rank
    )
    own = [matrices.left_basis(step, rank) for step in steps]
    shares = {
        "own": torch.stack([_share(basis, step) for basis, step in zip(own, steps, strict=True)]),
        "first": torch.stack([_share(start, step) for step in steps]),
        "common": torch.stack([_share(common, step) for step in steps]),
    }
    arrays = {name: Array(values, ARRAYS[name]) for name, values in (shares | {"energy": energy}).items()}
    sizes = {"own": [len(basis) for basis in own], "first": [len(start)], "common": [len(common)]}
    return _result(shares, sizes, energy, rank, (m, n), inputs), arrays


def _leading(scatter: Tensor, rank: int) -> Tensor:
    """The leading eigenvectors whose eigenvalues are not rounding, as rows."""
    found = eigen(scatter)
    floor = len(scatter) * torch.finfo(torch.float64).eps * max(float(found.values[0]), 0.0)
    return found.vectors[: min(rank, int((found.values > floor).sum()))]


def _share(basis: Tensor, matrix: Tensor) -> Tensor:
    """NaN for a matrix of zeros."""
    return (basis @ matrix).square().sum() / matrix.square().sum()


def _result(
    shares: dict[str, Tensor],
    sizes: dict[str, list[int]],
    energy: Tensor,
    rank: int,
    shape: tuple[int, int],
    inputs: Inputs,
) -> Result:
    kept = torch.nonzero(energy > 0)[:, 0]
    some = len(kept) > 0
    own, first, common = (shares[name][kept] for name in ("own", "first", "common"))
    total = float((common * energy[kept]).sum() / energy[kept].sum()) if some else None
    return Result(
        n_rows=len(energy),
        rows=shape[0],
        columns=shape[1],
        rank=rank,
        own=float(own.mean()) if some else None,
        first=float(first[1:].mean()) if len(kept) > 1 else None,
        common=total,
        bulk=None if total is None else max(0.0, 1 - total),
        null=sum(sizes["own"][k] for k in kept.tolist()) / len(kept) / shape[0] if some else rank / shape[0],
        first_null=sizes["first"][0] / shape[0],
        common_null=sizes["common"][0] / shape[0],
        slope=_slope(kept.double(), own) if len(kept) > 1 else None,
        zero_steps=len(energy) - len(kept),
        caveats=matrices.caveats(inputs),
    )


def _slope(time: Tensor, values: Tensor) -> float:
    centred = time - time.mean()
    rate = float((centred * values).sum() / centred.square().sum())
    return rate * float(time[-1] - time[0])
