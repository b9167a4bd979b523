"""Writes weights, updates and gradients of a training down while it goes on, step by step; a capture of them is made like any other.

A step is one file, written under a temporary name and renamed, so that whatever dies loses at most the step that was being written.
The training is not changed by a bit.
"""

import io
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from schemas.base import canonical_json
from schemas.errors import ModelError, SpecError, UnknownNameError, nearest
from schemas.gradients import Exact, Keep, Norms
from schemas.layout import Quantity, Site
from schemas.run import Name
from tasks.extract.gradients.keepers import make_keeper
from tasks.extract.gradients.plan import Plan
from tasks.extract.gradients.projections import outputs
from tasks.extract.gradients.terms import Values
from tasks.extract.sites import glob
from tasks.extract.sources.base import check_label_name
from tasks.extract.sources.steps import LABEL
from tasks.store.location import Location

Recorded = Literal["weight", "update", "gradient"]
QUANTITY: dict[Recorded, Quantity] = {
    "weight": "weight",
    "update": "update",
    "gradient": "parameter_gradient",
}
FOLDER = "recordings"
SAME = 1e-2
"""A step that is made again lies this close, relative to its length: devices round differently each time."""


class Recorder:
    """Records steps of a training.

        with subspan.Recorder("subspan-out", "my-run", model, parameters=["head.*"], quantities=("weight", "gradient")) as recorder:
            for step, batch in enumerate(loader):
                loss(batch).backward()
                recorder.before_step()       # gradients, and weights before the update
                optimizer.step()
                recorder.record(step, loss=...)
                optimizer.zero_grad()

    A run file then captures it with `model: {kind: recorded}` and `data: {source: {kind: recording, path: subspan-out/recordings/my-run}}`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        model: nn.Module,
        parameters: Sequence[str] = ("**",),
        quantities: Sequence[Recorded] = ("weight",),
        keep: Keep | None = None,
        every: int = 1,
        seed: int = 0,
    ) -> None:
        """Begin, or go on with a recording of that name.

        Args:
            root: a local folder or any fsspec URL, as in run files.
            name: of the recording.
            model: whose parameters are trained.
            parameters: globs over their names.
            quantities: `weight` after the step; `update`, what the step changed; `gradient`, what `.grad` held before it.
            keep: the form, as for gradients of captures; None: every entry.
            every: record only steps that are multiples of this.
            seed: of random maps.

        Raises:
            UnknownNameError: if a glob matches no parameter.
            SpecError: if the form or the name does not fit, every is below 1, or there are no parameters.
        """
        if every < 1 or not quantities or set(quantities) - QUANTITY.keys():
            raise SpecError(
                f"found every={every}, quantities={quantities}; expected at least 1, and some of {', '.join(QUANTITY)}"
            )
        if isinstance(keep, Norms):
            raise SpecError(
                "a recording keeps no norms alone; choose another form, whose norms a capture computes"
            )
        try:
            TypeAdapter(Name).validate_python(name)
        except ValidationError as error:
            raise SpecError(
                f"a recording is called {name!r}; expected up to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
            ) from error
        self._place = Location(os.fspath(root)).child(FOLDER, name)
        self._model = model
        self._names = tuple(_chosen(model, parameters))
        self._quantities, self._every = tuple(quantities), every
        shapes = {name: tuple(p.shape) for name, p in self._parameters.items()}
        self._expected = shapes
        self._shapes = {name: output.shape for name, output in outputs(shapes, keep or Exact()).items()}
        self._plan = Plan(shapes, keep or Exact(), seed, torch.device("cpu"), torch.float32)
        self._before: dict[str, Tensor] | None = None
        self._gradients: dict[str, np.ndarray] | None = None
        about = {
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            "quantities": list(self._quantities),
            "keep": (keep or Exact()).model_dump(mode="json"),
            "seed": seed,
        }
        self._last = _last_step(self._place)
        self._compared = self._last is None
        _same_as_before(self._place, about)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._before = self._gradients = None

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        """As the model holds them now.

        Raises:
            ModelError: if one is gone, or has another shape than when the recording began.
        """
        there = dict(self._model.named_parameters())
        for name, shape in getattr(self, "_expected", {}).items():
            if name not in there or tuple(there[name].shape) != shape:
                raise ModelError(
                    f"the model's parameter {name} is gone or has another shape than {shape}; begin another recording"
                )
        return {name: there[name] for name in self._names}

    @property
    def url(self) -> str:
        """Where the recording lies: the `path` of a `recording` source."""
        return self._place.url

    @property
    def last_step(self) -> int | None:
        """The last step that is written; steps up to it are not written again."""
        return self._last

    def before_step(self) -> None:
        """To be called between backward and the optimiser's step: keeps gradients, and weights for the update."""
        if "gradient" in self._quantities:
            self._gradients = self._kept(
                {
                    name: torch.zeros_like(p) if p.grad is None else p.grad
                    for name, p in self._parameters.items()
                },
                "gradient",
            )
        if "update" in self._quantities:
            self._before = {name: p.detach().to("cpu", copy=True) for name, p in self._parameters.items()}

    def record(self, step: int, **labels: float) -> None:
        """Write a step, after the optimiser's; one that is written already, or no multiple of `every`, is passed over.

        Args:
            step: its number.
            labels: numbers that go with it, such as the loss.

        Raises:
            ModelError: if gradients or updates are wanted and `before_step` was not called.
            SpecError: if the step is no whole number from 0 on, a label no single number, or the first step that is written already is
                that of another training.
            DataError: if a label's name cannot be one on disk.
            StoreError: if the storage refuses.
        """
        if not isinstance(step, int | np.integer) or step < 0:
            raise SpecError(f"step {step!r}: expected a whole number, 0 or more")
        if step % self._every or (self._last is not None and step <= self._last):
            if step % self._every == 0 and not self._compared:
                self._refuse_another(step)
            self._before = self._gradients = None
            return
        for label in labels:
            check_label_name(label)
        arrays = {
            f"{LABEL}{name}": np.asarray(_number(name, value))
            for name, value in {"step": step, **labels}.items()
        }
        for quantity in self._quantities:
            arrays |= self._values(quantity)
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, **arrays)
        self._place.write(f"step-{step:012d}.npz", data.getvalue())
        self._last, self._before, self._gradients = step, None, None

    def _refuse_another(self, step: int) -> None:
        """See that the first step that is there already is that of this training.

        Raises:
            SpecError: if its values are others than rounding explains.
        """
        self._compared = True
        path = f"step-{step:012d}.npz"
        if path not in self._place.ls():
            return
        with np.load(io.BytesIO(self._place.read(path)), allow_pickle=False) as there:
            for quantity in self._quantities:
                for name, values in self._values(quantity).items():
                    far = float(np.linalg.norm(values - there[name])) / (
                        float(np.linalg.norm(there[name])) or 1.0
                    )
                    if not far <= SAME:
                        raise SpecError(
                            f"step {step} lies in {self._place.url} with another {name} ({far:.1g} of its length apart): it is of another "
                            "training; choose another name, delete that folder, or go on from a checkpoint of that training"
                        )

    def _values(self, quantity: Recorded) -> dict[str, np.ndarray]:
        weights = {name: p.detach() for name, p in self._parameters.items()}
        if quantity == "weight":
            return self._kept(weights, quantity)
        if (self._gradients if quantity == "gradient" else self._before) is None:
            raise ModelError(
                f"a {quantity} is to be recorded: call before_step() between backward and the optimiser's step"
            )
        if quantity == "gradient":
            return self._gradients or {}
        before = self._before or {}
        # Where weights are of half precision, their difference is not one.
        return self._kept(
            {name: _wide(w.cpu()) - _wide(before[name]) for name, w in weights.items()}, quantity
        )

    def _kept(self, tensors: dict[str, Tensor], quantity: Recorded) -> dict[str, np.ndarray]:
        """Site to array, in the form that is kept."""
        keeper = make_keeper(self._plan, 1)
        for name, tensor in tensors.items():
            dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
            keeper.add(name, Values(dense.to("cpu", torch.float32, copy=True)[None]))
        return {
            str(Site(module=name, quantity=QUANTITY[quantity])): values[0]
            .reshape(self._shapes[name] or (-1,))
            .numpy()
            for name, values in keeper.finish().items()
        }


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _number(name: str, value: Any) -> float:
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(
            f"label {name!r} is {str(value)[:60]!r}; a label of a step is one number, such as loss.item()"
        ) from error


