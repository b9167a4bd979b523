"""Networks of every kind, with batches, losses, and the gradients of each sample by plain autograd."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from tests.extract.nets import text_batch

LENGTHS = [7, 4, 9, 1, 5, 6, 2, 8]
VOCABULARY = 50


class Sample(NamedTuple):
    """A network, and losses of a batch or of one of its samples."""

    module: nn.Module
    n: int
    losses: Callable[[int | None], Tensor]


def texts(
    module: nn.Module, loss: Callable[[Any, Tensor, Tensor], Tensor], lengths: list[int] = LENGTHS
) -> Sample:
    """Padded tokens; a sample alone has the padding of its batch."""
    batch = text_batch(lengths, vocab=VOCABULARY)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]

    def losses(sample: int | None) -> Tensor:
        some = slice(None) if sample is None else slice(sample, sample + 1)
        return loss(module(input_ids=ids[some], attention_mask=mask[some]), ids[some], mask[some])

    return Sample(module.double().eval(), len(lengths), losses)


def tensors(module: nn.Module, values: Tensor) -> Sample:
    """Values [sample, ...]; the loss is a fixed nonlinear function of all outputs."""
    values = values.double()

    def losses(sample: int | None) -> Tensor:
        some = values if sample is None else values[sample : sample + 1]
        out = module(some.clone())
        out = out[0] if isinstance(out, tuple) else out
        out = out.reshape(len(some), -1)
        weight = torch.linspace(-1, 2, out.shape[1], dtype=out.dtype)
        return (out * weight).tanh().sum(1) + (out**2).sum(1)

    return Sample(module.double().eval(), len(values), losses)


def next_token(output: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Summed over the tokens of each sample."""
    wanted = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    each = F.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), wanted.flatten(), reduction="none", ignore_index=-100
    )
    return each.view(wanted.shape).sum(1) + 0 * output.logits.sum((1, 2))


def pooled(output: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Of the mean embedding."""
    hidden = output.last_hidden_state
    kept = mask[:, :, None].to(hidden.dtype)
    mean = (hidden * kept).sum(1) / kept.sum(1)
    target = torch.linspace(-1, 1, hidden.shape[2], dtype=hidden.dtype)
    return 1 - F.cosine_similarity(mean, target[None], dim=1)


def p(*shape: int) -> nn.Parameter:
    """A seeded parameter."""
    return nn.Parameter(torch.randn(shape))


class Made(nn.Module):
    """A function of its parts and an input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Conv(nn.Module):
    """Grouped, dilated, strided, circular and same-padded convolutions, in-place activation and sum, three kinds of norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.group_norm = nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4)
        self.circular = nn.Conv2d(12, 12, 3, stride=2, padding=1, padding_mode="circular", bias=False)
        self.batch_norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, (3, 5), padding="same", groups=12)
        self.skip = nn.Conv2d(12, 12, 1)
        self.instance_norm = nn.InstanceNorm2d(12, affine=True)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(12, 5)
        self.batch_norm.running_mean.normal_()  # type: ignore[union-attr]
        self.batch_norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.group_norm(self.first(x)))
        x = self.act(self.circular(self.grouped(x)))
        x = self.batch_norm(x)
        y = self.depthwise(x)
        y += self.skip(x)
        out: Tensor = self.last(self.instance_norm(self.act(y)).flatten(2).mean(2))
        return out


class Bare(nn.Module):
    """Parameters that belong to no layer, a scale, a class token, positions, and a weight that is used by a function and twice."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.position = nn.Parameter(torch.randn(1, 5, 6))
        self.scale = nn.Parameter(torch.randn(6))
        self.number = nn.Parameter(torch.randn(()))
        self.matrix = nn.Parameter(torch.randn(6, 6))
        self.layer = nn.Linear(6, 6)
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = torch.tanh(x * self.scale) - self.number
        x = torch.tanh(x @ self.matrix)
        x = self.layer(x) + F.linear(torch.tanh(x), self.layer.weight)
        return torch.tanh(self.layer(x)) * self.scale


class Reader(nn.Module):
    """Rare uses of a parameter: transposed, indexed, in einsum, in place, through a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.turned, self.picked, self.summed, self.placed, self.own, self.plain = (
            nn.Parameter(torch.randn(4, 4)) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ self.turned.T + self.picked[0])
        x = torch.einsum("...i,ij->...j", x, self.summed)
        x = torch.tanh(x)
        x = x.clone()
        x += self.placed[1] * 2
        x = Own.apply(x, self.own)
        return x @ self.plain


class Own(torch.autograd.Function):
    """x @ w, as a function of the user."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w.T, x.flatten(0, -2).T @ g.flatten(0, -2)


class Turned(nn.Module):
    """Samples on the second axis inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(6, 6)
        self.flat = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.inner(x.transpose(0, 1))).transpose(0, 1)
        z = (
            torch.tanh(self.flat(y.transpose(0, 1).reshape(-1, 6)))
            .view(x.shape[1], len(x), 6)
            .transpose(0, 1)
        )
        return self.outer(z.reshape(-1, 6)).view(x.shape)


class Experts(nn.Module):
    """Each token goes through one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 6)
        choice = self.gate(flat)
        out = torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            here = (choice.argmax(1) == k).nonzero()[:, 0]
            out = out.index_add(0, here, expert(flat[here]) * choice[here, k, None])
        return out.view(x.shape)


