"""Weights between the directions that a layer's inputs fill and those that its outputs fill, as factors."""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics import energy, layer_factors, spectrum
from tasks.numerics.layer_factors import Factors


class Directions(NamedTuple):
    """Of a layer's inputs and outputs, most energy first."""

    inputs: Float64[Tensor, "component input"]
    input_energy: Float64[Tensor, " component"]
    """Zero below rounding."""
    outputs: Factors
    """Best factors of the weights: the columns at the left are the outputs' directions."""
    losses: Float64[Tensor, " rank"]
    """Of the outputs' energy, when the first 0, 1, ... are kept: what the best weights of each rank lose."""
    root: Float64[Tensor, "input some"]
    """Of the inputs' second moment."""


class Utilised(NamedTuple):
    """W' = P_T W P_S, with S the fewest directions that hold a share of the inputs' energy and T those of the outputs."""

    factors: Factors
    """Of W', with min(input_rank, output_rank) components, of which the first r are the best of W' for the outputs; one of zeros where
    nothing has energy."""
    input_rank: int
    output_rank: int


def directions(weight: Float64[Tensor, "output input"], gram: Float64[Tensor, "input input"]) -> Directions:
    """Principal directions of inputs and outputs.

    Args:
        weight: finite.
        gram: second moment of the inputs, about the point where energy counts from.

    Raises:
        MethodError: if the second moment is not finite, or a decomposition fails.

    Cost: O(input^3 + output input min(output, input)).
    """
    found, root = spectrum.eigen(gram), layer_factors.input_root(gram)
    outputs = layer_factors.factored(weight, root)
    return Directions(found.vectors, _real(found.values), outputs, layer_factors.losses(outputs, root), root)


def utilised(weight: Float64[Tensor, "output input"], found: Directions, share: float) -> Utilised:
    """The utilised weights.

    Args:
        weight: that the directions are of.
        found: see `directions`.
        share: of the energy, in (0, 1].

    Raises:
        MethodError: if the decomposition fails.

    Cost: O(output_rank input^2).
    """
    n_inputs = energy.components(found.input_energy, share)
    n_outputs = energy.components(_real(found.losses[:-1] - found.losses[1:]), share)
    rank, inputs = max(1, min(n_inputs, n_outputs)), found.inputs[:n_inputs]
    outputs = found.outputs.left[:, : max(1, n_outputs)]
    used = layer_factors.factored(outputs.T @ weight @ inputs.T @ inputs, found.root)
    return Utilised(Factors(outputs @ used.left[:, :rank], used.right[:rank]), n_inputs, n_outputs)


def _real(values: Tensor) -> Tensor:
    """Energies, zero where they are rounding."""
    return values.where(values > spectrum.floor(values, 0.0, "float64"), 0.0)


def losses(
    weight: Float64[Tensor, "output input"], factors: Factors, inputs: Float64[Tensor, "input component"]
) -> Float64[Tensor, " rank"]:
    """tr((W - W_r) G (W - W_r)') for r = 0, 1, ... and all components of factors whose product is not W itself.

    Args:
        weight: W.
        factors: of which the first r columns and rows are W_r.
        inputs: root of G.

    Cost: O(order^2 (output + input) + output input components).
    """
    rest = (weight - factors.left @ factors.right) @ inputs
    crossed = 2 * ((factors.left.T @ rest) * (factors.right @ inputs)).sum(1)
    after = torch.cat([crossed.flip(0).cumsum(0).flip(0), crossed.new_zeros(1)])
    return (layer_factors.losses(factors, inputs) + after + rest.square().sum()).clamp(min=0)
