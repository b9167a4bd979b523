"""pytorch-ood: detectors fitted on rows in memory and asked of others, in the dtype of the rows."""

import importlib
from pathlib import Path

import numpy as np
import torch
from child import arguments, serve

options = arguments()
torch.set_num_threads(options["threads"])
MISSING = dict.fromkeys(("nms", "qnms"), "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""Operators that torchvision names when it is imported beside a torch without CUDA, for which its own are not built; nothing calls them."""
library = torch.library.Library("torchvision", "DEF")
for name, shape in MISSING.items():
    library.define(f"{name}{shape}")
detectors = importlib.import_module("pytorch_ood.detector")

given = np.load(options["rows"])
torch.set_default_dtype(getattr(torch, options["dtype"]))
normal, new, weight, bias = (torch.from_numpy(given[k]).to(torch.get_default_dtype()) for k in
                             ("normal", "new", "weight", "bias"))  # fmt: skip
code = torch.from_numpy(given["code"])
MAKERS = {
    "neighbours": lambda: detectors.KNN(None, k=options["k"]),
    "mahalanobis": lambda: detectors.Mahalanobis(None),
    "relative": lambda: detectors.RMD(None),
    "vim": lambda: detectors.ViM(None, options["components"], weight, bias),
}


def scores() -> "np.ndarray":
    """Of the new rows."""
    fitted = MAKERS[options["detector"]]().fit_features(normal, code)
    return fitted.predict_features(new).double().numpy()


def task(out: str) -> None:
    """Fit and score; the scores are written."""
    Path(out).mkdir(parents=True)
    np.save(f"{out}/scores.npy", scores())


def read(out: str, to: str, samples: int) -> None:
    """The scores."""
    np.save(to, np.load(f"{out}/scores.npy")[None])


serve(task, read)
