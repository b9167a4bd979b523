"""Layers that share an input map: losses measured on rows, bounds beside the truth, planted layers, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.compressed.layer import Affine
from tasks.compressed.shared_low_rank import SharedLowRankLinear
from tasks.engine.reduction import make_reduction
from tasks.methods.compression import joint_layers, low_rank
from tests.methods.cases import Answer, Case, case, run

NAMES = joint_layers.Config().weights


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(weights: dict[str, Tensor] | None = None, **options: Any) -> Case:
    """The contract's case with other weights and options."""
    here = case("compression.joint_layers")
    config = joint_layers.Config.model_validate(
        options | ({} if weights is None else {"weights": list(weights)})
    )
    inputs = here.inputs if weights is None else replace(here.inputs, weights=weights)
    return here._replace(config=config, inputs=inputs)


def answer(here: Case) -> tuple[Answer, Tensor, list[Tensor]]:
    joint_layers.check(here.inputs, here.config)
    return run(here), here.block["x"].double(), [w.double() for w in here.inputs.weights.values()]


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("outputs", [(40, 40, 40), (7, 3, 50)])
def test_losses_are_those_of_the_layers_that_stand_for_them(
    corrected: bool, outputs: tuple[int, ...]
) -> None:
    given = {f"w{k}": drawn(o, 40, seed=k) for k, o in enumerate(outputs)}
    found, x, weights = answer(made(given, corrected=corrected, kept=(0.3, 0.6)))
    about = x - x.mean(0) if corrected else x
    energies = [float((about @ w.T).square().sum(1).mean()) for w in weights]
    assert found.result.energy == pytest.approx(sum(energies), rel=1e-9)
    for at in found.result.at:
        away = []
        for k, weight in enumerate(weights):
            choice = {"rank": at.rank, "member": k, "group": "g"}
            layer = SharedLowRankLinear.of(
                found.arrays, found.result.model_dump(), choice, Affine(weight, None)
            )
            away.append(float((layer(x).detach() - x @ weight.T).square().sum(1).mean()))
        for lost, loss, energy in zip(at.lost_of, away, energies, strict=True):
            assert lost == pytest.approx(loss / energy, rel=1e-4)
        assert at.lost == pytest.approx(sum(away) / sum(energies), rel=1e-4)
        assert at.lost == pytest.approx(float(found.arrays["squared"][at.rank :].sum()) / sum(energies))
        assert at.numbers == at.rank * (40 + sum(outputs)) <= at.kept * found.result.numbers
        assert at.lost_least <= at.lost <= min(at.residual_bound, at.weyl_bound) * (1 + 1e-9)
        assert at.lost_dealt <= at.lost_apart * (1 + 1e-9)
        assert at.lost_held_out is not None


def test_apart_is_what_low_rank_says_of_each() -> None:
    found, _, weights = answer(made(kept=(0.5,)))
    (at,) = found.result.at
    apart, numbers = 0.0, 0
    for weight in weights:
        one = case("compression.low_rank")
        inputs = replace(one.inputs, weights={"{module}.weight": weight})
        single = run(one._replace(inputs=inputs, config=low_rank.Config(kept=(0.5,)))).result
        apart += single.at[0].lost * single.energy
        numbers += single.at[0].rank * 80
    assert at.lost_apart == pytest.approx(apart / found.result.energy, rel=1e-9)
    assert at.numbers_apart == numbers


def test_layers_of_one_subspace_share_it_for_nothing() -> None:
    """Three layers that read the same five directions, and one that reads five others."""
    planes = [torch.linalg.qr(drawn(40, 5, seed=k)).Q.T for k in (0, 1)]
    given = {f"w{k}": drawn(40, 5, seed=9 + k) @ planes[k == 3] for k in range(4)}
    found, _, _ = answer(made(given, kept=(5 * 200 / (160 * 40),), tolerance=0.01))
    assert found.result.at[0].rank == 5
    shared = {group.weights: group for group in found.result.at[0].shared}
    assert set(shared) == {("w0", "w1", "w2"), ("w3",)}
    three = shared["w0", "w1", "w2"]
    assert three.lost <= three.bound < 1e-9
    only = answer(made({name: given[name] for name in ("w0", "w1", "w2")}, kept=(5 * 160 / (120 * 40),)))[
        0
    ].result.at[0]
    assert only.lost < 1e-9 < only.lost_dealt < only.lost_apart


def test_dead_features_few_rows_and_layers_of_one_output() -> None:
    given = {"a": drawn(1, 40), "b": drawn(2, 40, seed=1)}
    here = made(given, kept=(0.01, 1.0))
    x = here.block["x"].clone()
    x[:, 3:9] = 0
    here = here._replace(block=replace(here.block, rows={"x": x}))
    found, _, _ = answer(here)
    assert [at.rank for at in found.result.at] == [1, 2]
    assert all(values.isfinite().all() for values in found.arrays.values())
    few = run(here, [replace_rows(here, 3)])
    assert few.result.n_rows == 3
    assert "3 rows for 40 inputs" in " ".join(few.result.caveats)
    full = run(made(kept=(1.0,)), [replace_rows(here, 3)])
    torch.testing.assert_close(
        full.arrays["left"] @ full.arrays["right"],
        torch.cat(list(case("compression.joint_layers").inputs.weights.values())),
        rtol=0,
        atol=1e-5,
    )  # what no row has seen is of the weights
    one = run(here, [replace_rows(here, 1)]).result
    assert one.energy == pytest.approx(0, abs=1e-20)
    assert all(at.lost == 0 for at in one.at)


def replace_rows(here: Case, n: int) -> Any:
    block = here.block
    return replace(
        block,
        rows={"x": block["x"][:n]},
        sample=block.sample[:n],
        position=block.position[:n],
        index=block.index[:n],
    )


def test_numbers_are_saved_before_time_is() -> None:
    """120 outputs of 40 inputs at rank r: 240 r products by layers, 160 r numbers, 4800 of the weights."""
    told = {kept: " ".join(answer(made(kept=(kept,)))[0].result.caveats) for kept in (0.7, 0.6)}
    assert "with a share of 0.7 kept, layers" in told[0.7]
    assert "take more products" not in told[0.6]


def test_its_moments_are_those_of_low_rank() -> None:
    here = case("compression.joint_layers")
    found = {
        make_reduction("", module, module.Config(), {}, here.inputs).id for module in (joint_layers, low_rank)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": torch.zeros(20, 7), "b": torch.zeros(3, 40)}, r"a has the shape \(20, 7\), expected"),
        ({"a": torch.zeros(3, 40), "b": torch.full((3, 40), torch.inf)}, "b holds NaN or infinity"),
        (
            {"a": torch.zeros(3, 40)},
            r"found the weights a, expected at least two .* use compression\.low_rank",
        ),
    ],
)
def test_other_weights_are_refused(weights: dict[str, Tensor], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        answer(made(weights))
