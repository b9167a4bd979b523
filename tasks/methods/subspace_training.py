"""Training a network in random subspaces and in full, side by side, one step of full-batch Adam in each pass over the samples.

A trial is a draw of a subspace cut to some dimension: weights are theta_0 + s * (P z), with one scale s for each layer (1 unless it is
trained too). What is trained lies in the carry, and a state is a sum over samples: any partition of them gives the same.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import NetworkBlock, NetworkView, State
from tasks.numerics.random_subspace import Kind, Subspace, random_subspaces
from tasks.numerics.split import held_out

TRAINED = ("z", "scale", "full")
BETAS, EPSILON = (0.9, 0.999), 1e-8
FASTEST_SCALE = 0.1
"""Of a layer's scale, which is 1 at the start."""


class Training(NamedTuple):
    """What of a network is trained, how, and on which samples."""

    parameters: tuple[str, ...]
    sizes: tuple[int, ...]
    """Entries of each parameter."""
    layers: tuple[int, ...]
    """Of each parameter: which scale is its own; empty without scales."""
    dimensions: tuple[int, ...]
    draws: int
    projection: Kind
    accuracy: bool
    """Whether performance is the share of right targets, else the loss with a minus."""
    holdout: float
    steps: int
    learning_rate: float
    seed: int

    @property
    def entries(self) -> int:
        """Of all parameters."""
        return sum(self.sizes)

    @property
    def n_layers(self) -> int:
        """Scales."""
        return 1 + max(self.layers, default=-1)

    def coordinates(self, dimension: int) -> int:
        """Entries of z: scales count as dimensions too."""
        return dimension - self.n_layers

    def subspaces(self, like: Tensor) -> tuple[Subspace, ...]:
        """One for each draw."""
        width = self.coordinates(max(self.dimensions))
        return random_subspaces(self.projection, self.entries, width, self.seed, self.draws, like)


def layers(names: Sequence[str]) -> tuple[int, ...]:
    """Of each parameter: its layer, which is the path up to the first number, or of its module where there is none."""
    found: dict[str, int] = {}
    return tuple(found.setdefault(_layer(name), len(found)) for name in names)


def _layer(name: str) -> str:
    numbered = re.match(r"(?:[^.]+\.)*?\d+(?=\.|$)", name)
    return numbered[0] if numbered else name.rpartition(".")[0]


def start(training: Training) -> State:
    """The weights as they are, nothing trained."""
    trials = (training.draws, len(training.dimensions))
    carry = {
        "z": torch.zeros(*trials, training.coordinates(max(training.dimensions)), dtype=torch.float64),
        "scale": torch.ones(*trials, training.n_layers, dtype=torch.float64),
        "full": torch.zeros(training.entries, dtype=torch.float64),
        "history": torch.zeros(0, math.prod(trials) + 1, dtype=torch.float64),
    }
    for name in TRAINED:
        carry |= {
            f"{name}.mean": torch.zeros_like(carry[name]),
            f"{name}.square": torch.zeros_like(carry[name]),
        }
    return carry


def empty(carry: State) -> State:
    """Sums over no sample."""
    trials = carry["z"].shape[:2].numel()
    state = {name: torch.zeros_like(carry[name]) for name in TRAINED}
    state["loss"] = carry["full"].new_zeros(trials + 1)
    state["moment"] = carry["full"].new_zeros(trials + 3, trials + 3)
    state["trained"] = carry["full"].new_zeros((), dtype=torch.int64)
    return state


def sums(network: NetworkBlock, index: Tensor, carry: State, training: Training) -> State:
    """Sums over some samples: gradients and losses of those trained on, and second moments of the performance of the others.

    Moments are of 1, the performance of each trial, of full training, and of the network as it was, which is 0 before the last pass.

    Args:
        network: with the samples.
        index: int64 [sample], which say what is held out.
        carry: where the training is.
        training: how it goes.

    Cost: trials + 1 forwards and backwards, and for each trial the subspace's map and its transpose.
    """
    state, held = empty(carry), _held(index, training)
    begin = _weights(network, training)
    spaces = training.subspaces(begin)
    performance = [torch.ones(len(held), dtype=torch.float64)]
    for n, (draw, which) in enumerate(product(range(training.draws), range(len(training.dimensions)))):
        space, z = spaces[draw], carry["z"][draw, which].to(begin)
        z = z[: training.coordinates(training.dimensions[which])]
        offset, scale = space.out(z), _spread(carry["scale"][draw, which].to(begin), training)
        found = _pass(network, begin + scale * offset, held, training)
        state["z"][draw, which, : len(z)] = space.back(found.gradient * scale, len(z))
        state["scale"][draw, which] = _per_layer(found.gradient * offset, training)
        state["loss"][n] = found.loss
        performance.append(found.performance)
    found = _pass(network, begin + carry["full"].to(begin), held, training)
    state["full"], state["loss"][-1] = found.gradient.to(state["full"]), found.loss
    unchanged = torch.zeros_like(found.performance)
    if len(carry["history"]) == training.steps:  # only the last pass is asked how far all have come
        unchanged = _pass(network, begin, torch.ones_like(held), training).performance
    table = torch.stack([*performance, found.performance, unchanged], 1)
    measured = table[held] if training.holdout else table
    state["moment"] = (measured.T @ measured).to(state["moment"])
    state["trained"] += int((~held).sum())
    return state


