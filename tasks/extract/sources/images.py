"""Images below a folder, one class per sub-folder. A corrupt image fails alone, when it is read."""

import io
from collections.abc import Sequence

import numpy as np

from schemas.data import ImageFolder
from schemas.errors import DataError
from tasks.extract.sources.base import Source, Table, digest_options
from tasks.extract.sources.files import File, below, digest, reading

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files of other suffixes are not looked at."""


def files(options: ImageFolder) -> list[File]:
    """The images, sorted by path.

    Raises:
        DataError: if there is none.
    """
    found = below(options.path)
    images = [file for file in found if file.name.lower().endswith(SUFFIXES)]
    if not images:
        raise DataError(
            f"{options.path} holds no image ({len(found)} other files); expected files ending in "
            f"{', '.join(SUFFIXES)}, in it or in one sub-folder per class"
        )
    return images


def read(options: ImageFolder, partition: str | None = None) -> Source:
    """float32 arrays [channel, size, size], named by path below the folder.

    The label `label` is the first sub-folder.

    Raises:
        DataError: if there is no image, or some lie in sub-folders and some do not.
    """
    _check_channels(options)
    found = files(options)
    table = Table([file.name for file in found], _labels(options, found))
    return Source(
        "tensor",
        len(found),
        lambda index: pixels(found[index], options),
        lambda: table,
        lambda: digest_options(options, digest(found)),
    )


def fingerprint(options: ImageFolder, partition: str | None = None) -> str:
    """sha256 over the images' names and bytes and the options."""
    return digest_options(options, digest(files(options)))


def pixels(file: File, options: ImageFolder) -> np.ndarray:
    """One image: decoded, as RGB or grey, resized (bilinear), scaled to 0..1, minus mean, over std.

    Returns:
        float32 [channel, size, size].

    Raises:
        DataError: if it cannot be decoded.
    """
    from PIL import Image

    with reading(file.path), file.system.open(file.path, "rb") as stream:
        image: Image.Image = Image.open(io.BytesIO(stream.read()))
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            # 16-bit grey: PIL's own conversion would clip it at 255
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        if image.mode in ("I", "F"):
            kind = "whole" if image.mode == "I" else "floating point"
            raise DataError(
                f"{file.path} holds {kind} numbers of 32 bits, whose range nothing tells; "
                "expected 8 or 16 bits: convert it, or give the images as arrays"
            )
        image = image.convert("L" if len(options.mean) == 1 else "RGB")
        small = image.resize((options.size, options.size), Image.Resampling.BILINEAR)
        values = np.asarray(small, dtype=np.float32).reshape(options.size, options.size, -1) / np.float32(255)
    scaled = (values - np.asarray(options.mean, np.float32)) / np.asarray(options.std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _check_channels(options: ImageFolder) -> None:
    n_mean, n_std = len(options.mean), len(options.std)
    if n_mean != n_std or n_mean not in (1, 3) or 0 in options.std:
        raise DataError(
            f"found {n_mean} means and std {options.std}; expected three of each for colour or one of each "
            "for grey, and no std of 0"
        )


def _labels(options: ImageFolder, found: Sequence[File]) -> dict[str, list[str]]:
    folders = [file.name.partition("/")[0] if "/" in file.name else "" for file in found]
    if not any(folders):
        return {}
    if not all(folders):
        loose = found[folders.index("")].name
        raise DataError(
            f"{options.path} holds images in sub-folders and {folders.count('')} beside, such as {loose}: "
            "expected one way: move these into a folder of their class"
        )
    return {"label": folders}
