"""compression.residual_moments and compression.slicing: directions by LAPACK, planted streams, trained language models, bad input."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from schemas.errors import MethodError
from tasks.compressed.sliced import centred, norm_paths, slice_network
from tasks.methods.compression import residual_moments, slicing
from tasks.methods.contract import Block, Inputs, Member
from tests import trained_text
from tests.methods.cases import Answer, Case, run
from tests.trained_text import inputs_of, perplexity, trained


def moments_of(rows: Tensor, weight: Tensor | None = None, **options: Any) -> Answer:
    index = torch.arange(len(rows))
    config = residual_moments.Config.model_validate(options)
    inputs = Inputs(widths={"x": rows.shape[1]}, n_rows=len(rows), n_samples=len(rows))
    block = Block({"x": rows}, index, torch.zeros_like(index), index, weight=weight)
    return run(Case(residual_moments, config, inputs, block))


def member(site: str, found: Answer) -> Member:
    return Member(site, ("capture",), found.arrays, found.result.model_dump(mode="json"))


def sliced_of(members: list[Member], **options: Any) -> tuple[slicing.Result, dict[str, Tensor]]:
    config = slicing.Config.model_validate(options)
    inputs = Inputs(widths={}, n_rows=0, n_samples=0, series={"sites": tuple(members)})
    result, arrays = slicing.solve(inputs, config)
    return result, {name: array.values for name, array in arrays.items()}


def of_network(net: nn.Module, **options: Any) -> tuple[slicing.Result, dict[str, Tensor]]:
    """By the texts that are kept for statistics."""
    paths, takes_mean = norm_paths(net), centred(net)
    rows = inputs_of(net, paths, trained_text.texts()["seen"])
    found = [moments_of(values, centred=takes_mean) for values in rows]
    return sliced_of([member(f"{p}:in:0", one) for p, one in zip(paths, found, strict=True)], **options)


def narrow(net: nn.Module, bases: list[Tensor]) -> nn.Module:
    made = copy.deepcopy(net)
    slice_network(made, bases)
    return made


@pytest.mark.parametrize("takes_mean", [True, False])
def test_directions_are_those_of_what_the_norm_gives(takes_mean: bool) -> None:
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9.0) + 2
    norm = nn.LayerNorm(8, eps=0) if takes_mean else nn.RMSNorm(8, eps=0)
    given = norm.double()(rows.double()).detach().numpy()
    weight = torch.arange(60) % 3.0
    _, s, v = np.linalg.svd(given * np.sqrt(weight.numpy())[:, None], full_matrices=False)
    found = moments_of(rows, weight, centred=takes_mean, shares=(0.5, 0.9))
    energy = s**2 / float(weight.sum())
    np.testing.assert_allclose(found.arrays["energy"], energy, atol=1e-9)
    kept = slice(0, 7 if takes_mean else 8)
    along = np.abs((found.arrays["directions"].numpy() * v).sum(1))
    np.testing.assert_allclose(along[kept], 1, atol=1e-9)
    assert found.result.energy == pytest.approx(8)
    held = energy.cumsum() / energy.sum()
    assert found.result.holding == tuple(int((held < share).sum()) + 1 for share in (0.5, 0.9))
    assert found.arrays["loss"][0] == 1
    assert "40 rows for 8" in found.result.caveats[0]


def test_a_planted_stream_is_found_lossless_and_rows_count_alike() -> None:
    rng = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(16, 5, generator=rng, dtype=torch.float64))[0]
    rows = torch.randn(300, 5, generator=rng, dtype=torch.float64) @ basis.T
    rows[0] *= 1e6  # a single long row
    found = moments_of(rows)
    assert float(found.arrays["loss"][5]) < 1e-12
    assert found.result.participation > 4.5
    result, arrays = sliced_of([member(f"n{k}:in:0", found) for k in range(3)], kept=(0.5, 0.25), multiple=1)
    assert result.lossless == 5
    assert [at.width for at in result.at] == [8, 4]
    assert result.at[0].lost < 1e-12 < 0.1 < result.at[1].lost < 0.5 * result.at[1].lost_random
    projector = arrays["directions"][1][:5].T @ arrays["directions"][1][:5]
    torch.testing.assert_close(projector, basis @ basis.T, atol=1e-8, rtol=0)


def test_widths_are_dealt_to_sites_that_need_them() -> None:
    rng = torch.Generator().manual_seed(3)
    wide, thin = (
        moments_of(torch.randn(400, 16, generator=rng) * 0.5 ** (torch.arange(16) * slope))
        for slope in (0.0, 1.0)
    )
    result, arrays = sliced_of(
        [member(f"n{k}", one) for k, one in enumerate((thin, wide, thin))], kept=(0.5,), multiple=2
    )
    (at,) = result.at
    assert at.widths[0] == at.widths[2] < at.width < at.widths[1]
    assert sum(at.widths) <= 3 * at.width
    assert at.lost_dealt < 0.5 * at.lost
    assert at.worst == "n1"
    assert at.lost_most == pytest.approx(float(arrays["loss"][1][8]))
    assert arrays["widths"].tolist() == [list(at.widths)]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "most"), [("gpt2", 1.01), ("llama", 1.05)])
def test_perplexity_of_a_trained_network_by_width(family: str, most: float) -> None:
    """Principal directions at three quarters of the width cost little, random ones of the same width a lot."""
    net = trained(family)
    result, arrays = of_network(net, kept=(0.875, 0.75, 0.5))
    whole, rng = perplexity(net), torch.Generator().manual_seed(0)
    assert perplexity(narrow(net, [d.T for d in arrays["directions"]])) == pytest.approx(whole, rel=1e-4)
    found, by_chance, dealt = [], [], []
    for at in result.at:
        found.append(perplexity(narrow(net, [d[: at.width].T for d in arrays["directions"]])))
        dealt.append(
            perplexity(narrow(net, [d[:w].T for d, w in zip(arrays["directions"], at.widths, strict=True)]))
        )
        turned = [
            torch.linalg.qr(torch.randn(64, 64, generator=rng).double())[0][:, : at.width]
            for _ in arrays["loss"]
        ]
        by_chance.append(perplexity(narrow(net, turned)))
    assert whole < found[0] < found[1] < found[2]
    assert found[1] < most * whole
    assert found[2] < 1.3 * whole
    for one, chance in zip(found, by_chance, strict=True):
        assert np.log(chance / whole) > 10 * np.log(one / whole)
    lost = [at.lost for at in result.at]
    assert lost == sorted(lost)  # the tail ranks widths as perplexity does


def test_bad_input() -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    found = moments_of(rows)
    three = [member(f"n{k}", found) for k in range(3)]
    with pytest.raises(MethodError, match="found kept"):
        sliced_of(three, kept=(1.5,))
    with pytest.raises(MethodError, match="no multiple of 16"):
        sliced_of(three, multiple=16)
    with pytest.raises(MethodError, match="n1 comes twice"):
        sliced_of([three[0], three[1], three[1]])
    with pytest.raises(MethodError, match="different `width`"):
        sliced_of([*three[:2], member("n3", moments_of(rows[:, :5]))])
    with pytest.raises(MethodError, match="different `centred`"):
        sliced_of([*three[:2], member("n3", moments_of(rows, centred=True))])
    with pytest.raises(MethodError, match="expected at least those of one block"):
        sliced_of(three[:2])
    assert "no share is small enough" in sliced_of(three, kept=(1.0,))[0].caveats[-1]
    with pytest.raises(MethodError, match="1 of 50 rows hold NaN"):
        moments_of(replace_one(rows, torch.nan))


def replace_one(rows: Tensor, value: float) -> Tensor:
    rows = rows.clone()
    rows[3, 2] = value
    return rows


def test_rows_that_say_little() -> None:
    """Zeros, one row, dead features."""
    nothing = moments_of(torch.zeros(4, 6))
    assert nothing.result.energy == nothing.result.participation == 0
    assert nothing.result.holding == (0, 0, 0)
    assert (nothing.arrays["loss"] == 0).all()
    one = moments_of(torch.arange(1.0, 7.0)[None])
    assert float(one.arrays["loss"][1]) < 1e-12
    dead = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    dead[:, 2] = 0
    found = moments_of(dead)
    assert float(found.arrays["energy"][-1]) < 1e-12
    torch.testing.assert_close(
        found.arrays["directions"] @ found.arrays["directions"].T, torch.eye(6).double()
    )
