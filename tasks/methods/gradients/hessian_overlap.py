"""How much of each gradient lies in the leading eigenspace of the loss's Hessian, beside what a random subspace holds.

Rows are gradients of the very parameters whose Hessian was decomposed: of samples, or of the steps of a training. Output: `share` (row),
|P g|^2 / |g|^2, with its `step` where rows have one.
"""

import math

import torch

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import steps
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(labels=True), "hessian": ArtifactPort("gradients.hessian")}
ARRAYS = {"share": ("row",), "step": ("row",)}
REFERENCE = "Gur-Ari, Roberts, Dyer: Gradient Descent Happens in a Tiny Subspace (2018), equation 3"
SEEDS = (15,)


class Config(Frozen):
    """No options: the subspace is that of the Hessian's artifact."""


class Result(Frozen):
    """Shares lie in [0, 1]; None without gradients."""

    n_rows: int
    components: int
    """k: dimensions of the eigenspace."""
    n_parameters: int
    """d."""
    share: float | None
    """Mean over rows."""
    energy_share: float | None
    """Of all squared gradients together."""
    least: float | None
    most: float | None
    null: float
    """Share of a random direction, k / d."""
    null_std: float
    """Its standard deviation."""
    above_chance: float | None
    """Share of rows that lie more than three standard deviations above it."""
    zero_rows: int
    """Gradients of zero, left out."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse gradients of other parameters than the Hessian's.

    Raises:
        MethodError: if their numbers differ.
    """
    found, expected = inputs.widths["x"], int(inputs.results["hessian"]["n_parameters"])
    if found != expected:
        names = ", ".join(inputs.results["hessian"]["parameters"][:3])
        raise MethodError(
            f"gradients have {found} entries, the Hessian is of {expected} parameters ({names} ...): capture "
            "`keep: {kind: exact}` and give the Hessian's stage `parameters` with the one parameter whose gradients these are"
        )


def start(inputs: Inputs, config: Config) -> State:
    """The eigenvectors."""
    return {"basis": inputs.artifacts["hessian"]["eigenvector"].double()}


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """A share and a step per row."""
    return {"share": RowOutput("float64"), "step": RowOutput("float64")}


def apply(block: Block, carry: State, config: Config) -> dict[str, torch.Tensor]:
    """Shares of zero gradients are NaN, steps of rows without one too.

    Cost: 2 row component parameter flops.
    """
    x = block["x"].double()
    # Row by row, so that a row's share does not depend on those beside it.
    inside = torch.stack([(carry["basis"] @ row).square().sum() for row in x]) if len(x) else x.new_zeros(0)
    return {"share": inside / x.square().sum(1), "step": steps.of_rows(block)}


def partial(block: Block, outputs: dict[str, torch.Tensor], carry: State, config: Config) -> State:
    """Sums over rows."""
    share = outputs["share"]
    good = share.isfinite()
    energy = block["x"].double().square().sum(1)[good]
    share = share[good]
    k, d = carry["basis"].shape
    limit = k / d + 3 * _spread(k, d)
    bounds = torch.tensor(
        [float(share.min()), float(share.max())] if len(share) else [math.inf, -math.inf]
    ).double()
    sums = torch.stack(
        [
            share.sum(),
            (share * energy).sum(),
            energy.sum(),
            (share > limit).double().sum(),
            good.double().sum(),
        ]
    )
    return {"sums": sums.cpu(), "low": bounds[0], "high": bounds[1], "rows": torch.tensor(len(good))}


def merge(a: State, b: State) -> State:
    """The sums of both."""
    return {
        "sums": a["sums"] + b["sums"],
        "low": torch.minimum(a["low"], b["low"]),
        "high": torch.maximum(a["high"], b["high"]),
        "rows": a["rows"] + b["rows"],
    }


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means beside chance."""
    k, d = carry["basis"].shape
    share, inside, energy, above, count = state["sums"].tolist()
    certain = inputs.results["hessian"]["converged"]
    return Result(
        n_rows=int(state["rows"]),
        components=k,
        n_parameters=d,
        share=share / count if count else None,
        energy_share=inside / energy if energy else None,
        least=float(state["low"]) if count else None,
        most=float(state["high"]) if count else None,
        null=k / d,
        null_std=_spread(k, d),
        above_chance=above / count if count else None,
        zero_rows=int(state["rows"]) - int(count),
        caveats=()
        if certain
        else ("the Hessian's eigenvectors have not converged: the subspace is not exactly theirs",),
    ), {}


def _spread(k: int, d: int) -> float:
    """Of the share of a uniform direction in a k-dimensional subspace, a Beta(k / 2, (d - k) / 2) number."""
    return math.sqrt(2 * k * (d - k) / (d**2 * (d + 2)))
