"""geometry.interference: a loop over rows, closed forms, scipy, planted topics, independent words, and trained autoencoders."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import interference as method
from tasks.numerics import interference
from tests.methods.cases import Case
from tests.methods.cases import run as run_case


def run(
    codes: Tensor, weight: Tensor, weights: Tensor | None = None, **options: Any
) -> tuple[method.Result, dict[str, np.ndarray]]:
    """Over three blocks, rows in any order."""
    config = method.Config.model_validate({"weight": "w"} | options)
    inputs = Inputs(
        widths={"x": codes.shape[1]}, n_rows=len(codes), n_samples=len(codes), weights={"w": weight}
    )
    method.check(inputs, config)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(2))
    blocks = [
        Block({"x": codes[p]}, p, p, p, weight=None if weights is None else weights[p])
        for p in order.tensor_split(3)
    ]
    answer = run_case(Case(method, config, inputs, blocks[0]), blocks)
    return answer.result, {name: values.numpy() for name, values in answer.arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def topics(n: int, features: int, of: int, seed: int = 0) -> Tensor:
    """Bags of words: each row has two topics, and most of the words of each."""
    rng = np.random.default_rng(seed)
    count = features // of
    chosen = np.stack([rng.permutation(count)[:2] for _ in range(n)])
    active = (chosen[:, :, None] == np.arange(features) // of).any(1)
    return torch.from_numpy((active & (rng.random((n, features)) < 0.6)).astype(np.float64))


def apart(codes: Tensor, seed: int = 0) -> Tensor:
    """Each word as frequent as before, and independent of the others."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([rng.permutation(column) for column in codes.numpy().T], 1))


def value(found: Any) -> float:
    assert found is not None
    return float(found.value)


def looped(c: np.ndarray, d: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """One row and one feature at a time."""
    features = c.shape[1]
    helped, met, net, readout = (np.zeros(features) for _ in range(4))
    quiet, passed, resting = (np.zeros(features) for _ in range(3))
    for row, weight in zip(c, weights, strict=True):
        for i in range(features):
            r = sum(row[j] * (d[j] @ d[i]) for j in range(features) if j != i)
            if row[i] != 0:
                helped[i] += weight * max(0.0, row[i] * r)
                met[i] += weight * abs(row[i] * r)
                net[i] += weight * row[i] * r
                readout[i] += weight * row[i] ** 2 * (d[i] @ d[i])
            else:
                quiet[i] += weight * r**2
                passed[i] += weight * r**2 * (r > 0)
                resting[i] += weight
    return {
        "constructive": helped.sum() / met.sum(),
        "net": net.sum() / readout.sum(),
        "inactive_square": quiet.sum() / resting.sum(),
        "inactive_positive": passed.sum() / quiet.sum(),
        "arrays": {
            "constructive": helped / met,
            "net": net / readout,
            "inactive_square": quiet / resting,
            "activity": (weights @ (c != 0)) / weights.sum(),
        },
    }


@pytest.mark.parametrize("side", ["columns", "rows"])
@pytest.mark.parametrize("weighted", [False, True])
def test_numbers_are_those_of_a_loop_and_of_scipy(side: str, weighted: bool) -> None:
    codes = drawn(60, 8).clamp(min=0) * torch.linspace(0.5, 2, 8)
    directions = drawn(8, 3, 1)
    weights = torch.arange(60).double() % 4 if weighted else torch.ones(60).double()
    weight = directions if side == "rows" else directions.T.contiguous()
    given = codes.clone()
    given[weights == 0] = torch.nan  # counts as absent
    result, arrays = run(given, weight, weights if weighted else None, groups=5)
    expected = looped(codes.numpy(), directions.numpy(), weights.numpy())
    for name in ("constructive", "net", "inactive_square", "inactive_positive"):
        assert value(getattr(result, name)) == pytest.approx(expected[name], rel=1e-10), name
    for name, values in expected["arrays"].items():
        np.testing.assert_allclose(arrays[name], values, rtol=1e-9, err_msg=name)
    low = np.tril_indices(8, -1)
    unit = directions.numpy() / np.linalg.norm(directions.numpy(), axis=1, keepdims=True)
    covariance = np.cov(codes.numpy().T, aweights=weights.numpy())
    correlation = covariance / np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))
    ranks = spearmanr((unit @ unit.T)[low], correlation[low]).statistic
    assert value(result.rank_correlation) == pytest.approx(ranks, abs=1e-12)
    linear = np.corrcoef((unit @ unit.T)[low], correlation[low])[0, 1]
    assert value(result.linear_correlation) == pytest.approx(linear, abs=1e-9)
    assert (result.width, result.dimension, result.n_pairs, result.every_pair) == (8, 3, 28, True)
    assert result.active_share == pytest.approx(expected["arrays"]["activity"].mean(), rel=1e-12)


