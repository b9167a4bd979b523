"""How well a detector's scores find the places of images that a mask marks as strange.

Connect at x the rows of patches or pixels that were scored (`grid14x14`, or `seq197` of a transformer), at `scores` the detector's stage
over them, and at `mask` rows of the same samples and places, of the same capture or another one: those of a module that passes a mask on,
as it is or pooled to the grid. A place is strange where some feature of its mask exceeds `above`.

Figures are of places, not of pixels: masks finer than the grid are those that the network pooled. Images count by their place: strange
places that touch, at a corner too, make a region, and `aupro` weighs regions alike. Scores are compared as they are, over all images
together; nothing is brought to a range within one.

Arrays: for each image `sample`, `image_score` (mean of its highest scores) and `regions`.

Cost: x is read and held, all rows at once, so that images are whole; a sort of the rows.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.anomaly_scores import scores_of, scores_port
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import detection, region_overlap, score_bins
from tasks.numerics.score_maps import TOP, image_scores

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort(), "mask": RowsPort(), "scores": scores_port(aligned=True)}
ARRAYS = {"sample": ("image",), "image_score": ("image",), "regions": ("image",)}
REFERENCE = (
    "Bergmann, Batzner, Fauser, Sattlegger, Steger, IJCV 129 (2021) 1038, section 5: area under the per-region overlap. SubspaceAD (2026): "
    "the mean of the top 1 % of a map as the score of its image"
)
SEEDS = (121,)
MOST_ROWS = 1 << 20
FEW = 30
"""Images with strange places below which figures are said to rest on few."""


class Config(Frozen):
    """How rows make images, and what is strange."""

    above: float = 0.0
    """A place is strange where some feature of its mask is larger."""
    height: int | None = Field(default=None, ge=1)
    """Rows of the grid, with `width`; None: that of a square."""
    width: int | None = Field(default=None, ge=1)
    """Columns of the grid."""
    leading: int = Field(default=0, ge=0)
    """Places of a sample before its grid, which are left out: 1 for a class token."""
    limit: float = Field(default=region_overlap.LIMIT, gt=0, le=1)
    """Largest share of false alarms that counts in `aupro`."""
    top: float = Field(default=TOP, gt=0, le=1)
    """Share of an image's places whose mean is its score."""
    samples: int | None = Field(default=None, ge=1)
    """Images, drawn with the seed; None: all."""
    seed: int = Field(default=0, ge=0)
    """Of the draw."""


class Result(Frozen):
    """What was found. A score is the larger the stranger a place is."""

    n_images: int
    n_strange_images: int
    """With a strange place."""
    height: int
    width: int
    n_rows: int
    """Places of all images."""
    n_strange: int
    """Of them strange."""
    n_regions: int
    auroc: float
    """Chance that a strange place scores higher than a normal one, ties counted half. No interval: places of one image are alike."""
    average_precision: float
    """In finding strange places. Chance is their share."""
    aupro: float
    """Area under the mean overlap of regions up to `limit` false alarms, over `limit`. Chance is half of `limit`."""
    limit: float
    top_inside: float
    """Share of images with strange places whose highest score is at one."""
    image_auroc: float | None
    """Of images by their scores; None where all images have strange places."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """In memory at once."""
    return MOST_ROWS


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if `height` or `width` is given alone.
    """
    if (config.height is None) != (config.width is None):
        raise MethodError(
            f"found `height` {config.height} and `width` {config.width}; give both, or neither for a square"
        )


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All figures from the maps.

    Raises:
        MethodError: if rows make no images, or there are no strange or no normal places.
    """
    sample, score, strange = _images(block, config)
    n, normal = int(strange.sum()), int((~strange).sum())
    if not n or not normal:
        raise MethodError(
            f"found {n} strange and {normal} normal places by masks above {config.above:g}, both are needed; look at `above`, and at what "
            "the site of `mask` gives"
        )
    counts = _counts(score.flatten(), strange.flatten())
    region = region_overlap.regions(strange)
    images, having = image_scores(score, config.top), strange.flatten(1).any(1)
    top = score.flatten(1).argmax(1, keepdim=True)
    inside = strange.flatten(1).gather(1, top)[:, 0]
    result = Result(
        n_images=len(score),
        n_strange_images=int(having.sum()),
        height=score.shape[1],
        width=score.shape[2],
        n_rows=score.numel(),
        n_strange=n,
        n_regions=int(region.max()),
        auroc=detection.auroc(counts),
        average_precision=detection.average_precision(counts),
        aupro=region_overlap.aupro(score, region, config.limit),
        limit=config.limit,
        top_inside=float(inside[having].double().mean()),
        image_auroc=None if bool(having.all()) else detection.auroc(_counts(images, having)),
        caveats=_caveats(int(having.sum())),
    )
    regions = torch.tensor([int(torch.unique(r[r > 0]).numel()) for r in region], device=score.device)
    arrays = {"sample": sample, "image_score": images, "regions": regions}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _counts(score: Tensor, strange: Tensor) -> detection.Counts:
    return score_bins.counts(score_bins.of_rows(score, strange, len(score)))


def _images(block: Block, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """int64 [image]: samples, ascending; [image, row, column]: scores, and whether places are strange.

    Raises:
        MethodError: if samples have no rows, not the same places, or places that make no grid.
    """
    kept = block.position >= config.leading
    sample, place = block.sample[kept], block.position[kept] - config.leading
    score, strange = scores_of(block)[kept], (block["mask"] > config.above).any(1)[kept]
    if not len(sample):
        raise MethodError(
            f"found {len(block)} rows, none of them at place {config.leading} or later; look at `leading`"
        )
    if bool(score.isnan().any()):
        raise MethodError(
            "the scores are of samples, one for each, found places without one; connect at `scores` the stage that `anomaly.pooled` read"
        )
    which, image = torch.unique(sample, return_inverse=True)
    height, width = _shape(int(place.max()) + 1, config)
    at = image * (height * width) + place
    if (
        int(place.max()) >= height * width
        or len(torch.unique(at)) != len(which) * height * width
        or len(at) != len(which) * height * width
    ):
        raise MethodError(
            f"{len(which)} samples have {len(at)} rows, expected {height} x {width} places of each, from {config.leading} on; capture all "
            "positions of x and `mask`, or look at `height`, `width` and `leading`"
        )
    order = torch.argsort(at)
    shape = (len(which), height, width)
    return which, score[order].view(shape), strange[order].view(shape)


def _shape(places: int, config: Config) -> tuple[int, int]:
    if config.height is not None and config.width is not None:
        return config.height, config.width
    side = math.isqrt(places)
    if side * side != places:
        less = math.isqrt(places - 1)
        cure = (
            f"set `leading: {config.leading + 1}` if the first is a class token"
            if less * less == places - 1
            else "set `height` and `width`"
        )
        raise MethodError(f"{places} places of a sample make no square; {cure}")
    return side, side


def _caveats(images: int) -> tuple[str, ...]:
    return (f"figures rest on {images} images with strange places",) if images < FEW else ()
