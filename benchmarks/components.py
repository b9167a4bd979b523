"""How exact and how frugal the engines of principal components are, beside scikit-learn in the same process.

    python -m benchmarks.components [--only accuracy,tail,stream,memory]

accuracy  20,000 x 256 rows, 20 components, mean over standard deviation 0, 1e3, 1e5, float32 and float64: largest relative error of an
          eigenvalue and sine of the largest angle, against LAPACK on the float64 rows
tail      singular values over twelve orders of magnitude
stream    2,000 x 20,000 rows with spectrum j^-0.5, 20 components: a truncated stream of rank 20, 40 and 80, with and without a further
          pass, in random and sorted order, and its bound; seconds and the GEMM share
memory    peak of a process over n and 10 n rows of width 1,024

Results go to benchmarks/results/components.json.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from functools import partial as bind
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import protocol
from tasks.extract.allocator import keep_memory
from tasks.methods.contract import Block, Inputs
from tasks.methods.spectrum import pca

ROWS, WIDTH, KEPT = 20_000, 256, 20
WIDE_ROWS, WIDE = 2_000, 20_000
MEMORY_WIDTH, MEMORY_ROWS, BLOCK = 1024, 40_000, 8192


def main() -> None:
    """Run the asked parts; print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="accuracy,tail,stream,memory")
    parser.add_argument(
        "--pairs", type=int, help="taken from `python -m benchmarks`; there are no pairs here"
    )
    parser.add_argument("--child", type=int)
    options = parser.parse_args()
    if options.child:
        protocol.report_child(bind(streamed_rows, options.child))
        return
    made = {"accuracy": accuracy, "tail": tail, "stream": stream, "memory": memory}
    found = protocol.saved("components")
    for part in options.only.split(","):
        found[part] = made[part]()
        print(json.dumps({part: found[part]}, indent=1), flush=True)
    found["environment"] = protocol.environment(torch.get_num_threads())
    print(f"saved {protocol.save('components', found)}")


def solved(x: Tensor, block: int = BLOCK, **options: Any) -> tuple[pca.Result, dict[str, Tensor]]:
    """The method, block by block and round by round, as the engine runs it."""
    config = pca.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    carry = pca.start(inputs, config)
    while True:
        state = None
        for low in range(0, len(x), block):
            index = torch.arange(low, min(low + block, len(x)))
            part = pca.partial(Block({"x": x[low : low + block]}, index, index * 0, index), carry, config)
            state = part if state is None else pca.merge(state, part)
        assert state is not None
        following = pca.update(state, carry, inputs, config)
        if following is None:
            result, arrays = pca.finish(state, carry, inputs, config)
            return result, {name: array.values for name, array in arrays.items()}
        carry = following


