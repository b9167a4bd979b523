"""Neurons that sets share: beside plain loops and scipy, planted and absent ones, what their deletion does, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from pipelines.serial import run_serial
from schemas.errors import MethodError
from schemas.run import RunSpec
from subspan import list_artifacts, load_compressed, open_artifact
from tasks.export import export
from tasks.methods.anomaly import shared_neurons
from tasks.methods.anomaly.shared_neurons import Result
from tasks.methods.contract import Block, Inputs
from tests import memorising
from tests.methods.cases import case
from tests.methods.layer_cases import NAME

CLASSES = ("plain", "a", "b", "c")


def found(
    x: Tensor, code: Tensor, sample: Tensor | None = None, weight: Tensor | None = None, **options: Any
) -> tuple[Result, dict[str, Tensor]]:
    """Result and arrays, of rows in three blocks; one sample a row, and weights of one, where none are given."""
    config = shared_neurons.Config.model_validate(options)
    index = torch.arange(len(x))
    sample = index if sample is None else sample
    weights = {NAME: torch.eye(x.shape[1]) if weight is None else weight}
    n = int(sample.max()) + 1 if len(sample) else 0
    inputs = Inputs({"x": x.shape[1]}, len(x), n, categories={"set": CLASSES}, weights=weights)
    shared_neurons.check(inputs, config)
    carry = shared_neurons.start(inputs, config)
    state = None
    for some in index.tensor_split(3):
        block = Block({"x": x[some]}, sample[some], some * 0, some, {"set": code[some]})
        other = shared_neurons.partial(block, carry, config)
        state = other if state is None else shared_neurons.merge(state, other)
    assert state is not None
    result, arrays = shared_neurons.finish(state, carry, inputs, config)
    return result, {name: array.values for name, array in arrays.items()}


def planted(
    seed: int, each: int = 40, width: int = 30, size: float = 2.0, shared: int = 4
) -> tuple[Tensor, Tensor]:
    """Rows of four classes: all sets do more in the first neurons, and each in three of its own beside."""
    rng = np.random.default_rng(seed)
    code = np.arange(each * len(CLASSES)) % len(CLASSES)
    x = rng.standard_normal((len(code), width)) + 0.5
    x[code > 0, :shared] += size
    for number in (1, 2, 3):
        own = slice(shared + 3 * number, shared + 3 * number + 3)
        x[code == number, own] += size
    return torch.from_numpy(x), torch.from_numpy(code)


def test_it_is_what_plain_loops_give() -> None:
    """Three rows a sample, of which the mean counts."""
    rng = np.random.default_rng(1)
    x, code = planted(0, each=20, width=20, size=1.5)
    sample, code = torch.arange(len(x)).repeat_interleave(3), code.repeat_interleave(3)
    x = x.repeat_interleave(3, 0) + 0.3 * torch.from_numpy(rng.standard_normal((len(sample), 20)))
    weight = torch.from_numpy(rng.standard_normal((7, 20)))
    result, arrays = found(x, code, sample, weight, alpha=0.2, share=0.6)
    rows, which = x.numpy(), code.numpy()
    units = [
        np.stack([rows[sample.numpy() == s].mean(0) for s in np.unique(sample[which == c])]) for c in range(4)
    ]
    p = np.array([stats.ttest_ind(units[c], units[0], equal_var=False).pvalue for c in (1, 2, 3)])
    order = np.argsort(p, axis=None)
    holm = np.empty(p.size)
    holm[order] = np.minimum(1, np.maximum.accumulate(p.ravel()[order] * np.arange(p.size, 0, -1)))
    np.testing.assert_allclose(arrays["p_value"], holm.reshape(p.shape), rtol=1e-8)
    apart = [
        (u.mean(0) - units[0].mean(0)) / np.sqrt((u.var(0, ddof=1) + units[0].var(0, ddof=1)) / 2)
        for u in units[1:]
    ]
    np.testing.assert_allclose(arrays["effect"], apart, rtol=1e-8)
    length = np.linalg.norm(weight, axis=0)
    importance = [length * np.sqrt((rows[which == c] ** 2).mean(0)) for c in range(4)]
    np.testing.assert_allclose(arrays["importance"], importance[1:], rtol=1e-10)
    np.testing.assert_allclose(arrays["ordinary_importance"], importance[0], rtol=1e-10)
    own = (holm.reshape(p.shape) <= 0.2) & (np.array(importance[1:]) > importance[0])
    located = own.sum(0) >= 2
    assert located.any()
    assert arrays["located"].numpy().astype(bool).tolist() == located.tolist()
    assert arrays["sets"].tolist() == own.sum(0).tolist()
    assert arrays["overlap"].tolist() == (own.astype(int) @ own.T.astype(int)).tolist()
    for side, those in (("ordinary", which == 0), ("memorised", which > 0)):
        outs = rows[those] @ weight.numpy().T
        lost = (rows[those] * located) @ weight.numpy().T
        assert getattr(result, f"changed_{side}") == pytest.approx((lost**2).sum() / (outs**2).sum())
        inside = (rows[those][:, located] ** 2).sum() / (rows[those] ** 2).sum()
        assert getattr(result, f"energy_{side}") == pytest.approx(inside)
    one = result.sets[1]
    others = own[[0, 2]].sum(0) >= 2
    assert (one.left_out, one.left_out_own) == (others.sum(), (others & own[1]).sum())
    inside = (rows[which == 2][:, others] ** 2).sum() / (rows[which == 2] ** 2).sum()
    assert one.left_out_energy == pytest.approx(inside)


def test_planted_neurons_are_located_and_hold_for_sets_that_were_left_out() -> None:
    for seed in range(5):
        result, arrays = found(*planted(seed))
        assert torch.nonzero(arrays["located"]).flatten().tolist() == [0, 1, 2, 3]
        assert [one.neurons for one in result.sets] == [7, 7, 7]
        assert all(one.left_out == one.left_out_own == 4 for one in result.sets)
        assert all(one.left_out_expected == pytest.approx(4 * 7 / 30) for one in result.sets)
        assert result.expected < 0.5
        assert float(arrays["overlap_p"][0, 1]) < 0.05
        assert result.energy_memorised > 0.3 > 0.2 > result.energy_ordinary


def test_sets_with_nothing_in_common_share_nothing() -> None:
    result, arrays = found(*planted(0, shared=0))
    assert [one.neurons for one in result.sets] == [3, 3, 3]
    assert result.located == 0
    assert any("no neuron was located" in note for note in result.caveats)
    assert all(one.left_out_own == 0 for one in result.sets)
    assert float(arrays["overlap_p"].min()) == 1


def test_no_neurons_where_there_are_none() -> None:
    """At most alpha of runs find any neuron of any set: Holm's promise, here over 100 draws of heavy-tailed and unequal rows."""
    wrong = located = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        code = torch.from_numpy(rng.permutation(np.repeat(np.arange(4), (80, 20, 30, 40))))
        x = torch.from_numpy(rng.standard_t(8, (170, 40)) * rng.uniform(0.5, 3, 40) + rng.standard_normal(40))
        result, _ = found(x, code)
        wrong += any(one.neurons for one in result.sets)
        located += result.located
    assert wrong <= stats.binom.ppf(0.999, 100, 0.05)
    assert located == 0


