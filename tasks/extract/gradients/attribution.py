"""Whether the rows of a gradient belong to the samples they are counted to.

Rules count the first axis of an operation's output as samples. That holds if everything between this output and the losses keeps each
sample's rows to itself, and all of that is in the graph behind the losses: its operations, how they hang together, the whole numbers they
were given, and the whole numbers in tensors by which some of them choose rows. What another batch has shown to be right is known by its
signature; what chooses rows is tried by itself; the rest is told by a second backward, of losses that are weighted by sample.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

SIZES = ("sizes", "size", "strides", "stride", "argsize_0", "numel", "normalized_shape")
"""Ends of what operations save of shapes, which differ from batch to batch."""
OWN = re.compile(r"(\w+Backward)\d+|torch::autograd::Copy(Slices|Backwards)")
"""Operations of torch itself; others, as a user's, do not tell what they saved."""
WITHIN = ("Where", "MaskedFill", "NllLoss", "NativeDropout", "ScaledDotProduct", "MaxPool", "AdaptiveMaxPool")
"""Operations that save whole numbers and yet move nothing between rows."""
WRITES = ("torch::autograd::CopySlices", "AsStrided")
"""Operations whose graph does not show where they read and write."""
NOTHING = ""
"""The signature where no parameter is used."""
TOLERANCE = {torch.float16: 5e-2}
FINE = 1e-5
"""Relative difference of gradients times a power of two from those of a loss times that power, by dtype: none but where kernels add up in
an order that varies, or float16 ends."""


def signature(losses: Tensor, n: int, uses: Sequence[tuple[Node | None, str]]) -> str | None:
    """Of the graph between losses and uses of parameters: equal for batches whose rows are kept apart in the same way.

    Two graphs of one signature are the same in everything but sizes and real numbers, and in both, operations that choose rows by
    numbers in tensors keep each sample's to itself.

    Args:
        losses: [sample]
        n: samples.
        uses: the operations at whose outputs rules count samples, and what each is.

    Returns:
        None if the graph does not tell: an operation of the user's own, saved tensors out of sight (as in checkpoints), or rows chosen
        across samples.

    Cost: microseconds for each operation; those that choose rows run backward twice.
    """
    ends: dict[Node, str] = {}
    for node, use in uses:
        if node is not None:
            ends[node] = f"{ends.get(node, '')};{use}"
    if not uses:
        return NOTHING
    order = _between(losses.grad_fn, ends)
    place = {node: k for k, node in enumerate(order)}
    digest = hashlib.sha256()
    for node in order:
        kept = [k for k, (to, _) in enumerate(node.next_functions) if to in place]
        label = (ends[node],) if node in ends else _label(node, n, kept)
        if label is None:
            return None
        edges = [(k, place[to], port) for k, (to, port) in enumerate(node.next_functions) if to in place]
        digest.update(repr((label, edges)).encode())
    digest.update(repr([use for node, use in uses if node not in place]).encode())
    return digest.hexdigest()[:16]


