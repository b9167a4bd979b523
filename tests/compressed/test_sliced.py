"""Rotated networks are the network, planted narrow streams are sliced without loss, files, and what cannot be sliced."""

import copy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.compressed.files import load_compressed, save_compressed
from tasks.compressed.sliced import SlicedNorm, centred, norm_paths, slice_network
from tests.extract import nets

FAMILIES = ("gpt2", "llama", "mistral", "qwen2")
WIDTH = 32


def network(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Scales, biases and all else away from where they start; norms compute in the network's own dtype."""
    import transformers

    if family in nets.SIZES:
        net: Any = nets.build(family, head=True)
    else:
        name = {"mistral": "Mistral", "qwen2": "Qwen2"}[family]
        tied = family == "qwen2"
        config = getattr(transformers, f"{name}Config")(
            vocab_size=nets.VOCAB, tie_word_embeddings=tied, **nets.SIZES["llama"]
        )
        net = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    rng = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=rng)
    net = net.to(dtype)
    for path in norm_paths(net) if not centred(net) else ():
        old = net.get_submodule(path)
        new = nn.RMSNorm(WIDTH, eps=old.variance_epsilon, dtype=dtype)
        new.weight, new.variance_epsilon = old.weight, old.variance_epsilon  # type: ignore[assignment]
        net.set_submodule(path, new)  # that of the library is of 32 bits
    return net


def rotations(n: int, width: int = WIDTH) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [
        torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.float64))[0] for _ in range(n)
    ]


@torch.no_grad()
def logits(net: Any) -> Tensor:
    batch = nets.text_batch([7, 4, 9, 1])
    out: Tensor = net(**batch.inputs).logits[batch.inputs["attention_mask"].bool()]
    return out


