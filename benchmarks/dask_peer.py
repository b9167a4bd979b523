"""The peer's side of benchmarks/pca.py: dask-ml's tsqr PCA. Runs in its own environment, without torch."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import report_child


def fit(path: Path, k: int, workers: int) -> dict[str, Any]:
    """Fit from a memory map in chunks of 10,000 rows, and return eigenvalues and basis as lists."""
    import dask
    import dask.array as da

    PCA = importlib.import_module("dask_ml.decomposition").PCA
    x = da.from_array(np.load(path, mmap_mode="r"), chunks=(10_000, -1))
    with dask.config.set(scheduler="threads", num_workers=workers):
        fitted = PCA(n_components=k, svd_solver="tsqr").fit(x)
    return {"values": fitted.explained_variance_.tolist(), "basis": fitted.components_.tolist()}


def main() -> None:
    """Import first, so that only the fit is timed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    importlib.import_module("dask_ml.decomposition")

    report_child(lambda: fit(options.path, options.k, options.workers))


if __name__ == "__main__":
    main()
