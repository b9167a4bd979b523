"""Maps of images from the scores of their patches, and one score for each image from its map.

Nothing is brought to a range of its own: a score means the same in every image, and an image without anything strange has a map without
anything strange.

SubspaceAD (2026): patch scores are enlarged bilinearly to the image and blurred a little, and the mean of the largest pixels is the score
of the image.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional as F

from schemas.errors import MethodError

TOP = 0.01
"""Share of the pixels whose mean is an image's score (SubspaceAD)."""


def resized(
    scores: Float64[Tensor, "image grid_row grid_column"], height: int, width: int
) -> Float64[Tensor, "image row column"]:
    """Each map at the size of its image: bilinear between centres of patches, constant beyond the outermost ones.

    That of `torch.nn.functional.interpolate` with `align_corners=False` and no smoothing before; a smaller size leaves patches out.

    Cost: O(image height width).
    """
    found: Tensor = F.interpolate(scores[:, None], (height, width), mode="bilinear", align_corners=False)
    return found[:, 0]


def blurred(
    maps: Float64[Tensor, "image row column"], size: int = 3, sigma: float = 4.0
) -> Float64[Tensor, "image row column"]:
    """Each map under a Gaussian window, mirrored about its outermost pixels: that of `torchvision.transforms.v2.GaussianBlur`.

    Args:
        maps: more pixels along both axes than half the window.
        size: odd number of pixels of the window along an axis.
        sigma: of the Gaussian, in pixels; with 4 a window of 3 is nearly a plain mean, as SubspaceAD has it.

    Raises:
        MethodError: if the window is even, or a map is too small for it.

    Cost: O(image height width size).
    """
    reach = size // 2
    if size < 1 or size % 2 == 0 or min(maps.shape[1:]) <= reach:
        raise MethodError(
            f"a window of {size} pixels for maps of {maps.shape[1]} x {maps.shape[2]}; take an odd number, less than twice the smaller side"
        )
    at = torch.arange(-reach, reach + 1, dtype=torch.float64, device=maps.device)
    window = torch.exp(-0.5 * (at / sigma).square())
    window = window / window.sum()
    padded = F.pad(maps[:, None], (reach, reach, reach, reach), mode="reflect")
    found: Tensor = F.conv2d(F.conv2d(padded, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return found[:, 0]


def image_scores(maps: Float64[Tensor, "image row column"], share: float = TOP) -> Float64[Tensor, " image"]:
    """The mean of each map's largest pixels: a share of them rounded up, at least one.

    Cost: O(image height width).
    """
    pixels = maps.flatten(1)
    kept = min(pixels.shape[1], max(1, math.ceil(share * pixels.shape[1] * (1 - 1e-12))))
    return pixels.topk(kept, dim=1).values.mean(1)
