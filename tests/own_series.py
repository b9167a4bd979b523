"""A method outside the project that reads artifacts alone: which it was given, in which order."""

import torch

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, ArtifactPort, Inputs

VERSION = 1
KIND = "combine"
READS = {"pca": ArtifactPort("spectrum.pca", several=True)}
ARRAYS = {"largest": ("member",)}
REFERENCE = "none"
SEEDS = ()


class Config(Frozen):
    """Nothing to choose."""


class Result(Frozen):
    """What came."""

    sites: tuple[str, ...]
    captures: tuple[tuple[str, ...], ...]
    rows: tuple[int, ...]
    caveats: tuple[str, ...] = ()


def solve(inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    members = inputs.series["pca"]
    largest = torch.stack([member.arrays["eigenvalue"][0] for member in members])
    result = Result(
        sites=tuple(member.site for member in members),
        captures=tuple(member.captures for member in members),
        rows=tuple(int(member.result["n_rows"]) for member in members),
    )
    return result, {"largest": Array(largest, ("member",))}