def test_permuted_features_have_each_others_directions_and_their_own_lengths() -> None:
    codes, directions = drawn(50, 7).clamp(min=0), drawn(7, 3, 1)
    directions[4] = 0
    kept = [0, 1, 2, 3, 5, 6]
    result, _ = run(codes, directions, axis="rows", permutations=2, seed=3)
    config = method.Config(weight="w", axis="rows", permutations=2, seed=3)
    order = method.start(Inputs(widths={"x": 7}, n_rows=50, n_samples=50, weights={"w": directions}), config)[
        "order"
    ]
    found = []
    for p in order.numpy():
        assert sorted(p) == list(range(7))
        assert p[4] == 4
        length = np.linalg.norm(directions.numpy(), axis=1, keepdims=True)
        unit = np.divide(directions.numpy(), length, where=length > 0, out=np.zeros((7, 3)))
        found.append(looped(codes[:, kept].numpy(), (unit[p] * length)[kept], np.ones(50)))
    assert (order[0] != order[1]).any()
    for name, permuted in (
        ("constructive", result.constructive_permuted),
        ("inactive_square", result.inactive_square_permuted),
        ("inactive_positive", result.inactive_positive_permuted),
    ):
        assert permuted == pytest.approx(np.mean([f[name] for f in found]), rel=1e-10), name
    shares = [f["constructive"] for f in found]
    assert result.constructive_permuted_deviation == pytest.approx(np.std(shares, ddof=1), rel=1e-8)


def test_small_directions_are_directions_too() -> None:
    """A power of two changes no digit but of what has a unit."""
    codes, directions = drawn(60, 6).clamp(min=0), drawn(6, 3, 1)
    plain, _ = run(codes, directions, axis="rows")
    small, _ = run(codes, directions * 2.0**-50, axis="rows")
    scaled = {"inactive_square", "inactive_square_random", "inactive_square_permuted"}
    assert small.model_dump(exclude=scaled) == plain.model_dump(exclude=scaled)
    assert value(small.inactive_square) == value(plain.inactive_square) * 2.0**-200


def test_what_is_asked_of_a_state_does_not_change_it() -> None:
    made = [
        method.state_config(method.Config(**o)) for o in ({}, {"pairs": 9, "draws": 5, "confidence": 0.8})
    ]
    assert made[0] == made[1] != method.state_config(method.Config(groups=3))


def test_equal_numbers_share_a_rank() -> None:
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(0, 6, 200) / 7.0) for _ in range(2))
    b[::2] = a[::2] + 1e-15
    ranks, _ = interference.correlations(a, b)
    assert ranks == pytest.approx(spearmanr(a.numpy(), b.numpy().round(9)).statistic, abs=1e-12)
    assert np.isnan(interference.correlations(a, torch.ones_like(a) / 3)).all()


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_permutations_are_all_of_them(n: int) -> None:
    a, b = (drawn(n, n, seed) for seed in (1, 2))
    a, b = a + a.T, b + b.T + 1
    off = ~np.eye(n, dtype=bool)
    sums = [(a.numpy()[np.ix_(p, p)] * b.numpy())[off].sum() for p in permutations(range(n))]
    mean, deviation = interference.permuted_sum(a, b)
    assert mean == pytest.approx(np.mean(sums), abs=1e-12)
    assert deviation == pytest.approx(np.std(sums), abs=1e-7)


