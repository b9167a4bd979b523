"""geometry.rate_reduction: numpy's determinants, subspaces that are known, labels that say nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.geometry import rate_reduction
from tasks.numerics.coding_rate import rate, rate_of_part


def run(
    x: Tensor,
    code: Tensor | None,
    sample: Tensor | None = None,
    weight: Tensor | None = None,
    names: tuple[str, ...] | None = None,
    weights: dict[str, Tensor] | None = None,
    **options: Any,
) -> tuple[rate_reduction.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    sample = torch.arange(len(x)) if sample is None else sample
    config = rate_reduction.Config.model_validate(options)
    labels = {} if code is None else {"kind": code}
    names = names or tuple("abcdefgh"[: int(code.max()) + 1] if code is not None else ())
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=int(sample.max()) + 1,
        categories={} if code is None else {"kind": names},
        weights=weights or {},
    )
    rate_reduction.check(inputs, config)
    carry, state = rate_reduction.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        chosen = {name: values[part] for name, values in labels.items()}
        weights = None if weight is None else weight[part]
        block = Block({"x": x[part]}, sample[part], part, part, chosen, weights)
        other = rate_reduction.partial(block, carry, config)
        state = other if state is None else rate_reduction.merge(state, other)
    assert state is not None
    return rate_reduction.finish(state, carry, inputs, config)


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def coded(z: np.ndarray, distortion: float = 0.5) -> float:
    """1/2 ln det(I + d / (n e^2) Z^T Z)."""
    n, d = z.shape
    return float(np.linalg.slogdet(np.eye(d) + d / (n * distortion**2) * z.T @ z)[1]) / 2


@pytest.mark.parametrize("rows", ["directions", "stored"])
def test_numbers_are_those_of_numpy(rows: str) -> None:
    x, code = drawn(300, 9) * 3 + 1, torch.arange(300) ** 2 % 5 % 3
    x[::4, 2:6] = 0
    result, arrays = run(x, code, rows=rows, distortion=0.7, penalty=2.0)
    z = (x / x.norm(dim=1, keepdim=True) if rows == "directions" else x).numpy()
    sizes = np.bincount(code.numpy(), minlength=3)
    parts = [coded(z[code.numpy() == k], 0.7) if sizes[k] else math.nan for k in range(len(sizes))]
    together = float(np.nansum(sizes / 300 * parts))
    assert result.rate is not None
    assert result.rate_classes is not None
    assert result.rate_reduction is not None
    assert result.rate.value == pytest.approx(coded(z, 0.7), rel=1e-12)
    assert result.rate_classes.value == pytest.approx(together, rel=1e-12)
    assert result.rate_reduction.value == pytest.approx(coded(z, 0.7) - together, rel=1e-10)
    np.testing.assert_allclose(
        arrays["class_rate"].values, parts[: len(arrays["class_rate"].values)], rtol=1e-12
    )
    assert result.density == pytest.approx(float((x != 0).double().mean()))
    expected = result.rate_reduction.value - 2 * result.density
    assert result.sparse_rate_reduction == pytest.approx(expected)


def test_orthogonal_lines_and_one_line() -> None:
    """K orthogonal lines in d = K features: rate K/2 ln(1 + 1/e^2), each class 1/2 ln(1 + K/e^2)."""
    code = torch.arange(80) % 8
    result, _ = run(torch.eye(8, dtype=torch.float64)[code] * 5, code)
    assert result.rate is not None
    assert result.rate_reduction is not None
    assert result.rate.value == pytest.approx(4 * math.log(5), rel=1e-12)
    assert result.rate_reduction.value == pytest.approx(4 * math.log(5) - math.log(33) / 2, rel=1e-12)
    assert result.density == pytest.approx(1 / 8)
    line, _ = run(torch.ones(80, 8, dtype=torch.float64), code)
    assert line.rate_reduction is not None
    assert line.rate_reduction.value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "d", "shares"), [(400, 20, (0.5, 0.5)), (300, 60, (0.1, 0.2, 0.7)), (90, 40, (0.3, 0.3, 0.4))]
)
def test_labels_that_say_nothing(n: int, d: int, shares: tuple[float, ...]) -> None:
    x = drawn(n, d) * torch.logspace(0, -1, d) + 0.2
    sizes = [round(n * share) for share in shares]
    code = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    found = []
    for seed in range(30):
        shuffled = code[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
        result, _ = run(x, shuffled)
        assert result.rate_reduction is not None
        found.append(result.rate_reduction.value)
    assert result.rate_reduction_random == pytest.approx(np.mean(found), rel=0.02)


@pytest.mark.parametrize(("samples", "rows", "d"), [(150, 1, 6), (800, 3, 6), (400, 1, 20)])
def test_chance_is_that_of_labels_dealt_to_samples(samples: int, rows: int, d: int) -> None:
    """Rows in the order of classes that lie apart; three rows of a sample are nearly alike. All of it by numpy."""
    sizes = [samples // 2, samples // 5, samples - samples // 2 - samples // 5]
    kind = np.repeat(np.arange(3), sizes)
    own = drawn(samples, d) * torch.logspace(0, -1, d) + drawn(3, d, 5)[kind]
    x = own.repeat_interleave(rows, 0) + 0.1 * drawn(samples * rows, d, 7)
    sample = torch.arange(samples).repeat_interleave(rows)
    result, _ = run(x, torch.from_numpy(kind)[sample], sample)
    z, rng = (x / x.norm(dim=1, keepdim=True)).numpy(), np.random.default_rng(4)
    found = []
    for _ in range(150):
        code = rng.permutation(kind)[sample.numpy()]
        parts = [z[code == k] for k in range(3)]
        found.append(coded(z) - sum(len(part) * coded(part) for part in parts) / len(z))
    assert result.rate_reduction_chance == pytest.approx(np.mean(found), rel=0.08)


def test_labels_of_samples_whose_rows_are_alike() -> None:
    x, sample = drawn(120, 15).repeat_interleave(6, 0), torch.arange(120).repeat_interleave(6)
    found = []
    for seed in range(30):
        code = torch.randperm(120, generator=torch.Generator().manual_seed(seed)) % 3
        result, _ = run(x, code[sample], sample)
        assert result.rate_reduction is not None
        found.append(result.rate_reduction.value)
    assert result.rate_reduction_random_samples == pytest.approx(np.mean(found), rel=0.04)
    assert result.rate_reduction_random is not None
    assert result.rate_reduction_random < 0.3 * np.mean(found)
    assert any("several rows" in note for note in result.caveats)


def test_subspaces_of_heads() -> None:
    """Heads that span all features, each its own: rows of a head's subspace cost nothing in the others."""
    x, u = drawn(200, 6), drawn(6, 6, 1)
    result, _ = run(x, None, weights={"u": u.float()}, subspaces="u", heads=3, penalty=0.5, rows="stored")
    assert result.rate_heads is not None
    assert result.rate is not None
    z = [x.numpy() @ u.float().double().numpy()[k : k + 2].T for k in (0, 2, 4)]
    assert result.rate_heads.value == pytest.approx(sum(coded(part) for part in z), rel=1e-10)
    expected = result.rate.value - result.rate_heads.value - 0.5 * result.density
    assert result.sparse_rate_reduction_heads == pytest.approx(expected)
    assert result.rate_heads.low is not None
    with pytest.raises(MethodError, match="4 heads of equal size, 6"):
        run(x, None, weights={"u": u}, subspaces="u", heads=4)


