"""A reduction over row-aligned arrays, to test how they come with the rows: sums that no other order or shift of rows gives."""

import torch

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowsPort, State

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(values=False), "near": ArtifactPort("geometry.neighbours", aligned=True)}
ARRAYS = {"total": ("moment",)}
REFERENCE = "none"
SEEDS = ()


class Config(Frozen):
    """Nothing to choose."""


class Result(Frozen):
    """What the ports gave beside the rows."""

    width: int
    artifacts: tuple[str, ...]
    k: int


def start(inputs: Inputs, config: Config) -> State:
    """Nothing."""
    return {}


def partial(block: Block, carry: State, config: Config) -> State:
    """Sums of distance and index, by the row's place in its sample."""
    assert block["x"].shape == (len(block), 0)
    weight = (block.sample * 1000 + block.position + 1).double()
    near = block.aligned["near"]
    rows = torch.stack([near["distance"][:, 0], near["index"][:, 0].double(), torch.ones_like(weight)])
    return {"total": rows @ weight}


def merge(a: State, b: State) -> State:
    """Both."""
    return {"total": a["total"] + b["total"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """As they are."""
    result = Result(
        width=inputs.widths["x"], artifacts=tuple(inputs.artifacts["near"]), k=inputs.results["near"]["k"]
    )
    return result, {"total": Array(state["total"], ("moment",))}