class Recurrent(nn.Module):
    """An LSTM and a transformer layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.lstm(x)[0])
        return out


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def _small(name: str, **sizes: Any) -> Any:
    return getattr(transformers, name)(**sizes)


def make(kind: str) -> Sample:
    """The network of a name, with seeded weights."""
    torch.manual_seed(1)
    return MAKERS[kind]()


MAKERS: dict[str, Callable[[], Sample]] = {
    "gpt2": lambda: texts(
        transformers.GPT2LMHeadModel(_small("GPT2Config", vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=4, n_positions=16)),
        next_token,
    ),
    "llama": lambda: texts(
        transformers.LlamaForCausalLM(
            _small(
                "LlamaConfig", vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
            )
        ),
        next_token,
    ),
    "albert": lambda: texts(
        transformers.AlbertModel(
            _small(
                "AlbertConfig", vocab_size=VOCABULARY, embedding_size=8, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
                num_attention_heads=4, max_position_embeddings=16,
            ), add_pooling_layer=False,
        ),
        pooled,
    ),
    "bert": lambda: texts(
        transformers.BertModel(
            _small(
                "BertConfig", vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=16,
            ), add_pooling_layer=False,
        ),
        pooled,
    ),
    "vit": lambda: tensors(
        Logits(
            transformers.ViTForImageClassification(
                _small(
                    "ViTConfig", hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=8,
                    patch_size=4, num_labels=5,
                )
            )
        ),
        draw(8, 3, 8, 8),
    ),
    "cnn": lambda: tensors(Conv(), draw(8, 3, 8, 8)),
    "conv1d": lambda: tensors(nn.Sequential(nn.Conv1d(3, 6, 3, groups=3), nn.Tanh(), nn.Conv1d(6, 4, 2, dilation=2)), draw(8, 3, 9)),
    "conv3d": lambda: tensors(nn.Sequential(nn.Conv3d(2, 4, 2, stride=2), nn.Tanh(), nn.Conv3d(4, 4, 2, groups=2)), draw(8, 2, 6, 6, 6)),
    "mlp": lambda: tensors(nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 4), nn.RMSNorm(4)), draw(8, 6)),
    "bare": lambda: tensors(Bare(), draw(8, 4, 6)),
    "reader": lambda: tensors(Reader(), draw(8, 3, 4)),
    "turned": lambda: tensors(Turned(), draw(8, 5, 6)),
    "experts": lambda: tensors(Experts(), draw(8, 5, 6)),
    "recurrent": lambda: tensors(Recurrent(), draw(8, 5, 6)),
}  # fmt: skip
FAST = ("gpt2", "llama", "albert", "bert", "vit", "cnn", "conv1d", "conv3d", "mlp", "bare")
"""Networks of which no parameter needs a pass for each sample."""


class Logits(nn.Module):
    """The logits of a classifier."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x).logits
        return out


def loop(sample: Sample) -> dict[str, Tensor]:
    """Parameter to [sample, entry], by plain autograd of each sample alone."""
    names, parameters = zip(*sample.module.named_parameters(), strict=True)
    rows = [
        torch.autograd.grad(sample.losses(n).sum(), parameters, allow_unused=True) for n in range(sample.n)
    ]
    return {
        name: torch.stack([(torch.zeros_like(p) if row[k] is None else row[k]).flatten() for row in rows])
        for k, (name, p) in enumerate(zip(names, parameters, strict=True))
    }