def test_a_part_that_is_all_has_the_rate_of_all() -> None:
    x = drawn(50, 8)
    second = x.T @ x / 50
    values = torch.linalg.eigvalsh(second)
    assert rate_of_part(values, 50, 1.0, 0.5) == pytest.approx(rate(second, 0.5), rel=1e-12)
    assert rate_of_part(values, 50, 0.2, 0.5) < rate(second, 0.5)
    assert rate_of_part(values * 0, 50, 0.2, 0.5) == 0
    assert rate(second * 1e20 - torch.eye(8) * 1e3, 0.5) > 0


def test_intervals_cover_dependent_rows() -> None:
    def made(n: int, seed: int) -> tuple[Tensor, Tensor]:
        code = torch.arange(n) % 2
        scales = torch.tensor([[3.0, 1, 1, 0.1], [0.1, 1, 1, 3.0]], dtype=torch.float64)
        return drawn(n, 4, seed) * scales[code], code

    truth = run(*made(60_000, 99))[0].rate_reduction
    assert truth is not None
    hits = []
    for seed in range(60):
        x, code = made(200, seed)
        rows = x.repeat_interleave(8, 0) + 0.02 * drawn(1600, 4, 500 + seed)
        found = run(rows, code.repeat_interleave(8), torch.arange(200).repeat_interleave(8))[0].rate_reduction
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth.value <= found.high)
    assert 0.85 <= np.mean(hits) <= 1


