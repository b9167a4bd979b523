"""Whether the rows of a gradient belong to the samples they are counted to.

Rules count the first axis of an operation's output as samples. That holds if everything between this output and the losses keeps each
sample's rows to itself, and that is in the graph behind the losses (but for hooks of the network's own): its operations, their shapes,
the axes they act along, and the numbers in tensors by which some of them choose rows. Where the graph does not tell, a second backward
does, of losses that are weighted by sample.
"""

import re
from collections.abc import Container, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from tasks.extract.gradients.weighted import keeps_weights, sample_weights

OWN = re.compile(
    r"(?:torch::autograd::)?(?:Cudnn|Miopen|Mkldnn|Native|Thnn)?(\w+?)(?:Backward\d+|(?<=Slices)|(?<=CopyBackwards))"
)
"""Operations of torch itself, by whichever kernel; others, written in C++, do not tell what they saved."""
POINTWISE = frozenset(
    {
        "Abs", "Acos", "Acosh", "Add", "Addcdiv", "Addcmul", "Alias", "Angle", "Asin", "Asinh", "Atan", "Atan2", "Atanh", "Celu", "Clamp",
        "ClampMax", "ClampMin", "Clone", "Complex", "Conj", "CopyBackwards", "Copysign", "Cos", "Cosh", "Div", "Dropout", "Elu", "Erf",
        "Erfc", "Erfinv", "Exp", "Exp2", "Expm1", "Fmax", "Fmin", "Fmod", "Gelu", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh",
        "HuberLoss", "Hypot", "Imag", "LeakyRelu", "Lerp", "Lgamma", "Log", "Log10", "Log1P", "Log2", "LogSigmoid", "Logaddexp", "Logit",
        "MaskedFill", "Maximum", "Minimum", "Mish", "MseLoss", "Mul", "NanToNum", "Neg", "Pow", "Real", "Reciprocal", "Relu", "Relu6",
        "Remainder", "Rsqrt", "Rsub", "Sgn", "Sigmoid", "Silu", "Sin", "Sinh", "SmoothL1Loss", "Softplus", "Softshrink", "Sqrt", "Square",
        "Sub", "Tan", "Tanh", "Threshold", "ToCopy", "ViewAsComplex", "ViewAsReal", "Where", "Xlogy",
    }
)  # fmt: skip
"""Operations of numbers by themselves; what they broadcast along a new axis is seen by the shapes."""
ALONG = frozenset(
    {
        "Amax", "Amin", "Cat", "ConstantPadNd", "Cummax", "Cummin", "Cumprod", "Cumsum", "Diagonal", "Embedding", "Expand", "FftC2C",
        "FftC2R", "FftR2C", "Flip", "Gather", "Glu", "Index", "IndexAdd", "IndexCopy", "IndexFill", "IndexPut", "IndexSelect", "Kthvalue",
        "LinalgVectorNorm", "LogSoftmax", "Logcumsumexp", "Logsumexp", "MaskedScatter", "MaskedSelect", "Max", "Mean", "Median", "Min",
        "Mode", "Norm", "Permute", "Prod", "Put", "Repeat", "Roll", "SafeSoftmax", "Scatter", "ScatterAdd", "Select", "Slice", "Softmax",
        "Sort", "Split", "SplitWithSizes", "Squeeze", "Std", "StdMean", "Sum", "T", "Take", "Topk", "Transpose", "Unbind", "Unfold",
        "Var", "VarMean",
    }
)  # fmt: skip
"""Operations along axes that they were given, or that are tried by themselves."""
VIEWS = frozenset(
    {
        "ViewAsReal",
        "ViewAsComplex",
        "View",
        "UnsafeView",
        "ReshapeAlias",
        "Unsqueeze",
        "Stack",
        "DiagEmbed",
        "Unfold",
    }
)
"""Operations that give other axes than they take, without repeating anything along new ones."""
PRODUCTS = frozenset({"Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Addmv"})
"""Operations that sum over the last axis of their last operand but one, and the last but one axis of their last."""
IMAGES = re.compile(
    r"Convolution|(Adaptive)?(Max|Avg)Pool[123]D(WithIndices)?|Upsample\w+|GridSampler[23]D|PixelShuffle|PixelUnshuffle|Im2Col|Col2Im|"
    r"(Reflection|Replication)Pad[123]D|GroupNorm|ScaledDotProduct\w*|NllLoss|NllLoss2D"
)
"""Operations of which the first axis of the first operand counts what has nothing to do with each other."""
WITHIN = frozenset(
    {
        "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "Addcdiv", "Addcmul", "Clamp", "Div", "Dropout", "Fmod", "Lerp", "MaskedFill",
        "MaxPool2DWithIndices", "MaxPool3DWithIndices", "Mul", "NllLoss", "NllLoss2D", "Pow", "Remainder", "Where",
    }
)  # fmt: skip
"""Operations that save whole numbers and yet move nothing between rows of a leading axis."""
AXES_KNOWN = POINTWISE | ALONG | VIEWS | PRODUCTS | {"LayerNorm", "BatchNorm"}
"""Operations of which `_acts_along_lead` tells, beside `IMAGES`."""
TRUSTED = ("torch.", "transformers.", "timm.", "torchvision.")
"""Packages whose functions may be run backward by themselves: they do nothing else."""
MOST_TRIED = 32
"""Operations that are tried by themselves; beyond, a second backward of all costs less."""


