"""The dimension of an objective: Li's toy problem, least squares by LAPACK, torch's own Adam, and what cannot be known."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.gradients import intrinsic_dimension
from tasks.methods.subspace_training import layers
from tasks.numerics.split import held_out
from tests.methods import cases
from tests.methods.cases import Answer, Case, TinyNetwork, TinyView
from tests.methods.training import subspace

WIDTH, GROUPS = 200, 10


class Sums(TinyNetwork):
    """The squared error of sums: sample i wants the parameters of group i to add up to its label."""

    def take(self, rows: Any) -> "Sums":
        return Sums(self.module, self.x[rows], self.label[rows])

    def batches(self) -> Any:
        yield SumView(self, slice(None))


class SumView(TinyView):
    """No classes."""

    def loss_of(self, output: Tensor) -> Tensor:
        return (output[:, 0] - self._label).square()

    def right(self, output: Tensor) -> Tensor:
        raise MethodError("no classes")


def toy() -> Sums:
    """Ten groups of twenty parameters, from zero: its dimension is ten."""
    module = nn.Linear(WIDTH, 1, bias=False).double()
    module.weight.data.zero_()
    x = torch.eye(GROUPS, dtype=torch.float64).repeat_interleave(WIDTH // GROUPS, 1)
    return Sums(module, x, torch.arange(1.0, GROUPS + 1, dtype=torch.float64))


def solved(network: TinyNetwork, edges: tuple[int, ...] = (), **options: Any) -> Answer:
    n = len(network.x)
    shapes = {k: tuple(p.shape) for k, p in network.parameters.items()}
    inputs = Inputs(widths={"model": 0}, n_rows=n, n_samples=n, parameters=shapes)
    config = intrinsic_dimension.Config(**options)
    intrinsic_dimension.check(inputs, config)
    index = torch.arange(n)
    block = cases.Block({}, index, torch.zeros_like(index), index, network=network)
    return cases.run(Case(intrinsic_dimension, config, inputs, block), cases.cut(block, edges))


@pytest.mark.parametrize("projection", ["dense", "fastfood"])
def test_ten_constraints_need_ten_directions(projection: Any) -> None:
    network, grid = toy(), (1, 3, 5, 8, 12)
    options = {"measure": "loss", "threshold": 0.999, "holdout": 0, "steps": 1000, "learning_rate": 0.2}
    answer = solved(network, dimensions=grid, projection=projection, seed=4, **options)
    assert answer.result.dimension == 12
    assert answer.result.dimension_above is None  # ten samples tell no range
    assert answer.result.share == 12 / WIDTH
    space = subspace(projection, WIDTH, 12, 4)
    matrix = torch.stack([space.out(row) for row in torch.eye(12, dtype=torch.float64)], 1)
    for n, d in enumerate(grid[:4]):
        a, y = (network.x @ matrix[:, :d]).numpy(), network.label.numpy()
        best = np.square(a @ np.linalg.lstsq(a, y, rcond=None)[0] - y).mean()
        assert float(answer.arrays["loss"][n, 0]) == pytest.approx(best, rel=1e-3)
        assert float(-answer.arrays["performance"][n]) == pytest.approx(best, rel=1e-3)
    assert "trained on" in " ".join(answer.result.caveats)


def test_a_random_subspace_leaves_the_share_that_it_misses() -> None:
    """The projection of a direction onto d of s dimensions is d / s of its square on average."""
    answer = solved(
        toy(),
        dimensions=(5,),
        draws=8,
        measure="loss",
        holdout=0,
        steps=150,
        learning_rate=0.2,
    )
    before = float(toy().label.square().mean())
    missed = answer.arrays["loss"][0] / before
    error = float(missed.std()) / 8**0.5
    assert float(missed.mean()) == pytest.approx(0.5, abs=3 * error)
    drawn = float(answer.arrays["performance_error"][0])
    assert drawn >= error * before * 0.99  # samples add to what draws say


class OneBatch(TinyNetwork):
    """All samples at once."""

    def batches(self) -> Any:
        yield TinyView(self, slice(None))


def classes(n: int = 400, seed: int = 0) -> TinyNetwork:
    """Three classes in one of six directions, a network with 63 parameters."""
    rng = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) / 3
    x = torch.randn(n, 6, generator=rng, dtype=torch.float64)
    return OneBatch(module, x, (x[:, 0] > -0.4).long() + (x[:, 0] > 0.4).long())


def weights(network: TinyNetwork) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters.values()])


def at(network: TinyNetwork, flat: Tensor) -> Mapping[str, Tensor]:
    sizes = [p.numel() for p in network.parameters.values()]
    parts = torch.split(flat, sizes)
    return {k: part.view_as(p) for (k, p), part in zip(network.parameters.items(), parts, strict=True)}


def by_torch(
    network: TinyNetwork, d: int | None, steps: int, rate: float, scaled: bool = False, width: int = 7
) -> list[float]:
    """Losses before each step and after the last, of torch's Adam and cosine decay."""
    begin, groups = weights(network), torch.tensor(layers(tuple(network.parameters)))
    sizes = torch.tensor([p.numel() for p in network.parameters.values()])
    n_scales = int(groups.max()) + 1 if scaled else 0
    given = len(begin) if d is None else d - n_scales
    space = subspace("dense", len(begin), width)
    z = torch.zeros(given, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(max(n_scales, 1), dtype=torch.float64, requires_grad=True)
    longer = rate if d is None else rate * (len(begin) / given) ** 0.5
    trained = [{"params": [z], "lr": longer}]
    if scaled:
        trained.append({"params": [scale], "lr": min(0.1, longer)})
    optimizer = torch.optim.Adam(trained)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    found = []
    for _ in range(steps + 1):
        each = scale[groups].repeat_interleave(sizes) if scaled else torch.ones(len(begin))
        offset = z if d is None else space.out(z)
        out = torch.func.functional_call(network.module, at(network, begin + each * offset), network.x)
        loss = F.cross_entropy(out, network.label)
        found.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return found


def test_steps_are_those_of_torch() -> None:
    network = classes()
    answer = solved(network, dimensions=(2, 7), steps=60, learning_rate=0.02, holdout=0, projection="dense")
    history = answer.arrays["history"]
    for n, d in enumerate((2, 7)):
        np.testing.assert_allclose(history[:, n], by_torch(network, d, 60, 0.02), rtol=1e-6)
    np.testing.assert_allclose(answer.arrays["full_history"], by_torch(network, None, 60, 0.02), rtol=1e-6)


def test_scales_of_layers_are_trained() -> None:
    network = classes()
    options = {"dimensions": (9,), "steps": 60, "learning_rate": 0.02, "holdout": 0, "projection": "dense"}
    scaled = solved(network, structure_aware=True, **options)
    np.testing.assert_allclose(
        scaled.arrays["history"][:, 0], by_torch(network, 9, 60, 0.02, scaled=True), rtol=1e-6
    )
    with pytest.raises(MethodError, match=r"above 2 \(scales of layers\)"):
        solved(network, structure_aware=True, dimensions=(2, 9))


def test_networks_of_half_precision_are_trained() -> None:
    network = classes()
    half = OneBatch(copy.deepcopy(network.module).bfloat16(), network.x.bfloat16(), network.label)
    options = {"dimensions": (20,), "steps": 200, "learning_rate": 2e-4, "holdout": 0}
    exact, found = solved(network, **options), solved(half, **options)
    fall = exact.arrays["full_history"][0] - exact.arrays["full_history"][-1]
    assert float(found.arrays["full_history"][-1]) == pytest.approx(
        float(exact.arrays["full_history"][-1]), abs=0.1 * float(fall)
    )


def test_layers_are_named_by_numbers() -> None:
    names = ("embed.weight", "h.0.a.weight", "h.0.a.bias", "h.0.b.c.weight", "h.11.a.weight", "norm.weight")
    assert layers((*names, "norm.bias", "bare")) == (0, 1, 1, 1, 2, 3, 3, 4)


class Shuffled(TinyNetwork):
    """Batches of thirty in no order."""

    def batches(self) -> Any:
        for rows in torch.randperm(len(self.x), generator=torch.Generator().manual_seed(5)).split(30):
            view = TinyView(self.take(rows), slice(None))
            view.rows = rows
            yield view


def test_samples_that_are_held_out_are_measured_and_not_trained_on() -> None:
    network, options = classes(), {"dimensions": (7,), "steps": 30, "learning_rate": 0.02}
    held = held_out(torch.arange(400), 0.3, 9)
    mixed = Shuffled(network.module, network.x, network.label)
    answer = solved(mixed, holdout=0.3, seed=9, **options)
    kept = OneBatch(network.module, network.x[~held], network.label[~held])
    assert answer.result.n_trained == len(kept.x)
    np.testing.assert_allclose(answer.arrays["full_history"], by_torch(kept, None, 30, 0.02), rtol=1e-6)
    alone = solved(kept, holdout=0, seed=9, **options)
    np.testing.assert_allclose(answer.arrays["history"], alone.arrays["history"], rtol=1e-6)
    right = (network.module(network.x).argmax(1) == network.label)[held].double()
    assert answer.result.n_measured == int(held.sum())
    assert answer.result.start == pytest.approx(float(right.mean()))


def test_the_range_holds_the_dimension_of_many_samples() -> None:
    options = {"dimensions": (2, 4, 8, 16, 48), "steps": 100, "learning_rate": 0.02, "seed": 3}
    many = solved(classes(1000), **options).result
    assert many.full > 0.9 > many.start
    assert many.n_trained + many.n_measured == 1000
    assert many.n_measured == pytest.approx(200, abs=50)
    assert many.dimension == 48
    assert many.dimension_above in (8, 16)
    few = solved(classes(250), **options).result
    assert few.dimension_above is not None
    assert few.dimension_above <= many.dimension_above
    assert "set draws" in " ".join(few.caveats)


def told(scores: np.ndarray, draws: int = 1, **options: Any) -> Answer:
    """The answer for scores [sample, trial ..., full, start], as if they had been measured."""
    trials = scores.shape[1] - 2
    config = intrinsic_dimension.Config(
        dimensions=tuple(10**k for k in range(trials // draws)), draws=draws, **options
    )
    table = torch.from_numpy(np.concatenate([np.ones((len(scores), 1)), scores], 1))
    inputs = Inputs(widths={"model": 0}, n_rows=9, n_samples=9, parameters={"w": (1000,)})
    state = {
        "moment": table.T @ table,
        "trained": torch.tensor(5),
        "loss": torch.ones(trials + 1, dtype=torch.float64),
    }
    carry = {"history": torch.ones(3, trials + 1, dtype=torch.float64)}
    return cases._answer(*intrinsic_dimension.finish(state, carry, inputs, config))


def answers(n: int, *levels: float) -> np.ndarray:
    return (np.random.default_rng(0).random((n, len(levels))) < np.array(levels)).astype(float)


def test_errors_are_those_of_pairs() -> None:
    scores = answers(300, 0.3, 0.7, 0.9, 0.95, 0.2)
    found = told(scores)
    for n in range(3):
        x = scores[:, n] - 0.9 * scores[:, 3]
        assert float(found.arrays["margin"][n]) == pytest.approx(x.mean())
        assert float(found.arrays["margin_error"][n]) == pytest.approx(x.std(ddof=1) / 300**0.5)
        assert float(found.arrays["performance"][n]) == pytest.approx(scores[:, n].mean())
    assert found.result.target == pytest.approx(0.9 * scores[:, 3].mean())
    fall = told(-scores, measure="loss")
    x = -scores[:, 1] + 0.9 * scores[:, 3] + 0.1 * scores[:, 4]
    assert float(fall.arrays["margin"][1]) == pytest.approx(x.mean())
    assert float(fall.arrays["margin_error"][1]) == pytest.approx(x.std(ddof=1) / 300**0.5)


def test_draws_are_taken_together() -> None:
    scores = answers(300, 0.3, 0.9, 0.5, 0.94, 0.95, 0.2)  # two draws of two dimensions
    found = told(scores, draws=2)
    x = (scores[:, 0] + scores[:, 2]) / 2
    spread = np.var([scores[:, 0].mean(), scores[:, 2].mean()], ddof=1) / 2
    assert float(found.arrays["performance"][0]) == pytest.approx(x.mean())
    assert float(found.arrays["performance_error"][0]) == pytest.approx((x.var(ddof=1) / 300 + spread) ** 0.5)
    assert "set draws" not in " ".join(found.result.caveats)


def test_ranges_do_not_contradict_themselves() -> None:
    result = told(answers(2000, 0.3, 0.96, 0.96, 0.5, 0.97, 0.2)).result
    assert (result.dimension_above, result.dimension, result.dimension_most) == (1, 10, 10)
    assert "a larger subspace does not reach" in " ".join(result.caveats)


def test_few_samples_give_no_range() -> None:
    result = told(answers(20, 0.0, 1.0, 1.0, 0.0)).result
    assert result.dimension == 10
    assert result.dimension_above is result.dimension_most is None
    assert "too few for a range" in " ".join(result.caveats)


def test_rounding_decides_no_tie() -> None:
    for n in range(10, 400, 10):
        scores = np.zeros((n, 3))
        scores[:, 1] = 1
        scores[: 9 * n // 10, 0] = 1
        assert told(scores).result.dimension == 1, n


@settings(max_examples=5, deadline=None)
@given(edges=st.lists(st.integers(0, 200), max_size=5))
def test_any_partition_agrees(edges: list[int]) -> None:
    network, options = classes(200), {"dimensions": (1, 4), "steps": 8, "draws": 2, "learning_rate": 0.02}
    whole, parts = solved(network, **options), solved(network, tuple(edges), **options)
    assert whole.result.dimension == parts.result.dimension
    assert whole.result.full == pytest.approx(parts.result.full, rel=1e-9)
    for name, values in whole.arrays.items():
        torch.testing.assert_close(parts.arrays[name], values, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_reached_is_said() -> None:
    network = classes()
    few = solved(network, dimensions=(1,), steps=100, learning_rate=0.02).result
    assert few.dimension is few.share is few.dimension_most is None
    assert "larger dimensions" in few.caveats[0]
    short = solved(network, dimensions=(63,), steps=10, learning_rate=1e-3).result
    assert short.late_fall > 0.1
    assert "last half of steps" in " ".join(short.caveats)


def known(network: TinyNetwork, wrong: int) -> TinyNetwork:
    """Labels are what the network says, but for some."""
    label = network.module(network.x).argmax(1)
    label[:wrong] = (label[:wrong] + 1) % 3
    return OneBatch(network.module, network.x, label)


def test_nothing_to_be_learnt() -> None:
    answer = solved(known(classes(), 0), dimensions=(1,), steps=5, learning_rate=0.01).result
    assert answer.full <= answer.start == 1
    assert answer.dimension is answer.dimension_above is None
    assert "no better than the untrained" in answer.caveats[0]


def test_an_easy_task_has_dimension_zero() -> None:
    network = known(classes(100, seed=1), 5)
    answer = solved(network, dimensions=(1,), steps=400, learning_rate=0.2, holdout=0).result
    assert answer.start == pytest.approx(0.95)
    assert answer.full > answer.start
    assert answer.dimension == answer.share == 0
    assert "untrained network reaches" in answer.caveats[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": (5, 3)}, "expected rising ones"),
        ({"dimensions": (64,)}, "at most the 63 parameters"),
        ({"dimensions": (0, 1)}, "above 0"),
        ({"dimensions": ()}, "expected rising ones"),
        ({"parameters": ("nope.*",)}, "matches none"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        solved(classes(20), **options)


def test_matrices_that_are_too_large_are_refused() -> None:
    inputs = Inputs(widths={"model": 0}, n_rows=9, n_samples=9, parameters={"w": (1 << 20, 100)})
    big = intrinsic_dimension.Config(projection="dense", dimensions=(1, 100))
    with pytest.raises(MethodError, match="use projection: fastfood"):
        intrinsic_dimension.check(inputs, big)
    intrinsic_dimension.check(inputs, big.model_copy(update={"projection": "auto"}))


def test_what_diverges_and_what_has_no_samples_is_said() -> None:
    with pytest.raises(MethodError, match="NaN or infinite after 1 steps"):
        solved(toy(), dimensions=(1,), steps=5, learning_rate=1e200, measure="loss", holdout=0)
    with pytest.raises(MethodError, match="a loss is NaN or infinite after 1 steps"):
        solved(toy(), dimensions=(1,), steps=1, learning_rate=1e200, measure="loss", holdout=0)
    with pytest.raises(MethodError, match="are left to measure on"):
        solved(classes(3), dimensions=(1,), steps=1, holdout=0.01)
    with pytest.raises(MethodError, match="no classes"):
        solved(toy(), dimensions=(1,), steps=1)


def test_only_chosen_parameters_are_trained() -> None:
    answer = solved(classes(), dimensions=(21,), parameters=("2.*",), steps=3).result
    assert answer.parameters == ("2.weight", "2.bias")
    assert answer.n_parameters == 21