def test_neurons_that_do_less_or_are_not_read_are_none_of_a_set() -> None:
    x, code = planted(0)
    x[:, 1] = 0.1 * x[:, 1] + torch.where(code > 0, 0.0, 5.0)
    weight = torch.eye(30)
    weight[:, 2] = 0
    _, arrays = found(x, code, weight=weight)
    assert float(arrays["p_value"][:, 1:3].max()) < 1e-3
    assert torch.nonzero(arrays["located"]).flatten().tolist() == [0, 3]


def test_only_the_most_important() -> None:
    x, code = planted(0)
    x[:, 0] *= 10
    result, arrays = found(x, code, top=1 / 30)
    assert torch.nonzero(arrays["located"]).flatten().tolist() == [0]
    assert [one.neurons for one in result.sets] == [1, 1, 1]


def test_more_samples_than_units() -> None:
    x, code = planted(0, each=200)
    result, arrays = found(x, code, units=40)
    assert torch.nonzero(arrays["located"]).flatten().tolist() == [0, 1, 2, 3]
    assert 35 <= result.ordinary_units <= 40
    assert any("put together" in note for note in result.caveats)
    whole, _ = found(x, code, units=800)
    assert whole.ordinary_units == 200
    assert whole.changed_ordinary == pytest.approx(result.changed_ordinary)


def test_rows_of_other_classes_constant_neurons_and_whole_numbers() -> None:
    x, code = planted(0)
    code = torch.where(torch.arange(len(code)) % 7 == 0, -1, code)
    x[:, 20], x[:, 21] = 0.1, 0.0
    result, arrays = found(x, code, ordinary=("plain",), memorised=("a", "b"))
    assert result.n_unused == int(((code < 0) | (code == 3)).sum())
    assert result.n_rows == len(code) - result.n_unused
    assert arrays["p_value"][:, 20:22].tolist() == [[1, 1], [1, 1]]
    assert arrays["effect"].isfinite().all()
    whole = (100 * x).round().to(torch.int16)
    same, _ = found(whole, code, memorised=("a", "b"))
    assert same == found(whole.double(), code, memorised=("a", "b"))[0]
    empty, still = found(torch.zeros(40, 3), torch.arange(40) % 4)
    assert (empty.located, empty.energy_memorised, empty.changed_memorised) == (0, 0, 0)
    assert still["overlap_p"].isfinite().all()


