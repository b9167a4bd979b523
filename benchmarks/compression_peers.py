"""Codes, Tucker decompositions and sparse dictionaries beside other libraries: error at equal size, and seconds.

    python -m benchmarks.compression_peers [--only vectors,tucker,dictionary] [--pairs 7] [--tokens 60000]

vectors     `compression.codebook` and `compression.product_codes` beside faiss (PQ, OPQ) in 96 and 48 bytes a row: states of MiniLM after
            block 3, codebooks of other texts than those that are coded; error, ten nearest rows, seconds of training and encoding
tucker      `tasks.numerics.tucker` beside TensorLy: query weights of MiniLM as [layer, head, place, input] and a noisy tensor of low rank,
            all modes and the last two, at one core shape; relative error and seconds
dictionary  `tasks.numerics.sparse_dictionary` beside scikit-learn: pursuit with the same atoms, and dictionaries of a query layer in the
            metric of its inputs at as many atoms and entries; lost energy and seconds

One thread on each side, alternating runs; rows and tensors are in memory and codes are not written. Ratios are seconds of the peer over
ours. Results go to benchmarks/results/compression_peers.json.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.linear_model import orthogonal_mp_gram
from threadpoolctl import threadpool_limits
from torch import Tensor
from transformers import AutoModel

from benchmarks import store_codecs
from benchmarks.children import child, scratch_folder
from benchmarks.gradients import MINILM
from benchmarks.layer_compression import inputs_of
from benchmarks.protocol import ROOT, Run, environment, pairs, peer_python, ratio, save, saved, timed
from tasks.methods.compression import codebook, product_codes
from tasks.methods.contract import Block, Inputs, State
from tasks.numerics import moments, sparse_dictionary, spectrum, symmetric, tucker
from tasks.numerics.sparse_dictionary import Sizes
from tasks.numerics.tucker import Tucker

PARTS = ("vectors", "tucker", "dictionary")
PEERS = ROOT / "benchmarks" / "peers"
FOLDER = ROOT / ".bench" / "compression_peers"
"""Of captures, kept for other runs."""
BLOCK_ROWS = 8192
ROUNDS, PENALTIES = 30, (0.03, 0.1, 0.3)
FACTORIES = {"none": "PQ{0}x8", "principal": "OPQ{0},PQ{0}x8"}
"""Our rotation beside what faiss is asked for."""
TOLERANCES = {"theirs as they stop": None, "theirs until settled as ours": 1e-9}
SHAPES = {
    "query weights": (4, 8, 24, 192),
    "query weights, two modes": (6, 12, 24, 192),
    "low rank and noise": (10, 10, 10),
}


def main() -> None:
    """Measure the asked parts, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--tokens", type=int, default=60_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1), tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        parts: dict[str, Callable[[], Any]] = {
            "vectors": partial(vectors, Path(folder), options.tokens, options.pairs),
            "tucker": partial(tuckers, Path(folder), options.pairs),
            "dictionary": partial(dictionaries, options.pairs),
        }
        for name in options.only.split(","):
            found = parts[name]()
            packages = ("torch", "numpy", "scikit-learn", "scipy")
            made = {name: {"found": found, "environment": environment(1, packages)}}
            print(json.dumps(made, indent=1), flush=True)
            save("compression_peers", saved("compression_peers") | made)


def vectors(folder: Path, tokens: int, n: int) -> dict[str, Any]:
    """Each block, size and rotation."""
    stored, found = store_codecs.captured(FOLDER, tokens), {}
    for number in store_codecs.BLOCKS[:1]:
        site = f"encoder.layer.{number - 1}:out:0"
        rows = {name: stored.rows(getattr(stored, name), site) for name in ("basis", "coded")}
        rows = {name: values[np.isfinite(values).all(1)] for name, values in rows.items()}
        paths = {"given": str(folder / "given.npy"), "coded": str(folder / "coded.npy")}
        for path, values in zip(paths.values(), rows.values(), strict=True):
            np.save(path, values)
        for place in (4, 8):
            for rotation, factory in FACTORIES.items():
                size = store_codecs.WIDTH // place
                peer = {"factory": factory.format(size)} | paths
                config = codebook.Config(place=place, rotation=rotation)  # type: ignore[arg-type]
                name = f"after block {number}, {size} bytes, {rotation} beside {peer['factory']}"
                found[name] = _vectors(rows["basis"], rows["coded"], config, peer, n)
                print(name, found[name], flush=True)
    return found


