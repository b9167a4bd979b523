"""Whether the rows of a gradient belong to the samples they are counted to.

Rules count the first axis of an operation's output as samples. That holds if everything between this output and the losses keeps each
sample's rows to itself, and all of that is in the graph behind the losses: its operations, their shapes, the axes they act along, and the
numbers in tensors by which some of them choose rows. Where the graph does not tell, a second backward does, of losses that are weighted by
sample.
"""

import re
from collections.abc import Container, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

OWN = re.compile(
    r"(?:torch::autograd::)?(?:Cudnn|Miopen|Mkldnn|Native|Thnn)?(\w+?)(?:Backward\d+|(?<=Slices)|(?<=CopyBackwards))"
)
"""Operations of torch itself, by whichever kernel; others, written in C++, do not tell what they saved."""
VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Stack", "DiagEmbed", "Unfold", "AsStrided")
"""Operations that give more axes than they take, without repeating anything along new ones."""
WITHIN = (
    "Where", "MaskedFill", "NllLoss", "Dropout", "ScaledDotProduct", "MaxPool", "AdaptiveMaxPool", "Mul", "Div", "Pow", "Fmod",
    "Remainder", "Addcmul", "Addcdiv", "Clamp", "Lerp",
)  # fmt: skip
"""Operations that save whole numbers and yet move nothing between rows of a leading axis."""
WRITES = ("CopySlices", "AsStrided")
"""Operations whose graph does not show where they read and write."""
PRODUCTS = ("Mm", "Addmm", "Bmm", "Baddbmm", "Addbmm", "Mv", "Addmv", "Dot", "SparseMm", "SparseAddmm")
"""Operations that sum over the last axis of their last operand but one, and the last but one axis of their last."""
MOST_TRIED = 8
"""Operations that are tried by themselves; beyond, a second backward of all costs less."""
ADDED = {torch.float64: (1e-5, 1e-12), torch.float32: (1e-3, 1e-5)}
"""Of the norm of all samples' gradients of a parameter, and of all parameters, by which their sum may differ from the batch's, by dtype;
parts of a float64 network may be computed in float32."""
TOLERANCE = {torch.float64: 1e-10, torch.float16: 5e-2}
FINE = 1e-5
"""Relative difference of gradients times a power of two from those of a loss times that power, by dtype, and of all others: none, but where
kernels add up in an order that varies; and in float16, whose numbers end."""