def lapack(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and top directions of the centred float64 rows, which square nothing."""
    exact = x.double() - x.double().mean(0)
    rows = torch.linalg.qr(exact, mode="r").R if len(exact) > exact.shape[1] else exact
    _, singular, vectors = torch.linalg.svd(rows, full_matrices=False)
    return singular.square() / (len(x) - 1), vectors[:k]


def sine(basis: Any, vectors: Tensor) -> float:
    """Of the largest angle."""
    found = torch.linalg.qr(torch.as_tensor(np.array(basis)).double().T).Q.T
    return float(torch.linalg.matrix_norm(vectors - (vectors @ found.T) @ found, 2))


def accuracy() -> list[dict[str, Any]]:
    """The grid."""
    return [
        of_cell(decay, offset, dtype)
        for decay in (0.97, 0.8)
        for offset in (0.0, 1e3, 1e5)
        for dtype in (torch.float32, torch.float64)
    ]


def of_cell(decay: float, offset: float, dtype: torch.dtype) -> dict[str, Any]:
    """Ours by two precisions, and three solvers of scikit-learn."""
    from sklearn.decomposition import PCA, IncrementalPCA

    g = torch.Generator().manual_seed(7)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=g, dtype=torch.float64)).Q
    scale = decay ** torch.arange(WIDTH, dtype=torch.float64)
    x = ((torch.randn(ROWS, WIDTH, generator=g, dtype=torch.float64) * scale) @ turn + offset).to(dtype)
    values, vectors = lapack(x, KEPT)
    found: dict[str, Any] = {"decay": decay, "offset": offset, "dtype": str(dtype).removeprefix("torch.")}
    for precision in ("float64", "float32"):
        _, arrays = solved(x, precision=precision, components=KEPT)
        found[f"ours {precision}"] = off(arrays["eigenvalue"][:KEPT], arrays["components"], values, vectors)
    peers = {
        "PCA full": PCA(KEPT, svd_solver="full"),
        "PCA covariance_eigh": PCA(KEPT, svd_solver="covariance_eigh"),
        "PCA randomized": PCA(KEPT, svd_solver="randomized", random_state=0),
        "IncrementalPCA": IncrementalPCA(KEPT),
    }
    for name, peer in peers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.fit(x.numpy())
        found[name] = off(torch.from_numpy(peer.explained_variance_), peer.components_, values, vectors)
    return found


def off(got: Tensor, basis: Any, values: Tensor, vectors: Tensor) -> dict[str, float]:
    """Errors against LAPACK."""
    worst = float((got.double() / values[: len(got)] - 1).abs().max())
    return {"eigenvalue": worst, "sine": sine(basis, vectors)}


def tail() -> dict[str, float]:
    """A condition of 1e12."""
    g = torch.Generator().manual_seed(0)
    left = torch.randn(8000, 200, generator=g, dtype=torch.float64)
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(torch.randn(200, 200, generator=g, dtype=torch.float64)).Q
    singular = torch.logspace(0, -12, 200, dtype=torch.float64)
    x = (left * singular) @ right.T
    found = {}
    for engine in ("qr", "moments"):
        result, arrays = solved(x, engine=engine)
        got = (arrays["eigenvalue"] * (len(x) - 1)).sqrt()
        shown = ~got.isnan()
        found[f"{engine} shown"] = int(shown.sum())
        found[f"{engine} smallest shown"] = float(got[shown].min())
        found[f"{engine} worst relative error shown"] = float((got / singular - 1).abs()[shown].max())
        assert result.resolved == int(shown.sum())
    return found


def stream() -> list[dict[str, Any]]:
    """The truncated stream beside scikit-learn's, which keeps as many as it reports."""
    from sklearn.decomposition import IncrementalPCA

    g = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, WIDE_ROWS, generator=g, dtype=torch.float64)).Q
        for n in (WIDE_ROWS, WIDE)
    )
    x = 100 * (left * torch.arange(1, WIDE_ROWS + 1).double() ** -0.5) @ right.T
    values, vectors = lapack(x, KEPT)
    best = float(values[KEPT:].sum())
    found = []
    for order in ("random", "sorted"):
        rows = x[x.norm(dim=1).argsort(descending=True)] if order == "sorted" else x
        for rank in (KEPT, 2 * KEPT, 4 * KEPT):
            for refine in (0, 1):
                run = protocol.timed(
                    bind(solved, rows, 1000, engine="streaming", components=KEPT, rank=rank, refine=refine)
                )
                result, arrays = run.value
                found.append(
                    {
                        "order": order,
                        "method": f"streaming rank {rank}, further passes {refine}",
                        "seconds": run.seconds,
                    }
                    | subspace_errors(x, arrays["components"], vectors, best)
                    | {
                        "missed": result.missed,
                        "angle_bound": result.angle_bound,
                        "angle_estimate": result.angle_estimate,
                    }
                )
        run = protocol.timed(lambda rows=rows: IncrementalPCA(KEPT, batch_size=200).fit(rows.numpy()))  # type: ignore[misc]
        found.append(
            {"order": order, "method": "sklearn IncrementalPCA", "seconds": run.seconds}
            | subspace_errors(x, run.value.components_, vectors, best)
        )
    return found


def subspace_errors(x: Tensor, basis: Any, vectors: Tensor, best: float) -> dict[str, float]:
    """Sine of the largest angle, and the variance outside beyond the least."""
    kept = torch.linalg.qr(torch.as_tensor(np.array(basis)).double().T).Q.T
    z = x - x.mean(0)
    outside = float((z.square().sum() - (z @ kept.T).square().sum()) / (len(x) - 1))
    return {"sine": sine(basis, vectors), "excess": outside / best - 1}


def memory() -> dict[str, float]:
    """Peaks of processes of their own, medians of three; the largest of all beside them, as what lies free between blocks differs."""
    found, largest = {}, 0.0
    for factor in (1, 10, 40):
        peaks = [peak(factor * MEMORY_ROWS) for _ in range(3)]
        found[f"{factor} n, MB above the start"] = float(np.median(peaks))
        largest = max(largest, *peaks)
    for more, less in ((10, 1), (40, 10)):
        ratio = found[f"{more} n, MB above the start"] / found[f"{less} n, MB above the start"]
        found[f"{more} n over {less} n"] = ratio
    allowed = (2 * 8 * MEMORY_WIDTH**2 + 3 * 4 * BLOCK * MEMORY_WIDTH + 64e6) / 1e6
    return found | {"largest MB": largest, "allowed MB": allowed}


def peak(rows: int) -> float:
    """MB above the start."""
    child = protocol.in_child(["-m", "benchmarks.components", "--child", str(rows)], 2)
    return float(child["peak_bytes"] - child["base_bytes"]) / 1e6


def blocks(n: int) -> Iterator[Tensor]:
    """Rows as a store gives them, each block in memory of its own."""
    for low in range(0, n, BLOCK):
        g = torch.Generator().manual_seed(low)
        yield torch.randn(min(BLOCK, n - low), MEMORY_WIDTH, generator=g)


def streamed_rows(n: int) -> float:
    """The components of rows that never lie in memory together, in a process that keeps its memory as workers do."""
    keep_memory()
    config = pca.Config(components=32)
    inputs = Inputs(widths={"x": MEMORY_WIDTH}, n_rows=n, n_samples=n)
    carry, state = pca.start(inputs, config), None
    for x in blocks(n):
        index = torch.arange(len(x))
        part = pca.partial(Block({"x": x}, index, index, index), carry, config)
        state = part if state is None else pca.merge(state, part)
    assert state is not None
    return pca.finish(state, carry, inputs, config)[0].trace


if __name__ == "__main__":
    main()
