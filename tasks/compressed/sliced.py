"""Transformers with a narrower residual stream: its coordinates in bases that hold most of it, and dense layers of fewer rows and columns.

A norm that divides by the root mean square commutes with rotations, so that a pre-norm transformer may write and read its residual
stream in any orthonormal basis: with Q_k [width, width] at norm k, embeddings E become E Q_0, a layer W after norm k W diag(scale) Q_k,
one that writes before norm k Q_k' W, and the stream itself passes on by Q_k+1' Q_k, since bases differ. That is exact. LayerNorm is such a
norm of the stream without its mean, which is taken out of all that writes instead; its bias goes into the layers that read.

Sliced, Q_k has fewer columns. What they do not hold is lost, and with it a part of the sum of squares that norms divide by, |Q_k' x|^2 for
|x|^2. Sums are still divided by the full width, as published: rows come out with a mean square of one over the full width, as before, but
all of it lies in the kept directions, which are larger by sqrt(|x|^2 / |Q_k' x|^2) than they were.

Attention and feed-forward keep their inner widths, and a network keeps its class: it generates, and its modules keep their paths. It does
not tell `hidden_states` any more. A head that shared its weights with the embedding gets weights of its own: each has another basis.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from tasks.compressed.network import affine_of

KIND = "sliced"
Basis = Float64[Tensor, "feature kept"]


class Family(NamedTuple):
    """Where an architecture has what slicing changes."""

    body: str
    """The network without its head."""
    embeddings: tuple[str, ...]
    blocks: str
    norms: tuple[str, str]
    """Of a block, before attention and before feed-forward."""
    parts: tuple[str, str]
    """Attention and feed-forward."""
    readers: tuple[tuple[str, ...], tuple[str, ...]]
    """Their layers that read the stream."""
    writers: tuple[str, str]
    """Their layers that write to it."""
    last: str
    """The norm before the head."""
    given: tuple[str, ...] = ()
    """What a block takes by place after the stream."""


_GPT2 = Family(
    body="transformer",
    embeddings=("wte", "wpe"),
    blocks="h",
    norms=("ln_1", "ln_2"),
    parts=("attn", "mlp"),
    readers=(("c_attn",), ("c_fc",)),
    writers=("c_proj", "c_proj"),
    last="ln_f",
    given=("past_key_values", "attention_mask", "encoder_hidden_states"),
)
_LLAMA = Family(
    body="model",
    embeddings=("embed_tokens",),
    blocks="layers",
    norms=("input_layernorm", "post_attention_layernorm"),
    parts=("self_attn", "mlp"),
    readers=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
    writers=("o_proj", "down_proj"),
    last="norm",
)
FAMILIES = {
    "GPT2LMHeadModel": _GPT2,
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
}
"""Class of transformers -> where things are."""
POST_NORM = ("Albert", "Bert", "DistilBert", "Electra", "MPNet", "Roberta", "XLMRoberta")
"""Beginnings of names of classes with norms after the sum."""


class SlicedNorm(nn.Module):
    """x / sqrt(sum x^2 / width + eps), for the width before slicing: no mean, scale or bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., feature]; 16 bits are widened in between."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        size = wide.square().sum(-1, keepdim=True) / self.width + self.eps
        return (wide * size.rsqrt()).to(x.dtype)


