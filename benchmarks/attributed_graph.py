"""clustering.attributed_graph on citation graphs, over seeds, beside the rows alone and k-means of tf-idf.

    python -m benchmarks.attributed_graph --data <folder>

The folder holds `s2cag_graphs/citeseer.mat` (W, fea, gnd) and `planetoid/cora.npz` (data, indices, indptr, shape, edges, labels); a set
that is not there is left out. The defaults are the method's own, the same for both sets; `published` are the options that its authors ran
CiteSeer with. No label is read but for the agreement that is printed.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from tasks.methods.clustering import attributed_graph
from tasks.methods.contract import Block, Edges, Inputs
from tasks.numerics.agreement import Agreement, agreement, counted
from tasks.numerics.attributed_graphs import tf_idf

SEEDS = range(5)
PUBLISHED: dict[str, dict[str, Any]] = {
    "conductance": {"power": 0.8, "hops": 60},
    "modularity": {"power": 0.8, "hops": 40, "resolution": 0.9},
}


class Data(NamedTuple):
    """Rows with edges and classes."""

    x: np.ndarray
    ends: np.ndarray
    kind: np.ndarray

    @property
    def classes(self) -> int:
        """How many."""
        return int(self.kind.max()) + 1

    def renumbered(self, seed: int) -> tuple["Data", np.ndarray]:
        """The same in another order, and the new number of each row."""
        new = np.random.default_rng(seed).permutation(len(self.x))
        old = np.argsort(new)
        return Data(self.x[old], np.sort(new[self.ends], axis=1), self.kind[old]), new


class Line(NamedTuple):
    """What is printed of one run."""

    accuracy: float
    information: float
    seconds: float


def citeseer(folder: Path) -> Data:
    """3,327 papers, 4,552 citations, 3,703 words, 6 fields."""
    made = scipy.io.loadmat(folder / "s2cag_graphs" / "citeseer.mat")
    ends = np.argwhere(np.triu(made["W"], 1)).astype(np.int64)
    return Data(made["fea"].astype(np.float64), ends, made["gnd"].ravel().astype(np.int64) - 1)


def cora(folder: Path) -> Data:
    """2,708 papers, 5,278 citations, 1,433 words, 7 fields."""
    made = np.load(folder / "planetoid" / "cora.npz")
    x = sparse.csr_array((made["data"], made["indices"], made["indptr"]), shape=tuple(made["shape"]))
    return Data(
        x.toarray().astype(np.float64), made["edges"].astype(np.int64), made["labels"].astype(np.int64)
    )


SETS: dict[str, tuple[str, Callable[[Path], Data]]] = {
    "citeseer": ("s2cag_graphs/citeseer.mat", citeseer),
    "cora": ("planetoid/cora.npz", cora),
}


def solved(data: Data, seed: int, **options: Any) -> tuple[attributed_graph.Result, np.ndarray, float]:
    """The result, the clusters, and seconds."""
    n, names = len(data.x), tuple(map(str, range(data.classes)))
    edges = Edges(torch.from_numpy(data.ends), torch.ones(len(data.ends), dtype=torch.float64))
    inputs = Inputs({"x": data.x.shape[1]}, n, n, {"kind": names}, graphs={"graph": edges})
    index = torch.arange(n)
    block = Block(
        {"x": torch.from_numpy(data.x)}, index, 0 * index, index, {"kind": torch.from_numpy(data.kind)}
    )
    config = attributed_graph.Config(
        **{"clusters": data.classes, "label": "kind", "tf_idf": True, "seed": seed, **options}
    )
    begun = time.perf_counter()
    result, arrays = attributed_graph.solve(block, inputs, config)
    return result, arrays["cluster"].values.numpy(), time.perf_counter() - begun


def of_graph(found: attributed_graph.Quality, seconds: float) -> Line:
    """The figures of some clusters."""
    return Line(found.accuracy or 0.0, found.normalised_mutual_information or 0.0, seconds)


def of_words(data: Data, seed: int) -> Line:
    """k-means of tf-idf, rows of length 1."""
    begun = time.perf_counter()
    weighted = tf_idf(data.x)
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-300)
    found = KMeans(data.classes, n_init=10, random_state=seed).fit_predict(unit).astype(np.int64)
    told = agreement(counted(found, data.kind, data.classes, data.classes)) or Agreement(0, 0, 0, 0)
    return Line(told.accuracy, told.normalised_mutual_information, time.perf_counter() - begun)


def lines(data: Data) -> Iterator[tuple[str, list[Line]]]:
    """What is compared, a line for each seed."""
    yield "k-means, tf-idf", [of_words(data, seed) for seed in SEEDS]
    for objective in ("conductance", "modularity"):
        made = [solved(data, seed, objective=objective) for seed in SEEDS]
        yield f"{objective}, rows alone", [of_graph(result.alone, 0.0) for result, _, _ in made]
        yield objective, [of_graph(result, seconds) for result, _, seconds in made]
        published = [solved(data, seed, objective=objective, **PUBLISHED[objective]) for seed in SEEDS]
        yield f"{objective}, published", [of_graph(result, seconds) for result, _, seconds in published]


def text(name: str, found: list[Line]) -> str:
    """A line of the table: means and standard deviations over seeds, in percent; the longest time."""
    accuracy, information, seconds = np.array(found).T
    cells = [f"{100 * v.mean():.1f} +- {100 * v.std(ddof=1):.1f}" for v in (accuracy, information)]
    return f"| {name} | {' | '.join(cells)} | {seconds.max():.1f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data
    print("| what | accuracy | NMI | seconds |\n| --- | --- | --- | --- |")
    for name, (file, load) in SETS.items():
        if not (folder / file).is_file():
            print(f"{name}: no {file} below {folder}, left out")
            continue
        data = load(folder)
        for what, found in lines(data):
            print(text(f"{name}: {what}", found), flush=True)
        for objective in ("conductance", "modularity"):
            other, new = data.renumbered(1)
            one, two = (solved(each, 0, objective=objective)[1] for each in (data, other))
            print(f"{name}: {objective}, nodes renumbered: ARI {adjusted_rand_score(one, two[new]):.6f}")


if __name__ == "__main__":
    main()