def test_rows_without_a_direction_or_class_are_counted() -> None:
    x, code = drawn(60, 5), torch.arange(60) % 2
    more = torch.cat([x, torch.zeros(7, 5, dtype=torch.float64), x[:3]])
    codes = torch.cat([code, torch.zeros(7, dtype=torch.int64), torch.full((3,), -1)])
    result, plain = run(more, codes)[0], run(x, code)[0]
    assert (result.n_rows, result.n_zero, result.n_unlabelled) == (60, 7, 3)
    assert result.rate is not None
    assert plain.rate is not None
    assert result.rate.value == pytest.approx(plain.rate.value, rel=1e-12)


def test_weights_count_rows_and_thresholds_count_zeros() -> None:
    x, code, times = drawn(90, 5), torch.arange(90) % 2, torch.arange(90) % 3
    rows = torch.arange(90).repeat_interleave(times)
    weighted = run(x, code, weight=times.double(), weight_label="w", threshold=0.3)[0]
    repeated = run(x[rows], code[rows], torch.arange(90)[rows], threshold=0.3)[0]
    for name in ("rate", "rate_classes", "rate_reduction"):
        assert getattr(weighted, name).value == pytest.approx(getattr(repeated, name).value, rel=1e-10)
    share = (x[rows].abs() > 0.3 * x[rows].abs().amax(1, keepdim=True)).double().mean()
    assert weighted.density == repeated.density == pytest.approx(float(share))


def test_without_labels_only_rates() -> None:
    result, arrays = run(drawn(40, 4), None)
    assert result.rate is not None
    assert (result.rate_reduction, result.rate_classes, result.sparse_rate_reduction, result.label) == (
        None,
    ) * 4
    assert len(arrays["class_rate"].values) == 1


def test_refusals() -> None:
    x, code = drawn(40, 4), torch.arange(40) % 2
    with pytest.raises(MethodError, match="has 1 class"):
        run(x, code * 0)
    with pytest.raises(MethodError, match="fall into 1 classes"):
        run(x, code * 0, names=("a", "b"))
    with pytest.raises(MethodError, match="names no classes"):
        run(x, code, label="size")
    with pytest.raises(MethodError, match="not negative"):
        run(x, code, weight=-torch.ones(40), weight_label="w")
    inputs = Inputs(
        widths={"x": 4096}, n_rows=9, n_samples=9, categories={"kind": tuple("abcdefghijklmnopq")}
    )
    with pytest.raises(MethodError, match="2,281,701,376 bytes"):
        rate_reduction.check(inputs, rate_reduction.Config())
    few = Inputs(widths={"x": 1024}, n_rows=9, n_samples=9, categories={"kind": tuple("abcdefghijklmnopq")})
    assert int(rate_reduction.start(few, rate_reduction.Config())["groups"]) == 1