class SlicedBlock(nn.Module):
    """x becomes S_1 x + attention(norm_1(x)), and that S_2 x + feed-forward(norm_2(x))."""

    def __init__(
        self,
        family: Family,
        norms: Sequence[nn.Module],
        parts: Sequence[nn.Module],
        shortcuts: Sequence[Tensor],
    ) -> None:
        """Take modules as they are.

        Args:
            family: names under which they stand.
            norms: two.
            parts: attention and feed-forward, whose layers fit.
            shortcuts: [next width, width] each.
        """
        super().__init__()
        self._family = family
        for name, module in zip(family.norms + family.parts, (*norms, *parts), strict=True):
            self.add_module(name, module)
        self.shortcuts = nn.ParameterList(nn.Parameter(matrix) for matrix in shortcuts)

    def forward(self, hidden_states: Tensor, *given: Any, **options: Any) -> Tensor:
        """[sample, token, width] to [sample, token, next width]; the rest goes to attention."""
        options |= dict(zip(self._family.given, given, strict=False))
        options = {name: value for name, value in options.items() if not name.startswith("encoder_")}
        norms = [self.get_submodule(name) for name in self._family.norms]
        attention, feed = (self.get_submodule(name) for name in self._family.parts)
        attended: Tensor = attention(norms[0](hidden_states), **options)[0]
        stream = hidden_states @ self.shortcuts[0].T + attended
        y: Tensor = stream @ self.shortcuts[1].T + feed(norms[1](stream))
        return y


def family_of(network: nn.Module) -> Family:
    """Where things are in a network.

    Raises:
        ValueError: with the reason, where slicing is not possible or not known to be.
    """
    name = type(network).__name__
    known = ", ".join(FAMILIES)
    if name.startswith(POST_NORM) and "PreLayerNorm" not in name:
        raise ValueError(
            f"a {name} has its norms after the sum (post-norm): they act on the residual stream itself, with a scale for each feature, so "
            f"that no rotation of it leaves the network as it is; expected a pre-norm network: {known}"
        )
    if name not in FAMILIES:
        raise ValueError(
            f"a {name} cannot be sliced: where its residual stream is written and read is not known; expected one of {known}"
        )
    family = FAMILIES[name]
    first = network.get_submodule(f"{family.body}.{family.blocks}.0")
    if type(first) is SlicedBlock:
        raise ValueError("the network is sliced already; slice the one that it was made from")
    if hasattr(first, "crossattention"):
        raise ValueError(f"a {name} with cross-attention cannot be sliced: it reads another stream too")
    return family


def norm_paths(network: nn.Module) -> tuple[str, ...]:
    """Paths of the norms that read the residual stream, in order; the last is that before the head.

    Raises:
        ValueError: see `family_of`.
    """
    family = family_of(network)
    n = len(network.get_submodule(f"{family.body}.{family.blocks}"))  # type: ignore[arg-type]
    within = [f"{family.body}.{family.blocks}.{k}.{name}" for k in range(n) for name in family.norms]
    return (*within, f"{family.body}.{family.last}")


def centred(network: nn.Module) -> bool:
    """Whether norms take the mean of features out."""
    return isinstance(network.get_submodule(norm_paths(network)[-1]), nn.LayerNorm)


def slice_network(network: nn.Module, bases: Sequence[Basis]) -> dict[str, Any]:
    """Replace what reads and writes the residual stream. The network's modules are changed, its tensors are not.

    Args:
        network: of `FAMILIES`, with modules of its own.
        bases: orthonormal columns, of each of `norm_paths`; the first and the last are as wide as each other, since the code of GPT-2 gives
            its states out as wide as it took them.

    Returns:
        What a file tells of it: `rebuild` makes a network of these shapes.

    Raises:
        ValueError: for networks that cannot be sliced, or bases that do not fit.

    Cost: products of all weights with bases, in float64.
    """
    family, paths = family_of(network), norm_paths(network)
    width = len(network.get_submodule(paths[-1]).get_parameter("weight"))
    _check_bases(bases, width, paths)
    mean_free = centred(network)
    body = network.get_submodule(family.body)
    into = [_without_mean(basis) if mean_free else basis for basis in bases]
    for name in family.embeddings:
        setattr(body, name, _embedding(body.get_submodule(name), into[0]))
    blocks: Any = body.get_submodule(family.blocks)
    for k, block in enumerate(blocks):
        at = slice(2 * k, 2 * k + 3)
        blocks[k] = _block(family, block, bases[at], into[at])
    norm, head = body.get_submodule(family.last), network.get_submodule("lm_head")
    network.set_submodule("lm_head", _reader(head, norm, bases[-1]))
    setattr(body, family.last, _norm(norm))
    config: Any = copy(network.config)
    config.tie_word_embeddings = False
    network.config = config
    return {"kind": KIND, "widths": [basis.shape[1] for basis in bases]}


