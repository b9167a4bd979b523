"""Rows by the classes of a label: what methods that compare classes share."""

from collections.abc import Mapping

import torch
from torch import Tensor

from schemas.errors import MethodError, nearest
from tasks.methods.contract import ROW_LABELS, Block, Inputs
from tasks.numerics.agreement import counted


def class_label(inputs: Inputs, wanted: str | None) -> str:
    """The label that names classes: the wanted one, or the first.

    Raises:
        MethodError: if there is no such label, or it holds numbers.
    """
    if wanted is None and inputs.categories:
        return min(inputs.categories)
    if wanted in inputs.categories:
        return str(wanted)
    raise MethodError(
        f"label {wanted!r} names no classes; expected one of {nearest(str(wanted), inputs.categories)}: labels of texts or whole numbers "
        "are classes"
    )


def row_class_label(inputs: Inputs, wanted: str | None) -> str:
    """The label that names the classes of rows: as `class_label`, or the rows' own `token` or `next_token`.

    Raises:
        MethodError: if there is no such label, or it holds numbers.
    """
    if wanted in ROW_LABELS and wanted not in inputs.categories:
        return str(wanted)
    if wanted is None and not inputs.categories:
        raise MethodError(
            f"the samples have no label that names classes; capture data with one, or set `label` to {' or '.join(ROW_LABELS)}"
        )
    return class_label(inputs, wanted)


def carried(label: str) -> Tensor:
    """The name of a label as a state can carry it, for `codes_of`."""
    return torch.tensor(list(label.encode()), dtype=torch.uint8)


def carried_classes(inputs: Inputs, label: str | None) -> dict[str, Tensor]:
    """What `counted_classes` reads of a carry: how many classes a label has, and its name; none without a label."""
    if label is None:
        return {"classes": torch.tensor(0)}
    return {"classes": torch.tensor(len(inputs.categories[label])), "label": carried(label)}


def codes_of(block: Block, label: Tensor) -> Tensor:
    """int64 [row]: the codes of the classes of a carried label, -1 for none.

    Raises:
        MethodError: if there is no such label, or it holds numbers.
    """
    name = bytes(label.tolist()).decode()
    found = block.labels.get(name)
    if found is None or found.is_floating_point():
        coded = [label for label, values in block.labels.items() if not values.is_floating_point()]
        raise MethodError(f"label {name!r} names no classes; expected one of {nearest(name, coded)}")
    return found


def counted_classes(block: Block, cluster: Tensor, carry: Mapping[str, Tensor], clusters: int) -> Tensor:
    """int64 [cluster, class]: rows of each cluster and class of a carried `label` of `classes`; no columns where `classes` is 0."""
    classes = int(carry["classes"])
    if not classes:
        return cluster.new_zeros(clusters, 0)
    code = codes_of(block, carry["label"])
    found = counted(cluster.cpu().numpy(), code.cpu().numpy(), clusters, classes)
    return torch.from_numpy(found).to(cluster.device)


def class_code(inputs: Inputs, label: str, name: str | None, default: int) -> int:
    """The code of a class by its name, or the one at a place.

    Raises:
        MethodError: if there is no such class.
    """
    names = inputs.categories[label]
    if name is None and default < len(names):
        return default
    if name in names:
        return names.index(str(name))
    raise MethodError(f"label {label!r} has no class {name!r}; nearest: {nearest(str(name), names)}")


def rows_of_class(block: Block, label: str, code: int, port: str = "x") -> Tensor:
    """The rows of a class, in the order of the capture."""
    order = torch.argsort(block.index)
    chosen = order[block.labels[label][order] == code]
    rows: Tensor = block[port][chosen]
    return rows