def test_intervals_leave_groups_out() -> None:
    codes, weight = drawn(200, 10).clamp(min=0), drawn(4, 10, 1)
    result, _ = run(codes, weight, groups=8)
    group = method.spread(torch.arange(200), 8)
    without = [
        looped(codes[group != g].numpy(), weight.T.numpy(), np.ones(int((group != g).sum())))
        for g in range(8)
    ]
    for name, there, back in (
        ("net", lambda v: np.log(1 + v), lambda v: np.exp(v) - 1),
        ("constructive", lambda v: np.log(v / (1 - v)), lambda v: 1 / (1 + np.exp(-v))),
        ("inactive_square", np.log, np.exp),
    ):
        left = there(np.array([w[name] for w in without]))
        reach = 2.364624 * np.sqrt(7 * np.var(left))  # Student's t with 7 degrees of freedom
        found = getattr(result, name)
        centre = there(found.value)
        np.testing.assert_allclose(
            [found.low, found.high], back(centre + np.array([-reach, reach])), rtol=1e-6
        )


def test_random_directions_give_what_is_said_of_them() -> None:
    codes = topics(300, 20, 4)
    lengths = torch.linspace(0.5, 2, 20, dtype=torch.float64)
    nets, squares, shares = [], [], []
    for seed in range(300):
        weight = torch.nn.functional.normalize(drawn(20, 6, seed), dim=1) * lengths[:, None]
        sums = interference.of_rows(codes, weight, torch.ones(1, 300, dtype=torch.float64))
        gram = weight @ weight.T
        second = codes.T @ codes / 300
        nets.append(float(interference.net(gram, second).sum() / (second.diagonal() @ lengths.square())))
        squares.append(float(sums["quiet"].sum() / (codes == 0).sum()))
        shares.append(float(sums["helped"].sum() / sums["met"].sum()))
    result, _ = run(codes, weight, axis="rows")
    assert result.net_random_deviation == pytest.approx(np.std(nets), rel=0.12)
    assert abs(np.mean(nets)) < 4 * np.std(nets) / np.sqrt(300)
    assert result.inactive_square_random == pytest.approx(np.mean(squares), rel=0.05)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)


def test_planted_topics_are_arranged_and_help() -> None:
    codes = topics(1500, 60, 5)
    components = torch.linalg.svd(codes - codes.mean(0), full_matrices=False).Vh[:12]
    result, arrays = run(codes, components)
    assert value(result.constructive) > 0.9
    assert result.constructive_permuted is not None
    assert result.constructive_permuted < 0.6
    assert value(result.net) > 1
    assert result.net_permuted is not None
    assert result.net_permuted_deviation is not None
    assert value(result.net) > result.net_permuted + 10 * result.net_permuted_deviation
    assert value(result.linear_correlation) > 0.95
    assert value(result.rank_correlation) > 15 * (result.rank_correlation_permuted_deviation or 1)
    # words of a topic that are not there get what the others of it give
    assert value(result.inactive_square) > 1.3 * (result.inactive_square_permuted or 1)
    assert (arrays["constructive"] > 0.8).all()


def test_independent_words_with_random_directions_are_not_arranged() -> None:
    codes, weight = apart(topics(1500, 60, 5)), drawn(12, 60, 3)
    result, _ = run(codes, weight)
    assert value(result.constructive) == pytest.approx(0.5, abs=0.06)
    assert abs(value(result.net)) < 3 * (result.net_random_deviation or 0)
    mean, deviation = result.rank_correlation_permuted, result.rank_correlation_permuted_deviation
    assert mean is not None
    assert deviation is not None
    assert abs(value(result.rank_correlation) - mean) < 3 * deviation
    assert abs(value(result.linear_correlation)) < 3 * (result.linear_correlation_permuted_deviation or 0)
    assert abs(mean) < 0.02
    # pairs of independent ones have rank correlations of 1 / sqrt(pairs - 1)
    assert deviation == pytest.approx(1 / np.sqrt(1769), rel=0.3)


def trained(codes: Tensor, dimension: int, decay: float = 3e-3) -> Tensor:
    """W of relu(W'W x + b), with weight decay."""
    torch.manual_seed(0)
    weight = (0.3 * drawn(dimension, codes.shape[1], 5)).float().requires_grad_()
    bias = torch.zeros(codes.shape[1], requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=0.02, weight_decay=decay / 0.02)
    x = codes.float()
    for _ in range(400):
        loss = (torch.relu(x @ weight.T @ weight + bias) - x).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return weight.detach()


