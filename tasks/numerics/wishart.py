"""Products of Gaussian rows, drawn without the rows: as many as there are freedoms cost nothing."""

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor


def generator(seed: int) -> np.random.Generator:
    """The same draws for a seed on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


def drawn(size: int, freedom: int, random: np.random.Generator) -> Float64[Tensor, "size size"]:
    """Z'Z of `freedom` rows Z of `size` independent standard normal numbers, by Bartlett's triangle.

    Cost: size^2 numbers, and size^3.
    """
    if freedom < size:
        rows = torch.from_numpy(random.standard_normal((freedom, size)))
        return rows.T @ rows
    lower = np.tril(random.standard_normal((size, size)), -1)
    lower[np.diag_indices(size)] = np.sqrt(random.chisquare(freedom - np.arange(size)))
    triangle = torch.from_numpy(lower)
    return triangle @ triangle.T
