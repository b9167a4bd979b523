"""A method outside the project, as a user's own package would hold it: the mean row, and numbers JSON cannot hold."""

import math

import torch

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State

VERSION = 3
KIND = "reduce"
READS = {"rows": RowsPort(several=False)}
ARRAYS = {"mean": ("feature",)}
REFERENCE = "none"
SEEDS = ()


class Config(Frozen):
    """Nothing to choose."""


class Result(Frozen):
    """Numbers that are none."""

    nothing: float
    endless: tuple[float, ...]


def start(inputs: Inputs, config: Config) -> State:
    return {}


def partial(block: Block, carry: State, config: Config) -> State:
    return {"sum": block["rows"].double().sum(0), "n": torch.tensor(len(block))}


def merge(a: State, b: State) -> State:
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    mean = state["sum"] / state["n"]
    return Result(nothing=math.nan, endless=(math.inf, 1.0)), {"mean": Array(mean, ("feature",))}
