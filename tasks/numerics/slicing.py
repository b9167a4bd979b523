"""Directions of a residual stream that hold most of it, what fewer of them lose, and widths dealt out between sites.

Rows count by what a norm makes of them: scaled to a mean square of one, without their mean where the norm takes it out. All sites then have
one unit, the share of a row's energy, and no single long row outweighs all others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import budget, spectrum
from tasks.numerics.budget import Ways


class Directions(NamedTuple):
    """Principal directions of rows about zero."""

    energy: Float64[Tensor, " order"]
    """Mean square along each, descending, none negative."""
    vectors: Float64[Tensor, "order feature"]
    """Orthonormal rows, as many as features."""


def normalised(x: Float[Tensor, "row feature"], centred: bool) -> Float64[Tensor, "row feature"]:
    """Rows as a norm leaves them, but for its scale, bias and epsilon: mean square one; rows of zeros stay.

    Args:
        x: rows of the stream.
        centred: whether the mean over features is taken out first.
    """
    rows = x.double()
    if centred:
        rows = rows - rows.mean(1, keepdim=True)
    size = rows.square().mean(1, keepdim=True).sqrt()
    return rows / torch.where(size > 0, size, 1.0)


def directions(second: Float64[Tensor, "feature feature"]) -> Directions:
    """Of a second moment E[x x'].

    Published code adds 1 % of the mean diagonal to the diagonal first. That makes all eigenvalues larger by as much and turns no
    direction, so it is left out: energies are those of the rows.

    Raises:
        MethodError: if the moment is not finite, or the eigensolver fails.

    Cost: O(feature^3).
    """
    found = spectrum.eigen(second)
    return Directions(found.values.clamp(min=0), found.vectors)


def tails(energy: Float64[Tensor, "*site order"]) -> Float64[Tensor, "*site kept"]:
    """The share of the energy that the first 0, 1, ... directions lose: from 1 to 0; zeros where there is no energy."""
    behind = torch.cat([energy, torch.zeros_like(energy[..., :1])], -1).flip(-1).cumsum(-1).flip(-1)
    whole = behind[..., :1]
    return behind / torch.where(whole > 0, whole, 1.0)


def rounded(share: float, width: int, multiple: int) -> int:
    """The largest multiple within a share of a width, but one at least and the width at most."""
    return min(width, max(1, int(share * width + 1e-9) // multiple) * multiple)


def dealt(loss: Float64[Tensor, "site kept"], kept: int, multiple: int) -> list[int]:
    """Widths of sites that lose least together, of `kept` on average; the first and the last site have one width.

    Args:
        loss: of each site at width 0, 1, ...
        kept: mean width, at least `multiple`.
        multiple: of which widths are, but for the full one.

    Returns:
        The width of each site.

    Raises:
        MethodError: for fewer than three sites.
    """
    if len(loss) < 3:
        raise MethodError(f"found {len(loss)} sites, expected at least those of one block: 3")
    width = loss.shape[1] - 1
    steps = np.array(sorted({*range(multiple, width, multiple), width}))
    joined = [(2.0, loss[0] + loss[-1]), *((1.0, one) for one in loss[1:-1])]
    ways = [Ways(times * steps, one.double().cpu().numpy()[steps]) for times, one in joined]
    ends, *inner = (int(steps[way]) for way in budget.dealt(ways, float(kept * len(loss))))
    return [ends, *inner, ends]


def worst(loss: Float64[Tensor, "site kept"], widths: Sequence[int]) -> tuple[int, float]:
    """The site that loses most at its width, and how much."""
    lost = [float(one[kept]) for one, kept in zip(loss, widths, strict=True)]
    return int(np.argmax(lost)), max(lost)
