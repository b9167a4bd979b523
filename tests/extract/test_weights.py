"""Digests change with every byte that matters, and with nothing else."""

import json
import shutil

import pytest
import torch
from torch import nn

from schemas.errors import ModelError
from schemas.model import FactoryModel
from tasks.extract.weights import (
    model_folder,
    module_digest,
    tokenizer_digest,
    weight_bytes,
    weights_digest,
)
from tests.extract.nets import MINILM, build, save, spec


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_a_copy_has_the_same_digest(tmp_path):
    first = save("bert", tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    assert weights_digest(spec(first)) == weights_digest(spec(str(tmp_path / "b")))


@pytest.mark.parametrize("change", ["weight", "config"])
def test_any_change_shows(change, tmp_path):
    name = save("bert", tmp_path)
    before = weights_digest(spec(name))
    if change == "weight":
        flip_last_byte(tmp_path / "model.safetensors")
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    assert weights_digest(spec(name)) != before


def test_other_files_do_not_count(tmp_path):
    name = save("bert", tmp_path)
    before = weights_digest(spec(name))
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read where there are safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert weights_digest(spec(name)) == before


def test_tokenizer(tmp_path):
    name = save("bert", tmp_path)
    assert tokenizer_digest(spec(name)) is None
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    first = tokenizer_digest(spec(name))
    (tmp_path / "vocab.txt").write_text("a\nc\n")
    assert first is not None
    assert tokenizer_digest(spec(name)) not in (None, first)


def test_factories_have_neither():
    model = FactoryModel(factory="a.b:c")
    assert weights_digest(model) is None
    assert tokenizer_digest(model) is None


def test_package_folder():
    assert (model_folder(spec(MINILM)) / "config.json").is_file()


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights"):
        weights_digest(spec(str(tmp_path)))


def test_weight_bytes_are_the_numbers_times_their_size(tmp_path):
    save("bert", tmp_path)
    numbers = sum(parameter.numel() for parameter in build("bert").parameters())
    assert weight_bytes(tmp_path, 2) == 2 * numbers
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert weight_bytes(tmp_path, 2) == (tmp_path / "pytorch_model.bin").stat().st_size


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Linear(2, 2).bfloat16())


def test_module_digest_is_that_of_the_values():
    assert module_digest(net()) == module_digest(net())
    assert module_digest(net()) != module_digest(net(1))


@pytest.mark.parametrize("change", ["weight", "buffer", "stride", "type", "name", "dtype"])
def test_module_digest_sees(change):
    module = net()
    if change == "weight":
        with torch.no_grad():
            module[3].weight[0, 0] += 1
    elif change == "buffer":
        module[1].running_mean[1] = 1e-30
    elif change == "stride":
        module[0].stride = (2, 2)
    elif change == "type":
        module[2] = nn.GELU()
    elif change == "name":
        module.add_module("4", nn.Identity())
    else:
        module[3].float()
    assert module_digest(module) != module_digest(net())


def test_module_digest_does_not_see_addresses():
    class Custom(nn.Module):
        def extra_repr(self) -> str:
            return f"act={object()}"

    assert module_digest(Custom()) == module_digest(Custom())
