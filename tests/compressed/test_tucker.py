"""Attention's layers as parts of one decomposition: each against the tensor itself, tied, rebuilt, in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tasks.compressed.layer import Affine
from tasks.compressed.shared import tie
from tasks.compressed.tucker import TuckerLinear

WIDTH, INNER, HEADS, RANKS = 12, 3, 4, (7, 2, 3, 4)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(bias: bool = True, corrected: bool = True) -> tuple[nn.ModuleList, list[Affine], Tensor, Tensor]:
    """Four layers, what they stand for, the tensor [feature, inner, layer, head] and the mean input."""
    lengths = (WIDTH, INNER, 4, HEADS)
    arrays = {"core": drawn(*RANKS), "mean": drawn(WIDTH, seed=9)}
    for k, (mode, n) in enumerate(zip(("feature", "inner", "layer", "head"), lengths, strict=True)):
        arrays[f"{mode}_basis"] = torch.linalg.qr(drawn(n, n, seed=k + 1)).Q[:, : RANKS[k]]
    tensor = torch.einsum("abcd,fa,ib,lc,hd->filh", *arrays_in_order(arrays))
    layers = [
        Affine(drawn(WIDTH, WIDTH, seed=20 + k).float(), drawn(WIDTH, seed=30 + k).float() if bias else None)
        for k in range(4)
    ]
    found = [
        TuckerLinear.of(arrays, {"corrected": corrected}, {"group": "attention", "member": k}, layer)
        for k, layer in enumerate(layers)
    ]
    return nn.ModuleList(found), layers, tensor, arrays["mean"]


def arrays_in_order(arrays: dict[str, Tensor]) -> list[Tensor]:
    return [arrays[n] for n in ("core", "feature_basis", "inner_basis", "layer_basis", "head_basis")]


def rows() -> Tensor:
    return drawn(5, 2, WIDTH, seed=50).float()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
def test_each_is_its_part_of_the_tensor(bias: bool, corrected: bool) -> None:
    network, layers, tensor, mean = made(bias, corrected)
    for k, (layer, given) in enumerate(zip(network, layers, strict=True)):
        weight = torch.empty(WIDTH, WIDTH, dtype=torch.float64)
        for h in range(HEADS):
            for i in range(INNER):
                line = tensor[:, i, k, h]
                if k < 3:
                    weight[h * INNER + i] = line
                else:
                    weight[:, h * INNER + i] = line
        found = layer.affine()
        torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-6)
        expected = nn.functional.linear(rows().double(), *found)
        torch.testing.assert_close(layer(rows()).double(), expected, rtol=0, atol=1e-4)
        if corrected and k < 3:  # at the mean input nothing is lost
            at_mean = nn.functional.linear(mean.float(), given.weight, given.bias)
            torch.testing.assert_close(layer(mean.float()), at_mean, rtol=0, atol=1e-4)
        else:
            assert (layer.bias is None) == (not bias)
            assert layer.bias is None or torch.equal(layer.bias, given.bias)


def test_tied_they_hold_one_core() -> None:
    network, *_ = made()
    alone = [layer(rows()) for layer in network]
    tie(network)
    for layer, y in zip(network, alone, strict=True):
        assert torch.equal(layer(rows()), y)
    core = 7 * 2 * 3 * 4 + 12 * 7 + 3 * 2 + 4 * 3 + 4 * 4
    assert [layer.numbers for layer in network] == [core + WIDTH, WIDTH, WIDTH, WIDTH]


CODE = """
import json, sys, torch
from torch import nn
from tasks.compressed.shared import tie
from tasks.compressed.tucker import TuckerLinear
torch.set_num_threads(1)
folder = sys.argv[1]
network = nn.ModuleList(TuckerLinear.empty(**spec) for spec in json.load(open(folder + "/spec.json")))
network.load_state_dict(torch.load(folder + "/state.pt"))
tie(network)
torch.save([layer(torch.load(folder + "/x.pt")).detach() for layer in network], folder + "/y.pt")
"""


@pytest.mark.parametrize("bias", [True, False])
def test_a_fresh_process_gives_the_same_bits(tmp_path: Path, bias: bool) -> None:
    network, *_ = made(bias)
    tie(network)
    (tmp_path / "spec.json").write_text(json.dumps([layer.spec() for layer in network]))
    torch.save(network.state_dict(), tmp_path / "state.pt")
    torch.save(rows(), tmp_path / "x.pt")
    top = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], cwd=top, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for found, layer in zip(torch.load(tmp_path / "y.pt"), network, strict=True):
        assert torch.equal(found, layer(rows()))
