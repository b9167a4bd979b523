"""A method outside the project that reads weights of the network: what the layer of a site gives for the mean row."""

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"mean": ("output",)}
REFERENCE = "none"
SEEDS = ()


class Config(Frozen):
    """Which weight."""

    weight: str = "{module}.weight"


class Result(Frozen):
    """Nothing."""

    names: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    return (config.weight,)


def start(inputs: Inputs, config: Config) -> State:
    return {}


def partial(block: Block, carry: State, config: Config) -> State:
    return {"sum": block["x"].double().sum(0), "n": block.index.new_tensor(len(block))}


def merge(a: State, b: State) -> State:
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    mean = inputs.weights[config.weight].double() @ state["sum"] / state["n"]
    return Result(names=tuple(inputs.weights)), {"mean": Array(mean, ("output",))}
