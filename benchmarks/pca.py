"""How fast and how exact the moments and the PCA made of them are, beside scikit-learn and dask-ml.

    python -m benchmarks.pca [--pairs 7] [--threads 2] [--only roof,sklearn,dask]

roof     rate of the moments over that of a square matrix product, measured just before and after (d = 1024)
sklearn  100,000 x 512 float32 rows in memory, 32 components, alternating in one process
dask     the same rows from a file, alternating processes, with the peak memory of each

Errors are against LAPACK on the centred float64 rows: the largest relative error of 32 eigenvalues, and the
sine of the largest angle to their space. Ratios by CPU seconds stand beside those by the wall: with one
thread they hold on a busy machine too. Ours reads the file block by block, dask-ml through a memory map: its
205 MB count in the peak. Results go to benchmarks/results/pca.json.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import protocol
from benchmarks.protocol import ROOT, Run, Summary
from tasks.numerics import moments, spectrum

FOLDER = ROOT / ".bench" / "pca"
DATA = FOLDER / "rows.npy"
TRUTH = FOLDER / "truth.npz"
ROWS, WIDTH, KEPT, BLOCK = 100_000, 512, 32, 8192
CLOCKS: tuple[protocol.Clock, ...] = ("seconds", "cpu_seconds")
PEER = ("dask-ml==2025.1.0", "dask[array,dataframe]")


def main() -> None:
    """Run the asked parts in children with pinned threads, print a table, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="roof,sklearn,dask")
    parser.add_argument("--child", choices=["roof", "sklearn", "ours"])
    parser.add_argument("--precision", choices=["float64", "float32"], default="float64")
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(options.threads)
        run_child(options)
        return
    prepare()
    results = protocol.saved("pca")
    for part in options.only.split(","):
        found = dask(options) if part == "dask" else in_child(part, options)
        results[part] = results.get(part, {}) | found
        results[f"{part} environment"] = protocol.environment(options.threads)
        print(json.dumps({part: found}, indent=1), flush=True)
    print(table(results))
    print(f"saved {protocol.save('pca', results)}")


def run_child(options: argparse.Namespace) -> None:
    """What runs in a process of its own."""
    if options.child == "ours":
        protocol.report_child(lambda: listed(ours(read_blocks(), options.precision)))
        return
    part = roof if options.child == "roof" else partial(sklearn, precision=options.precision)
    protocol.report_child(lambda: part(options.pairs))


def in_child(part: str, options: argparse.Namespace) -> Any:
    """One part, in a child."""
    return protocol.in_child(child_arguments(part, options), options.threads)["value"]


def child_arguments(part: str, options: argparse.Namespace) -> list[str]:
    """The command of a child."""
    named = {"pairs": options.pairs, "threads": options.threads, "precision": options.precision}
    return ["-m", "benchmarks.pca", "--child", part, *(f"--{name}={value}" for name, value in named.items())]


def prepare() -> None:
    """Rows with spectrum j^-0.75 and a mean of 10 standard deviations, and LAPACK's answer; made once."""
    if TRUTH.exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    spread = np.arange(1, WIDTH + 1) ** -0.75
    x = (rng.standard_normal((ROWS, WIDTH)) * spread @ turn + 10).astype(np.float32)
    np.save(DATA, x)
    exact = x.astype(np.float64)
    exact -= exact.mean(0)
    _, singular, basis = np.linalg.svd(np.linalg.qr(exact, mode="r"))
    np.savez(TRUTH, values=singular[:KEPT] ** 2 / (ROWS - 1), basis=basis[:KEPT])


def read_blocks() -> Iterator[np.ndarray]:
    """The rows of the file, as a store would give them: each block in memory of its own."""
    start = np.load(DATA, mmap_mode="r").offset
    for first in range(0, ROWS, BLOCK):
        count = min(BLOCK, ROWS - first) * WIDTH
        yield np.fromfile(DATA, np.float32, count, offset=start + 4 * first * WIDTH).reshape(-1, WIDTH)


def ours(blocks: Iterable[np.ndarray], precision: moments.Precision) -> tuple[np.ndarray, np.ndarray]:
    """Moments block by block, merged in order, then the top of the spectrum."""
    state = moments.empty(WIDTH)
    for block in blocks:
        state = moments.merge(state, moments.partial(torch.from_numpy(block), None, precision))
    found = spectrum.resolve(state, precision)
    return found.values[:KEPT].numpy(), found.vectors[:KEPT].numpy()


def roof(n: int) -> dict[str, Any]:
    """Useful flops of the moments, n d (d + 1), per second over the rate of a square product, n times."""
    x = torch.randn(60_000, 1024, generator=torch.Generator().manual_seed(0))
    found = {}
    for precision in ("float64", "float32"):
        work = partial(moments.partial, x, None, precision)
        moments.partial(x[:BLOCK], None, precision)
        for clock in CLOCKS:
            shares = [
                share_of_peak(work, len(x) * 1024 * 1025, getattr(np, precision), clock) for _ in range(n)
            ]
            found[f"{precision}, {clock}"] = protocol.summary(shares)._asdict()
    return found