def numbers(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_a_rotated_network_is_the_network(family: str, dtype: torch.dtype, within: float) -> None:
    net = network(family, dtype)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    made = copy.deepcopy(net)
    told = slice_network(made, rotations(len(norm_paths(net))))
    torch.testing.assert_close(logits(made), logits(net), atol=within, rtol=0)
    assert told["widths"] == [WIDTH] * 7
    assert made.get_output_embeddings().weight is not made.get_input_embeddings().weight
    assert all(torch.equal(before[name], parameter) for name, parameter in net.named_parameters())
    assert net.config.tie_word_embeddings == (family in ("gpt2", "qwen2"))
    ids = torch.tensor([[3, 4, 5]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(made.generate(ids, **options), net.generate(ids, **options))


def test_a_norm_commutes_with_rotations_and_divides_by_the_full_width() -> None:
    (q,) = rotations(1)
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    norm = SlicedNorm(WIDTH, 1e-5)
    torch.testing.assert_close(norm(x @ q), norm(x) @ q)
    kept = norm((x @ q)[:, :20])
    share = (x @ q)[:, :20].square().sum(1, keepdim=True) / x.square().sum(1, keepdim=True)
    torch.testing.assert_close(kept, (norm(x) @ q)[:, :20] / share.sqrt(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(kept.square().sum(1), torch.full((5,), 32.0).double(), atol=1e-2, rtol=0)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def planted(family: str, kept: int) -> tuple[Any, Tensor]:
    """All that writes to the stream writes to `kept` dimensions, whose basis comes too."""
    net = network(family, torch.float64)
    basis = rotations(1)[0][:, :kept]
    if family == "gpt2":  # norms take the mean out: it is no dimension
        basis = torch.linalg.qr(basis - basis.mean(0))[0]
    onto = basis @ basis.T
    for name, parameter in net.named_parameters():
        last = name.split(".")[-2] if "." in name else name
        if last in ("wte", "wpe", "embed_tokens"):
            parameter.data = parameter.data @ onto
        elif last in ("o_proj", "down_proj"):
            parameter.data = onto @ parameter.data
        elif last == "c_proj":
            parameter.data = parameter.data @ onto
    return net, basis


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_stream_in_few_dimensions_is_sliced_without_loss(family: str) -> None:
    net, basis = planted(family, 12)
    made = copy.deepcopy(net)
    slice_network(made, [basis] * 7)
    torch.testing.assert_close(logits(made), logits(net), atol=1e-9, rtol=0)
    assert numbers(made) < 0.6 * numbers(net) + nets.VOCAB * 12 + nets.VOCAB
    narrower = copy.deepcopy(net)
    slice_network(narrower, [basis[:, :11]] * 7)
    assert float((logits(narrower) - logits(net)).abs().max()) > 1e-3


def test_layer_norm_gives_one_dimension_for_nothing() -> None:
    net = network("gpt2", torch.float64)
    mean = torch.full((WIDTH, 1), WIDTH**-0.5, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([mean, rotations(1)[0][:, 1:]], 1))[0][:, 1:]
    made = copy.deepcopy(net)
    slice_network(made, [basis] * 7)
    torch.testing.assert_close(logits(made), logits(net), atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sites_may_have_widths_of_their_own(family: str) -> None:
    """As if the stream were projected at each norm, and nothing else changed."""
    net = network(family, torch.float64)
    widths = [20, 32, 9, 16, 25, 31, 20]
    bases = [q[:, :kept] for q, kept in zip(rotations(7), widths, strict=True)]
    made, same = copy.deepcopy(net), copy.deepcopy(net)
    slice_network(made, bases)
    assert made.get_input_embeddings().weight.shape == (nets.VOCAB, 20)
    slice_network(same, rotations(7))
    _zero_beyond(same, widths, family)
    torch.testing.assert_close(logits(made), logits(same), atol=1e-9, rtol=0)


def _zero_beyond(net: Any, widths: Sequence[int], family: str) -> None:
    """The rotated network, all that is written beyond a width set to zero."""
    body = net.transformer if family == "gpt2" else net.model
    for table in (body.wte, body.wpe) if family == "gpt2" else (body.embed_tokens,):
        table.weight.data[:, widths[0] :] = 0
    for k, block in enumerate(body.h if family == "gpt2" else body.layers):
        writers = (
            (block.attn.c_proj, block.mlp.c_proj)
            if family == "gpt2"
            else (block.self_attn.o_proj, block.mlp.down_proj)
        )
        for part, writer in enumerate(writers):
            beyond = widths[2 * k + part + 1]
            writer.weight.data[beyond:] = 0
            block.shortcuts[part].data[beyond:] = 0
            if writer.bias is not None:
                writer.bias.data[beyond:] = 0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_folder_is_enough(family: str, tmp_path: Path) -> None:
    """Bit for bit, in a process that has nothing else."""
    net = nets.build(family, head=True)
    told = slice_network(net, [q[:, :24] for q in rotations(7)])
    source = {"auto": "AutoModelForCausalLM", "attention": "sdpa", "dtype": "float32"}
    save_compressed(tmp_path, net, {}, {"source": source, "architecture": told})
    np.save(tmp_path / "expected.npy", logits(net).numpy())
    code = (
        "import sys\n"
        "for name in ('extract', 'engine', 'methods', 'store', 'numerics'): sys.modules['tasks.' + name] = None\n"
        "import numpy as np, torch\n"
        "from tasks.compressed.files import load_compressed\n"
        f"net = load_compressed({str(tmp_path)!r})\n"
        f"given = torch.load({str(tmp_path / 'given.pt')!r})\n"
        "with torch.no_grad(): found = net(**given).logits[given['attention_mask'].bool()]\n"
        f"assert np.array_equal(found.numpy(), np.load({str(tmp_path / 'expected.npy')!r}))\n"
        "print(sum(p.numel() for p in net.parameters()))\n"
    )
    torch.save(dict(nets.text_batch([7, 4, 9, 1]).inputs), tmp_path / "given.pt")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) == numbers(net)
    size = (tmp_path / "compressed.safetensors").stat().st_size
    assert 0 <= size - 4 * numbers(net) < 8000  # the header of the file
    again = load_compressed(tmp_path, nets.build(family, head=True))
    assert torch.equal(logits(again), logits(net))


def test_what_cannot_be_sliced() -> None:
    import transformers

    with pytest.raises(ValueError, match="norms after the sum"):
        norm_paths(nets.build("bert", head=True))
    with pytest.raises(ValueError, match=r"GPT2Model cannot be sliced.*expected one of GPT2LMHeadModel"):
        norm_paths(nets.build("gpt2"))
    with pytest.raises(ValueError, match="ViTModel cannot be sliced"):
        norm_paths(nets.build("vit"))
    net = network("gpt2")
    with pytest.raises(
        ValueError, match=r"found 6 bases, expected one for each of 7 norms, transformer\.h\.0\.ln_1"
    ):
        slice_network(net, rotations(6))
    with pytest.raises(ValueError, match=r"found a basis \(31, 31\)"):
        slice_network(net, rotations(7, 31))
    with pytest.raises(ValueError, match=r"found 8 columns at transformer\.h\.0\.ln_1 and 9"):
        slice_network(net, [q[:, :k] for q, k in zip(rotations(7), (8, *[9] * 6), strict=True)])
    assert net.config.tie_word_embeddings  # nothing was changed
    slice_network(net, rotations(7))
    with pytest.raises(ValueError, match="sliced already"):
        slice_network(net, rotations(7))
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "add_cross_attention": True}
    with pytest.raises(ValueError, match="cross-attention"):
        norm_paths(
            transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
        )