def rebuild(network: nn.Module, told: Mapping[str, Any]) -> None:
    """Give a network the shapes of a sliced one, ready for its tensors; those that it has now mean nothing.

    Args:
        network: of the architecture that was sliced; is changed.
        told: what `slice_network` returned.
    """
    width = len(network.get_submodule(norm_paths(network)[-1]).get_parameter("weight"))
    whole = torch.eye(width, dtype=torch.float64)
    slice_network(network, [whole[:, :kept] for kept in told["widths"]])


def _check_bases(bases: Sequence[Basis], width: int, paths: Sequence[str]) -> None:
    if len(bases) != len(paths):
        raise ValueError(
            f"found {len(bases)} bases, expected one for each of {len(paths)} norms, {paths[0]} to {paths[-1]}"
        )
    for path, basis in zip(paths, bases, strict=True):
        if basis.shape[0] != width or not 1 <= basis.shape[1] <= width:
            raise ValueError(f"{path}: found a basis {tuple(basis.shape)}, expected [{width}, 1 to {width}]")
    if bases[0].shape[1] != bases[-1].shape[1]:
        raise ValueError(
            f"found {bases[0].shape[1]} columns at {paths[0]} and {bases[-1].shape[1]} at {paths[-1]}, expected as many"
        )


def _without_mean(basis: Basis) -> Basis:
    """(I - 1 1' / n) basis: what writes through it writes nothing along the mean."""
    return basis - basis.mean(0)


def _norm(old: nn.Module) -> SlicedNorm:
    eps: Any = old.eps if isinstance(old, nn.LayerNorm) else old.variance_epsilon
    return SlicedNorm(len(old.get_parameter("weight")), float(eps))


def _embedding(old: nn.Module, basis: Basis) -> nn.Embedding:
    weight = old.get_parameter("weight").detach()
    made = (weight.double() @ basis.to(weight.device)).to(weight.dtype)
    rows, width = made.shape
    return nn.Embedding(rows, width, padding_idx=getattr(old, "padding_idx", None), _weight=made)


def _linear(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.to(like.dtype).contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias.to(like.dtype))
    return made


def _reader(old: nn.Module, norm: nn.Module, basis: Basis) -> nn.Linear:
    """A layer after a norm, with its scale and bias."""
    weight, bias = affine_of(old)
    scale, shift = norm.get_parameter("weight").detach().double(), getattr(norm, "bias", None)
    moved = None if shift is None else weight.double() @ shift.detach().double()
    if bias is not None:
        moved = bias.double() + (0 if moved is None else moved)
    return _linear((weight.double() * scale) @ basis.to(weight.device), moved, weight)


def _writer(old: nn.Module, basis: Basis) -> nn.Linear:
    """A layer whose outputs are added to the stream."""
    weight, bias = affine_of(old)
    into = basis.to(weight.device).T
    return _linear(into @ weight.double(), None if bias is None else into @ bias.double(), weight)


def _block(family: Family, block: nn.Module, bases: Sequence[Basis], into: Sequence[Basis]) -> SlicedBlock:
    """Of three bases: at its two norms, and at the next one."""
    norms, parts, shortcuts = [], [], []
    for k in (0, 1):
        norm, part = block.get_submodule(family.norms[k]), block.get_submodule(family.parts[k])
        like = norm.get_parameter("weight")
        for name in family.readers[k]:
            setattr(part, name, _reader(part.get_submodule(name), norm, bases[k]))
        setattr(part, family.writers[k], _writer(part.get_submodule(family.writers[k]), into[k + 1]))
        norms.append(_norm(norm))
        parts.append(part)
        shortcuts.append((bases[k + 1].T @ bases[k]).to(like.device, like.dtype).contiguous())
    return SlicedBlock(family, norms, parts, shortcuts)
