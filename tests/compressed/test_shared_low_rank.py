"""Layers that share a factor: what each computes alone and tied, that it is held once, and that a fresh process gives the same bits."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tasks.compressed.files import TENSORS, load_compressed, save_compressed
from tasks.compressed.layer import Affine
from tasks.compressed.shared import tie
from tasks.compressed.shared_low_rank import SharedLowRankLinear

OUTPUTS = (6, 4, 9)


def made(
    bias: bool = True, corrected: bool = True, group: str = "qkv", seed: int = 0
) -> tuple[nn.ModuleList, list[Affine]]:
    """Three layers of rank 3, and what they stand for."""
    g = torch.Generator().manual_seed(seed)
    layers = [
        Affine(torch.randn(o, 5, generator=g), torch.randn(o, generator=g) if bias else None) for o in OUTPUTS
    ]
    u, s, v = torch.linalg.svd(torch.cat([layer.weight for layer in layers]).double(), full_matrices=False)
    arrays = {"left": u * s, "right": v, "mean": torch.randn(5, generator=g).double()}
    result = {"outputs": list(OUTPUTS), "corrected": corrected}
    found = [
        SharedLowRankLinear.of(arrays, result, {"rank": 3, "member": k, "group": group}, layer)
        for k, layer in enumerate(layers)
    ]
    return nn.ModuleList(found), layers


def rows() -> Tensor:
    return torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
def test_each_alone_and_tied(bias: bool, corrected: bool) -> None:
    network, layers = made(bias, corrected)
    best = torch.linalg.svd(torch.cat([layer.weight for layer in layers]).double(), full_matrices=False)
    near = (best.U[:, :3] * best.S[:3] @ best.Vh[:3]).split(OUTPUTS)
    alone = [layer(rows()) for layer in network]
    for layer, y, weight in zip(network, alone, near, strict=True):
        map_ = layer.affine()
        torch.testing.assert_close(map_.weight, weight, atol=1e-6, rtol=1e-5)
        expected = nn.functional.linear(rows().double(), *map_)
        torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
        assert (map_.bias is None) == (not bias and not corrected)
    before = sum(layer.numbers for layer in network)
    tie(network)
    for layer, y in zip(network, alone, strict=True):
        assert torch.equal(layer(rows()), y)
    assert before - sum(layer.numbers for layer in network) == 2 * 3 * 5
    assert sum(layer.numbers for layer in network) == sum(p.numel() for p in network.parameters())
    assert [name for name in network.state_dict() if "right" in name] == ["0.shared.right"]
    assert [layer.spec()["holds"] for layer in network] == [True, False, False]


def test_another_dtype_a_copy_and_training_reach_all() -> None:
    network, _ = made()
    tie(network)
    twin = copy.deepcopy(network).double()
    for layer, other in zip(network, twin, strict=True):
        torch.testing.assert_close(other(rows().double()).float(), layer(rows()), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        twin[0].held("right").zero_()
    assert not twin[2].affine().weight.any()
    assert network[2].affine().weight.any()
    sum(layer(rows()).sum() for layer in network).backward()
    single = [torch.autograd.grad(layer(rows()).sum(), network[0].shared.right)[0] for layer in network]
    torch.testing.assert_close(network[0].shared.right.grad, torch.stack(single).sum(0))


def test_tying_again_changes_nothing_and_groups_stay_apart() -> None:
    network, _ = made()
    other, _ = made(group="other", seed=1)
    both = nn.ModuleList([network, other])
    tie(both)
    first = [layer(rows()) for part in both for layer in part]
    tie(both)
    assert all(
        torch.equal(y, layer(rows())) for y, layer in zip(first, [x for p in both for x in p], strict=True)
    )
    assert sum(name.endswith("shared.right") for name in both.state_dict()) == 2


def test_what_cannot_be_tied_is_refused() -> None:
    network, _ = made()
    other, _ = made(seed=1)
    with pytest.raises(ValueError, match="'qkv' hold different tensors"):
        tie(nn.ModuleList([network, other]))
    tie(network)
    orphan = SharedLowRankLinear.empty(**network[1].spec())
    with pytest.raises(RuntimeError, match=r"group 'qkv' that another layer holds: call tasks\.compressed"):
        orphan(rows())
    with pytest.raises(ValueError, match="no layer of the group 'qkv' holds its tensors, found 1"):
        tie(orphan)


def test_a_folder_holds_them_once(tmp_path: Path) -> None:
    """Written untied, it is tied; and nothing but the folder and the network's own layers is needed."""
    network, _ = made()
    network.append(nn.Linear(5, 2))
    paths = {str(k): network[k] for k in range(3)}
    expected = [layer(rows()) for layer in network]
    save_compressed(tmp_path, network, paths, {"source": {"factory": "mine"}})
    plain = nn.ModuleList([*(nn.Linear(5, o) for o in OUTPUTS), nn.Linear(5, 2)])
    again = load_compressed(tmp_path, plain)
    assert all(torch.equal(layer(rows()), y) for layer, y in zip(again, expected, strict=True))
    numbers = 3 * (sum(OUTPUTS) + 5) + sum(OUTPUTS) + 12
    assert sum(p.numel() for p in again.parameters()) == numbers
    assert 4 * numbers <= (tmp_path / TENSORS).stat().st_size <= 4 * numbers + 1000


CODE = """
import json, sys, torch
from torch import nn
from tasks.compressed.shared import tie
from tasks.compressed.shared_low_rank import SharedLowRankLinear
torch.set_num_threads(1)
folder = sys.argv[1]
network = nn.ModuleList(SharedLowRankLinear.empty(**spec) for spec in json.load(open(folder + "/spec.json")))
tie(network)
network.load_state_dict(torch.load(folder + "/state.pt"))
torch.save([layer(torch.load(folder + "/x.pt")).detach() for layer in network], folder + "/y.pt")
"""


def test_a_fresh_process_gives_the_same_bits(tmp_path: Path) -> None:
    network, _ = made()
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
