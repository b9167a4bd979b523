"""Rows that detectors are measured on: files that the user has in one folder, and how they are dealt.

ResNet-18 features of photographs and tables are those of ADBench (github.com/Minqi824/ADBench): `adbench_cv_resnet18`, `mvtec_resnet18`,
`adbench_classical`, each a folder of .npz with X and y, 1 for an anomaly.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler

FEWEST, MOST, SHARE = 1000, 10_000, 0.3
TABLES = (
    "cardio", "fault", "glass", "Ionosphere", "letter", "musk", "Pima", "breastw", "vowels", "WDBC", "Stamps", "InternetAds", "Waveform",
    "Cardiotocography", "vertebral", "wine", "yeast", "WPBC", "annthyroid", "pendigits", "satimage-2",
)  # fmt: skip


class Split(NamedTuple):
    """Rows to fit on, and others with what they are."""

    normal: np.ndarray
    new: np.ndarray
    strange: np.ndarray
    """bool [row]"""


class Photographs(NamedTuple):
    """Normal rows of two classes, with their codes, and new rows."""

    normal: np.ndarray
    code: np.ndarray
    new: np.ndarray
    strange: np.ndarray


def photographs(folder: Path) -> Photographs:
    """2,500 rows of each of two classes of CIFAR-10 to fit on; the others of these, and one class of SVHN, are new."""
    kept = [normal_rows(folder, name) for name in ("CIFAR10_0", "CIFAR10_4")]
    other = normal_rows(folder, "SVHN_0")
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(x)) for x in kept]
    normal = [x[order[:2500]] for x, order in zip(kept, orders, strict=True)]
    new = [x[order[2500:]] for x, order in zip(kept, orders, strict=True)]
    strange = np.repeat([False, True], [sum(map(len, new)), len(other)])
    return Photographs(
        np.concatenate(normal), np.repeat([0, 1], 2500), np.concatenate([*new, other]), strange
    )


def normal_rows(folder: Path, name: str) -> np.ndarray:
    """float32 [row, 512]: those that a set of photographs calls normal."""
    given = np.load(folder / "adbench_cv_resnet18" / f"{name}.npz")
    rows: np.ndarray = given["X"][given["y"] == 0].astype(np.float32)
    return rows


def tables(folder: Path, names: tuple[str, ...] = TABLES) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Sets of ADBench that are there: name, rows in their dtype, and 1 for anomalies."""
    for path in sorted((folder / "adbench_classical").glob("*.npz")):
        name = path.stem.partition("_")[2]
        if name in names:
            given = np.load(path)
            yield name, given["X"], given["y"]


def dealt(x: np.ndarray, y: np.ndarray, seed: int) -> Split:
    """As ADBench deals a table without labels: at least 1,000 rows by repeating some, at most 10,000, three tenths of them new, features
    between 0 and 1 over the rows to fit on."""
    state = np.random.RandomState(seed)
    if len(x) < FEWEST:
        chosen = state.choice(np.arange(len(x)), FEWEST, replace=True)
        x, y = x[chosen], y[chosen]
    if len(x) > MOST:
        chosen = state.choice(np.arange(len(x)), MOST, replace=False)
        x, y = x[chosen], y[chosen]
    fit, new, _, strange = train_test_split(
        x, y, test_size=SHARE, shuffle=True, stratify=y, random_state=state
    )
    scaler = MinMaxScaler().fit(fit)
    return Split(scaler.transform(fit), scaler.transform(new), strange == 1)


def one_class(folder: Path) -> Iterator[tuple[str, int, Split]]:
    """Each thing of MVTec with each of five seeds: seven tenths of its good photographs to fit on, the others and the bad ones new."""
    for path in sorted((folder / "mvtec_resnet18").glob("*.npz")):
        given = np.load(path)
        x, y = given["X"].astype(np.float64), given["y"]
        good = np.flatnonzero(y == 0)
        for seed in range(5):
            order = good[np.random.default_rng(seed).permutation(len(good))]
            fit, left = order[: int(0.7 * len(good))], order[int(0.7 * len(good)) :]
            new = np.concatenate([x[left], x[y == 1]])
            strange = np.arange(len(new)) >= len(left)
            yield path.stem.partition("_")[2], seed, Split(x[fit], new, strange)