def _weights(network: NetworkBlock, training: Training) -> Tensor:
    """All that is trained as one vector, in float32 at least: gradients are summed in it."""
    flat = [network.parameters[name].detach().flatten() for name in training.parameters]
    wide = torch.float64 if any(piece.dtype == torch.float64 for piece in flat) else torch.float32
    return torch.cat([piece.to(flat[0].device, wide) for piece in flat])


def _held(index: Tensor, training: Training) -> Tensor:
    return held_out(index.cpu(), training.holdout, training.seed)


class _Pass(NamedTuple):
    """One pass over some samples at some weights."""

    gradient: Tensor
    """Of the sum of losses of those that are not held out."""
    loss: Tensor
    performance: Tensor
    """float64 [sample]."""


def _pass(network: NetworkBlock, weights: Tensor, held: Tensor, training: Training) -> _Pass:
    gradient, loss = torch.zeros_like(weights), torch.zeros((), dtype=torch.float64)
    performance = torch.zeros(len(held), dtype=torch.float64)
    for view in network.batches():
        pieces = torch.split(weights, list(training.sizes))
        at = {
            name: piece.view_as(network.parameters[name])
            .to(network.parameters[name])
            .detach()
            .requires_grad_()
            for name, piece in zip(training.parameters, pieces, strict=True)
        }
        wanted = ~held[view.rows]
        with torch.set_grad_enabled(bool(wanted.any())):
            losses, performance[view.rows] = _measured(view, at, training)
        if wanted.any():
            total = losses[wanted.to(losses.device)].sum()
            found = torch.autograd.grad(total, list(at.values()), materialize_grads=True)
            gradient += torch.cat([slope.flatten().to(weights) for slope in found])
            loss += total.detach().double().cpu()
    return _Pass(gradient, loss, performance)


def _measured(view: NetworkView, at: Mapping[str, Tensor], training: Training) -> tuple[Tensor, Tensor]:
    """Losses, and performances as float64 on the CPU."""
    if not training.accuracy:
        losses = view.losses(at)
        return losses, -losses.detach().double().cpu()
    output = view.output(at)
    return view.loss_of(output), view.right(output.detach()).cpu()


def _spread(scale: Tensor, training: Training) -> Tensor:
    """[entry]: the scale of every entry."""
    if not training.layers:
        return torch.ones((), dtype=scale.dtype, device=scale.device)
    sizes = torch.tensor(training.sizes, device=scale.device)
    return scale[list(training.layers)].repeat_interleave(sizes)


def _per_layer(entries: Tensor, training: Training) -> Tensor:
    """[layer]: sums over entries."""
    sums = torch.stack([piece.sum() for piece in torch.split(entries, list(training.sizes))])
    of_layer = [
        [n for n, layer in enumerate(training.layers) if layer == k] for k in range(training.n_layers)
    ]
    return torch.stack([sums[places].sum() for places in of_layer]) if of_layer else sums[:0]


def advance(state: State, carry: State, training: Training) -> State:
    """One step of Adam for every trial and for the full network, whose steps are of the same length, with cosine decay.

    Raises:
        MethodError: if a loss or gradient is not finite.
    """
    step, samples = len(carry["history"]), int(state["trained"])
    following = recorded(state, carry)
    shrink = (1 + math.cos(math.pi * step / training.steps)) / 2
    for name in TRAINED:
        gradient = state[name] / samples
        if not bool(gradient.isfinite().all()):
            raise MethodError(
                f"a gradient is NaN or infinite in step {step}: use a learning_rate below {training.learning_rate}, or float32"
            )
        mean = torch.lerp(gradient, carry[f"{name}.mean"], BETAS[0])
        square = torch.lerp(gradient.square(), carry[f"{name}.square"], BETAS[1])
        size = (square / (1 - BETAS[1] ** (step + 1))).sqrt() + EPSILON
        move = mean / (1 - BETAS[0] ** (step + 1)) / size
        following[name] = carry[name] - shrink * _rate(name, training).to(move) * move
        following |= {f"{name}.mean": mean, f"{name}.square": square}
    return following


def recorded(state: State, carry: State) -> State:
    """The carry with the losses of this pass added to its history.

    Raises:
        MethodError: if no sample was trained on, fewer than two are measured, or a loss is not finite.
    """
    samples, measured, step = int(state["trained"]), float(state["moment"][0, 0]), len(carry["history"])
    if samples == 0:
        raise MethodError("found no samples to train on; lower `holdout` or give more samples")
    if measured < 2:
        raise MethodError(
            f"{measured:.0f} samples are left to measure on, at least 2 are needed: change `holdout`, or give more samples"
        )
    if not bool(state["loss"].isfinite().all() and state["moment"].isfinite().all()):
        raise MethodError(
            f"a loss is NaN or infinite after {step} steps: use a smaller learning_rate, or float32"
        )
    return carry | {"history": torch.cat([carry["history"], state["loss"][None] / samples])}


def _rate(name: str, training: Training) -> Tensor:
    """Rates that give every trial's weights steps of one length: sqrt(entries) times the learning rate."""
    widths = [max(1, training.coordinates(d)) for d in training.dimensions]
    rate = training.learning_rate * (training.entries / torch.tensor(widths, dtype=torch.float64)).sqrt()
    if name == "full":
        return torch.tensor(training.learning_rate, dtype=torch.float64)
    return (rate if name == "z" else rate.clamp(max=FASTEST_SCALE))[:, None]
