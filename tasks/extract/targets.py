"""What a loss compares with: labels of samples as classes and numbers, in every batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from schemas.errors import DataError, SpecError, UnknownNameError, nearest
from schemas.loss import (
    ClassificationLoss,
    FactoryLoss,
    LanguageModelLoss,
    Loss,
    MseLoss,
    ProjectionLoss,
    SimilarityLoss,
)
from tasks.extract.batches import Batch
from tasks.extract.sources.base import Label, Source

if TYPE_CHECKING:
    from tasks.extract.encode import Encoder, Places

OWN = "labels"
"""The input of a sample that a language model's loss takes as its targets, and the network does not get."""
SAMPLE = "#sample"
"""The target that is the sample's number in the data."""


class TargetEncoder:
    """An encoder whose batches carry what the loss takes."""

    def __init__(self, encoder: "Encoder", columns: dict[str, Tensor], takes_labels: bool) -> None:
        self._encoder = encoder
        self._columns = columns
        self._takes_labels = takes_labels

    @property
    def is_text(self) -> bool:
        """See `Encoder`."""
        return self._encoder.is_text

    def __len__(self) -> int:
        return len(self._encoder)

    def lengths(self, places: "Places" = None) -> np.ndarray:
        """See `Encoder`."""
        return self._encoder.lengths(places)

    def truncated(self, places: "Places" = None) -> np.ndarray:
        """See `Encoder`."""
        return self._encoder.truncated(places)

    def kept_rows(self, places: "Places" = None) -> np.ndarray:
        """See `Encoder`."""
        return self._encoder.kept_rows(places)

    def row_columns(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Encoder`."""
        return self._encoder.row_columns(place)

    def batch(self, places: Sequence[int]) -> Batch:
        """See `Encoder`."""
        batch = self._encoder.batch(places)
        which = torch.as_tensor(list(places), dtype=torch.int64)
        targets = {name: column[which] for name, column in self._columns.items()}
        inputs = dict(batch.inputs)
        if self._takes_labels and OWN in inputs:
            targets[OWN] = inputs.pop(OWN)
        return batch._replace(inputs=inputs, targets=targets)


def with_targets(encoder: "Encoder", source: Source, indices: np.ndarray, loss: Loss | None) -> "Encoder":
    """The encoder with what the loss takes; itself where there is no loss.

    Args:
        encoder: of the samples at `indices`.
        source: where labels come from.
        indices: int64 [n], which samples, in the order of the encoder.
        loss: of the request.

    Raises:
        UnknownNameError: if the data have no such label.
        SpecError: if a label is of another kind than the loss takes.
        DataError: if a sample's class is not among the named ones.
    """
    if loss is None:
        return encoder
    labels = source.labels() if _wanted(loss) else {}
    if isinstance(loss, ProjectionLoss):
        return TargetEncoder(encoder, {SAMPLE: torch.from_numpy(indices)}, takes_labels=False)
    columns = {name: _column(loss, name, labels)[torch.from_numpy(indices)] for name in _wanted(loss)}
    return TargetEncoder(encoder, columns, isinstance(loss, LanguageModelLoss))


def class_names(loss: ClassificationLoss | SimilarityLoss, values: Sequence[Label]) -> list[str] | None:
    """Names of the classes in order of their codes; None where whole numbers are the classes."""
    if loss.classes is not None:
        return list(loss.classes)
    return sorted({str(v) for v in values}) if isinstance(values[0], str) else None


def count_classes(source: Source, loss: Loss) -> int:
    """Classes that the loss knows; 0 where it knows none."""
    if not isinstance(loss, ClassificationLoss | SimilarityLoss):
        return 0
    if loss.classes is not None:
        return len(loss.classes)
    return int(_column(loss, loss.label, source.labels()).max()) + 1


def _wanted(loss: Loss) -> tuple[str, ...]:
    if isinstance(loss, ClassificationLoss | SimilarityLoss):
        return (loss.label,)
    if isinstance(loss, MseLoss):
        return (loss.target,) if loss.target else ()
    return loss.labels if isinstance(loss, FactoryLoss) else ()


def _column(loss: Loss, name: str, labels: dict[str, list[Label]]) -> Tensor:
    if name not in labels:
        raise UnknownNameError(
            f"loss: the data have no label {name!r}; nearest: {nearest(name, labels) if labels else 'there is none at all'}"
        )
    values = labels[name]
    if isinstance(loss, ClassificationLoss | SimilarityLoss):
        return _codes(loss, name, values)
    if isinstance(loss, FactoryLoss) and isinstance(values[0], str):
        names = {value: code for code, value in enumerate(sorted({str(v) for v in values}))}
        return torch.tensor([names[str(value)] for value in values])
    if isinstance(loss, MseLoss) and not isinstance(values[0], int | float):
        raise SpecError(f"loss: label {name!r} holds text, such as {values[0]!r}; `mse` takes numbers")
    return torch.tensor(values, dtype=torch.float64 if isinstance(values[0], float) else torch.int64)


def _codes(loss: ClassificationLoss | SimilarityLoss, name: str, values: list[Label]) -> Tensor:
    names = class_names(loss, values)
    if names is None:
        if not all(isinstance(value, int) and value >= 0 for value in values):
            raise SpecError(
                f"loss: label {name!r} holds numbers that name no class, such as {min(values)!r}; `{loss.kind}` takes whole numbers from "
                "0, or names"
            )
        return torch.tensor(values, dtype=torch.int64)
    code = {value: n for n, value in enumerate(names)}
    strange = next((str(value) for value in values if str(value) not in code), None)
    if strange is not None:
        raise DataError(
            f"loss: label {name!r} has the class {strange!r}, which is not in `classes`; nearest: {nearest(strange, code)}"
        )
    return torch.tensor([code[str(value)] for value in values], dtype=torch.int64)
