"""Jacobians of networks: closed forms of linear ones, and the map that a transformer is at its input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from pipelines.serial import run_serial
from schemas.errors import MethodError
from schemas.run import RunSpec
from subspan import open_artifact
from tasks.methods.contract import Block, Inputs
from tasks.methods.gradients import jacobian
from tasks.numerics.detached import Detached
from tests.methods import cases
from tests.methods.cases import Answer, Case, TinyNetwork, TinyView
from tests.methods.training import randn


def solved(module: nn.Module, x: Tensor, **options: Any) -> Answer:
    network = TinyNetwork(module, x, torch.zeros(len(x)).long())
    index = torch.arange(len(x))
    block = Block({}, index, torch.zeros_like(index), index, network=network)
    inputs = Inputs(widths={"model": 0}, n_rows=len(x), n_samples=len(x))
    return cases.run(Case(jacobian, jacobian.Config(**options), inputs, block))


def test_a_linear_encoder_has_its_own_singular_values() -> None:
    module = nn.Linear(6, 4, bias=False).double()
    answer = solved(module, randn(70, 6), components=3)
    s = torch.linalg.svdvals(module.weight.detach())
    np.testing.assert_allclose(answer.arrays["singular_value"], s[:3].expand(70, 3), rtol=1e-10)
    assert answer.result.log_volume == pytest.approx(float(torch.log(s).sum()), rel=1e-9)
    assert answer.result.reconstruction_error < 1e-12
    share = s.square() / s.square().sum()
    assert answer.result.effective_rank == pytest.approx(float(torch.exp(-(share * share.log()).sum())))
    assert answer.result.common_share == pytest.approx(float(share[:3].sum()))
    v = torch.linalg.svd(module.weight.detach()).Vh[:3]
    overlap = (answer.arrays["input_direction"] @ v.T).diagonal().abs()
    np.testing.assert_allclose(overlap, 1, atol=1e-8)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_log_volume_of_a_linear_encoder(shape: tuple[int, int]) -> None:
    """The same at every input, and what the determinant gives; directions that are lost count as epsilon."""
    module = nn.Linear(*shape).double()
    answer = solved(module, 100 * randn(70, shape[0]))
    w = module.weight.detach()
    gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
    np.testing.assert_allclose(answer.arrays["log_volume"], float(torch.logdet(gram)) / 2, atol=1e-9)
    with torch.no_grad():
        module.weight[0] = module.weight[1]
    s = torch.linalg.svdvals(module.weight.detach())
    lost = solved(module, randn(70, shape[0]), epsilon=1e-3).arrays["log_volume"]
    np.testing.assert_allclose(lost, float(s.clamp(min=1e-3).log().sum()), atol=1e-9)


def test_samples_are_dense_where_an_encoder_stretches_them() -> None:
    """An encoder that makes rows of two densities alike: the log of the density, up to a constant, so that larger is denser."""

    class Flattening(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.ndtr(x)

    x = randn(70, 3)
    found = solved(Flattening(), x).arrays["log_volume"]
    density = -x.square().sum(1) / 2 - 3 * np.log(2 * np.pi) / 2
    np.testing.assert_allclose(found, density, atol=1e-8)


def test_a_planted_low_rank() -> None:
    first, last = nn.Linear(20, 2, bias=False), nn.Linear(2, 15, bias=False)
    answer = solved(nn.Sequential(first, nn.Tanh(), last).double(), randn(20, 20) / 5, components=5)
    assert answer.result.effective_rank <= 2 + 1e-9
    assert float(answer.arrays["singular_value"][:, 2:].max()) < 1e-12
    assert answer.result.common_share == pytest.approx(1)
    assert answer.result.common_null == 0.25


def test_it_is_that_of_autograd() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x = randn(3, 3)
    answer = solved(module, x, components=3)
    for n in range(3):
        exact = torch.autograd.functional.jacobian(module, x[n])
        np.testing.assert_allclose(answer.arrays["singular_value"][n], torch.linalg.svdvals(exact), rtol=1e-9)


def test_a_relu_network_is_linear_when_detached() -> None:
    module = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False)).double()
    assert solved(module, randn(30, 6), detached=True).result.reconstruction_error < 1e-10
    biased = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    assert solved(biased, randn(30, 6), detached=True).result.caveats


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_llama_is_linear_when_detached(attention: str) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, attn_implementation=attention,
    )  # fmt: skip
    module = transformers.LlamaModel(config).double().eval()
    x = randn(1, 5, 16).requires_grad_()
    with Detached():
        y = module(inputs_embeds=x).last_hidden_state[0, -1]
    plain = module(inputs_embeds=x).last_hidden_state[0, -1]
    torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-7)  # its norms compute in float32
    rows = torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0].flatten() for v in y])
    torch.testing.assert_close(rows @ x.flatten(), y, rtol=1e-5, atol=1e-7)
    own = torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0].flatten() for v in plain])
    assert float(((own @ x.flatten() - plain).norm() / plain.norm()).detach()) > 0.01


def test_too_many_outputs_are_refused() -> None:
    with pytest.raises(MethodError, match="too large"):
        solved(nn.Linear(3, 5000).double(), randn(3, 3))


def test_a_language_model_in_a_run(tmp_path: Path) -> None:
    from tests.extract.nets import save

    run = RunSpec.model_validate(
        {
            "name": "lm",
            "root": str(tmp_path),
            "captures": {
                "lm": {
                    "model": {"name": save("llama", tmp_path / "llama", head=True), "head": "causal-lm"},
                    "data": {
                        "source": {"kind": "factory", "factory": "tests.pipelines.runs:token_sequences"}
                    },
                    "loss": {"kind": "lm"},
                }
            },
            "stages": {
                "map": {
                    "method": "gradients.jacobian",
                    "config": {"detached": True, "position": -1, "sample_rows": 6, "components": 2},
                }
            },
            "report": None,
        }
    )
    outcome = run_serial(run)
    assert not outcome.stage_failures
    result = open_artifact(tmp_path, outcome.artifacts[0].id).result
    assert result["n_samples"] == 6
    assert result["reconstruction_error"] < 1e-4


class Texts(TinyNetwork):
    """Sequences of several lengths, padded on one side."""

    def __init__(self, module: nn.Module, samples: list[Tensor], right: bool, at_once: int) -> None:
        super().__init__(module, samples[0][None], torch.zeros(len(samples)).long())
        self.samples, self.right, self.at_once = samples, right, at_once

    def batches(self) -> Any:
        for first in range(0, len(self.samples), self.at_once):
            yield TextView(self, range(first, min(first + self.at_once, len(self.samples))))


class TextView(TinyView):
    """A batch of them."""

    def __init__(self, network: Texts, some: range) -> None:
        self.n, self.rows, self._network = len(some), torch.tensor(some), network
        self._samples = [network.samples[k] for k in some]
        longest = max(len(sample) for sample in self._samples)
        places = torch.arange(longest)
        lengths = torch.tensor([len(sample) for sample in self._samples])[:, None]
        self.mask = places < lengths if network.right else places >= longest - lengths
        self.gives, self.tells, self.targets = "tokens", True, lengths[:, 0]

    def ends(self) -> tuple[Tensor, Tensor]:
        """Padding is not zero, and the network's outputs there are not either."""
        x = torch.full((*self.mask.shape, 3), 7.0, dtype=torch.float64)
        for n, sample in enumerate(self._samples):
            x[n, self.mask[n]] = sample
        x.requires_grad_()
        return x, self._network.module(x).tanh().cumsum(2)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("position", [None, -1, 1])
