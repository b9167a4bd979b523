"""A network's own linear map at an input: derivatives that take attention, norms' scales and gates as constants.

Golden: Large Language Models are Locally Linear Mappings (2025). With these held, a transformer without biases is linear in its input
embeddings, so that its Jacobian times the input is the output; how far it is from that tells what was not held.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Detached(TorchFunctionMode):
    """Active during a forward: softmax, scales of norms and gates give values without derivative; no value changes but in the last bits."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(func)
        return func(*args, **kwargs) if rule is None else rule(*args, **kwargs)


def _constant(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def held(*args: Any, **kwargs: Any) -> Tensor:
        return func(*args, **kwargs).detach()

    return held


def _ratio(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An activation as its input times a constant: f(x) = x (f(x) / x)."""

    def scaled(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        value = func(x.detach(), *args, **{k: v for k, v in kwargs.items() if k != "inplace"})
        safe = torch.where(x.detach() == 0, 1.0, x.detach())
        return x * torch.where(x.detach() == 0, 0.0, value / safe)

    return scaled


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    scale = (centred.detach().square().mean(axes, keepdim=True) + eps).rsqrt()
    out = centred * scale
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    small = torch.finfo(x.dtype).eps if eps is None else eps
    out = x * (x.detach().square().mean(axes, keepdim=True) + small).rsqrt()
    return out if weight is None else out * weight


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if enable_gqa:
        repeat = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeat, -3), value.repeat_interleave(repeat, -3)
    scores = query.detach() @ key.detach().mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        scores = (
            scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        )
    return torch.softmax(scores, -1) @ value


RULES: dict[Any, Callable[..., Tensor]] = {
    F.softmax: _constant(F.softmax),
    torch.softmax: _constant(torch.softmax),
    Tensor.softmax: _constant(Tensor.softmax),
    torch.rsqrt: _constant(torch.rsqrt),
    Tensor.rsqrt: _constant(Tensor.rsqrt),
    F.silu: _constant(F.silu),
    torch.sigmoid: _constant(torch.sigmoid),
    F.gelu: _ratio(F.gelu),
    F.relu: _ratio(F.relu),
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.scaled_dot_product_attention: _attention,
}
"""Operation -> what stands for it. SiLU is held as a whole: it gates another branch."""