def rows_stay(losses: Tensor, n: int, uses: Iterable[Node | None]) -> bool:
    """Whether the graph between losses and uses of parameters surely keeps each sample's rows to itself.

    It does if samples lie along the leading axis of every tensor, and no operation acts along this axis but some that choose rows by
    whole numbers, write into a part, or are unknown: these are tried by themselves.

    Args:
        losses: [sample]
        n: samples.
        uses: the operations at whose outputs rules count samples.

    Returns:
        False also where the graph does not tell: functions of the user's own, saved tensors out of sight (as in checkpoints), nested
        tensors.

    Cost: microseconds for each operation; of those that are tried, at most 32, a backward, and one for each of `sample_weights`, with
    memory of four times their output.
    """
    ends = {node for node in uses if node is not None}
    order = _between(losses.grad_fn, ends)
    inner = [node for node in order if node not in ends]
    if not all(_counts_samples(node, n) for node in order) or not all(_tells(node) for node in inner):
        return False
    tried = [node for node in inner if _is_tried(node)]
    if len(tried) > MOST_TRIED or any(_acts_along_lead(node, order) for node in inner if node not in tried):
        return False
    return all(_stays(node, n, order) for node in tried)


def _between(begin: Node | None, ends: Iterable[Node]) -> dict[Node, None]:
    """Nodes on ways from the losses to the ends, these among them."""
    seen: set[Node] = set()
    before: dict[Node, list[Node]] = {}
    waiting = [] if begin is None else [begin]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for to, _ in node.next_functions:
            if to is not None:
                before.setdefault(to, []).append(node)
                waiting.append(to)
    reached: dict[Node, None] = {}
    waiting = [node for node in ends if node in seen]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached[node] = None
            waiting += before.get(node, ())
    return reached


def _name(node: Any) -> str | None:
    """Of an operation of torch."""
    found = OWN.fullmatch(node.name())
    return found.group(1) if found else None


def _counts_samples(node: Any, n: int) -> bool:
    """Whether leading axes count samples, or samples x something."""
    metas = node._input_metadata
    if any(meta.is_nested_tensor or meta.is_cpp_nested_tensor for meta in metas):
        return False
    return all(meta.shape and meta.shape[_lead(meta.shape)] % n == 0 for meta in metas)


def _lead(shape: Sequence[int]) -> int:
    """The leading axis: the first that is longer than one, or the last."""
    return next((k for k, size in enumerate(shape) if size > 1), len(shape) - 1)


def _tells(node: Any) -> bool:
    """Whether it shows what it saved, and may be run by itself."""
    if any(one.unpack_hook is not None for one in _saved(node)):
        return False
    if isinstance(node, BackwardCFunction):
        home = getattr(type(node), "_forward_cls", type(node)).__module__
        return home.startswith(TRUSTED) and all(_plain(value) for value in vars(node).values())
    return _name(node) is not None


def _plain(value: object) -> bool:
    many = value if isinstance(value, tuple | list) else (value,)
    return all(isinstance(one, int | float | bool | str | None) for one in many)


