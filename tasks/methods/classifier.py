"""A classifier's weights, class by class: which of its rows belongs to which class, and what it says of rows."""

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.classes import row_class_label
from tasks.methods.contract import Inputs, State


@runtime_checkable
class HasClassifier(Protocol):
    """Options of a method that compares classes with a classifier."""

    @property
    def label(self) -> str | None: ...

    @property
    def classifier(self) -> str | None: ...

    @property
    def bias(self) -> str | None: ...


def weights(code: Tensor, inputs: Inputs, config: HasClassifier) -> Tensor | None:
    """float64 [class, feature]: the classifier's weight of each class."""
    weight = inputs.weights.get(config.classifier or "")
    if weight is None:
        return None
    names = inputs.categories.get(row_class_label(inputs, config.label))
    return weight[rows_of(code, names, len(weight), str(config.classifier))].double()


def rows_of(code: Tensor, names: tuple[str, ...] | None, most: int, classifier: str) -> Tensor:
    """[class]: the row of the classifier's weight that belongs to a code.

    Raises:
        MethodError: if a class has no row.
    """
    found = code
    if names is not None:
        whole = all(name.isdecimal() for name in names)
        order = {name: n for n, name in enumerate(sorted(names))}
        rows = [int(name) if whole else order[name] for name in names]
        found = torch.tensor(rows, device=code.device)[code]
    if int(found.max()) >= most:
        raise MethodError(
            f"classifier {classifier!r} has {most} rows, but classes reach row {int(found.max())}; choose the classifier of this label, or "
            "leave `classifier` out"
        )
    return found


def carried(code: Tensor, inputs: Inputs, config: HasClassifier) -> State:
    """What the second round needs of the classifier."""
    weight = inputs.weights.get(config.classifier or "")
    if weight is None:
        return {}
    names = inputs.categories.get(row_class_label(inputs, config.label))
    rows = rows_of(code, names, len(weight), str(config.classifier))
    bias = inputs.weights.get(config.bias or "")
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return {"row": rows, "weight": _widened(weight), "bias": _widened(bias)}


def _widened(values: Tensor) -> Tensor:
    """What a state can hold."""
    return values.detach() if values.dtype in (torch.float32, torch.float64) else values.detach().float()


def alignment(weight: Tensor | None, centred: Tensor) -> Tensor:
    """float64 [class]: cosine between a class's weight, about their mean, and its centred mean; NaN without weights."""
    if weight is None:
        return torch.full((len(centred),), math.nan, dtype=torch.float64, device=centred.device)
    w = weight - weight.mean(0)
    found: Tensor = (w * centred).sum(1) / (
        torch.linalg.vector_norm(w, dim=1) * torch.linalg.vector_norm(centred, dim=1)
    )
    return found


def said(x: Tensor, carry: State) -> Tensor:
    """int64 [row]: the classifier's row with the largest score."""
    weight, bias = carry["weight"].double(), carry["bias"].double()
    found = [(some.double() @ weight.T + bias).argmax(1) for some in torch.split(x, 1024)]
    return torch.cat(found) if found else x.new_zeros(0, dtype=torch.int64)