def rows_stay(losses: Tensor, n: int, uses: Iterable[Node | None]) -> bool:
    """Whether the graph between losses and uses of parameters surely keeps each sample's rows to itself.

    It does if samples lie along the leading axis of every tensor, and no operation acts along this axis but some that choose rows by
    whole numbers or write into a part, which are tried by themselves.

    Args:
        losses: [sample]
        n: samples.
        uses: the operations at whose outputs rules count samples.

    Returns:
        False also where the graph does not tell: functions of the user's own that keep more than floats and numbers, saved tensors out
        of sight (as in checkpoints), nested tensors.

    Cost: microseconds for each operation; of those that are tried, at most eight, a backward, and one for each of `sample_weights`.
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


def sample_weights(n: int, dtype: torch.dtype) -> list[Tensor]:
    """float64 [sample] each: powers of two, so that products are exact; any two samples differ in at least one of them.

    Args:
        n: samples; for each power of 41 that they exceed there is one more, of 7 in float16.
        dtype: in which gradients are computed; float16 has few exponents.
    """
    half, step = (3, 3) if dtype == torch.float16 else (20, 17)
    base, digits = 2 * half + 1, torch.arange(n)
    found = []
    while True:
        found.append(torch.pow(2.0, (digits * step % base - half).double()))  # neighbours lie far apart
        digits = digits // base
        if not bool(digits.any()):
            return found


def keeps_weights(plain: Tensor, weighted: Tensor, weights: Tensor, dtype: torch.dtype) -> bool:
    """Whether gradients of weighted losses are the plain ones times their sample's weight.

    Args:
        plain: [row, ...], rows of a sample together.
        weighted: the same of losses times weights.
        weights: [sample]
        dtype: in which gradients are computed.
    """
    if plain.numel() % len(weights):
        return False
    expected = _by_sample(plain, len(weights)) * weights.to(plain.device)[:, None]
    error = torch.linalg.vector_norm(_by_sample(weighted, len(weights)) - expected, dim=1)
    allowed = TOLERANCE.get(dtype, FINE) * torch.linalg.vector_norm(expected, dim=1)
    return bool((error <= allowed).all())


def adds_up(rows: Tensor, whole: Tensor, scale: float, dtype: torch.dtype) -> bool:
    """Whether rows are those of a batch's gradient, but for rounding.

    Args:
        rows: [sample, feature]
        whole: [1, feature], of the sum of all losses.
        scale: norm of the gradients of all samples and parameters, of which little may be rounding.
        dtype: in which gradients are computed.
    """
    own, little = ADDED.get(dtype, (1e-1, 1e-2))
    error = torch.linalg.vector_norm(rows.double().sum(0) - whole[0].double())
    return bool(error <= own * torch.linalg.vector_norm(rows.double()) + little * scale)


def _by_sample(values: Tensor, n: int) -> Tensor:
    """float64 [sample, number]"""
    real = torch.view_as_real(values) if values.is_complex() else values
    return real.reshape(n, -1).double()


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
    """Whether it shows what it saved."""
    if any(one.unpack_hook is not None for one in _saved(node)):
        return False
    if isinstance(node, BackwardCFunction):
        return all(_plain(value) for value in vars(node).values())
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
    """Whether it may choose rows by whole numbers in tensors, or does not show where it reads and writes."""
    name = _name(node)
    if name is None or name.startswith(WRITES):
        return True
    whole = [
        one.data
        for one in _saved(node)
        if one.data is not None and not (one.data.is_floating_point() or one.data.is_complex())
    ]
    chooses = any(tensor.ndim or name.startswith("Index") for tensor in whole) and not name.startswith(WITHIN)
    shape = getattr(node, "_saved_self_sym_sizes", None) or node._input_metadata[0].shape
    along = _along(node)
    return chooses and not (along and _lead(shape) not in {dim % len(shape) for dim in along})


def _along(node: Any) -> list[int]:
    """Axes that it was given."""
    given = [getattr(node, f"_saved_{key}", None) for key in ("dim", "dim0", "dim1", "dim2", "dims")]
    every = [
        d for dims in given if dims is not None for d in (dims if isinstance(dims, tuple | list) else (dims,))
    ]
    return [(dim + 2**63) % 2**64 - 2**63 for dim in every]  # torch shows negative numbers as unsigned


def _acts_along_lead(node: Any, on_the_way: Container[Node]) -> bool:
    """Whether an operation may bring rows of a leading axis elsewhere."""
    name, shape, along = _name(node) or "", node._input_metadata[0].shape, _along(node)
    edges = [
        (k - len(node.next_functions), edge)
        for k, edge in enumerate(node.next_functions)
        if edge[0] in on_the_way
    ]
    taken = [(k, to._input_metadata[port].shape) for k, (to, port) in edges]
    wider = any(len(t) < len(shape) or (len(t) == len(shape) and _lead(t) != _lead(shape)) for _, t in taken)
    if wider and not name.startswith(VIEWS):
        return True  # repeated along a new one
    if name.startswith(PRODUCTS):
        return any(k >= -2 and _lead(t) == len(t) - (2 if k == -1 and len(t) > 1 else 1) for k, t in taken)
    if name.startswith("Permute"):
        dims = [dim % len(shape) for dim in along]
        return dims[: _lead(shape) + 1] != list(range(_lead(shape) + 1))
    if name.startswith("ConstantPad"):  # from the last axis on
        return len(node._saved_pad) >= 2 * (len(shape) - _lead(shape))
    if name.startswith("Repeat"):
        return any(times > 1 for times in node._saved_repeats[: _lead(shape) + 1])
    if name == "T" or (name.startswith("Roll") and not along):
        return True
    longest = max([shape, *(t for _, t in taken)], key=len)
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
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a tensor that it saved was written into: the backward itself will say so
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