@cache
def _tensor_attributes(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _saved(node: Any) -> list[Any]:
    """What it saved of tensors, as torch keeps it."""
    kept = [getattr(node, name) for name in _tensor_attributes(type(node))]  # type: ignore[arg-type]
    every = [one for some in kept for one in (some if isinstance(some, tuple | list) else (some,))]
    return [one for one in every if one is not None]


def _is_tried(node: Any) -> bool:
    """Whether it is unknown where it moves rows, or it chooses them by whole numbers in tensors."""
    name = _name(node) or ""
    if name not in AXES_KNOWN and not IMAGES.fullmatch(name):
        return True
    whole = [
        one.data
        for one in _saved(node)
        if one.data is not None and not (one.data.is_floating_point() or one.data.is_complex())
    ]
    inside = name in WITHIN or name.startswith("ScaledDotProduct")
    chooses = any(tensor.ndim or name.startswith("Index") for tensor in whole) and not inside
    shape = getattr(node, "_saved_self_sym_sizes", None) or node._input_metadata[0].shape
    along = _along(node)
    return chooses and not (along and _lead(shape) not in {dim % len(shape) for dim in along})


def _along(node: Any) -> list[int]:
    """Axes that it was given."""
    keys = ("dim", "dim0", "dim1", "dim2", "dims", "dimension")
    given = [getattr(node, f"_saved_{key}", None) for key in keys]
    every = [
        d for dims in given if dims is not None for d in (dims if isinstance(dims, tuple | list) else (dims,))
    ]
    return [(dim + 2**63) % 2**64 - 2**63 for dim in every]  # torch shows negative numbers as unsigned


def _acts_along_lead(node: Any, on_the_way: Container[Node]) -> bool:
    """Whether an operation may bring rows of a leading axis elsewhere."""
    name, shape = _name(node) or "", node._input_metadata[0].shape
    edges = [(k, edge) for k, edge in enumerate(node.next_functions) if edge[0] in on_the_way]
    taken = [(k, to._input_metadata[port].shape) for k, (to, port) in edges]
    if name not in VIEWS and any(_is_repeated(t, shape) for _, t in taken):
        return True
    if name in PRODUCTS:
        last = len(node.next_functions) - 1
        return any(_is_summed(t, k - last) for k, t in taken)
    if IMAGES.fullmatch(name):
        return any((k > 0 and name == "Convolution") or _lead(t) for k, t in taken)
    if name == "LayerNorm":
        return len(node._saved_normalized_shape) >= len(shape) - _lead(shape)
    if name == "BatchNorm":
        return bool(node._saved_training) and not _lead(shape)
    return _is_along_lead(node, name, shape, [t for _, t in taken])


def _is_repeated(taken: Sequence[int], given: Sequence[int]) -> bool:
    """Whether an operand is laid along a new leading axis, or has other rows than what comes of it."""
    wider = len(taken) < len(given) or (len(taken) == len(given) and _lead(taken) != _lead(given))
    return wider or taken[_lead(taken)] != given[_lead(given)]


def _is_summed(taken: Sequence[int], place: int) -> bool:
    """Whether a product sums over the leading axis of an operand: place 0 is the last, -1 the one before."""
    return place > -2 and _lead(taken) == len(taken) - (2 if place == 0 and len(taken) > 1 else 1)


def _is_along_lead(node: Any, name: str, shape: Sequence[int], taken: Sequence[Sequence[int]]) -> bool:
    along = _along(node)
    if name == "Permute":
        dims = [dim % len(shape) for dim in along]
        return dims[: _lead(shape) + 1] != list(range(_lead(shape) + 1))
    if name == "Unfold":  # gives one axis more, at the end
        return any(dim % len(t) == _lead(t) for t in taken for dim in along)
    if name == "ConstantPadNd":  # from the last axis on
        return len(node._saved_pad) >= 2 * (len(shape) - _lead(shape))
    if name == "Repeat":
        return any(times > 1 for times in node._saved_repeats[: _lead(shape) + 1])
    if name == "T" or (name == "Roll" and not along):
        return True
    longest = max([shape, *taken], key=len)
    return any(dim % len(longest) == _lead(longest) for dim in along)


def _stays(node: Any, n: int, on_the_way: Container[Node]) -> bool:
    """Whether an operation's backward, alone, brings every sample's rows to that sample's rows."""
    metas = node._input_metadata
    given, dtype = [_drawn(meta) for meta in metas], metas[0].dtype
    kept = [k for k, (to, _) in enumerate(node.next_functions) if to in on_the_way]
    try:
        with torch.no_grad():
            plain = _back(node, given, kept)
            return bool(plain) and all(
                keeps_weights(rows, scaled, weights, dtype)
                for weights in sample_weights(n, dtype)
                for rows, scaled in zip(
                    plain, _back(node, [_times(g, weights) for g in given], kept), strict=True
                )
            )
    except Exception:  # noqa: BLE001  as of a tensor that it saved and that was written into: the backward itself will say so
        return False


def _back(node: Any, given: Sequence[Tensor | None], kept: Sequence[int]) -> list[Tensor]:
    found = node.apply(*given) if isinstance(node, BackwardCFunction) else node(*given)  # type: ignore[no-untyped-call]
    every = found if isinstance(found, tuple) else (found,)
    return [every[k] for k in kept if every[k] is not None]


def _drawn(meta: Any) -> Tensor | None:
    """Random values like an operation's output; None where that is whole numbers."""
    if not (meta.dtype.is_floating_point or meta.dtype.is_complex):
        return None
    generator = torch.Generator(meta.device).manual_seed(0)
    return torch.randn(meta.shape, dtype=meta.dtype, device=meta.device, generator=generator)


def _times(values: Tensor | None, weights: Tensor) -> Tensor | None:
    if values is None:
        return None
    each = weights.to(values.device, values.real.dtype)
    return (values.reshape(len(each), -1) * each[:, None]).reshape(values.shape)
