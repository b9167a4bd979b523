"""How well maps of scores find each region that is strange, whatever its size: the area under the per-region overlap (AUPRO).

At a threshold, a region's overlap is the share of its pixels that score as high, their mean over regions the overlap; false alarms are the
share of normal pixels that score as high. The area under overlap against false alarms up to a limit, over that limit, is 1 where every
region is found before the first false alarm. Without regard to regions the area would be that of the largest ones alone.

Bergmann, Batzner, Fauser, Sattlegger, Steger, IJCV 129 (2021) 1038, section 5: per-region overlap, up to a false alarm rate of 0.3.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from scipy import ndimage
from torch import Tensor

LIMIT = 0.3


def regions(mask: Bool[Tensor, "image row column"]) -> Int64[Tensor, "image row column"]:
    """The number of each pixel's region, from 1 over all images; 0 for normal pixels. Pixels that meet at a corner are of one region.

    Cost: O(pixels), on the CPU.
    """
    touching = np.zeros((3, 3, 3), dtype=bool)
    touching[1] = True  # within an image alone
    found, _ = ndimage.label(mask.cpu().numpy(), structure=touching)
    return torch.from_numpy(found.astype(np.int64)).to(mask.device)


def aupro(
    scores: Float64[Tensor, "image row column"],
    region: Int64[Tensor, "image row column"],
    limit: float = LIMIT,
) -> float:
    """The area, in [0, 1], over all thresholds at scores that occur, straight between them: pixels of one score come at once.

    Args:
        scores: larger for stranger pixels; no NaN.
        region: of `regions`.
        limit: largest share of false alarms, in (0, 1].

    Returns:
        NaN without regions or without normal pixels.

    Cost: a sort of the pixels.
    """
    region = region.flatten()
    size = torch.bincount(region)
    n_regions = len(size) - 1
    if n_regions < 1 or not int(size[0]):
        return math.nan
    weight = torch.where(region > 0, 1 / (n_regions * size[region].double()), 0.0)
    value, place = torch.unique(scores.flatten(), return_inverse=True)
    none = weight.new_zeros(len(value))
    found = none.index_add(0, place, weight).flip(0).cumsum(0)
    false = none.index_add(0, place, (region == 0).double()).flip(0).cumsum(0) / int(size[0])
    return _area(_from_zero(false), _from_zero(found), limit) / limit


def _from_zero(values: Float64[Tensor, " point"]) -> Float64[Tensor, " after"]:
    return torch.cat([values.new_zeros(1), values])


def _area(x: Float64[Tensor, " point"], y: Float64[Tensor, " point"], limit: float) -> float:
    """Under straight lines between points, x rising from 0 to 1, up to a limit; the line there is cut."""
    width = torch.diff(x)
    inside = (limit - x[:-1]).clamp(min=0).minimum(width)
    share = torch.where(width > 0, inside / width, 0.0)
    return float((inside * (y[:-1] + share * torch.diff(y) / 2)).sum())
