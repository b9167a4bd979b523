"""Leading singular directions of sparse rows that keep coming, at a cost that follows the values that are not zero.

For codes of sparse autoencoders, activations after a ReLU, sparse gradients. Rows are not centred: a mean would fill the zeros. The basis
is kept as a large factor times a small one, so that a turn of the basis touches the small factor alone, and rows that are appended touch
the features alone that they hold. Arrays: `singular` (component), `components` (component, feature) with orthonormal rows.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics.spectrum import signed

VERSION = 1
KIND = "sequential"
READS = {"x": RowsPort()}
ARRAYS = {"singular": ("component",), "components": ("component", "feature")}
REFERENCE = (
    "Deng, Liu, Zhang, Wang, Fast updating truncated SVD for representation learning with sparse matrices, ICLR (2024): the residual as "
    "sparse plus low rank, and the extended decomposition. Zha, Simon, SIAM Journal on Scientific Computing 21 (1999) 782: the update"
)
SEEDS = (115,)
EPS = torch.finfo(torch.float64).eps
WORST = 1e4
"""Condition of the small factor above which both are multiplied out."""


class Config(Frozen):
    """How many directions, and how rows come."""

    components: int = Field(default=32, ge=1)
    """Directions to report."""
    rank: int | None = Field(default=None, ge=1)
    """Directions to keep while rows come; None keeps four times `components`."""
    batch: int = Field(default=64, ge=1)
    """Rows of an update."""


class Result(Frozen):
    """What was found, and how far it can be off."""

    n_rows: int
    width: int
    components: int
    density: float | None
    """Share of values that are not zero; None without rows."""
    energy: float
    """Sum of all squares, exact."""
    explained: float | None
    """Share of it in the directions, at least; None without any."""
    missed: float
    """Squared singular values are too small by this at most."""
    angle_bound: float | None
    """The sine of the largest angle to the leading subspace of the rows is no larger; None where no bound can be proven."""
    orthogonality: float
    """Largest entry of V V^T - 1 before the basis was made orthonormal at the end."""
    rebuilt: int
    """How often both factors were multiplied out, because the small one had become ill-conditioned."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if more components are asked for than there are features, or than are kept.
    """
    if config.components > inputs.widths["x"]:
        raise MethodError(
            f"asked for {config.components} components, the site has {inputs.widths['x']} features"
        )
    if config.rank is not None and config.rank < config.components:
        raise MethodError(
            f"asked for {config.components} components of rank {config.rank}; raise rank, at best fourfold"
        )


def start(inputs: Inputs, config: Config) -> State:
    """No directions yet: singular values of zero along the first axes."""
    width = inputs.widths["x"]
    rank = min(width, config.rank or 4 * config.components)
    numbers = {name: torch.zeros((), dtype=torch.float64) for name in ("missed", "energy", "hidden")}
    counts = {name: torch.tensor(0) for name in ("n", "stored", "rebuilt")}
    return (
        numbers
        | counts
        | {
            "big": torch.eye(width, rank, dtype=torch.float64),
            "small": torch.eye(rank, dtype=torch.float64),
            "singular": torch.zeros(rank, dtype=torch.float64),
        }
    )


def passes(config: Config) -> int:
    """One."""
    return 1


def batch_rows(config: Config) -> int:
    """As asked."""
    return config.batch


def step(block: Block, state: State, config: Config) -> State:
    """Append rows, and cut. The large factor is changed in place: the state that was given is used up.

    Cost: O(values that are not zero x rank + (rank + batch)^3), beside a look at every value.
    """
    if len(block) == 0:
        return state
    rows = block["x"].double()
    touched = rows.ne(0).any(0).nonzero().flatten()
    held = rows[:, touched]  # what no row of the batch holds takes no part
    inside = held @ state["big"][touched] @ state["small"]
    q, triangle, hidden = _outside(held, inside)
    k = len(state["singular"])
    corner = torch.cat(
        [
            torch.cat([torch.diag(state["singular"]), rows.new_zeros(k, q.shape[1], dtype=torch.float64)], 1),
            torch.cat([inside, triangle.T], 1),
        ]
    )
    _, singular, turn = torch.linalg.svd(corner, full_matrices=False)
    kept, of_rows = turn[:k, :k].T, q @ turn[:k, k:].T
    small = state["small"] @ (kept - inside.T @ of_rows)
    grown = state | {
        "singular": singular[:k],
        "missed": state["missed"] + singular[k : k + 1].square().sum(),
        "hidden": state["hidden"] + hidden,
        "energy": state["energy"] + held.square().sum(),
        "n": state["n"] + len(rows),
        "stored": state["stored"] + held.ne(0).sum(),
    }
    return grown | _extended(state, small, touched, held.T @ of_rows)


def _outside(held: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, float]:
    """T [row, direction] and L with R T orthonormal and R = (R T) L, for R = rows^T - V inside^T: from products of rows alone.

    Last the square of what these hide in rounding, at most.
    """
    gram = held @ held.T - inside @ inside.T
    values, vectors = torch.linalg.eigh(gram)
    floor = 64 * EPS * float(held.square().sum(1).max())
    real = values > floor
    root = values[real].sqrt()
    return vectors[:, real] / root, (vectors[:, real] * root).T, 0.0 if bool(real.all()) else floor


def _extended(state: State, small: Tensor, touched: Tensor, added: Tensor) -> State:
    """Factors of V' = big small' + added, where `added` touches some features alone; multiplied out where small is ill-conditioned."""
    if not float(torch.linalg.cond(small)) <= WORST:  # NaN where it is zero
        big = state["big"] @ small
        big[touched] += added
        return {
            "big": big,
            "small": torch.eye(len(small), dtype=small.dtype, device=small.device),
            "rebuilt": state["rebuilt"] + 1,
        }
    state["big"][touched] += torch.linalg.solve(small, added, left=False)
    return {"small": small}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Singular values and directions, orthonormal again."""
    basis, singular = state["big"] @ state["small"], state["singular"]
    off = basis.T @ basis - torch.eye(len(singular), dtype=basis.dtype, device=basis.device)
    vectors = signed(torch.linalg.qr(basis).Q.T.contiguous())
    k, energy = min(config.components, len(singular)), float(state["energy"])
    squares, hidden = singular.square(), float(state["hidden"])
    largest, worst = float(squares[0]), float(off.abs().max())
    missed = float(state["missed"]) + hidden + (64 * EPS + 2 * len(off) * worst) * largest
    turned = missed + math.sqrt(hidden * largest)  # hidden parts of rows stand beside the kept ones
    following = float(squares[k]) if k < len(squares) else 0.0
    gap = float(squares[k - 1]) - following - missed
    held = int(state["n"]) * inputs.widths["x"]
    result = Result(
        n_rows=int(state["n"]),
        width=inputs.widths["x"],
        components=k,
        density=int(state["stored"]) / held if held else None,
        energy=energy,
        explained=min(1.0, float(squares[:k].sum()) / energy) if energy > 0 else None,
        missed=missed,
        angle_bound=turned / gap if gap > turned else None,
        orthogonality=worst,
        rebuilt=int(state["rebuilt"]),
    )
    arrays = {"singular": singular[:k], "components": vectors[:k].contiguous()}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}