def test_trained_autoencoders_arrange_features_only_where_these_are_correlated() -> None:
    seen, new = (topics(1000, 40, 5, seed) for seed in (0, 1))
    a, _ = run(new, trained(seen, 10))
    b, _ = run(apart(new, 1), trained(apart(seen), 10))
    c, _ = run(apart(seen), trained(apart(seen), 10))
    assert value(a.linear_correlation) > 5 * (a.linear_correlation_permuted_deviation or 1)
    assert value(a.constructive) > 0.8
    assert (a.constructive_permuted or 1) < 0.5
    assert value(a.net) > 0.3
    assert value(a.inactive_positive) < 0.7 * (
        a.inactive_positive_permuted or 0
    )  # the rest a ReLU takes away
    for name in ("rank_correlation", "linear_correlation"):
        assert abs(value(getattr(b, name))) < 3 * getattr(b, f"{name}_permuted_deviation")
        assert value(getattr(c, name)) > 0.3  # accidental, in the rows that it was trained on
    assert value(b.constructive) < 0.5
    assert value(b.net) < 0


def test_orthogonal_directions_have_no_interference() -> None:
    turn = torch.linalg.qr(drawn(12, 12)).Q
    result, arrays = run(topics(200, 12, 3), turn)
    assert result.constructive is None
    assert result.inactive_positive is None
    assert abs(value(result.net)) < 1e-12
    assert np.isnan(arrays["constructive"]).all()
    assert any("square" in note for note in result.caveats)


def test_single_precision_is_near() -> None:
    codes, weight = topics(400, 30, 5).float(), drawn(8, 30, 1).float()
    exact, _ = run(codes, weight)
    near, _ = run(codes, weight, precision="float32")
    tie = 1e-3  # rounding tells equal correlations apart
    assert value(near.rank_correlation) == pytest.approx(value(exact.rank_correlation), abs=tie)
    for name in ("linear_correlation", "net", "constructive", "inactive_square", "inactive_positive"):
        assert value(getattr(near, name)) == pytest.approx(value(getattr(exact, name)), abs=1e-5), name


def test_features_that_say_nothing_are_left_out_and_counted() -> None:
    codes, weight = topics(300, 20, 4), drawn(6, 20, 1)
    plain, _ = run(codes, weight)
    more = torch.cat([codes, torch.zeros(300, 2), torch.ones(300, 1)], 1)
    wider = torch.cat([weight, drawn(6, 2, 2), torch.zeros(6, 1)], 1)
    result, arrays = run(more, wider)
    assert (result.n_varying, result.n_silent, result.n_zero) == (20, 2, 1)
    for name in ("rank_correlation", "linear_correlation", "net", "constructive"):
        assert value(getattr(result, name)) == pytest.approx(value(getattr(plain, name)), rel=1e-10), name
    assert np.isnan(arrays["net"][20:]).all()
    assert sum("never active" in note or "no direction" in note for note in result.caveats) == 2


def test_pairs_are_drawn_beyond_the_most() -> None:
    codes, weight = topics(600, 60, 5), drawn(12, 60, 1)
    every, _ = run(codes, weight)
    some, _ = run(codes, weight, pairs=900)
    assert (some.n_pairs, some.every_pair) == (900, False)
    assert value(some.rank_correlation) == pytest.approx(value(every.rank_correlation), abs=0.1)
    assert some.rank_correlation != every.rank_correlation


def test_signed_codes_are_named() -> None:
    result, _ = run(drawn(200, 6), drawn(3, 6, 1))
    assert result.active_share == 1
    assert result.inactive_square is None
    assert any("negative" in note for note in result.caveats)


def test_what_cannot_be_answered_is_refused() -> None:
    codes = topics(100, 20, 4)
    with pytest.raises(
        MethodError, match=r"w has shape \(6, 19\), expected a matrix with as many rows or columns"
    ):
        run(codes, drawn(6, 19))
    with pytest.raises(MethodError, match="as many rows as the site has features, 20"):
        run(codes, drawn(6, 20), axis="rows")
    with pytest.raises(MethodError, match="1 feature, interference takes at least 2"):
        run(codes[:, :1], drawn(6, 1))
    with pytest.raises(MethodError, match="NaN or infinity"):
        run(codes, drawn(6, 20) / 0)
    with pytest.raises(MethodError, match="1 of 20 features vary"):
        run(codes * (torch.arange(20) == 3), drawn(6, 20))
