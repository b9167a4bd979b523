"""Whether updates of a weight act on the directions that its inputs live in.

Rows are updates of one matrix [out, in]; the artifact has the principal components of the activations at its input. The overlap of
the update's input side with the activations' leading subspace comes beside that of random subspaces: an update that knows nothing of
the data has no more.
"""

from math import prod

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices, steps
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowsPort

VERSION = 3
KIND = "whole"
READS = {"x": RowsPort(labels=True), "activations": ArtifactPort("spectrum.pca")}
ARRAYS = {
    "overlap": ("row",),
    "null": ("row",),
    "energy": ("row",),
    "rank": ("row",),
    "between": ("row", "other"),
    "step": ("row",),
}
REFERENCE = (
    "Safety Subspaces are Not Distinct: A Fine-Tuning Case Study (2025): mode subspace overlap |Q_V' Q_W|_F^2 / min(k_V, k_W) of "
    "subspaces that hold a share of the energy"
)
SEEDS = (122,)
MAX_ROWS = 512


class Config(Frozen):
    """How large subspaces are."""

    energy: float = Field(default=0.9, gt=0, le=1)
    """Share of squared singular values of an update, and of the variance of activations, that their subspaces hold."""
    most: int = Field(default=256, ge=1)
    """Largest dimension of either."""


class Result(Frozen):
    """Overlaps lie in [0, 1]; None where no update moves anything."""

    n_rows: int
    outputs: int
    inputs: int
    activation_rank: int
    """Dimensions of the activations' subspace."""
    activation_energy: float
    """Share of the activations' variance that it holds: below `energy` where the artifact has too few components, or `most` is reached."""
    overlap: float | None
    """Mean over updates of the overlap with it."""
    overlap_null: float | None
    """The same of random subspaces of these dimensions."""
    energy: float | None
    """Mean share of an update's squared norm that acts on the activations' subspace."""
    energy_null: float
    """Of a random update, activation_rank / inputs."""
    between: float | None
    """Mean overlap of the input sides of two updates; None for a single one."""
    between_null: float | None
    unchanged_rows: int
    """Updates of zero, left out."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Updates that are taken at once."""
    return MAX_ROWS


def check(inputs: Inputs, config: Config) -> None:
    """Refuse activations of another width than the matrix has inputs.

    Raises:
        MethodError: if they differ.
    """
    _, width = _sides(inputs)
    found = int(inputs.artifacts["activations"]["components"].shape[1])
    if found != width:
        raise MethodError(
            f"the activations have {found} features, the matrix {width} inputs: take the components at the layer's input (`layer:in`)"
        )


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Overlaps of all updates.

    Raises:
        MethodError: for no rows at all.

    Cost: a singular value decomposition per row, and row^2 products of subspaces.
    """
    x, (m, n) = matrices.in_order(block), _sides(inputs)
    if len(x) == 0:
        raise MethodError("found no updates; at least one is needed")
    active, held = _active(inputs, config)
    active = active.to(x.device)
    sides = [_right(row.reshape(m, n).double(), config) for row in x]
    moved = torch.tensor([len(side) > 0 for side in sides])
    arrays = {
        "overlap": torch.tensor([_overlap(side, active) for side in sides]).double(),
        "null": torch.tensor([max(len(side), len(active)) / n for side in sides]).double(),
        "energy": torch.stack([_inside(row.reshape(m, n).double(), active) for row in x]).cpu(),
        "rank": torch.tensor([float(len(side)) for side in sides]).double(),
        "between": _between(sides),
        "step": steps.in_order(block),
    }
    return _result(arrays, moved, sides, len(active), held, (m, n)), {
        name: Array(values, ARRAYS[name]) for name, values in arrays.items()
    }


def _sides(inputs: Inputs) -> tuple[int, int]:
    """Outputs and inputs; a vector is a matrix of one output."""
    shape = inputs.shapes.get("x", (1, inputs.widths["x"]))
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, shape[0])


def _active(inputs: Inputs, config: Config) -> tuple[Tensor, float]:
    """Leading components of the activations as orthonormal rows, and the share of their whole variance that these hold."""
    found = inputs.artifacts["activations"]
    shares = found["explained"].double().nan_to_num(0.0)
    k = min(int((shares.cumsum(0) < config.energy * (1 - 1e-12)).sum()) + 1, config.most, len(shares))
    return found["components"].double()[:k], float(shares[:k].sum())


def _right(matrix: Tensor, config: Config) -> Tensor:
    """The input side's leading singular vectors; none for zeros."""
    _, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    side: Tensor = vh
    energy = s.square()
    if float(energy.sum()) == 0:
        return side[:0]
    k = int((energy.cumsum(0) < config.energy * energy.sum() * (1 - 1e-12)).sum()) + 1
    return side[: min(k, config.most)]


def _overlap(a: Tensor, b: Tensor) -> float:
    smaller = min(len(a), len(b))
    return float((a @ b.T).square().sum() / smaller) if smaller else 0.0


def _between(sides: list[Tensor]) -> Tensor:
    """[row, row]: `_overlap` of every pair of sides, which are filled up with zeros to one length."""
    ranks = torch.tensor([len(side) for side in sides])
    filled = torch.nn.utils.rnn.pad_sequence(sides, batch_first=True)
    sums = torch.stack([(filled @ side.T).square().sum((1, 2)) for side in sides]).cpu()
    return sums / torch.minimum(ranks, ranks[:, None]).clamp(min=1)


def _inside(matrix: Tensor, basis: Tensor) -> Tensor:
    """NaN for zeros."""
    return (matrix @ basis.T).square().sum() / matrix.square().sum()


def _result(
    arrays: dict[str, Tensor],
    moved: Tensor,
    sides: list[Tensor],
    active: int,
    held: float,
    shape: tuple[int, int],
) -> Result:
    kept = torch.nonzero(moved)[:, 0]
    some = len(kept) > 0
    larger = torch.maximum(arrays["rank"], arrays["rank"][:, None])
    return Result(
        n_rows=len(sides),
        outputs=shape[0],
        inputs=shape[1],
        activation_rank=active,
        activation_energy=held,
        overlap=float(arrays["overlap"][kept].mean()) if some else None,
        overlap_null=float(arrays["null"][kept].mean()) if some else None,
        energy=float(arrays["energy"][kept].mean()) if some else None,
        energy_null=active / shape[1],
        between=matrices.mean_of_pairs(arrays["between"], kept),
        between_null=matrices.mean_of_pairs(larger / shape[1], kept),
        unchanged_rows=len(sides) - len(kept),
        caveats=()
        if shape[0] > 1
        else ("rows have no shape of a matrix: each counts as a matrix of one output",),
    )