def _chosen(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    there = dict(model.named_parameters())
    if not patterns or not there:
        raise SpecError(
            f"nothing is to be recorded: {len(patterns)} patterns over the names of {len(there)} parameters; expected some of both"
        )
    for pattern in patterns:
        if not any(glob(pattern).fullmatch(name) for name in there):
            raise UnknownNameError(
                f"the model has no parameter {pattern!r}; nearest: {nearest(pattern, there)}"
            )
    chosen = {n: p for n, p in there.items() if any(glob(pattern).fullmatch(n) for pattern in patterns)}
    strange = next((name for name, p in chosen.items() if not p.is_floating_point()), None)
    if strange is not None:
        raise SpecError(
            f"parameter {strange} is of {chosen[strange].dtype}; only real floating point numbers are recorded, leave it out"
        )
    return chosen


def _same_as_before(place: Location, about: dict[str, object]) -> None:
    """Refuse to go on with a recording in another form.

    Raises:
        SpecError: if the recording that lies there is of other parameters, quantities, form or seed.
    """
    data = canonical_json(about)
    if "recording.json" not in place.ls():
        place.write("recording.json", data)
    elif place.read("recording.json") != data:
        raise SpecError(
            f"{place.url} is a recording of other parameters, quantities, form or seed; go on as it was begun, or choose another name"
        )


def _last_step(place: Location) -> int | None:
    steps = [int(name[5:-4]) for name in place.ls() if name.startswith("step-") and name.endswith(".npz")]
    return max(steps, default=None)
