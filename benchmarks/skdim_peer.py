"""The peer's side of benchmarks/dimension.py: scikit-dimension. Runs in its own environment, without torch."""

import argparse
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import report_child, timed


def measures(k: int) -> dict[str, Callable[[np.ndarray], float]]:
    """What a user would call, each with its own search for neighbours."""
    id_ = importlib.import_module("skdim.id")
    return {
        "MLE": lambda x: id_.MLE().fit(x, n_neighbors=k, comb="mle").dimension_,
        "MLE mean": lambda x: id_.MLE().fit(x, n_neighbors=k, comb="mean").dimension_,
        "TwoNN": lambda x: id_.TwoNN().fit(x).dimension_,
        "TwoNN censored": lambda x: id_.TwoNN(method="mle").fit(x).dimension_,
        "GRIDE": lambda x: id_.GRIDE().fit(x).dimension_,
        "MOM": lambda x: id_.MOM().fit(x, n_neighbors=k).dimension_,
    }


def run(path: Path, k: int) -> dict[str, Any]:
    """Time and value of each."""
    x, found = np.load(path), {}
    warnings.simplefilter("ignore")
    for name, measure in measures(k).items():
        here = timed(lambda measure=measure: float(measure(x)))  # type: ignore[misc]
        found[name] = here._asdict()
    return found


def main() -> None:
    """Import first, so that only the measures are timed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--k", type=int, required=True)
    options = parser.parse_args()
    importlib.import_module("skdim.id")
    report_child(lambda: run(options.path, options.k))


if __name__ == "__main__":
    main()
