"""The strangest samples of a detector as figures: images, and maps of the scores of their patches."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tasks.example_illustrations import Shown
from tasks.figures import WIDTH, Vector, short, shortened
from tasks.illustrations import Illustration
from tasks.numerics.score_maps import blurred, resized
from tasks.palette import CATEGORY, INK, MUTED
from tasks.tables import short_site

STRANGE = "strange-"
"""What names of figures of strange rows begin with."""
STRANGER = CATEGORY[1]
MOST_OPAQUE = 0.8
"""Of the colour that lies over an image, at the upper end of the scale."""
LIGHTER = 0.35
"""How grey black becomes under a colour, which shows little on black."""
COLUMNS, ENLARGED = 8, 64
"""Images of a line; pixels of the longer side at which the map of a sample without an image is drawn, at least."""


class Piece(NamedTuple):
    """Part of a text."""

    text: str
    score: float | None = None
    """None for what has no row of its own."""


class Strange(NamedTuple):
    """A sample with its score, or that of its strangest row."""

    shown: Shown
    score: float
    p: float | None = None
    label: str = ""
    pieces: tuple[Piece, ...] = ()
    """The text about its strangest token, where rows are tokens."""
    patches: Vector | None = None
    """[row, column]: scores, where rows are places of a grid; NaN for those without a row."""


class StrangeSamples(NamedTuple):
    """The strangest samples of a stage at a site."""

    stage: str
    site: str
    samples: tuple[Strange, ...]
    """Strangest first."""
    label: str
    """That their classes are of; empty for none."""
    scale: tuple[float, float]
    """Scores at which colours begin and end, the same for all samples."""
    n_rows: int
    n_read: int
    n_sites: int
    """Of the stage, of which this one is shown."""


def strange_illustrations(strange: Sequence[StrangeSamples]) -> Iterator[Illustration]:
    """One figure for each whose samples are images, or whose rows are places of a grid."""
    for found in strange:
        if any(_has_picture(sample) for sample in found.samples):
            yield _pictures(found)


def notes_of(found: StrangeSamples) -> Iterator[str]:
    """What is to be said beside the samples."""
    if any(s.pieces or s.patches is not None for s in found.samples):
        low, high = (short(end) for end in found.scale)
        yield (
            f"Colours begin at a score of {low}, the median of all rows, and are full at {high}, which one row in a thousand exceeds; "
            "they mean the same in every sample."
        )
    if found.n_read < found.n_rows:
        yield f"Sought among {found.n_read:,} of {found.n_rows:,} rows, a seeded choice."
    if found.n_sites > 1:
        yield f"One of {found.n_sites} sites: the one with most discoveries, of equals with most flagged rows, else the last."


def opacity(score: Vector, scale: tuple[float, float]) -> Vector:
    """0..1 along the scale; 0 where there is no score."""
    low, high = scale
    found: Vector = np.clip(np.nan_to_num((score - low) / (high - low or 1.0)), 0.0, 1.0)
    return found


def _has_picture(sample: Strange) -> bool:
    return sample.shown.image is not None or sample.patches is not None


def patch_map(sample: Strange) -> Vector | None:
    """[height, width]: scores of patches at the size of the image, blurred a little as in SubspaceAD; None without."""
    if sample.patches is None:
        return None
    size = sample.patches.shape
    if sample.shown.image is not None:
        size = tuple(map(max, sample.shown.image.shape[:2], size))
    elif max(size) < ENLARGED:
        size = tuple(n * -(-ENLARGED // max(size)) for n in size)
    finite = sample.patches[np.isfinite(sample.patches)]
    whole = np.nan_to_num(sample.patches, nan=finite.min(), neginf=finite.min(), posinf=finite.max())
    made = resized(torch.from_numpy(whole)[None], size[0], size[1])
    found: Vector = (blurred(made) if min(size) > 1 else made)[0].numpy()
    return found


def _pictures(found: StrangeSamples) -> Illustration:
    """A column for each sample: as it is, and under its map."""
    samples = [sample for sample in found.samples if _has_picture(sample)][:COLUMNS]
    mapped = any(sample.patches is not None for sample in samples)
    imaged = any(sample.shown.image is not None for sample in samples)
    lines = int(mapped) + int(imaged)
    figure = Figure((WIDTH, 0.6 + lines * WIDTH / COLUMNS), layout="constrained")
    grid = figure.subplots(lines, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for column, sample in enumerate(samples):
        _picture(grid[0][column], sample, None if imaged else found.scale)
        if mapped and imaged:
            _picture(grid[1][column], sample, found.scale)
        grid[0][column].set_title("\n".join(_words(sample)), fontsize=8.5, color=INK)
    under = "Below, each place has the colour of its score. " if mapped and imaged else ""
    told = "; ".join(f"{sample.shown.key}: {short(sample.score)}" for sample in samples)
    what = [found.label] * bool(found.label) + ["score"] + ["p"] * any(s.p is not None for s in samples)
    return Illustration(
        f"{STRANGE}samples-{found.stage}", f"Strangest samples ({found.stage}, {short_site(found.site)})", figure,
        f"Strangest first, by the score of their strangest row; above each its {', '.join(what)}. {under}{' '.join(notes_of(found))}",
        f"Samples and their scores: {told}.",
    )  # fmt: skip


def _words(sample: Strange) -> Iterator[str]:
    if sample.label:
        yield shortened(sample.label, 14)
    yield short(sample.score)
    if sample.p is not None:
        yield f"p {sample.p:.2g}"


def _picture(axes: Axes, sample: Strange, scale: tuple[float, float] | None) -> None:
    """The image, grey and under its map where there is a scale."""
    image, made = sample.shown.image, None if scale is None else patch_map(sample)
    if image is not None:
        grey = (
            image if made is None else LIGHTER + (1 - LIGHTER) * (image if image.ndim == 2 else image.mean(2))
        )
        axes.imshow(
            grey,
            cmap="gray",
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(0, 1, 1, 0),
            aspect=image.shape[0] / image.shape[1],
        )
    if made is not None and scale is not None:
        colour = np.zeros((*made.shape, 4))
        colour[..., :3] = to_rgb(STRANGER)
        colour[..., 3] = MOST_OPAQUE * opacity(made, scale)
        axes.imshow(
            colour, interpolation="nearest", extent=(0, 1, 1, 0), aspect=made.shape[0] / made.shape[1]
        )
        axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color=MUTED, linewidth=0.5)