def test_what_is_refused() -> None:
    x, code = planted(0)
    for options, told in (
        ({"label": "sets"}, "label 'sets' names no classes"),
        ({"ordinary": ("none",)}, "no class 'none'; nearest"),
        ({"ordinary": ("a",), "memorised": ("b", "a")}, "class 'a' is both ordinary and memorised"),
        ({"ordinary": CLASSES}, "all classes of the label 'set' are ordinary"),
    ):
        with pytest.raises(MethodError, match=told):
            found(x, code, **options)
    with pytest.raises(MethodError, match="set 'c': found 1 samples, expected at least 2"):
        found(x[: 4 * 3], torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3]))
    with pytest.raises(MethodError, match="ordinary samples: found 0 samples"):
        found(x[:0], code[:0])
    with pytest.raises(MethodError, match=r"expected \[outputs, 30\]"):
        found(x, code, weight=torch.eye(4))
    wide = replace(case("anomaly.shared_neurons").inputs, widths={"x": 40}, weights={NAME: torch.eye(40)})
    with pytest.raises(MethodError, match="ask for fewer units"):
        shared_neurons.check(
            replace(wide, widths={"x": 20_000}, weights={NAME: torch.zeros(1, 20_000)}),
            shared_neurons.Config(),
        )
    single, _ = found(x, code, memorised=("a",))
    assert single.sets[0].left_out is None
    assert any("a single set" in note for note in single.caveats)


def losses(network: torch.nn.Module, data: dict[str, np.ndarray]) -> tuple[float, float]:
    """Mean loss of memorised and of ordinary samples."""
    with torch.no_grad():
        each = F.cross_entropy(
            network(torch.from_numpy(data["x"])), torch.from_numpy(data["y"]), reduction="none"
        )
    memorised = torch.from_numpy(data["set"] != "ordinary")
    return float(each[memorised].mean()), float(each[~memorised].mean())


def test_deletion_in_a_network(tmp_path: Path) -> None:
    """From a run: planted neurons are located, the network without them forgets what it knew by heart and nothing else, and rows are
    scored by the neurons."""
    data = memorising.samples()
    np.savez(tmp_path / "rows.npz", **data)
    arrays = {
        "kind": "arrays",
        "path": str(tmp_path / "rows.npz"),
        "array": "x",
        "labels": {"y": "y", "set": "set"},
    }
    run = RunSpec.model_validate(
        {
            "name": "memorised",
            "root": str(tmp_path / "store"),
            "captures": {
                "rows": {
                    "model": {"kind": "factory", "factory": "tests.memorising:network"},
                    "data": {"source": arrays},
                    "sites": ["last:in:0"],
                    "loss": {"kind": "classification", "label": "y"},
                }
            },
            "stages": {
                "shared": {
                    "method": "anomaly.shared_neurons",
                    "config": {"label": "set", "ordinary": ["ordinary"]},
                },
                "score": {
                    "method": "anomaly.concept_energy",
                    "inputs": {"x": {"sites": "last:in:0"}, "basis": {"stage": "shared"}},
                },
                "quality": {
                    "method": "anomaly.quality",
                    "inputs": {"x": {"sites": "last:in:0"}, "scores": {"stage": "score"}},
                    "config": {"label": "set", "anomalous": list(memorising.SETS)},
                },
                "judged": {"method": "compression.model", "config": {"samples": 200}},
            },
            "report": None,
        }
    )
    outcome = run_serial(run)
    assert not outcome.stage_failures
    view = open_artifact(
        tmp_path / "store", list_artifacts(tmp_path / "store", "anomaly.shared_neurons")[0].id
    )
    result, located = view.result, view.arrays["located"].values
    assert tuple(np.flatnonzero(located)) == memorising.PLANTED
    (judged,) = list_artifacts(tmp_path / "store", "compression.model")
    made = export(open_artifact(tmp_path / "store", judged.id), tmp_path / "deleted", "shared_neurons")
    before, after = losses(memorising.network(), data), losses(made.network, data)
    assert before[0] < 0.3 < 1.5 < after[0]
    assert after[1] < before[1] + 0.05
    assert losses(load_compressed(tmp_path / "deleted", memorising.network()), data) == after
    weights = made.network.get_submodule("last").affine().weight  # type: ignore[operator]
    assert not weights[:, list(memorising.PLANTED)].any()
    x, memorised = torch.from_numpy(data["x"]), torch.from_numpy(data["set"] != "ordinary")
    with torch.no_grad():
        changed = (memorising.network()(x) - made.network(x)).square().sum(1)
        whole = (memorising.network()(x) - memorising.network().get_parameter("last.bias")).square().sum(1)
    for side, those in (("memorised", memorised), ("ordinary", ~memorised)):
        expected = float(changed[those].sum() / whole[those].sum())
        assert result[f"changed_{side}"] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    (quality,) = list_artifacts(tmp_path / "store", "anomaly.quality")
    assert open_artifact(tmp_path / "store", quality.id).result["auroc"]["value"] > 0.95