def sample_weights(n: int, dtype: torch.dtype) -> list[Tensor]:
    """float64 [sample] each: powers of two, so that products are exact; any two samples differ in at least one of them.

    Args:
        n: samples.
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
    """Whether rows of weighted losses are the plain ones times their sample's weight.

    Args:
        plain: [row, ...], rows of a sample together.
        weighted: the same of losses times weights.
        weights: [sample]
        dtype: in which gradients are computed.
    """
    if len(plain) % len(weights):
        return False
    each = weights.to(plain.device).repeat_interleave(len(plain) // len(weights))
    expected = plain.reshape(len(plain), -1).double() * each[:, None]
    error = torch.linalg.vector_norm(weighted.reshape(len(plain), -1).double() - expected, dim=1)
    allowed = TOLERANCE.get(dtype, FINE) * torch.linalg.vector_norm(expected, dim=1)
    return bool((error <= allowed).all())


def _between(begin: Node | None, ends: Iterable[Node]) -> list[Node]:
    """Nodes on ways from the losses to the ends, in an order that the graph alone sets."""
    order: dict[Node, None] = {}
    before: dict[Node, list[Node]] = {}
    waiting = [] if begin is None else [begin]
    while waiting:
        node = waiting.pop()
        if node in order:
            continue
        order[node] = None
        for to, _ in node.next_functions:
            if to is not None:
                before.setdefault(to, []).append(node)
                waiting.append(to)
    reached: set[Node] = set()
    waiting = [node for node in ends if node in order]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += before.get(node, ())
    return [node for node in order if node in reached]


def _label(node: Node, n: int, kept: Sequence[int]) -> tuple[object, ...] | None:
    """What an operation is, and whether its first axis counts samples; None if nothing tells where it moves rows.

    `kept`: which of its inputs are on the way.
    """
    found = OWN.fullmatch(node.name())
    if found is None:
        return None
    scalars, saved = _attributes(type(node))
    tensors = list(chain.from_iterable(_tensors(node, name) for name in saved))
    if any(tensor is None for tensor in tensors):
        return None
    name = found.group(1) or node.name()
    chooses = any(t is not None and not (t.is_floating_point() or t.is_complex()) for t in tensors)
    doubtful = (chooses and not name.startswith(WITHIN)) or name.startswith(WRITES)
    if doubtful and not _stays(node, n, kept):
        return None
    numbers = [(key, value) for key in scalars if _whole(value := getattr(node, key))]
    counts = [bool(meta.shape) and meta.shape[0] == n for meta in node._input_metadata]
    return "ScaledDotProduct" if name.startswith("ScaledDotProduct") else name, numbers, counts


@cache
def _attributes(kind: type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of numbers that an operation saves, without sizes, and of tensors."""
    names = dir(kind)
    tensors = tuple(name for name in names if name.startswith("_raw_saved_"))
    hidden = {name.removeprefix("_raw") for name in tensors}
    scalars = tuple(
        name
        for name in names
        if name.startswith("_saved_") and name not in hidden and not name.endswith(SIZES)
    )
    return scalars, tensors


def _tensors(node: Node, name: str) -> Iterator[Tensor | None]:
    """Saved tensors; None for one that hooks keep elsewhere."""
    saved = getattr(node, name)
    for one in saved if isinstance(saved, tuple) else (saved,):
        if one is not None and one.unpack_hook is not None:
            yield None
        elif one is not None and one.data is not None:
            yield one.data


def _whole(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(v, int) for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _stays(node: Node, n: int, kept: Sequence[int]) -> bool:
    """Whether an operation's backward brings every sample's rows to that sample's rows."""
    metas = node._input_metadata
    shape = getattr(node, "_saved_self_sym_sizes", None) or metas[0].shape
    axis = _axis(node, len(shape))
    if axis:
        return bool(shape[0] % n == 0 and shape[axis] != n)  # if both are as long, either may count samples
    if any(not meta.shape or meta.shape[0] % n for meta in metas):
        return False
    given, dtype = [_drawn(meta) for meta in metas], metas[0].dtype
    try:
        plain = _back(node, given, kept)
        return all(
            keeps_weights(rows, scaled, weights, dtype)
            for weights in sample_weights(n, dtype)
            for rows, scaled in zip(
                plain, _back(node, [_times(g, weights) for g in given], kept), strict=True
            )
        )
    except RuntimeError:  # a tensor that it saved was written into: the backward itself will say so
        return False


def _axis(node: Node, ndim: int) -> int | None:
    """Along which an operation chooses, if along one."""
    dim: int | None = getattr(node, "_saved_dim", None)
    if dim is None or ndim == 0:
        return None
    signed = (dim + 2**63) % 2**64 - 2**63  # torch shows negative numbers as unsigned
    return signed % ndim


def _back(node: Node, given: Sequence[Tensor | None], kept: Sequence[int]) -> list[Tensor]:
    """One operation's backward alone."""
    found = node(*given)  # type: ignore[operator]
    every = found if isinstance(found, tuple) else (found,)
    return [every[k] for k in kept if every[k] is not None]


def _drawn(meta: Any) -> Tensor | None:
    """Random values like an operation's output; None where that is no floats."""
    if not meta.dtype.is_floating_point:
        return None
    generator = torch.Generator(meta.device).manual_seed(0)
    return torch.randn(meta.shape, dtype=meta.dtype, device=meta.device, generator=generator)


def _times(values: Tensor | None, weights: Tensor) -> Tensor | None:
    if values is None:
        return None
    each = weights.to(values.device, values.dtype).repeat_interleave(len(values) // len(weights))
    return values * each.reshape(-1, *(1,) * (values.ndim - 1))
