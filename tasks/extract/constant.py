"""Samples of one constant shape: a tensor for the one positional input, or a mapping of keyword inputs."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.errors import DataError
from tasks.extract.batches import Batch
from tasks.extract.sources.base import Sample, Source

FIRST_READABLE = 100
"""Samples that are tried until one can be read and tells the shape of all."""

Form = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Input name ("" for the positional one) to shape and dtype."""


class ConstantEncoder:
    """Reads samples batch by batch; each must have the form of the first readable one of the source."""

    is_text = False

    def __init__(self, source: Source, indices: np.ndarray, names: Sequence[str] | None = None) -> None:
        """Chooses samples.

        Args:
            source: tensors or mappings.
            indices: int64 [n], which samples.
            names: the keyword inputs that are taken; None: all.

        Raises:
            DataError: if none of the first samples can be read.
        """
        self._source = source
        self._indices = indices
        self._names = names
        self._form: Form = {
            name: (tuple(value.shape), value.dtype)
            for name, value in self._tensors(first_readable(source)).items()
        }
        if self._form and not any(prod(shape) for shape, _ in self._form.values()):
            raise DataError(
                f"the samples hold no values: the first is {_describe(self._form)}; expected some"
            )

    def __len__(self) -> int:
        return len(self._indices)

    def lengths(self, places: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """int64 [n]: 1, as there are no tokens."""
        return np.ones(len(self if places is None else places), dtype=np.int64)

    def truncated(self, places: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """bool [n]: False, as nothing is cut."""
        return np.zeros(len(self if places is None else places), dtype=bool)

    def kept_rows(self, places: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """int64 [n]: 1; a site with several places per sample has its own row space."""
        return self.lengths(places)

    def row_columns(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """token_id -1 and position 0 (int32 [1] each)."""
        return np.array([-1], dtype=np.int32), np.array([0], dtype=np.int32)

    def batch(self, places: Sequence[int]) -> Batch:
        """Stacked inputs, sample first; no mask.

        Raises:
            DataError: if a sample cannot be read, or has another shape than the others.
        """
        return Batch(self.stack(places))

    def stack(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Input name to tensor [b, ...]."""
        samples = [self._checked(self._source[int(self._indices[place])]) for place in places]
        return {name: torch.stack([sample[name] for sample in samples]) for name in self._form}

    def _checked(self, sample: Sample) -> dict[str, Tensor]:
        found = self._tensors(sample)
        form = {name: (tuple(value.shape), value.dtype) for name, value in found.items()}
        if form != self._form:
            raise DataError(
                f"sample {sample.key!r} is {_describe(form)}; expected {_describe(self._form)}, as the "
                "first sample is: make all of one shape and dtype; token sequences go in dicts with input_ids"
            )
        return found

    def _tensors(self, sample: Sample) -> dict[str, Tensor]:
        values = sample.value if isinstance(sample.value, Mapping) else {"": sample.value}
        wanted = values if self._names is None else {n: values[n] for n in self._names if n in values}
        return {name: as_tensor(value, sample.key) for name, value in wanted.items()}


def first_readable(source: Source) -> Sample:
    """The first sample of a source that can be read, which is the same in every process.

    Raises:
        DataError: if none of the first ones can.
    """
    for index in range(min(len(source), FIRST_READABLE)):
        try:
            return source[index]
        except DataError:
            if index + 1 == min(len(source), FIRST_READABLE):
                raise
    raise DataError("the data hold no samples; expected at least one")


def as_tensor(value: Any, key: str) -> Tensor:
    """A value as a tensor of its own on the CPU, in its dtype.

    Raises:
        DataError: if torch has no such dtype.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.from_numpy(np.array(value, order="C"))
    except TypeError as error:
        raise DataError(f"sample {key!r}: {error}; convert it to a dtype that torch has") from error


def _describe(form: Form) -> str:
    return ", ".join(
        f"{name + ': ' if name else ''}{str(dtype).removeprefix('torch.')} of shape {shape}"
        for name, (shape, dtype) in form.items()
    )