def _vectors(
    given: np.ndarray, coded: np.ndarray, config: codebook.Config, peer: dict[str, str], n: int
) -> dict[str, Any]:
    """Training takes long and is paired once."""
    python, script = _python("faiss"), [str(PEERS / "faiss_codes.py")]
    books = _trained(given, config)
    with child(script, peer | {"does": "train", "threads": 1}, 1, python) as other:
        training = pairs(lambda: timed(lambda: _trained(given, config)), other.run, 1, warm=False)
    with child(script, peer | {"does": "encode", "threads": 1}, 1, python) as other:
        encoding = pairs(lambda: timed(lambda: _encoded(coded, books)), other.run, n)
        theirs = other.values(0)[0]
    ours = _decoded(coded, books)
    return {
        "ours": _kept(coded, ours),
        "theirs": _kept(coded, theirs),
        "training": _speed(*training),
        "encoding": _speed(*encoding),
        "encoded_rows_per_second": len(coded) / min(run.seconds for run in encoding[0]),
    }


def _kept(x: np.ndarray, again: np.ndarray) -> dict[str, float]:
    exact = x.astype(np.float64)
    error, energy = ((exact - again) ** 2).sum(), ((exact - exact.mean(0)) ** 2).sum()
    return {"nmse": float(error / energy), "recall": store_codecs.recall(x, again)}


def _speed(ours: list[Run], theirs: list[Run]) -> dict[str, Any]:
    seconds = {
        name: float(np.median([r.seconds for r in runs]))
        for name, runs in (("ours", ours), ("theirs", theirs))
    }
    return {"seconds": seconds, "theirs_over_ours": ratio(theirs, ours)._asdict()}


def _trained(x: np.ndarray, config: codebook.Config) -> Inputs:
    """Codebooks as the engine makes them, as what `product_codes` takes."""
    inputs = Inputs({"x": x.shape[1]}, len(x), len(x))
    carry: State = codebook.start(inputs, config)
    while True:
        blocks = _blocks(x)
        state = codebook.partial(next(blocks), carry, config)
        for block in blocks:
            state = codebook.merge(state, codebook.partial(block, carry, config))
        following = codebook.update(state, carry, inputs, config)
        if following is None:
            result, arrays = codebook.finish(state, carry, inputs, config)
            values = {name: array.values for name, array in arrays.items()}
            return Inputs(
                {"x": x.shape[1]},
                len(x),
                len(x),
                artifacts={"codebook": values},
                results={"codebook": result.model_dump()},
            )
        carry = following


def _encoded(x: np.ndarray, books: Inputs) -> list[dict[str, Tensor]]:
    carry, config = product_codes.start(books, product_codes.Config()), product_codes.Config()
    return [product_codes.apply(block, carry, config) for block in _blocks(x)]


def _decoded(x: np.ndarray, books: Inputs) -> np.ndarray:
    """From codes, in float64."""
    made = books.artifacts["codebook"]
    code = torch.cat([each["code"] for each in _encoded(x, books)]).long()
    centre = made["centre"].double()
    told = centre[torch.arange(len(centre)), code].flatten(1)[:, : x.shape[1]]
    turned = told @ made["rotation"].double() if len(made["rotation"]) else told
    rows: np.ndarray = (turned + made["mean"].double()).numpy()
    return rows


def _blocks(x: np.ndarray) -> Iterator[Block]:
    for first in range(0, len(x), BLOCK_ROWS):
        rows = torch.from_numpy(x[first : first + BLOCK_ROWS])
        index = torch.arange(first, first + len(rows))
        yield Block({"x": rows}, index, torch.zeros_like(index), index)


def tuckers(folder: Path, n: int) -> dict[str, Any]:
    """Each tensor at its core shape; ours both cut and refined."""
    python, found = _python("tensorly"), {}
    for name, tensor in _tensors().items():
        shape, path = SHAPES[name], str(folder / "tensor.npy")
        np.save(path, tensor.numpy())
        cut = timed(lambda t=tensor, s=shape: tucker.rotated(t).cut(s))
        found[name] = {
            "tensor": list(tensor.shape),
            "core": list(shape),
            "error": _off(tensor, _refined(tensor, shape)),
            "error_cut": _off(tensor, cut.value),
            "seconds_cut": cut.seconds,
        }
        for stops, tolerance in TOLERANCES.items():
            given = {"tensor": path, "shape": shape, "tolerance": tolerance, "threads": 1}
            with child([str(PEERS / "tensorly_tucker.py")], given, 1, python) as other:
                runs = pairs(
                    lambda t=tensor, s=shape: timed(lambda: _refined(t, s)), other.run, n, warm=False
                )
                found[name][stops] = {"error": float(other.values(0)[0])} | _speed(*runs)
        print(name, found[name], flush=True)
    return found


def _refined(tensor: Tensor, shape: tuple[int, ...]) -> Tucker:
    return tucker.refined(tensor, tucker.rotated(tensor).cut(shape)).tucker


