"""Rows as they come from the store -> the tensors that a method sees."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.engine.network import CapturedNetwork
from tasks.engine.source import Rows
from tasks.methods.contract import Block

LARGEST_WEIGHT = 1e140


def block_of(rows: Rows, ports: Sequence[str], device: str, where: Sequence[str]) -> Block:
    """The block of some rows, on a device; on the CPU values are not copied, what a source keeps is.

    Args:
        rows: what a source gave.
        ports: a port's name for each array of values.
        device: where tensors go.
        where: a capture and site for each port, for the message.

    Raises:
        MethodError: if a value is NaN or infinite.
    """
    values = [to_tensor(v, device) for v in rows.values]
    for tensor, place in zip(values, where, strict=rows.network is None):
        refuse_not_finite(tensor, rows.index, place)
    return Block(
        rows=dict(zip(ports, values, strict=rows.network is None)),
        sample=to_tensor(rows.sample, device),
        position=to_tensor(rows.position, device),
        index=to_tensor(rows.index, device),
        labels={name: to_tensor(column, device) for name, column in rows.labels.items()},
        network=None if rows.network is None else CapturedNetwork(rows.network, rows.sample, device),
        aligned={
            port: {name: to_tensor(values, device) for name, values in arrays.items()}
            for port, arrays in rows.aligned.items()
        },
    )


def weights_of(block: Block, label: str) -> Tensor:
    """float64 [row]: the numbers of a label, as weights of rows.

    Raises:
        MethodError: if there is no such label, or it holds classes.
    """
    found = block.labels.get(label)
    if found is not None and found.is_floating_point():
        return _usable(found.double(), label)
    numbers = [name for name, values in block.labels.items() if values.is_floating_point()]
    known = "holds classes, as whole numbers and texts do (write 2.0 for 2)"
    what = known if found is not None else "is not a label of the samples"
    raise MethodError(
        f"weight_label {label!r} {what}; expected a label of floating point numbers, which are: {', '.join(numbers) or 'none'}"
    )


def _usable(weight: Tensor, label: str) -> Tensor:
    """Weights whose squares can be added up."""
    wrong = weight[
        (weight.abs() > 0) & ((weight.abs() < 1 / LARGEST_WEIGHT) | (weight.abs() > LARGEST_WEIGHT))
    ]
    if len(wrong):
        raise MethodError(
            f"weight_label {label!r} holds {float(wrong[0]):g}; expected 0, or {1 / LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}, as sums of "
            "squares of weights tell how many rows count: only ratios of weights matter, so scale them"
        )
    return weight


def to_tensor(values: np.ndarray, device: str) -> Tensor:
    """The tensor of an array; read-only arrays are copied, because torch has no such thing."""
    array = values if values.flags.writeable and values.flags.c_contiguous else np.array(values, order="C")
    return torch.from_numpy(array).to(device)


def refuse_not_finite(values: Tensor, index: np.ndarray, place: str) -> None:
    """Refuse NaN and infinities in rows that should be good; reads the values once, without a mask.

    Raises:
        MethodError: naming capture, site and row.
    """
    if values.numel() == 0:
        return
    low, high = torch.aminmax(values)
    if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
        return
    bad = torch.nonzero(~torch.isfinite(values).all(dim=1)).flatten().tolist()
    raise MethodError(
        f"{place}: {len(bad)} rows hold NaN or infinity though their samples did not fail, first at row "
        f"{int(index[bad[0]])}; the network gives such values there, or the store's dtype could not hold them "
        "(the capture's receipts count those): capture again with a wider store.dtype"
    )
