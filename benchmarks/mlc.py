"""clustering.mlc beside k-means and subspaces, over seeds: digits of scikit-learn, and planted unions of subspaces.

    python -m benchmarks.mlc                     # the table of docs/mlc.md, some minutes on one core
    python -m benchmarks.mlc --only smoothing    # other smoothings on digits

No label is read but for the agreement that is printed.
"""

import argparse
from collections.abc import Callable
from functools import partial as bind
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor

from tasks.methods.clustering import k_subspaces, mlc
from tasks.methods.contract import Block, Inputs
from tasks.numerics.agreement import Agreement, agreement, counted

SEEDS = range(5)


class Data(NamedTuple):
    """Rows with their classes."""

    x: Tensor
    code: Tensor

    @property
    def classes(self) -> int:
        """How many."""
        return int(self.code.max()) + 1

    def block(self, rows: Tensor) -> Block:
        """Some rows, as a stage reads them."""
        return Block({"x": self.x[rows]}, rows, 0 * rows, rows, {"kind": self.code[rows]})

    def inputs(self) -> Inputs:
        """What a stage knows before it reads."""
        names = tuple(map(str, range(self.classes)))
        return Inputs(
            widths={"x": self.x.shape[1]},
            n_rows=len(self.x),
            n_samples=len(self.x),
            categories={"kind": names},
        )


def digits(seed: int) -> Data:
    """1,797 digits of 8 x 8 pixels."""
    x, code = load_digits(return_X_y=True)
    return Data(torch.from_numpy(x), torch.from_numpy(code))


def union(seed: int, one_sided: bool = False, k: int = 5, dimension: int = 3, width: int = 30) -> Data:
    """1,500 rows of length 1 in random subspaces, with noise of length 0.1; one-sided ones lie in a cone of each."""
    rng = torch.Generator().manual_seed(seed)
    code = torch.arange(1500) % k
    basis = torch.linalg.qr(torch.randn(k, width, dimension, generator=rng, dtype=torch.float64)).Q
    inside = torch.randn(1500, dimension, generator=rng, dtype=torch.float64)
    x = torch.einsum("nfd,nd->nf", basis[code], inside.abs() if one_sided else inside)
    noise = torch.randn(1500, width, generator=rng, dtype=torch.float64) / width**0.5
    return Data(x / x.norm(dim=1, keepdim=True) + 0.1 * noise, code)


def trained(data: Data, seed: int, **options: Any) -> mlc.Result:
    """The method with its rows shuffled in each pass."""
    config = mlc.Config(clusters=data.classes, label="kind", seed=seed, **options)
    state = mlc.start(data.inputs(), config)
    for number in range(mlc.passes(config)):
        state = mlc.begin_pass(state, number, config)
        order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(1000 * seed + number))
        for rows in torch.split(order, config.batch_rows):
            state = mlc.step(data.block(rows), state, config)
    return mlc.finish(state, {}, data.inputs(), config)[0]


def cosine_means(data: Data, seed: int) -> Agreement | None:
    """k-means of rows of length 1."""
    unit = torch.nn.functional.normalize(data.x).numpy()
    found = KMeans(data.classes, n_init=20, random_state=seed).fit_predict(unit).astype(np.int64)
    return agreement(counted(found, data.code.numpy(), data.classes, data.classes))


def subspaces(data: Data, seed: int, **options: Any) -> k_subspaces.Result:
    """clustering.k_subspaces."""
    config = k_subspaces.Config(clusters=data.classes, label="kind", seed=seed, **options)
    inputs, block = data.inputs(), data.block(torch.arange(len(data.x)))
    carry = k_subspaces.start(inputs, config)
    while True:
        state = k_subspaces.partial(block, carry, config)
        following = k_subspaces.update(state, carry, inputs, config)
        if following is None:
            return k_subspaces.finish(state, carry, inputs, config)[0]
        carry = following


def line(name: str, made: Callable[[int], Data], run: Callable[[Data, int], Any]) -> str:
    """Mean and standard deviation over seeds, of data too where they are drawn."""
    found = [run(made(seed), seed) for seed in SEEDS]
    cells = [name]
    for measure in ("accuracy", "normalised_mutual_information", "adjusted_rand"):
        values = np.array([getattr(each, measure) for each in found])
        cells.append(f"{values.mean():.3f} +- {values.std(ddof=1):.3f}")
    cells.append(
        ""
        if not hasattr(found[0], "effective_clusters")
        else f"{np.mean([f.effective_clusters for f in found]):.1f}"
    )
    return "| " + " | ".join(cells) + " |"


def peers() -> None:
    """The methods beside each other."""
    data: dict[str, tuple[Callable[[int], Data], int]] = {
        "digits": (digits, 10),
        "union of 5 subspaces": (union, 3),
        "union of 5 cones": (bind(union, one_sided=True), 3),
    }
    for name, (made, dimension) in data.items():
        runs: dict[str, Callable[[Data, int], Any]] = {
            "k-means, cosine": cosine_means,
            f"k_subspaces, linear, {dimension} dimensions": bind(
                subspaces, dimension=dimension, kind="linear"
            ),
            f"k_subspaces, affine, {dimension} dimensions": bind(subspaces, dimension=dimension),
            "mlc": trained,
            "mlc, hidden 256, rate 0.003": bind(trained, hidden=256, rate=0.003),
        }
        for what, run in runs.items():
            print(line(f"{name}: {what}", made, run), flush=True)


def smoothing() -> None:
    """Other smoothings on digits."""
    for price in (0.175, 0.225, 0.25):
        run = bind(trained, smoothing=price)
        print(line(f"digits: mlc, smoothing {price}", digits, run), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("peers", "smoothing"))
    only = parser.parse_args().only
    print("| what | accuracy | NMI | adjusted Rand | effective clusters |\n| --- | --- | --- | --- | --- |")
    if only != "smoothing":
        peers()
    if only != "peers":
        smoothing()


if __name__ == "__main__":
    main()