def share_of_peak(work: Callable[[], Any], flops: int, dtype: type, clock: protocol.Clock) -> float:
    """Rate of some work over the best rate of a product just before and after."""
    before = protocol.gemm_peak(dtype, clock=clock)
    seconds = getattr(protocol.timed(work), clock)
    return float(flops / seconds / max(before, protocol.gemm_peak(dtype, clock=clock)))


def sklearn(n: int, precision: moments.Precision) -> dict[str, Any]:
    """Ratios of time to IncrementalPCA and PCA; theirs over ours."""
    x = np.load(DATA)
    found = {}
    blocks = np.split(x, range(BLOCK, ROWS, BLOCK))
    for name, theirs in sklearn_peers().items():
        a, b = protocol.pairs(
            lambda: protocol.timed(lambda: ours(blocks, precision)),
            lambda make=theirs: protocol.timed(lambda: fitted(make(), x)),  # type: ignore[misc]
            n,
            warm=name != "IncrementalPCA",
        )
        found[f"{name} / ours {precision}"] = compared(a, b)
    return found


def sklearn_peers() -> dict[str, Callable[[], Any]]:
    """What a user would take."""
    from sklearn.decomposition import PCA, IncrementalPCA

    return {
        "IncrementalPCA": lambda: IncrementalPCA(n_components=KEPT),
        "PCA covariance_eigh": lambda: PCA(n_components=KEPT, svd_solver="covariance_eigh"),
        "PCA randomized": lambda: PCA(n_components=KEPT, svd_solver="randomized", random_state=0),
    }


def fitted(estimator: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit, and read eigenvalues and basis."""
    estimator.fit(x)
    return estimator.explained_variance_, estimator.components_


def dask(options: argparse.Namespace) -> dict[str, Any]:
    """Ours against dask-ml, each run in a fresh process that reads the file."""
    python = protocol.peer_python("dask-ml", PEER)
    theirs = ["-m", "benchmarks.dask_peer", str(DATA), f"--k={KEPT}", f"--workers={options.threads}"]
    a, b = protocol.pairs(
        lambda: protocol.child_run(child_arguments("ours", options), options.threads),
        lambda: protocol.child_run(theirs, 1, python),
        options.pairs,
    )
    memory = {
        f"{side}_{kind}": float(np.median([run.value[f"{kind}_bytes"] for run in runs])) / 1e6
        for side, runs in (("ours", a), ("theirs", b))
        for kind in ("base", "peak")
    }
    a, b = ([run._replace(value=tuple(run.value["value"].values())) for run in runs] for runs in (a, b))
    ours_above, theirs_above = (
        memory[f"{side}_peak"] - memory[f"{side}_base"] for side in ("ours", "theirs")
    )
    found = compared(a, b) | {"memory_mb": memory, "memory_ratio_above_imports": theirs_above / ours_above}
    return {f"dask-ml tsqr / ours {options.precision}": found}


def compared(a: list[Run], b: list[Run]) -> dict[str, Any]:
    """Time ratio, CPU seconds and errors of both."""
    return {
        "time_ratio": protocol.ratio(b, a)._asdict(),
        "cpu_ratio": protocol.ratio(b, a, "cpu_seconds")._asdict(),
        "ours_seconds": float(np.median([run.seconds for run in a])),
        "theirs_seconds": float(np.median([run.seconds for run in b])),
        "ours_cpu_seconds": float(np.median([run.cpu_seconds for run in a])),
        "theirs_cpu_seconds": float(np.median([run.cpu_seconds for run in b])),
        "ours_error": errors(*a[-1].value),
        "theirs_error": errors(*b[-1].value),
    }


def errors(values: Any, basis: Any) -> dict[str, float]:
    """Against LAPACK in float64."""
    truth = np.load(TRUTH)
    kept = np.linalg.qr(np.asarray(basis, dtype=np.float64).T)[0].T
    outside = truth["basis"] - truth["basis"] @ kept.T @ kept
    worst = np.abs(np.asarray(values, dtype=np.float64) / truth["values"] - 1).max()
    return {"eigenvalue": float(worst), "sine": float(np.linalg.norm(outside, 2))}


def listed(found: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """As JSON."""
    return {"values": found[0].tolist(), "basis": found[1].tolist()}


def table(results: dict[str, Any]) -> str:
    """Markdown rows."""
    heads = (
        "what",
        "ratio by the wall",
        "by CPU seconds",
        "our error (eigenvalue, sine)",
        "theirs",
        "peak MB",
    )
    lines = [row(*heads), row(*["---"] * len(heads))]
    for precision, found in results.get("roof", {}).items():
        lines.append(row(f"share of GEMM peak, {precision}", Summary(**found), "", "", "", ""))
    for part in ("sklearn", "dask"):
        for name, found in results.get(part, {}).items():
            ratios = [Summary(**found[kind]) for kind in ("time_ratio", "cpu_ratio")]
            off = [found[side] for side in ("ours_error", "theirs_error")]
            memory = found.get("memory_mb")
            peaks = f"{memory['ours_peak']:.0f} against {memory['theirs_peak']:.0f}" if memory else ""
            lines.append(row(name, *ratios, *(f"{e['eigenvalue']:.1e}, {e['sine']:.1e}" for e in off), peaks))
    return "\n".join(lines)


def row(*cells: object) -> str:
    """A line of the table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
