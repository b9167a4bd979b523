"""Data sets that clusterings are measured on: files that the user has in one folder, and the digits of scikit-learn.

A set is looked for as `<folder>/<name>/<file>`; one that is not there is left out. Classes are for the comparison alone.
"""

import gzip
import importlib.util
from collections.abc import Callable, Iterator
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
        if name == "digits":
            yield name, load(Path())
        elif folder is None or not (folder / name).is_dir():
            print(f"{name}: not below {folder}, left out", flush=True)
        elif name == "usps" and importlib.util.find_spec("h5py") is None:
            print(f"{name}: its file needs h5py, left out", flush=True)
        else:
            yield name, load(folder / name)


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


def mnist(folder: Path) -> Rows:
    """10,000 x 784: the pixels of handwritten digits, those of the test."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read()[16:], dtype=np.uint8).reshape(-1, 784)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        return rows(x, np.frombuffer(file.read()[8:], dtype=np.uint8))


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
    "mnist": mnist,
}
