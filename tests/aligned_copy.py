"""A map over row-aligned arrays, to test how they come with the rows: gives back what it was given."""

from torch import Tensor

from schemas.base import Frozen
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State

VERSION = 1
KIND = "map"
READS = {"x": RowsPort(), "near": ArtifactPort("geometry.neighbours", aligned=True)}
ARRAYS = {"distance": ("row", "neighbour"), "index": ("row", "neighbour")}
REFERENCE = "none"
SEEDS = ()


class Config(Frozen):
    """Nothing to choose."""


class Result(Frozen):
    """Nothing to say."""


def start(inputs: Inputs, config: Config) -> State:
    """Nothing."""
    return {}


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """As the neighbours."""
    k = inputs.results["near"]["k"]
    return {
        "distance": RowOutput("float64", width=k, dim="neighbour"),
        "index": RowOutput("int64", width=k, dim="neighbour"),
    }


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """A copy."""
    return dict(block.aligned["near"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Nothing."""
    return Result(), {}
