"""Data sets that clusterings are measured on: files that the user has in one folder, and the digits of scikit-learn.

A set is looked for as `<folder>/<name>/<file>`; one that is not there is left out. Classes are for the comparison alone.
"""

import gzip
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from sklearn.datasets import load_digits


class Rows(NamedTuple):
    """Rows with their classes."""

    x: np.ndarray
    """[row, feature]."""
    kind: np.ndarray
    """int64 [row], 0 to the number of classes less one."""


def found(folder: Path | None, names: list[str] | None = None) -> Iterator[tuple[str, Rows]]:
    """Sets that are there, one at a time, in the order of `SETS`."""
    for name, load in SETS.items():
        if names and name not in names:
            continue
        place, needs = FOLDERS.get(name, name), NEEDS.get(name)
        if name == "digits":
            yield name, load(Path())
        elif folder is None or not (folder / place).is_dir():
            print(f"{name}: {place} is not below {folder}, left out", flush=True)
        elif needs and importlib.util.find_spec(needs) is None:
            print(f"{name}: needs {needs}, left out", flush=True)
        else:
            yield name, load(folder / place)


def digits(folder: Path) -> Rows:
    """1,797 x 64: handwritten digits of 8 x 8 values."""
    made = load_digits()
    return rows(made.data, made.target)


def orl(folder: Path) -> Rows:
    """400 x 1,024: ten photographs of each of 40 faces."""
    made = scipy.io.loadmat(folder / "ORL_32x32.mat")
    return rows(made["fea"], made["gnd"])


def umist_scatter(folder: Path) -> Rows:
    """575 x 500: scattering coefficients of 20 faces that turn, along leading directions."""
    made = scipy.io.loadmat(folder / "umist_scatter.mat")
    return rows(made["data"].T, made["label"])


def coil20(folder: Path) -> Rows:
    """1,440 x 1,024: 20 objects that turn."""
    made = scipy.io.loadmat(folder / "COIL20.mat")
    return rows(made["fea"], made["gnd"])


def extended_yaleb(folder: Path) -> Rows:
    """640 x 2,016: ten faces under 64 lights."""
    made = scipy.io.loadmat(folder / "yaleB10.mat")
    return rows(made["data"].T, made["gnd"])


def usps(folder: Path) -> Rows:
    """9,298 x 256: handwritten digits of 16 x 16 values."""
    import h5py  # type: ignore[import-not-found, unused-ignore]

    with h5py.File(folder / "usps.h5") as file:
        parts = [(file[part]["data"][:], file[part]["target"][:]) for part in ("train", "test")]
    return rows(np.concatenate([x for x, _ in parts]), np.concatenate([kind for _, kind in parts]))


def mvtec_resnet18(folder: Path) -> Rows:
    """5,354 x 512: features of photographs of 15 things, after ReLU."""
    parts = [np.load(path)["X"] for path in sorted(folder.glob("*.npz"))]
    return rows(np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts]))


def motion(folder: Path, name: str) -> Rows:
    """Points of a film, each with its places in all frames: 77 x 60 of an arm, 297 x 62 of cars."""
    made = scipy.io.loadmat(folder / f"{name}.mat")
    return rows(made["x"][:2].transpose(1, 2, 0).reshape(made["x"].shape[1], -1), made["s"])


def mnist(folder: Path) -> Rows:
    """10,000 x 784: the pixels of handwritten digits, those of the test."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read()[16:], dtype=np.uint8).reshape(-1, 784)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        return rows(x, np.frombuffer(file.read()[8:], dtype=np.uint8))


def mnist_scatter(folder: Path) -> Rows:
    """10,000 x 500: scattering coefficients of those digits (three scales, eight angles), along leading directions, not centred."""
    import scipy.special

    if not hasattr(scipy.special, "sph_harm"):
        scipy.special.sph_harm = None  # kymatio imports it for volumes, which are not used here
    from kymatio.numpy import Scattering2D  # type: ignore[import-not-found, import-untyped, unused-ignore]

    pixels, kind = mnist(folder)
    images = np.pad(pixels.reshape(-1, 28, 28) / 255, ((0, 0), (2, 2), (2, 2)))
    transform = Scattering2D(J=3, shape=(32, 32))
    parts = [transform(some.astype(np.float32)) for some in np.array_split(images, 50)]
    x = np.concatenate(parts).reshape(len(images), -1).astype(np.float64)
    _, directions = np.linalg.eigh(x.T @ x)
    return rows(x @ directions[:, ::-1][:, :500], kind)


def rows(x: np.ndarray, kind: np.ndarray) -> Rows:
    """Float32 rows, and classes counted from 0."""
    return Rows(np.ascontiguousarray(x, dtype=np.float32), np.unique(np.ravel(kind), return_inverse=True)[1])


SETS: dict[str, Callable[[Path], Rows]] = {
    "digits": digits,
    "orl": orl,
    "umist_scatter": umist_scatter,
    "coil20": coil20,
    "extended_yaleb": extended_yaleb,
    "usps": usps,
    "mvtec_resnet18": mvtec_resnet18,
    "arm": partial(motion, name="arm"),
    "cars10": partial(motion, name="cars10"),
    "mnist": mnist,
    "mnist_scatter": mnist_scatter,
}
FOLDERS = {"mnist_scatter": "mnist", "arm": "hopkins_sample", "cars10": "hopkins_sample"}
"""Where a set's folder has another name."""
NEEDS = {"usps": "h5py", "mnist_scatter": "kymatio"}
"""Packages that reading a set takes."""
