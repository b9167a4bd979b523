"""How well detectors tell rows apart, and whether promised rates hold, on features of real photographs and digits.

    python -m benchmarks.detection_quality --data FOLDER [--only table,false,digits,things] [--repetitions 200]

table   every detector of features alone on photographs (`benchmarks.detection_sets`): two classes of CIFAR-10 beside one of SVHN
false   ResNet-18 features of one class of CIFAR-10, each repetition dealt anew: 2,500 rows to fit, 1,000 to calibrate, 900 others and
        100 of SVHN to judge at a false discovery rate of 0.1 by `anomaly.last_gradient`'s angle and by `residual`: false discoveries,
        power, and how often anything is discovered where nothing is strange; and flags of 1,500 others at 0.05, by the held-out rows
        and by the rows of the fit, which is what a reference that calibrates itself costs
digits  a small convolutional network, seeds 0 to 2, trained on 8,000 of MNIST's 10,000 test digits and judged on the others beside 900
        images of Fashion-MNIST: every detector on its 128 features after ReLU, at the input of the last layer
things  MVTec: seven tenths of the good photographs of a thing to fit, five seeds, means of 15 things

AUROC, larger is better. One thread. Results go to benchmarks/results/detection_quality.json.
"""

import argparse
import gzip
import json
from collections.abc import Callable, Iterator
from functools import partial as bind
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection_sets import normal_rows as normal_photographs
from benchmarks.detection_sets import one_class, photographs
from benchmarks.protocol import environment, save, saved
from tasks.methods.anomaly import (
    head_subspace,
    last_gradient,
    mahalanobis,
    neco,
    neighbours,
    normal_rows,
    reference,
    residual,
    spikes,
    standard_components,
    vim,
)
from tasks.methods.spectrum import pca
from tasks.numerics import conformal
from tests.methods.detectors import Fitted, scores

PARTS = ("table", "false", "digits", "things")
Scored = Iterator[tuple[str, np.ndarray]]
ALPHA, Q, EPOCHS, BATCH = 0.05, 0.1, 8, 64
Weights = dict[str, Tensor]


def main() -> None:
    """Measure the asked parts, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--pairs", type=int, help="taken for the sake of the others")
    options = parser.parse_args()
    if options.data is None:
        print("detection_quality: no --data, left out")
        return
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], Any]] = {
        "table": bind(table, options.data),
        "false": bind(false, options.data, options.repetitions),
        "digits": bind(digits, options.data),
        "things": bind(things, options.data),
    }
    for name in options.only.split(","):
        made = {name: {"found": parts[name](), "environment": environment(1, ("torch", "numpy"))}}
        print(json.dumps(made, indent=1), flush=True)
        save("detection_quality", saved("detection_quality") | made)


def of_features(normal: np.ndarray, code: np.ndarray | None, new: np.ndarray) -> Scored:
    """Of detectors that take features alone."""
    basis = Fitted(pca, normal, components=min(normal.shape), engine="moments")
    for energy in (0.9, 0.95, 0.99):
        yield f"residual {energy}", scores(residual, "basis", basis, new, energy=energy)
    yield "spikes", scores(spikes, "basis", basis, new)
    shrunk = Fitted(reference, normal)
    yield "mahalanobis, one mean", scores(mahalanobis, "reference", shrunk, new)
    yield "neighbours 50", scores(neighbours, "normal", Fitted(normal_rows, normal), new, k=50)
    yield "angle", angle(normal, new)
    if code is None:
        return
    plain = Fitted(reference, normal, code, label="class", shrinkage="none")
    for relative in (False, True):
        name = "relative mahalanobis" if relative else "mahalanobis"
        yield f"{name}, not shrunk", scores(mahalanobis, "reference", plain, new, relative=relative)
    shrunk = Fitted(reference, normal, code, label="class")
    yield "mahalanobis", scores(mahalanobis, "reference", shrunk, new)


def angle(normal: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The angle to the leading directions of normal rows, which asks no network."""
    basis = Fitted(pca, normal, components=min(normal.shape), center=False, engine="moments")
    none = {"{module}.weight": torch.zeros(1, normal.shape[1]), "{module}.bias": torch.zeros(1)}
    return scores(last_gradient, "basis", basis, new, weights=none, score="angle", energy=0.97)


