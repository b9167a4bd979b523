"""clustering.mlc: rates and shares by plain loops, gradients by differences, planted subspaces, and labels that nothing reads."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods import code_training
from tasks.methods.clustering import mlc
from tasks.methods.contract import Block, Inputs
from tasks.numerics import membership
from tasks.numerics.agreement import agreement, counted
from tasks.numerics.coding_rate import rate, rate_of_codes, rate_of_memberships

SHORT = {"code": 15, "warmup": 8, "epochs": 20, "graph_rows": 500}


def run(x: Tensor, of: Tensor | None = None, **options: Any) -> tuple[mlc.Result, dict[str, Tensor]]:
    """The method with rows in another order in each pass."""
    config = mlc.Config.model_validate(options)
    names = {} if of is None else {"kind": tuple(map(str, range(int(of.max()) + 1)))}
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), categories=names)
    mlc.check(inputs, config)
    state = mlc.start(inputs, config)
    for number in range(mlc.passes(config)):
        state = mlc.begin_pass(state, number, config)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
        for rows in torch.split(order, config.batch_rows):
            labels = {} if of is None else {"kind": of[rows]}
            state = mlc.step(Block({"x": x[rows]}, rows, 0 * rows, rows, labels), state, config)
    result, arrays = mlc.finish(state, {}, inputs, config)
    return result, {name: array.values for name, array in arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def union(one_sided: bool, n: int = 800) -> tuple[Tensor, Tensor]:
    """Rows in four random subspaces of three dimensions of 24 features."""
    code = torch.arange(n) % 4
    basis = torch.linalg.qr(drawn(4 * 24, 3).view(4, 24, 3)).Q
    inside = drawn(n, 3, 1)
    x = torch.einsum("nfd,nd->nf", basis[code], inside.abs() if one_sided else inside)
    return unit(x) * 7 + 0.3 * drawn(n, 24, 2) / 24**0.5, code


def sinkhorn(codes: np.ndarray, smoothing: float, rounds: int) -> np.ndarray:
    """Rows and columns scaled in turn."""
    kernel = np.exp(codes @ codes.T / smoothing)
    u, v = np.ones(len(codes)), np.ones(len(codes))
    for _ in range(rounds):
        u = 1 / (kernel @ v)
        v = 1 / (kernel.T @ u)
    return u[:, None] * kernel * v


def test_rates_are_those_of_loops() -> None:
    z, d, distortion = unit(drawn(20, 6)), 6, 0.3
    share = torch.softmax(drawn(20, 20, 1), 1)
    whole = np.linalg.slogdet(np.eye(d) + d / (20 * distortion**2) * (z.T @ z).numpy())[1] / 2
    assert float(rate_of_codes(z, distortion)) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(rate(z.T @ z / 20, distortion), rel=1e-12)
    parts = []
    for row in share.numpy():
        second = sum(g * np.outer(code, code) for g, code in zip(row, z.numpy(), strict=True))
        parts.append(np.linalg.slogdet(np.eye(d) + d / distortion**2 * second)[1] / 2)
    found = float(rate_of_memberships(z, share, distortion))
    assert found == pytest.approx(np.mean(parts), rel=1e-12)
    even = rate_of_memberships(z, torch.full((20, 20), 1 / 20, dtype=torch.float64), distortion)
    assert float(even) == pytest.approx(whole, rel=1e-12)
    own = rate_of_memberships(z, torch.eye(20).double(), distortion)
    assert float(own) == pytest.approx(math.log(1 + d / distortion**2) / 2, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.1, 0.2, 1.0, 30.0])
def test_shares_are_those_of_a_plain_loop(smoothing: float) -> None:
    codes = unit(drawn(60, 5))
    found = membership.doubly_stochastic(codes, smoothing)
    np.testing.assert_allclose(found, sinkhorn(codes.numpy(), smoothing, 3000), rtol=1e-9)


@pytest.mark.parametrize("smoothing", [0.005, 0.05, 0.2, 5.0])
@pytest.mark.parametrize("n", [1, 2, 200])
def test_rows_of_shares_add_up_to_one(n: int, smoothing: float) -> None:
    codes = unit(drawn(n, 4))
    codes[n // 2 :] = codes[0]
    found = membership.doubly_stochastic(codes, smoothing)
    torch.testing.assert_close(found.sum(1), torch.ones(n).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-15)
    assert bool((found >= 0).all())


def test_shares_of_clusters_count_them() -> None:
    """Codes along seven axes: even shares inside, exp(-1 / smoothing) as much outside."""
    codes = torch.eye(7).double().repeat_interleave(10, 0)
    share = membership.doubly_stochastic(codes, 0.05)
    assert membership.alone(share) == pytest.approx(7, abs=1e-5)
    assert membership.alone(membership.doubly_stochastic(codes, 1e4)) == pytest.approx(1, abs=1e-3)
    assert membership.alone(membership.doubly_stochastic(unit(drawn(70, 9)), 0.005)) > 69


def test_gradients_are_differences() -> None:
    codes = drawn(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: membership.doubly_stochastic(unit(c), 0.2), codes)
    z, config = drawn(12, 5), mlc.Config(code=4, hidden=3, seed=3)
    state = mlc.start(Inputs(widths={"x": 5}, n_rows=12, n_samples=12), config)
    state["cluster.weight"] = state["cluster.weight"] + 0.1 * drawn(4, 5, 9)
    for both, head in ((False, "feature"), (True, "feature"), (True, "cluster")):
        names = [f"{head}.{part}" for part in ("weight", "bias", "in", "in.bias", "out")]
        at = [state[name].clone().requires_grad_() for name in names]

        def value(*given: Tensor, names: list[str] = names, both: bool = both) -> Tensor:
            return code_training.loss(state | dict(zip(names, given, strict=True)), z, both, config)[0]

        assert torch.autograd.gradcheck(value, at)


def test_planted_subspaces_are_found_where_directions_say_nothing() -> None:
    """Rows and their negatives are in one subspace, which k-means cannot know, and linear heads hardly."""
    x, code = union(one_sided=False)
    options = {**SHORT, "hidden": 100, "rate": 0.005}
    result, arrays = run(x, code, clusters=4, dimension=3, label="kind", **options)
    assert result.accuracy is not None
    assert result.accuracy > 0.98
    means = KMeans(4, n_init=5, random_state=0).fit_predict(unit(x).numpy()).astype(np.int64)
    other = agreement(counted(means, code.numpy(), 4, 4))
    assert other is not None
    assert other.accuracy < 0.6
    assert arrays["basis"].shape == (4, 3, 15)
    assert result.rate_reduction == pytest.approx(result.rate - result.rate_clusters)
    assert result.share_error < 1e-10


def test_the_number_of_planted_cones_is_found() -> None:
    x, code = union(one_sided=True)
    result, arrays = run(x, code, label="kind", **SHORT)
    assert (result.clusters, result.chosen_by, result.candidates[0]) == (4, "eigengap", 4)
    assert result.accuracy == result.adjusted_rand == 1
    assert 4 <= result.effective_clusters < 8
    assert len(arrays["share"]) == 21
    assert float(arrays["share"][0]) == pytest.approx(1)
    assert float(arrays["share"][3]) > 0.9
    assert float(arrays["share"][4]) < 0.85
    reduction = (arrays["rate"] - arrays["rate_clusters"])[8:]
    assert bool(arrays["rate_clusters"][:8].isnan().all())
    assert float(reduction[-1]) > float(reduction[0])
    assert float(arrays["rate"][7]) > float(arrays["rate"][0])


def test_labels_are_read_for_the_comparison_alone() -> None:
    x, code = union(one_sided=False, n=200)
    options = {**SHORT, "epochs": 3, "clusters": 4}
    true, arrays = run(x, code, label="kind", **options)
    other, same = run(x, (code * 7 + torch.arange(200) // 50) % 4, label="kind", **options)
    none, again = run(x, None, **options)
    for name, values in arrays.items():
        for found in (same[name], again[name]):
            assert torch.equal(found.nan_to_num(), values.nan_to_num()), name
    measured = {"label", "accuracy", "purity", "adjusted_rand", "normalised_mutual_information"}
    assert true.model_dump(exclude=measured) == other.model_dump(exclude=measured)
    assert true.model_dump(exclude=measured) == none.model_dump(exclude=measured)
    assert none.accuracy is None
    assert true.accuracy != other.accuracy


@pytest.mark.parametrize("hidden", [0, 9])
def test_heads_and_bases_give_the_clusters_of_stored_rows(hidden: int) -> None:
    x, code = union(one_sided=True, n=300)
    x = x * 100 + 40
    result, arrays = run(x, code, clusters=4, hidden=hidden, **{**SHORT, "epochs": 4})
    a = {name: values.numpy() for name, values in arrays.items()}
    h = x.numpy() @ a["feature_weight"].T + a["feature_bias"]
    h = h + np.maximum(x.numpy() @ a["feature_in"].T + a["feature_in_bias"], 0) @ a["feature_out"].T
    z = h / np.linalg.norm(h, axis=1, keepdims=True)
    left = np.stack([((z - z @ b.T @ b) ** 2).sum(1) for b in a["basis"]], 1)
    np.testing.assert_array_equal(np.bincount(left.argmin(1), minlength=4), a["size"])
    assert result.residual_share == pytest.approx(left.min(1).mean(), rel=1e-9)
    assert result.n_rows == a["size"].sum() == 300
    for values, basis in zip(a["eigenvalue"], a["basis"], strict=True):
        some = int((np.abs(basis).sum(1) > 0).sum())
        np.testing.assert_allclose(basis[:some] @ basis[:some].T, np.eye(some), atol=1e-10)
        assert values[:some].sum() >= 0.9 > values[: some - 1].sum()


def test_the_cluster_head_begins_as_the_feature_head() -> None:
    x, config = drawn(50, 6), mlc.Config(code=4, warmup=2, hidden=3)
    state = mlc.start(Inputs(widths={"x": 6}, n_rows=50, n_samples=50), config)
    rows = torch.arange(50)
    drawn_weight = state["cluster.weight"]
    for number in range(3):
        state = mlc.begin_pass(state, number, config)
        state = mlc.step(Block({"x": x}, rows, rows, rows), state, config)
    assert torch.equal(state["cluster.weight"], drawn_weight)
    assert int(state["updates"]) == 2
    state = mlc.begin_pass(state, 3, config)
    for part in ("weight", "bias", "in", "in.bias", "out"):
        assert torch.equal(state[f"cluster.{part}"], state[f"feature.{part}"])
        assert not state[f"first.feature.{part}"].any()
    assert not torch.equal(state["feature.weight"], drawn_weight)
    assert int(state["updates"]) == 0


def test_rows_that_keep_to_themselves_are_told() -> None:
    x, _ = union(one_sided=False, n=200)
    result, _ = run(x, clusters=4, **{**SHORT, "epochs": 2}, smoothing=0.02)
    assert result.effective_clusters > 100
    assert any("raise `smoothing`" in note for note in result.caveats)


def test_rows_that_lie_badly() -> None:
    """Duplicates, rows of zeros, rows at the mean, fewer rows than codes are long."""
    x = torch.cat([drawn(6, 5).repeat(4, 1), torch.zeros(6, 5).double()])
    for rows in (x, x - x.mean(0), drawn(5, 30)):
        result, arrays = run(rows, clusters=2, **{**SHORT, "epochs": 2})
        assert result.n_rows == len(rows)
        assert all(bool(v[~v.isnan()].isfinite().all()) for v in arrays.values())
        assert not bool(arrays["feature_weight"].isnan().any())


def test_wrong_questions_are_refused() -> None:
    x, code = union(one_sided=True, n=40)
    with pytest.raises(MethodError, match="40 good rows are all equal"):
        run(x * 0 + 0.1, clusters=2)
    with pytest.raises(MethodError, match="2 rows and `graph_rows` 1000, 2 clusters need at least 3"):
        run(x[:2])
    with pytest.raises(MethodError, match="hold all codes of length 4"):
        run(x, code, code=4, dimension=4)
    with pytest.raises(MethodError, match="names no classes"):
        run(x, code, label="king")
