"""Tucker decompositions of attention: losses of the layers that stand for it, a planted core, other decompositions, refusals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.compressed.layer import Affine
from tasks.compressed.tucker import TuckerLinear
from tasks.methods.compression import attention_tucker
from tests.methods.cases import Answer, Case, case, run

NAMES = attention_tucker.Config().weights
WIDTH, HEADS = 40, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(weights: list[Tensor] | None = None, **options: Any) -> Case:
    here = case("compression.attention_tucker")
    config = attention_tucker.Config.model_validate({"heads": HEADS} | options)
    if weights is None:
        return here._replace(config=config)
    given = dict(zip(NAMES, weights, strict=True))
    return here._replace(config=config, inputs=replace(here.inputs, weights=given))


def answer(here: Case) -> Answer:
    attention_tucker.check(here.inputs, here.config)
    return run(here)


def layers_of(found: Answer, weights: list[Tensor]) -> list[TuckerLinear]:
    result = found.result.model_dump()
    return [
        TuckerLinear.of(found.arrays, result, {"group": "g", "member": k}, Affine(w.double(), None))
        for k, w in enumerate(weights)
    ]


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("kept", [0.2, 0.6])
def test_losses_are_those_of_the_layers_that_stand_for_it(corrected: bool, kept: float) -> None:
    here = made(kept=kept, corrected=corrected)
    found, weights = answer(here), [w.double() for w in here.inputs.weights.values()]
    result, x = found.result, here.block["x"].double()
    layers = layers_of(found, weights)
    away = sum(
        float((layer.affine().weight - w).square().sum()) for layer, w in zip(layers, weights, strict=True)
    )
    assert result.tucker.lost == pytest.approx(away / sum(float(w.square().sum()) for w in weights), rel=1e-5)
    lost, energy = 0.0, 0.0
    for layer, weight in list(zip(layers, weights, strict=True))[:3]:
        y = x @ weight.T
        lost += float((layer(x).detach() - y).square().sum())
        energy += float((y - y.mean(0) if corrected else y).square().sum())
    assert result.tucker.lost_outputs == pytest.approx(lost / energy, rel=1e-3)
    assert result.tucker.numbers == sum(p.numel() for p in layers[0].shared.parameters())
    assert result.tucker.numbers <= kept * result.numbers
    assert result.tucker.lost <= result.lost_unrefined * (1 + 1e-9)
    assert result.lost_unrefined <= result.bound * (1 + 1e-9)
    assert result.lost_unrefined <= result.lost_packed * (1 + 1e-9)


def test_what_stands_beside_is_lapacks() -> None:
    here = made(kept=0.5)
    result, weights = answer(here).result, [w.double().numpy() for w in here.inputs.weights.values()]
    sides = np.concatenate(
        [weights[0], weights[1], weights[2], weights[3].T]
    )  # heads and features of them, by features
    rank = int(0.5 * sides.size / sum(sides.shape))
    assert result.together.numbers == rank * sum(sides.shape)
    singular = np.linalg.svd(sides, compute_uv=False) ** 2
    assert result.together.lost == pytest.approx(singular[rank:].sum() / singular.sum())
    rank = int(0.5 * WIDTH / 2)
    each = [np.linalg.svd(w, compute_uv=False) ** 2 for w in weights]
    assert result.apart.lost == pytest.approx(sum(s[rank:].sum() for s in each) / sum(s.sum() for s in each))
    assert result.apart.numbers == 4 * rank * 2 * WIDTH
    x = here.block["x"].double().numpy()
    x = x - x.mean(0)
    lost, energy = 0.0, 0.0
    for w in weights[:3]:
        u, s, v = np.linalg.svd(w)
        lost += np.square(x @ (w - (u[:, :rank] * s[:rank]) @ v[:rank]).T).sum()
        energy += np.square(x @ w.T).sum()
    assert result.apart.lost_outputs == pytest.approx(lost / energy, rel=1e-8)


def test_a_planted_core_is_found() -> None:
    ranks, lengths = (6, 3, 2, 2), (WIDTH, WIDTH // HEADS, 4, HEADS)
    bases = [torch.linalg.qr(drawn(n, r, seed=n + r)).Q for n, r in zip(lengths, ranks, strict=True)]
    tensor = torch.einsum("abcd,fa,ib,lc,hd->lhif", drawn(*ranks), *bases).flatten(1, 2)
    weights = [*tensor[:3], tensor[3].T.contiguous()]
    numbers = 6 * 3 * 2 * 2 + sum(n * r for n, r in zip(lengths, ranks, strict=True))
    found = answer(made(weights, kept=numbers / (4 * WIDTH**2)))
    assert found.result.core == ranks
    assert found.result.tucker.lost < 1e-12
    assert found.result.tucker.lost_outputs < 1e-12
    assert min(found.result.together.lost, found.result.apart.lost) > 0.01
    for layer, weight in zip(layers_of(found, weights), weights, strict=True):
        torch.testing.assert_close(layer.affine().weight, weight, rtol=0, atol=1e-6)


def test_few_rows_dead_features_and_zero_weights() -> None:
    here = made([torch.zeros(WIDTH, WIDTH)] * 4)
    result = answer(here).result
    assert (result.tucker.lost, result.together.lost_outputs, result.bound) == (0, 0, 0)
    here = made()
    block = replace(
        here.block, rows={"x": torch.zeros(1, WIDTH)}, sample=torch.zeros(1).long(),
        position=torch.zeros(1).long(), index=torch.zeros(1).long(),
    )  # fmt: skip
    one = run(here, [block]).result
    assert one.tucker.lost_outputs == 0
    assert one.tucker.lost > 0
    assert "1 rows for 40 inputs" in " ".join(one.caveats)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (
            torch.zeros(20, WIDTH),
            {},
            r"has the shape \(20, 40\) and there are 4 heads.*use\s+compression\.joint_layers",
        ),
        (torch.zeros(WIDTH, 20), {}, r"has the shape \(40, 20\), expected"),
        (torch.full((WIDTH, WIDTH), torch.nan), {}, "holds NaN"),
        (None, {"heads": 7}, "there are 7 heads"),
        (None, {"kept": 0.001}, "numbers, and 6 may be used"),
    ],
)
def test_other_weights_are_refused(change: Tensor | None, options: dict[str, Any], words: str) -> None:
    weights = (
        [torch.eye(WIDTH)] * 4 if change is None else [torch.eye(WIDTH), change, *[torch.eye(WIDTH)] * 2]
    )
    with pytest.raises(MethodError, match=words):
        answer(made(weights, **options))
