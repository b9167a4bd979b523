"""New rows by a finished detector, outside a run: the method's own functions over rows that are given, in the place of a capture's.

A detector takes what its artifact names: options, and the artifacts that it reads; its captures need not be there any more, but for the
parameters of a network that some methods read. What calibrates it is read with the samples of its captures.
"""

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from schemas.artifact import Artifact
from schemas.base import Frozen
from schemas.errors import MethodError, UnknownNameError, nearest
from tasks.engine.blocks import to_tensor
from tasks.engine.parameters import load_parameters, wanted
from tasks.engine.prepare import StageJob, artifact_inputs, opened, prepare, single_artifacts
from tasks.engine.reduction import reads_values
from tasks.methods.anomaly_scores import SCORES
from tasks.methods.contract import Block, Inputs
from tasks.store.artifacts import read_artifact
from tasks.store.capture_spec import read_spec, refuse_code
from tasks.store.location import Location

CALIBRATED = "anomaly.calibrated"
PORT = "x"


def score_rows(
    root: Location,
    artifact: Artifact,
    rows: Any,
    classes: Sequence[str] | None = None,
    device: str = "cpu",
    trust_code: bool = False,
) -> xr.Dataset:
    """What a detector gives rows, and its calibration where the artifact is of one.

    Args:
        root: where artifacts lie.
        artifact: of a detector, or of `anomaly.calibrated`.
        rows: [row, feature], an array or tensor of any dtype.
        classes: the class of each row, for a calibration by classes.
        device: where it is computed; the result is on the CPU.
        trust_code: run functions that the store names, where the method reads parameters of a network that they make.

    Returns:
        The arrays of the method that have a row each, bit by bit as its stage gives them; of a calibration the detector's beside them.

    Raises:
        MethodError: for artifacts of other methods, rows of another width or that are not finite, and where the method refuses.
        UnknownNameError: for a class that has no calibration.
        SpecError: if code would run that is not trusted.

    Cost: that of the detector.
    """
    x = _tensor(rows, device)
    job = StageJob(root, artifact.stage, device, (), 0.0)
    if artifact.stage.method != CALIBRATED:
        return _dataset(*_detected(job, x, trust_code))
    detector = read_artifact(root, artifact.stage.artifacts["scores"].artifact)
    module, found = _detected(job._replace(stage=detector.stage), x, trust_code)
    made = _dataset(module, found)
    return made.merge(_dataset(*_calibrated(job, found["score"], classes)))


def _detected(job: StageJob, x: Tensor, trust_code: bool) -> tuple[ModuleType, dict[str, Tensor]]:
    """A detector and its outputs."""
    module, config = _opened(job)
    inputs = _inputs(job, module, config, x, trust_code)
    if hasattr(module, "check"):
        module.check(inputs, config)
    return module, _applied(module, config, inputs, {PORT: x}, job.device)


def _inputs(job: StageJob, module: ModuleType, config: Frozen, x: Tensor, trust_code: bool) -> Inputs:
    """As the detector's stage had them, over other rows."""
    made, refs = single_artifacts(job, module), job.stage.rows[PORT]
    width = _width(next(iter(made.values())))
    if x.shape[1] != width:
        raise MethodError(
            f"artifact {job.stage.id} is of rows of {width} features, found {x.shape[1]}: give rows of its site, {refs[0].site}"
        )
    names = wanted(module, config, refs[0].site)
    specs = [read_spec(job.root, ref.capture) for ref in refs] if names else []
    for spec in () if trust_code else specs:
        refuse_code(spec, "give trust_code=True")
    return replace(
        artifact_inputs(job, module, made),
        widths={PORT: width},
        n_rows=len(x),
        n_samples=len(x),
        weights=load_parameters(specs, names, job.device),
    )


def _applied(
    module: ModuleType, config: Frozen, inputs: Inputs, rows: dict[str, Tensor], device: str, **more: Any
) -> dict[str, Tensor]:
    """A method's outputs for a block of all rows."""
    carry = {name: tensor.to(device) for name, tensor in module.start(inputs, config).items()}
    index = torch.arange(len(rows[PORT]), device=device)
    found: dict[str, Tensor] = module.apply(
        Block(rows, index, torch.zeros_like(index), index, **more), carry, config
    )
    return found


def _opened(job: StageJob) -> tuple[ModuleType, Frozen]:
    method = job.stage.method
    if method not in SCORES:
        raise MethodError(
            f"artifacts of {method} give new rows no score; those of {', '.join(SCORES)} do, and of {CALIBRATED}"
        )
    module, config = opened(job)
    if not reads_values(module):
        raise MethodError(f"{method} takes what other stages gave rows, no rows: score rows by those stages")
    return module, config


def _width(made: Artifact) -> int:
    """Features of the rows that an artifact was made of."""
    return next(
        info.shape[info.dims.index("feature")] for info in made.arrays.values() if "feature" in info.dims
    )


def _calibrated(
    job: StageJob, score: Tensor, classes: Sequence[str] | None
) -> tuple[ModuleType, dict[str, Tensor]]:
    """p-values of scores."""
    ready = prepare(job)
    label, names, labels = job.stage.config["by_class"], ready.inputs.categories, {}
    if label is not None:
        labels = {str(label): _codes(names[str(label)], classes, len(score)).to(job.device)}
    none, aligned = score.new_empty(len(score), 0), {"scores": {"score": score}}
    found = _applied(
        ready.module, ready.config, ready.inputs, {PORT: none}, job.device, labels=labels, aligned=aligned
    )
    return ready.module, found


def _codes(names: tuple[str, ...], classes: Sequence[str] | None, n: int) -> Tensor:
    if classes is None or len(classes) != n:
        raise MethodError(
            f"the calibration has a threshold for each class, found {0 if classes is None else len(classes)} classes of {n} rows: give one "
            f"of each, of {', '.join(names)}"
        )
    for name in dict.fromkeys(classes):
        if name not in names:
            raise UnknownNameError(
                f"the calibration has no class {name!r}; expected one of {nearest(name, names)}"
            )
    return torch.tensor([names.index(name) for name in classes], dtype=torch.int64)


def _tensor(rows: Any, device: str) -> Tensor:
    given = rows.detach().to_dense() if isinstance(rows, Tensor) else None
    x = to_tensor(_native(np.asarray(rows)), device) if given is None else given.to(device)
    if x.is_complex():
        raise MethodError("found complex rows; expected real ones")
    if x.ndim != 2:
        raise MethodError(
            f"expected rows as [row, feature], found the shape {tuple(x.shape)}; write `rows[None]` for a single one"
        )
    return x if x.is_floating_point() else x.double()


def _native(rows: np.ndarray) -> np.ndarray:
    """In this machine's order of bytes, and at most float64."""
    if rows.dtype.kind not in "biufc":
        raise MethodError(f"found rows of dtype {rows.dtype}; expected numbers, as an array or tensor")
    if rows.dtype.kind == "f" and rows.dtype.itemsize > 8:
        return rows.astype(np.float64)
    return rows.astype(rows.dtype.newbyteorder("="), copy=False)


def _dataset(module: ModuleType, found: dict[str, Tensor]) -> xr.Dataset:
    return xr.Dataset({name: (module.ARRAYS[name], values.cpu().numpy()) for name, values in found.items()})
