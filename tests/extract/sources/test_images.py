"""Images, against arrays that were written; a corrupt one fails alone."""

import io

import fsspec
import numpy as np
import pytest
from PIL import Image

from schemas.data import ImageFolder
from schemas.errors import DataError
from tasks.extract.sources import images

ROOT_3 = (0.0, 0.0, 0.0)
ONES_3 = (1.0, 1.0, 1.0)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def colours(size=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def folder(path, **options):
    return ImageFolder(path=str(path), **{"size": 4, "mean": ROOT_3, "std": ONES_3, **options})


def test_pixels_labels_and_order(tmp_path):
    cat, dog = colours(seed=1), colours(seed=2)
    save(tmp_path / "dog" / "z.png", dog)
    save(tmp_path / "cat" / "deep" / "a.PNG", cat)
    (tmp_path / "notes.md").write_text("no image")
    source = images.read(folder(tmp_path))
    assert source.keys() == ["cat/deep/a.PNG", "dog/z.png"]
    assert source.labels() == {"label": ["cat", "dog"]}
    for sample, pixels in zip(source, (cat, dog), strict=True):
        assert sample.value.dtype == np.float32
        assert sample.value.shape == (3, 4, 4)
        np.testing.assert_allclose(sample.value, pixels.transpose(2, 0, 1) / 255, atol=1e-7)


def test_mean_and_std_per_channel(tmp_path):
    pixels = colours()
    save(tmp_path / "a.png", pixels)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    source = images.read(folder(tmp_path, mean=mean, std=std))
    np.testing.assert_allclose(source[0].value.transpose(1, 2, 0), (pixels / 255 - mean) / std, atol=1e-6)
    assert source.labels() == {}


def test_one_mean_makes_grey_and_palettes_and_alpha_are_understood(tmp_path):
    pixels = colours()
    save(tmp_path / "a.png", pixels)
    source = images.read(folder(tmp_path, mean=(0.0,), std=(1.0,)))
    expected = np.asarray(Image.fromarray(pixels).convert("L")) / 255
    np.testing.assert_allclose(source[0].value[0], expected, atol=1e-7)
    Image.fromarray(pixels).convert("P").save(tmp_path / "b.gif")
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "c.png")
    coloured = images.read(folder(tmp_path))
    assert coloured[1].value.shape == (3, 4, 4)
    np.testing.assert_array_equal(coloured[2].value, coloured[0].value)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    wide = np.array([[0, 256 * 10], [256 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "a.png")
    source = images.read(folder(tmp_path, size=2, mean=(0.0,), std=(1.0,)))
    np.testing.assert_allclose(source[0].value[0] * 255, [[0, 10], [100, 255]], atol=1e-4)


def test_resizing_is_bilinear(tmp_path):
    pixels = colours(size=8)
    save(tmp_path / "a.png", pixels)
    expected = np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(images.read(folder(tmp_path))[0].value.transpose(1, 2, 0), expected, atol=1e-7)


def test_a_corrupt_image_among_good_ones_fails_alone(tmp_path):
    save(tmp_path / "a.png", colours())
    (tmp_path / "b.png").write_bytes(b"no image at all")
    buffer = io.BytesIO()
    Image.fromarray(colours(64)).save(buffer, format="PNG")
    (tmp_path / "c.png").write_bytes(buffer.getvalue()[:2000])
    save(tmp_path / "d.png", colours())
    source = images.read(folder(tmp_path))
    assert len(source) == 4
    for good in (0, 3):
        assert source[good].value.shape == (3, 4, 4)
    for bad, name in ((1, "b.png"), (2, "c.png")):
        with pytest.raises(DataError, match=rf"{name} cannot be read"):
            source[bad]
    assert source.fingerprint == images.fingerprint(folder(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, "found 1 means and std .* three of each for colour or one of each"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "found 2 means"),
        ({"std": (1.0, 0.0, 1.0)}, "no std of 0"),
    ],
)
def test_wrong_channels_are_refused(tmp_path, options, message):
    save(tmp_path / "a.png", colours())
    with pytest.raises(DataError, match=message):
        images.read(folder(tmp_path, **options))


def test_missing_empty_and_mixed_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="found nothing, expected a folder"):
        images.read(folder(tmp_path / "none"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="found a file, expected a folder"):
        images.read(folder(tmp_path / "a.txt"))
    with pytest.raises(DataError, match=r"holds no image \(1 other files\); expected files ending in \.bmp"):
        images.read(folder(tmp_path))
    save(tmp_path / "x.png", colours())
    save(tmp_path / "cat" / "y.png", colours())
    with pytest.raises(DataError, match=r"in sub-folders and 1 beside, such as x\.png"):
        images.read(folder(tmp_path))


def test_the_fingerprint_follows_bytes_names_and_options(tmp_path):
    save(tmp_path / "a.png", colours())
    first = images.fingerprint(folder(tmp_path))
    assert images.fingerprint(folder(tmp_path, size=5)) != first
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    second = images.fingerprint(folder(tmp_path))
    save(tmp_path / "b.png", colours(seed=9))
    assert len({first, second, images.fingerprint(folder(tmp_path))}) == 3


def test_remote_images():
    buffer = io.BytesIO()
    Image.fromarray(colours()).save(buffer, format="PNG")
    system = fsspec.filesystem("memory")
    system.pipe("/pictures/cat/a.png", buffer.getvalue())
    try:
        source = images.read(folder("memory://pictures"))
        assert source[0].key == "cat/a.png"
        np.testing.assert_allclose(source[0].value.transpose(1, 2, 0), colours() / 255, atol=1e-7)
    finally:
        system.rm("/pictures", recursive=True)


@pytest.mark.parametrize(("mode", "dtype"), [("F", "float32"), ("I", "int32")])
def test_images_whose_range_nothing_tells_are_refused(tmp_path, mode, dtype):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 0.5 if mode == "F" else 200, dtype=dtype)).save(tmp_path / "a" / "x.tiff")
    source = images.read(ImageFolder(path=str(tmp_path), size=4))
    with pytest.raises(DataError, match=r"x.tiff holds (whole|floating point) numbers of 32 bits"):
        source[0]
