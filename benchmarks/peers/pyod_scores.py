"""PyOD: the distance to the k-th nearest of rows in memory, for others."""

from pathlib import Path

import numpy as np
from child import arguments, serve
from pyod.models.knn import KNN

options = arguments()


def task(out: str) -> None:
    """Fit on the rows of each split and score others; the scores are written."""
    Path(out).mkdir(parents=True)
    for path in options["splits"]:
        given = np.load(path)
        model = KNN(n_neighbors=options["k"], method="largest", n_jobs=1).fit(given["normal"])
        np.save(f"{out}/{Path(path).stem}.npy", model.decision_function(given["new"]))


def read(out: str, to: str, samples: int) -> None:
    """The scores of all splits, one after the other."""
    found = [np.load(f"{out}/{Path(path).stem}.npy") for path in options["splits"]]
    np.save(to, np.concatenate(found)[None])


serve(task, read)
