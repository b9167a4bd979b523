"""A linear map from rows to classes or a number, trained batch by batch: loss, gradient, optimisers, scaling.

A state is a dict of tensors. `weight` [output, feature] and `bias` [output] are float32 and act on standardised rows.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

State = dict[str, Tensor]
Optimiser = Literal["adam", "sgd"]
MOMENTUM, ADAM_FIRST, ADAM_SECOND, ADAM_EPSILON = 0.9, 0.9, 0.999, 1e-8


def start(width: int, outputs: int) -> State:
    """Zero weights; the optimiser has seen nothing."""
    shapes = {"weight": (outputs, width), "bias": (outputs,)}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for kind in ("first", "second"):
        state |= {f"{kind}.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    return state | {"updates": torch.zeros((), dtype=torch.int64)}


def unscaled(width: int, name: str = "scale") -> State:
    """A mean and sum of squares that have seen no rows."""
    shapes = {f"{name}.n": (), f"{name}.mean": (width,), f"{name}.square": (width,)}
    return {key: torch.zeros(shape, dtype=torch.float64) for key, shape in shapes.items()}


def observe(state: State, x: Float[Tensor, "row feature"], name: str = "scale") -> State:
    """Add rows to a mean and a sum of squares about it (Chan, Golub, LeVeque 1983)."""
    if len(x) == 0:
        return state
    x = x.double()
    n, new, own = state[f"{name}.n"], len(x), x.mean(0)
    apart, total = own - state[f"{name}.mean"], n + new
    square = (x - own).square().sum(0) + apart.square() * (n * new / total)
    return state | {
        f"{name}.n": total,
        f"{name}.mean": state[f"{name}.mean"] + apart * (new / total),
        f"{name}.square": state[f"{name}.square"] + square,
    }


def deviation(state: State, name: str = "scale") -> Float64[Tensor, " feature"]:
    """The standard deviation of each feature, 1 for one that does not vary."""
    variance = state[f"{name}.square"] / state[f"{name}.n"].clamp(min=1)
    rounding = 1e-14 * state[f"{name}.mean"].square()
    return torch.where(variance > rounding, variance, torch.ones_like(variance)).sqrt()


def standardised(
    state: State, x: Float[Tensor, "row feature"], name: str = "scale"
) -> Float32[Tensor, "row feature"]:
    """Rows with mean 0 and deviation 1 over what was observed."""
    return ((x.double() - state[f"{name}.mean"]) / deviation(state, name)).float()


def scores(state: State, z: Float32[Tensor, "row feature"]) -> Float32[Tensor, "row output"]:
    """Logits or predictions of standardised rows."""
    return z @ state["weight"].T + state["bias"]


def softmax_error(
    logits: Float32[Tensor, "row output"], target: Int64[Tensor, " row"]
) -> tuple[Float32[Tensor, "row output"], Float64[Tensor, ""]]:
    """Derivative of each row's cross entropy by its logits, and the sum of cross entropies."""
    chosen = torch.nn.functional.one_hot(target, logits.shape[1]).to(logits.dtype)
    log_share = torch.log_softmax(logits, dim=1)
    return log_share.exp() - chosen, -(log_share * chosen).sum().double()


def square_error(
    prediction: Float32[Tensor, "row 1"], target: Float32[Tensor, "row 1"]
) -> tuple[Float32[Tensor, "row 1"], Float64[Tensor, ""]]:
    """Derivative of half of each row's squared error, and the sum of those halves."""
    error = prediction - target
    return error, 0.5 * error.square().sum().double()


def descend(
    state: State,
    z: Float32[Tensor, "row feature"],
    error: Float32[Tensor, "row output"],
    rate: float,
    l2: float,
    optimiser: Optimiser,
) -> State:
    """One step down the mean loss plus l2 / 2 |weight|^2.

    Args:
        state: the map and its optimiser.
        z: standardised rows of the batch.
        error: derivative of each row's loss by its scores.
        rate: step size.
        l2: weight of the penalty; the bias has none.
        optimiser: Adam (Kingma, Ba 2015), or gradients with momentum 0.9.
    """
    gradient = {"weight": error.T @ z / len(z) + l2 * state["weight"], "bias": error.mean(0)}
    updates = state["updates"] + 1
    moved = {"updates": updates}
    for name, slope in gradient.items():
        step = adam if optimiser == "adam" else _momentum
        moved |= step(state, name, slope, rate, int(updates))
    return state | moved


def original(state: State) -> tuple[Float64[Tensor, "output feature"], Float64[Tensor, " output"]]:
    """Weight and bias that act on rows as they are stored."""
    weight = state["weight"].double() / deviation(state)
    return weight, state["bias"].double() - weight @ state["scale.mean"]


def adam(state: State, name: str, slope: Tensor, rate: float, updates: int) -> State:
    """A parameter and its moments after one step of Adam: `first.` and `second.` before its name, the number of steps from 1."""
    first = ADAM_FIRST * state[f"first.{name}"] + (1 - ADAM_FIRST) * slope
    second = ADAM_SECOND * state[f"second.{name}"] + (1 - ADAM_SECOND) * slope.square()
    size = rate * math.sqrt(1 - ADAM_SECOND**updates) / (1 - ADAM_FIRST**updates)
    moved = state[name] - size * first / (second.sqrt() + ADAM_EPSILON)
    return {name: moved, f"first.{name}": first, f"second.{name}": second}


def _momentum(state: State, name: str, slope: Tensor, rate: float, updates: int) -> State:
    first = MOMENTUM * state[f"first.{name}"] + slope
    return {name: state[name] - rate * first, f"first.{name}": first}
