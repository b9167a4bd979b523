"""Operations that use parameters, and what each use adds to the parameter's gradient when the output's gradient comes.

A rule gets the call and its output, and returns for each parameter it knows a function of the output's gradient. What has no rule here
takes a pass for each sample: slower, as exact. To add a rule, write a function and name its operations in `RULES`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.extract.gradients.broadcast_rules import add, multiply, repeat, subtract
from tasks.extract.gradients.call import Call, NoRule, Rule, Use
from tasks.extract.gradients.convolution_rules import convolution
from tasks.extract.gradients.norm_rules import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from tasks.extract.gradients.product_rules import addmm, embedding, linear, matmul, picked

RULES: dict[Any, Rule] = {
    F.linear: linear,
    torch.addmm: addmm,
    F.embedding: embedding,
    Tensor.__getitem__: picked,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.group_norm: group_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), convolution),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), matmul),
    **dict.fromkeys(
        (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply), multiply
    ),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), add),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), subtract),
    **dict.fromkeys((Tensor.expand, Tensor.repeat, torch.broadcast_to, Tensor.expand_as), repeat),
}
"""Operation -> its rule."""


def uses_of(operation: Any, call: Call, wanted: Sequence[str]) -> list[Use]:
    """What an operation does with parameters.

    Args:
        operation: as torch calls it.
        call: with its arguments and output.
        wanted: names of the parameters, and of expressions of them, among its arguments.

    Raises:
        NoRule: if it is not known.
    """
    rule = RULES.get(operation)
    if rule is None:
        raise NoRule("no rule covers this operation")
    if len(set(wanted)) < len(wanted):
        raise NoRule("it takes the same parameter twice")
    return list(rule(call))
