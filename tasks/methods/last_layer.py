"""The last linear layer of a network, as methods read it that score rows at its input."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float64
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Inputs


@runtime_checkable
class HasLayer(Protocol):
    """Options that name it."""

    @property
    def weight(self) -> str: ...

    @property
    def bias(self) -> str | None: ...


class LastLayer(NamedTuple):
    """Logits are x weight' + bias."""

    weight: Float64[Tensor, "output feature"]
    bias: Float64[Tensor, " output"]


def parameters(config: HasLayer) -> tuple[str, ...]:
    """What is read of the network."""
    return (config.weight,) if config.bias is None else (config.weight, config.bias)


def check(inputs: Inputs, config: HasLayer) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features.
    """
    weight, width = inputs.weights[config.weight], inputs.widths["x"]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise MethodError(
            f"{config.weight} has the shape {tuple(weight.shape)}, expected [outputs, {width}] for the {width} features of the site; "
            "connect the input of the last linear layer"
        )
    for name in parameters(config):
        if not bool(inputs.weights[name].isfinite().all()):
            raise MethodError(f"{name} holds NaN or infinity; load another checkpoint")


def read(inputs: Inputs, config: HasLayer) -> LastLayer:
    """The layer, zeros for a bias that it has not."""
    weight = inputs.weights[config.weight].double()
    bias = weight.new_zeros(len(weight)) if config.bias is None else inputs.weights[config.bias].double()
    return LastLayer(weight, bias)
