"""A method outside the project that takes whole samples into memory and says which rows it got."""

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {"row": ("used",), "sample": ("used",)}
REFERENCE = "none"
SEEDS = ()


class Config(Frozen):
    """What is drawn."""

    samples: int | None = None
    sample_rows: int | None = None
    most_rows: int = 1000
    seed: int = 0


class Result(Frozen):
    """How many rows came."""

    n_rows: int


def max_rows(config: Config) -> int:
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    return Result(n_rows=len(block)), {
        "row": Array(block.index, ("used",)),
        "sample": Array(block.sample, ("used",)),
    }