def of_layer(normal: np.ndarray, new: np.ndarray, weights: Weights) -> Scored:
    """Of detectors that take the network's last layer too."""
    half = normal.shape[1] // 2
    fitted = Fitted(head_subspace, normal, weights=weights, components=half)
    for score in ("vim", "residual", "energy"):
        name = "energy" if score == "energy" else f"vim's {score}" if score == "residual" else "vim"
        yield name, scores(vim, "normal", fitted, new, score=score)
    basis = Fitted(pca, normal, components=normal.shape[1], center=False)
    for score in ("grad_norm", "grad_orth"):
        yield (
            score,
            scores(last_gradient, "basis", basis, new, weights=weights, score=score, energy=0.97),
        )
    frame = Fitted(standard_components, normal)
    yield "neco 9", scores(neco, "normal", frame, new, weights=weights, components=9)


def judged(strange: np.ndarray, found: Scored) -> dict[str, float]:
    """AUROC of each."""
    return {name: float(roc_auc_score(strange, score)) for name, score in found}


def table(data: Path) -> dict[str, float]:
    """Every detector of features on photographs."""
    given = photographs(data)
    return judged(given.strange, of_features(given.normal, given.code, given.new))


class Repetition(NamedTuple):
    """What one repetition found."""

    false: float
    """Share of normal rows among discoveries; 0 without any."""
    power: float
    """Share of strange rows that are discovered."""
    any_without: bool
    """Whether anything is discovered among normal rows alone."""
    held_out: float
    """Share of normal rows that are flagged."""
    of_the_fit: float
    """The same where the rows of the fit calibrate."""


def false(data: Path, repetitions: int) -> dict[str, dict[str, float]]:
    """Means over repetitions, with the spread of flags."""
    normal, other = (normal_photographs(data, name) for name in ("CIFAR10_0", "SVHN_0"))
    scorers: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "angle": angle,
        "residual": _residual,
    }
    found = {}
    for name, scorer in scorers.items():
        runs = [_repetition(normal, other, scorer, seed) for seed in range(repetitions)]
        columns = {
            field: np.array(values)
            for field, values in zip(Repetition._fields, zip(*runs, strict=True), strict=True)
        }
        found[name] = {field: float(values.mean()) for field, values in columns.items()}
        found[name] |= {
            "held_out, standard deviation": float(columns["held_out"].std(ddof=1)),
            "held_out, smallest": float(columns["held_out"].min()),
            "held_out, largest": float(columns["held_out"].max()),
        }
        print(name, found[name], flush=True)
    return found


def _residual(normal: np.ndarray, new: np.ndarray) -> np.ndarray:
    basis = Fitted(pca, normal, components=min(normal.shape), engine="moments")
    return scores(residual, "basis", basis, new, energy=0.9)


def _repetition(
    normal: np.ndarray, other: np.ndarray, scorer: Callable[[np.ndarray, np.ndarray], np.ndarray], seed: int
) -> Repetition:
    rng = np.random.default_rng(seed)
    order, strange = rng.permutation(len(normal)), rng.permutation(len(other))[:100]
    rows = [normal[order[a:b]] for a, b in ((0, 2500), (2500, 3500), (3500, 5000))]
    sizes = [2500, 1000, 1500, 100]
    score = scorer(rows[0], np.concatenate([*rows, other[strange]]))
    fit, held, left, odd = map(torch.from_numpy, np.split(score, np.cumsum(sizes)[:-1]))
    mixed = _discovered(torch.cat([left[:900], odd]), held)
    normal_found, found = int(mixed[:900].sum()), int(mixed.sum())
    return Repetition(
        normal_found / max(found, 1),
        float(mixed[900:].double().mean()),
        bool(_discovered(left[:1000], held).any()),
        float((conformal.p_values(left, held.sort().values) <= ALPHA).double().mean()),
        float((conformal.p_values(left, fit.sort().values) <= ALPHA).double().mean()),
    )


