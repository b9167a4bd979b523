"""The subspace that normal rows fill as the network's last layer sees them, and how what lies outside compares with its logits.

Connect normal rows at the input of the last linear layer, such as `classifier:in:0`. About the point o where that layer's logits are zero
by least squares, o = -pinv(weight) bias, the leading directions of the rows' second moment are the subspace; a second pass takes the mean
largest logit and the mean length of what lies outside, whose quotient brings both to one scale.

Arrays: `origin` (feature), `components` (component, feature) of the subspace, `eigenvalue` (feature) of the second moment about `origin`,
descending; `weight` (output, feature) and `bias` (output) of the layer, zeros where it has none.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import last_layer, moments_state
from tasks.methods.contract import Array, Arrays, Block, Inputs, Reduces, RowsPort, State
from tasks.methods.last_layer import parameters
from tasks.numerics import moments, spectrum
from tasks.numerics.moments import Precision
from tasks.numerics.symmetric import full

__all__ = ["parameters"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "origin": ("feature",),
    "components": ("component", "feature"),
    "eigenvalue": ("feature",),
    "weight": ("output", "feature"),
    "bias": ("output",),
}
REFERENCE = (
    "Wang, Li, Feng, Zhang, ViM: out-of-distribution with virtual-logit matching, CVPR (2022), section 4"
)
SEEDS = ()
NOTHING = 1e-9
"""Mean length outside, over the rows' own, below which it is rounding."""


class Config(Frozen):
    """Which layer, and how many directions."""

    weight: str = "{module}.weight"
    """Of the last layer; `{module}` is the module of the site."""
    bias: str | None = "{module}.bias"
    """Of the last layer; None: it has none."""
    components: int | None = Field(default=None, ge=1)
    """Directions of the subspace; None: 1000 of 2048 features or more, 512 of 768 or more, else half of them."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    width: int
    """Features."""
    outputs: int
    """Of the layer."""
    components: int
    explained: float | None
    """Share of the second moment about `origin` that they hold; None where there is none."""
    mean_logit: float
    """Mean over rows of the largest logit."""
    mean_outside: float
    """Mean over rows of the length of what lies outside the subspace."""
    scale: float
    """Their quotient; 0 where nothing lies outside."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features, or there are as many components as features.
    """
    last_layer.check(inputs, config)
    width = inputs.widths["x"]
    if components_of(width, config) >= width:
        raise MethodError(
            f"asked for {config.components} of {width} features, so that nothing would lie outside; ask for fewer"
        )


def start(inputs: Inputs, config: Config) -> State:
    """Nothing for the first pass."""
    return {}


def reduces(carry: State, config: Config) -> Reduces:
    """Moments, then sums of what they tell."""
    if not carry:
        return Reduces(moments_state.partial, moments_state.merge, moments_state.state_config(config))
    return Reduces(scale_partial, merge, {"weight_label": config.weight_label})


def partial(block: Block, carry: State, config: Config) -> State:
    """Of the carry's kind."""
    return reduces(carry, config).partial(block, carry, config)


def scale_partial(block: Block, carry: State, config: Config) -> State:
    """Sums over rows of the largest logit and of the length outside.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    x, weight = moments.present(block["x"].double(), block.weight)
    weight = torch.ones(len(x), dtype=torch.float64, device=x.device) if weight is None else weight
    largest = (x @ carry["weight"].T + carry["bias"]).amax(1)
    outside = torch.linalg.vector_norm(outside_of(x, carry), dim=1)
    return {"w": weight.sum(), "logit": (weight * largest).sum(), "outside": (weight * outside).sum()}


def merge(a: State, b: State) -> State:
    """Of both sets of rows."""
    return moments_state.merge(a, b) if "g" in a else {name: a[name] + b[name] for name in a}


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """After the first pass the subspace, after the second nothing.

    Raises:
        MethodError: for less than two rows, or if the eigensolver fails.

    Cost: O(feature^3).
    """
    if carry:
        return None
    moments.require(state, 2)
    layer = last_layer.read(inputs, config)
    origin = -torch.linalg.pinv(layer.weight) @ layer.bias
    second = full(moments.move(state, origin)["g"]) / float(state["w"])
    found = spectrum.eigen(second)
    kept = found.vectors[: components_of(len(origin), config)]
    return {
        "origin": origin,
        "components": kept,
        "eigenvalue": found.values.clamp(min=0),
        **layer._asdict(),
        "n": state["n"],
    }


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The subspace, and the scale of what lies outside."""
    kept, values = len(carry["components"]), carry["eigenvalue"]
    logit, outside = (float(state[name] / state["w"]) for name in ("logit", "outside"))
    scale = logit / outside if outside > 0 else 0.0
    notes = (
        []
        if scale > 0 and outside > NOTHING * math.sqrt(float(values.sum()))
        else ["nothing of the normal rows lies outside, or their logits are not positive: scores mean little"]
    )
    if int(carry["n"]) < 10 * len(values):
        notes.append(
            f"{int(carry['n'])} rows for {len(values)} features: less of them lies outside than of new rows; calibrate on others"
        )
    result = Result(
        n_rows=int(carry["n"]),
        width=len(values),
        outputs=len(carry["weight"]),
        components=kept,
        explained=float(values[:kept].sum() / values.sum()) if float(values.sum()) > 0 else None,
        mean_logit=logit,
        mean_outside=outside,
        scale=scale,
        caveats=tuple(notes),
    )
    return result, {name: Array(carry[name].contiguous(), dims) for name, dims in ARRAYS.items()}


def outside_of(x: Tensor, carry: State) -> Tensor:
    """[row, feature]: of float64 rows what lies outside the subspace."""
    centred = x - carry["origin"]
    return centred - (centred @ carry["components"].T) @ carry["components"]


def components_of(width: int, config: Config) -> int:
    """As many as were asked for, or by the number of features."""
    if config.components is not None:
        return config.components
    return 1000 if width >= 2048 else 512 if width >= 768 else max(1, width // 2)