def _off(tensor: Tensor, found: Tucker) -> float:
    return float((found.tensor() - tensor).norm() / tensor.norm())


def _tensors() -> dict[str, Tensor]:
    network = AutoModel.from_pretrained(_folder())
    weights = [layer.attention.self.query.weight.detach().double() for layer in network.encoder.layer]
    query = torch.stack(weights).unflatten(1, (12, 32))
    rng = torch.Generator().manual_seed(0)
    low = torch.randn(10, 10, 10, generator=rng, dtype=torch.float64)
    for mode in range(3):
        low = tucker.times(low, torch.randn(100, 10, generator=rng, dtype=torch.float64), mode)
    noisy = low + 0.5 * low.std() * torch.randn(low.shape, generator=rng, dtype=torch.float64)
    return dict(zip(SHAPES, (query, query, noisy), strict=True))


def dictionaries(n: int) -> dict[str, Any]:
    """Pursuit with given atoms, and whole dictionaries."""
    layer = inputs_of(16_000)["attention.self.query"]
    gram = symmetric.full(
        moments.move(moments.partial(layer.rows), torch.zeros(layer.rows.shape[1]).double())["g"]
    )
    axes = spectrum.eigen(gram)
    root = axes.vectors.T * axes.values.clamp(min=0).sqrt() @ axes.vectors
    a = root @ layer.weight.double().T
    a = a / a.square().sum(0).mean().sqrt()
    size = sparse_dictionary.sizes(*a.shape, 0.6)
    return {"pursuit": _pursuit(a, size, n), "dictionaries": _dictionaries(a, size)}


def _pursuit(a: Tensor, size: Sizes, n: int) -> dict[str, Any]:
    """Atoms at any angles: random ones of length 1."""
    atoms = torch.randn(
        a.shape[0], size.atoms, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    atoms = atoms / atoms.norm(dim=0)
    gram, along = atoms.T @ atoms, atoms.T @ a
    value, index = sparse_dictionary.pursuit(gram, along.T.contiguous(), size.entries)
    spread = value.new_zeros(len(value), size.atoms).scatter_(1, index, value)
    theirs = orthogonal_mp_gram(gram.numpy(), along.numpy(), n_nonzero_coefs=size.entries)
    runs = pairs(
        lambda: timed(lambda: sparse_dictionary.pursuit(gram, along.T.contiguous(), size.entries)),
        lambda: timed(lambda: orthogonal_mp_gram(gram.numpy(), along.numpy(), n_nonzero_coefs=size.entries)),
        n,
    )
    same = ((spread != 0).numpy() == (theirs.T != 0)).all(1).mean()
    return {
        "atoms": size.atoms,
        "entries": size.entries,
        "equal_supports": float(same),
        "largest_difference": float(np.abs(spread.numpy() - theirs.T).max()),
    } | _speed(*runs)


def _dictionaries(a: Tensor, size: Sizes) -> list[dict[str, Any]]:
    """Lost energy and seconds of each; the peer's last step is pursuit at as many entries."""
    found = []
    for name, make in (("orthogonal", sparse_dictionary.orthogonal), ("free", sparse_dictionary.free)):
        run = timed(lambda make=make: make(a, size, ROUNDS))
        found.append(
            {"whose": f"ours, {name}", "lost": _lost(a, run.value.product()), "seconds": run.seconds}
        )
    for penalty in PENALTIES:
        run = timed(lambda penalty=penalty: _minibatch(a.T.numpy(), size, penalty))
        lost = _lost(a, torch.from_numpy(run.value.T))
        found.append({"whose": f"scikit-learn, alpha {penalty:g}", "lost": lost, "seconds": run.seconds})
    return found


def _minibatch(x: np.ndarray, size: Sizes, penalty: float) -> np.ndarray:
    """What the dictionary stands for, [output, input]."""
    made = MiniBatchDictionaryLearning(
        size.atoms,
        alpha=penalty,
        max_iter=ROUNDS,
        transform_algorithm="omp",
        transform_n_nonzero_coefs=size.entries,
        random_state=0,
    )
    found: np.ndarray = made.fit_transform(x) @ made.components_
    return found


def _lost(a: Tensor, told: Tensor) -> float:
    return float((a - told).square().sum() / a.square().sum())


def _folder() -> str:
    """Where the network lies."""
    from importlib.resources import files

    package, _, name = MINILM.removeprefix("package:").partition("/")
    return str(files(package) / name)


def _python(peer: str) -> str:
    lines = (PEERS / f"{peer}.txt").read_text().splitlines()
    return peer_python(peer, [line for line in lines if not line.startswith("#")])


if __name__ == "__main__":
    main()