def test_padding_has_no_part_in_it(right: bool, position: int | None) -> None:
    module, samples = nn.Linear(3, 4).double(), [randn(n, 3, seed=n) for n in (5, 2, 3)]
    index = torch.arange(3)
    inputs = Inputs(widths={"model": 0}, n_rows=3, n_samples=3)
    config = jacobian.Config(position=position, components=3)

    def answer(at_once: int) -> Answer:
        network = Texts(module, samples, right, at_once)
        block = Block({}, index, torch.zeros_like(index), index, network=network)
        return cases.run(Case(jacobian, config, inputs, block))

    together, alone = answer(3), answer(1)
    for name in ("singular_value", "effective_rank", "log_volume", "reconstruction_error"):
        torch.testing.assert_close(together.arrays[name], alone.arrays[name], rtol=1e-12, atol=1e-12)
    assert together.result.n_outputs == (20 if position is None else 4)
    assert together.result.n_inputs == 15
    exact = torch.autograd.functional.jacobian(lambda x: module(x).tanh().cumsum(1), samples[0])
    rows = exact.reshape(20, 15) if position is None else exact[position].reshape(4, 15)
    torch.testing.assert_close(together.arrays["singular_value"][0], torch.linalg.svdvals(rows)[:3])


def test_a_token_that_a_sample_has_not_is_refused() -> None:
    network = Texts(nn.Linear(3, 4).double(), [randn(5, 3), randn(2, 3)], True, 2)
    index = torch.arange(2)
    block = Block({}, index, torch.zeros_like(index), index, network=network)
    inputs = Inputs(widths={"model": 0}, n_rows=2, n_samples=2)
    with pytest.raises(MethodError, match="shortest sample has 2 tokens"):
        cases.run(Case(jacobian, jacobian.Config(position=2), inputs, block))
