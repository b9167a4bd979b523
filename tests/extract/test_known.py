"""Which networks threads may copy: those of known code that keeps nothing outside of them."""

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.extract import known
from tasks.extract.known import is_known

SMALL: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30,
}  # fmt: skip
IMAGES: dict[str, Any] = SMALL | {"image_size": 8, "patch_size": 4}


def pretrained(kind: str, **changes: Any) -> PreTrainedModel:
    config = getattr(transformers, f"{kind}Config")(**SMALL | changes)
    made: PreTrainedModel = getattr(transformers, f"{kind}Model")(config)
    return made


def twice(x: Tensor) -> Tensor:
    return 2 * x


class Mine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Several(list[int]):
    """May do more than a list."""


class Doubled(Tensor):
    """Runs code of its own."""


def layer(activation: Callable[[Tensor], Tensor]) -> nn.Module:
    made: nn.Module = nn.TransformerEncoderLayer(4, 2, 8, activation=activation)
    return made


def with_attribute(value: object) -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3))
    module[0].extra = value  # type: ignore[assignment]
    return module


@pytest.mark.parametrize(
    "kind", ["Bert", "GPT2", "Llama", "Albert", "Roberta", "Qwen2", "MPNet", "DistilBert", "T5Encoder"]
)
def test_usual_language_models_are_known(kind: str) -> None:
    if kind == "T5Encoder":
        config = transformers.T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=30)
        assert is_known(transformers.T5EncoderModel(config))
    else:
        assert is_known(pretrained(kind))


@pytest.mark.parametrize("kind", ["ViT", "CLIPVision", "Dinov2"])
def test_usual_image_models_are_known(kind: str) -> None:
    assert is_known(pretrained(kind, **IMAGES))


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()),
        nn.LSTM(3, 3),
        layer(torch.nn.functional.gelu),
        layer(torch.relu),
    ],
)
def test_modules_of_torch_are_known(module: nn.Module) -> None:
    assert is_known(module)


UNKNOWN = {
    "a module of somebody": lambda: nn.Sequential(Mine()),
    "a module in a list that torch does not see": lambda: with_attribute([{"a": (Mine(),)}]),
    "a class of somebody": lambda: with_attribute(Mine),
    "a list of somebody": lambda: with_attribute(Several()),
    "a function": lambda: layer(twice),
    "a function of somebody in a partial": lambda: layer(functools.partial(twice)),
    "a lambda": lambda: layer(lambda x: x),
    "a built-in method that draws": lambda: with_attribute(__import__("numpy").random.random),
    "an object of somebody": lambda: with_attribute(SimpleNamespace(call=twice)),
    "a tensor of somebody": lambda: with_attribute(torch.ones(3).as_subclass(Doubled)),
    "a generated forward": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())),
    "numpy's generator in its file": lambda: pretrained("Wav2Vec2", num_conv_pos_embedding_groups=2),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_other_code_is_unknown(what: str) -> None:
    assert not is_known(UNKNOWN[what]())


def test_hooks_and_bound_forwards_are_unknown() -> None:
    hooked, patched = (nn.Sequential(nn.Linear(3, 3)) for _ in range(2))
    handle = hooked[0].register_forward_pre_hook(lambda *_: None)
    patched.forward = patched[0].forward  # type: ignore[method-assign]
    assert not is_known(hooked)
    assert not is_known(patched)
    handle.remove()
    assert is_known(hooked)


def test_a_hook_of_all_modules_is_unknown() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not is_known(nn.Linear(3, 3))
    finally:
        handle.remove()
    assert is_known(nn.Linear(3, 3))


def test_a_method_that_somebody_replaced_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.wraps(nn.GELU.forward)
    def mine(self: nn.GELU, x: Tensor) -> Tensor:
        return x

    assert is_known(nn.Sequential(nn.GELU()))
    for replaced in (mine, functools.partial(mine, nn.GELU())):
        monkeypatch.setattr(nn.GELU, "forward", replaced)
        assert not is_known(nn.Sequential(nn.GELU()))


@pytest.fixture
def registered() -> Iterator[str]:
    registry = transformers.AttentionInterface
    registry.register("of-the-tests", lambda *_: None)
    yield "of-the-tests"
    registry._global_mapping.pop("of-the-tests")


def test_an_attention_function_of_somebody_is_unknown(registered: str) -> None:
    assert not is_known(pretrained("Bert"))


STATES = (
    "    global calls",
    "with sdpa_kernel(MATH):",
    "np.random.random()",
    "torch.manual_seed(0)",
    "random.uniform(0, 1)",
)


def test_files_say_what_belongs_to_the_process() -> None:
    for line in STATES:
        assert known.PROCESS_WIDE.search(line), line
    for line in ("x = torch.rand(3)", "self.random_state = 3", "is_global = True"):
        assert not known.PROCESS_WIDE.search(line), line