def _discovered(score: Tensor, calibration: Tensor) -> Tensor:
    """bool [row], by Benjamini-Hochberg, as `anomaly.calibrated` finds them."""
    n = len(calibration)
    p = conformal.p_values(score, calibration.sort().values)
    found = conformal.discoveries(conformal.values(n), conformal.counted(p, n), Q, "bh")
    return p <= found.threshold


def digits(data: Path) -> dict[str, Any]:
    """Mean AUROC over seeds, beside the network's accuracy."""
    image, kind = mnist(data)
    fashion, runs = sprites(data), []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(image))
        fit, test = order[:8000], order[8000:]
        net = trained(image[fit], kind[fit], seed)
        features = [net[:-1](x).detach().numpy() for x in (image[fit], image[test], fashion)]
        accuracy = float((net(image[test]).argmax(1) == kind[test]).double().mean())
        weights = {"{module}." + name: value.detach() for name, value in net[-1].named_parameters()}
        new, strange = np.concatenate(features[1:]), np.arange(len(test) + len(fashion)) >= len(test)
        code = kind[fit].numpy()
        found = judged(strange, of_features(features[0], code, new))
        runs.append(found | judged(strange, of_layer(features[0], new, weights)) | {"accuracy": accuracy})
        print(seed, runs[-1], flush=True)
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def trained(image: Tensor, kind: Tensor, seed: int) -> nn.Sequential:
    """Two convolutions, 128 features, ten classes; Adam, eight epochs."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for some in torch.randperm(len(image)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(net(image[some]), kind[some]).backward()
            optimiser.step()
    return net.eval()


def mnist(data: Path) -> tuple[Tensor, Tensor]:
    """float32 [10000, 1, 28, 28] between 0 and 1, and int64 classes: the digits of the test."""
    raw = []
    for name, head in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8)):
        with gzip.open(data / "mnist" / name) as file:
            raw.append(np.frombuffer(file.read()[head:], np.uint8))
    image = torch.from_numpy(raw[0].reshape(-1, 1, 28, 28).astype(np.float32) / 255)
    return image, torch.from_numpy(raw[1].astype(np.int64))


def sprites(data: Path) -> Tensor:
    """float32 [900, 1, 28, 28] between 0 and 1: images of clothes."""
    with Image.open(data / "fashion_mnist_sprite" / "fashion-mnist-sprite.png") as picture:
        grey = np.asarray(picture.convert("L"), np.float32)
    tiles = grey.reshape(30, 28, 30, 28).transpose(0, 2, 1, 3).reshape(-1, 1, 28, 28)
    return torch.from_numpy(tiles / 255)


def things(data: Path) -> dict[str, float]:
    """Mean AUROC over things and seeds."""
    runs = []
    for _, _, split in one_class(data):
        basis = Fitted(pca, split.normal, components=min(512, len(split.normal) - 1), engine="moments")
        found: dict[str, np.ndarray] = {
            f"residual {energy}": scores(residual, "basis", basis, split.new, energy=energy)
            for energy in (0.9, 0.95, 0.99)
        }
        found["mahalanobis, Ledoit-Wolf"] = scores(
            mahalanobis, "reference", Fitted(reference, split.normal), split.new
        )
        for unit in (False, True):
            kept = Fitted(normal_rows, split.normal, unit_length=unit)
            name = "nearest, unit length" if unit else "nearest"
            found[name] = scores(neighbours, "normal", kept, split.new, k=1)
        runs.append(judged(split.strange, iter(found.items())))
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


if __name__ == "__main__":
    main()
