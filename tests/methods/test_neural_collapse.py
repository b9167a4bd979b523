"""geometry.neural_collapse: three passes of numpy, frames that are known, labels that say nothing, maps that change nothing."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from schemas.model import FactoryModel
from tasks.drive import serial
from tasks.engine import run_stage
from tasks.methods import class_groups
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import neural_collapse
from tasks.numerics import collapse
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods.cases import Case
from tests.methods.cases import run as run_case

NAMES = tuple(f"{k:02d}" for k in range(40))


def run(
    x: Tensor,
    code: Tensor,
    sample: Tensor | None = None,
    pieces: int = 4,
    names: tuple[str, ...] | None = None,
    weights: dict[str, Tensor] | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> tuple[neural_collapse.Result, dict[str, Tensor]]:
    """The method as the engine calls it, over shuffled rows."""
    n = len(x)
    sample = torch.arange(n) if sample is None else sample
    config = neural_collapse.Config.model_validate(options)
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=n,
        n_samples=int(sample.max()) + 1,
        categories={"kind": names or NAMES[: int(code.max()) + 1]},
        weights=weights or {},
    )
    neural_collapse.check(inputs, config)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    labels = {config.label or "kind": code[order]}
    blocks = []
    for part in torch.arange(n).tensor_split(pieces):
        rows = order[part]
        blocks.append(
            Block(
                {"x": x[rows]},
                sample[rows],
                rows,
                rows,
                {name: values[part] for name, values in labels.items()},
                None if weight is None else weight[rows],
            )
        )
    whole = Block({"x": x}, sample, sample, sample)
    answer = run_case(Case(neural_collapse, config, inputs, whole), blocks)
    return answer.result, answer.arrays


def drawn(
    n: int = 600, d: int = 12, k: int = 7, offset: float = 100.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Imbalanced classes of different sizes and spreads, far from the origin."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, k + 1) / np.arange(1, k + 1).sum()
    code = rng.choice(k, n, p=share)
    centre = rng.standard_normal((k, d)) * 0.7
    x = offset + centre[code] + rng.standard_normal((n, d)) * (0.5 + 0.1 * code[:, None])
    return torch.from_numpy(x), torch.from_numpy(code)


def reference(x: np.ndarray, code: np.ndarray) -> dict[str, float]:
    """Means, then scatter, then the rest: class by class, pair by pair."""
    k, (n, d) = int(code.max()) + 1, x.shape
    sizes = np.array([(code == c).sum() for c in range(k)])
    means = np.array([x[code == c].mean(0) for c in range(k)])
    apart = [x[code == c] - means[c] for c in range(k)]
    within = sum(z.T @ z for z in apart)
    variance = np.array([(z**2).sum() / (len(z) - 1) for z in apart])
    m = means - means.mean(0)
    across = m.T @ m / k
    g = means - x.mean(0)
    across_rows = (g * sizes[:, None]).T @ g / n
    pooled = within / (n - k)
    found = {
        "nc1": np.trace(pooled @ np.linalg.pinv(across, rcond=1e-10)) / k,
        "nc1_rows": np.trace(pooled @ np.linalg.pinv(across_rows, rcond=1e-10)) / k,
        "nc1_quotient": variance.mean() / np.trace(across),
        "nc1_quotient_rows": np.trace(pooled) / np.trace(across_rows),
        "vci": 1 - np.trace(np.linalg.inv(np.cov(x.T, bias=True)) @ across_rows) / min(k - 1, d),
    }
    pairs = list(combinations(range(k), 2))
    v = np.array([(variance[a] + variance[b]) / 2 / ((means[a] - means[b]) ** 2).sum() for a, b in pairs])
    by = np.array([sizes[a] * sizes[b] for a, b in pairs])
    norms = np.linalg.norm(m, axis=1)
    cosine = np.array([m[a] @ m[b] / norms[a] / norms[b] for a, b in pairs])
    raw = np.array(
        [means[a] @ means[b] / np.linalg.norm(means[a]) / np.linalg.norm(means[b]) for a, b in pairs]
    )
    u = m / norms[:, None]
    apart_log = np.array([-np.log(np.linalg.norm(u[a] - u[b])) for a, b in pairs])
    far = np.linalg.norm(g, axis=1)
    mean_far = np.average(far, weights=sizes)
    gram = m @ m.T
    target = (np.eye(k) - 1 / k) / np.sqrt(k - 1)
    return found | {
        "cdnv": v.mean(),
        "cdnv_rows": np.average(v, weights=by),
        "equinorm": norms.std() / norms.mean(),
        "equinorm_rows": np.sqrt(np.average((far - mean_far) ** 2, weights=sizes)) / mean_far,
        "cosine_spread": cosine.std(),
        "cosine_error": np.abs(cosine + 1 / (k - 1)).mean(),
        "etf_distance": np.linalg.norm(gram / np.linalg.norm(gram) - target),
        "orthogonality": np.abs(raw).mean(),
        "log_distance": apart_log.mean(),
        "log_distance_spread": apart_log.std(),
    }


@pytest.mark.parametrize("shape", [(600, 12, 7), (900, 5, 20)])
def test_one_pass_equals_three(shape: tuple[int, int, int]) -> None:
    x, code = drawn(*shape)
    result, arrays = run(x, code, groups=5)
    for name, value in reference(x.numpy(), code.numpy()).items():
        assert getattr(result, name).value == pytest.approx(value, rel=1e-10), name
    m = np.array([x.numpy()[code.numpy() == c].mean(0) for c in range(shape[2])])
    np.testing.assert_allclose(arrays["norm"], np.linalg.norm(m - m.mean(0), axis=1), rtol=1e-10)
    assert arrays["rows"].sum() == shape[0]
    nearest = np.linalg.norm(x.numpy()[:, None] - m[None], axis=2).argmin(1)
    right = nearest == code.numpy()
    assert result.nearest_is_label == pytest.approx(right.mean(), abs=1e-12)
    per_class = np.mean([right[code.numpy() == c].mean() for c in range(shape[2])])
    assert result.nearest_is_label_classes == pytest.approx(per_class, abs=1e-12)


def frame(k: int, d: int) -> Tensor:
    """A simplex equiangular tight frame in a random place."""
    turn = torch.linalg.qr(
        torch.randn(d, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).Q
    return (torch.eye(k, dtype=torch.float64) - 1 / k) @ turn.T


def test_a_simplex_frame_has_collapsed() -> None:
    code = torch.arange(200) % 10
    weights = {"w": frame(10, 30) + 1, "b": -7 * frame(10, 30).sum(1)}
    result, _ = run(frame(10, 30)[code] * 3 + 7, code, weights=weights, classifier="w", bias="b")
    for name in (
        "nc1",
        "nc1_quotient",
        "vci",
        "cdnv",
        "equinorm",
        "cosine_spread",
        "cosine_error",
        "etf_distance",
    ):
        assert getattr(result, name).value <= 1e-10, name
    assert result.rank == 9
    assert result.duality is not None
    assert result.duality.value <= 1e-10
    assert result.alignment is not None
    assert result.alignment.value == pytest.approx(1)
    assert result.alignment_spread is not None
    assert result.alignment_spread.value <= 1e-10
    assert (result.nearest_is_label, result.nearest_is_classifier) == (1, 1)


def test_orthogonal_means_of_imbalanced_classes() -> None:
    """What imbalanced classes without a bias go to: no frame about the mean, but orthogonal about the origin."""
    code = torch.arange(600) % 6
    means = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    result, _ = run(means[code], code)
    assert result.orthogonality is not None
    assert result.equinorm is not None
    assert result.orthogonality.value <= 1e-12
    assert result.equinorm.value > 0.2


@pytest.mark.parametrize(("d", "k"), [(60, 5), (20, 30)])
def test_random_labels(d: int, k: int) -> None:
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(3000, d, generator=rng, dtype=torch.float64) * torch.logspace(0, 2, d) + 100
    result, _ = run(x, torch.randint(0, k, (3000,), generator=rng), nearest=False)
    assert result.vci is not None
    assert result.vci_random is not None
    expected = 1 - d / 3000 if k <= d else 1 - k / 3000
    assert result.vci.value == pytest.approx(expected, abs=0.01)
    assert result.vci.value == pytest.approx(result.vci_random, abs=0.01)


def dependent(
    samples: int, most: int, d: int, k: int, seed: int
) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Rows of samples of unequal length that share most of their deviation, and say something of their class."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, most + 1, samples)
    sample = np.repeat(np.arange(samples), length)
    kind = rng.integers(0, k, samples)
    own = rng.standard_normal((samples, d)) + 0.4 * rng.standard_normal((k, d))[kind]
    x = 50 + own[sample] + 0.5 * rng.standard_normal((len(sample), d))
    return torch.from_numpy(x), torch.from_numpy(sample), kind, sample


@pytest.mark.parametrize(("samples", "k"), [(120, 6), (1500, 5)])
def test_chance_is_that_of_labels_dealt_to_samples(samples: int, k: int) -> None:
    """Of as many samples as bundles or fewer, and of more: both as all passes over permuted labels of samples give."""
    x, which, kind, sample = dependent(samples, 30, 10, k, 2)
    result, _ = run(x, torch.from_numpy(kind[sample]), which, nearest=False, deals=100, groups=2)
    rng = np.random.default_rng(9)
    found = [reference(x.numpy(), rng.permutation(kind)[sample]) for _ in range(40)]
    for name in ("vci", "nc1"):
        values = np.array([one[name] for one in found])
        chance, apart = getattr(result, f"{name}_chance"), getattr(result, f"{name}_chance_spread")
        assert chance == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(40)), name
        assert 0.6 < apart / values.std() < 1.6, name
    assert result.vci_random is not None
    assert result.vci is not None
    assert result.vci_chance is not None
    assert result.vci_random - result.vci_chance > 4 * (result.vci_chance_spread or 1)


def test_chance_of_samples_of_one_row_is_that_of_independent_rows() -> None:
    x, code = drawn(2000, 12, 7)
    result, _ = run(x, code, nearest=False, deals=100)
    assert result.vci_chance == pytest.approx(result.vci_random, abs=0.002)
    by_token, _ = run(x, code, label="token", nearest=False)
    assert (by_token.vci_chance, by_token.nc1_chance) == (None, None)


def test_directions_of_rounding_alone_have_no_part_in_nc1() -> None:
    """Rows on a plane, turned in float32: class means differ by rounding in a third direction, in which rows differ too."""
    rng = np.random.default_rng(0)
    code = torch.arange(4000) % 6
    flat = rng.standard_normal((4000, 2)) + 0.3 * rng.standard_normal((6, 2))[code]
    basis = np.linalg.qr(rng.standard_normal((5, 2)))[0]
    x = torch.from_numpy((flat @ basis.T + 3).astype(np.float32))
    result, _ = run(x, code, nearest=False, groups=2)
    exact = reference(flat, code.numpy())
    assert (result.rank, result.rank_rows) == (2, 2)
    assert result.nc1 is not None
    assert result.nc1.value == pytest.approx(exact["nc1"], rel=1e-4)
    assert run(x.double(), code, nearest=False, groups=2)[0].rank > 2


def test_no_invertible_map_changes_vci() -> None:
    x, code = drawn(offset=0)
    turn = torch.randn(12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    one, other = (
        run(rows, code)[0].vci for rows in (x, x @ turn * torch.logspace(-6, 6, 12, dtype=torch.float64) + 3)
    )
    assert one is not None
    assert other is not None
    assert other.value == pytest.approx(one.value, rel=1e-8)


def test_distance_variance_of_gaussian_classes() -> None:
    """Classes at distance D with variance s^2 in d directions: d s^2 / D^2."""
    rng = torch.Generator().manual_seed(4)
    code = torch.arange(40_000) % 4
    x = torch.eye(8, dtype=torch.float64)[code] * 5 + 0.5 * torch.randn(
        40_000, 8, generator=rng, dtype=torch.float64
    )
    result, arrays = run(x, code, nearest=False)
    assert result.cdnv is not None
    assert result.cdnv.low is not None
    assert result.cdnv.high is not None
    assert result.cdnv.value == pytest.approx(8 * 0.25 / 50, rel=0.02)
    assert result.cdnv.low < 8 * 0.25 / 50 < result.cdnv.high
    assert len(arrays["cdnv_quantile"]) == 101
    assert result.nearest_is_label is None


def test_intervals_cover_dependent_rows() -> None:
    """Eight rows of a sample share most of their deviation; truth: 4 s^2 / D^2."""
    hits = []
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        deviation = torch.randn(120, 4, generator=rng, dtype=torch.float64).repeat_interleave(8, 0)
        sample = torch.arange(120).repeat_interleave(8)
        code = sample // 20 % 3
        x = torch.eye(4, dtype=torch.float64)[code] * 4 + deviation
        found = run(x, code, sample, pieces=1, nearest=False)[0].cdnv
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= 4 / 32 <= found.high)
    assert 0.85 <= np.mean(hits) <= 1


def test_classes_of_one_row_have_no_variance() -> None:
    x, code = drawn(k=5)
    extra = torch.full((2, 12), 90.0, dtype=torch.float64) + torch.arange(2)[:, None]
    result, arrays = run(torch.cat([x, extra]), torch.cat([code, torch.tensor([5, 6])]), names=NAMES[:7])
    assert (result.n_single, result.n_classes, result.smallest) == (2, 7, 1)
    assert torch.isnan(arrays["variance"]).tolist() == [False] * 5 + [True] * 2
    assert any("2 of 7 classes have one row" in note for note in result.caveats)
    plain = run(x, code)[0]
    assert result.nc1_quotient is not None
    assert plain.nc1_quotient is not None
    variance = [
        ((x[code == c] - x[code == c].mean(0)) ** 2).sum() / ((code == c).sum() - 1) for c in range(5)
    ]
    means = torch.stack([*(x[code == c].mean(0) for c in range(5)), *extra])
    trace = (means - means.mean(0)).square().sum() / 7
    assert result.nc1_quotient.value == pytest.approx(float(torch.stack(variance).mean() / trace), rel=1e-10)
    every = run(torch.cat([x, extra])[:7], torch.arange(7), nearest=False)[0]
    assert (every.nc1, every.cdnv, every.n_single) == (None, None, 7)


def test_rows_without_a_class_and_constant_features() -> None:
    x, code = drawn(k=4)
    with_none = torch.where(torch.arange(600) % 50 == 0, -1, code)
    constant = torch.cat([x, torch.full((600, 2), 0.1, dtype=torch.float64)], 1)
    result, _ = run(constant, with_none)
    assert (result.n_rows, result.n_unlabelled) == (588, 12)
    plain = run(x[with_none >= 0], code[with_none >= 0])[0]
    for name in ("nc1", "vci", "cdnv", "cosine_spread"):
        assert getattr(result, name).value == pytest.approx(getattr(plain, name).value, rel=1e-10), name
    assert result.vci_random == pytest.approx(plain.vci_random)


def test_pairs_of_equal_means_are_counted() -> None:
    code = torch.arange(60) % 3
    step = torch.where(torch.arange(60) // 3 % 2 == 0, 1.0, -1.0).double()
    x = torch.stack([step, (code == 2) * 4.0, step * 0], 1)
    result, _ = run(x, code, groups=2, sample=torch.zeros(60, dtype=torch.int64))
    assert (result.n_equal, result.n_pairs, result.rank) == (1, 3, 1)
    assert result.cdnv is not None
    assert result.cdnv.value == pytest.approx((20 / 19) * 2 / (2 * 16))


def test_degrees_of_rows_are_those_of_papers() -> None:
    x, code = drawn()
    ours, theirs = (run(x, code, degrees=how, nearest=False)[0].nc1 for how in ("unbiased", "rows"))
    assert ours is not None
    assert theirs is not None
    assert theirs.value == pytest.approx(ours.value * (600 - 7) / 600, rel=1e-12)


def test_weights_count_rows() -> None:
    x, code = drawn()
    times = torch.arange(600) % 3
    rows = torch.arange(600).repeat_interleave(times)
    weighted = run(x, code, weight=times.double(), weight_label="w", nearest=False)[0]
    repeated = run(x[rows], code[rows], torch.arange(600)[rows], nearest=False)[0]
    for name in ("vci", "equinorm_rows", "cosine_spread", "etf_distance"):
        assert getattr(weighted, name).value == pytest.approx(getattr(repeated, name).value, rel=1e-10), name


def test_a_classifier_in_sorted_order_and_by_number() -> None:
    x, code = drawn(k=3, offset=0)
    weight, bias = torch.randn(9, 12, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    means = torch.stack([x[code == c].mean(0) for c in range(3)])
    said = (x @ weight.T + bias).argmax(1)
    nearest = torch.cdist(x, means).argmin(1)
    for names, rows in ((("b", "c", "a"), [1, 2, 0]), (("4", "7", "2"), [4, 7, 2])):
        result, arrays = run(
            x,
            code,
            names=names,
            weights={"w": weight, "b": bias},
            classifier="w",
            bias="b",
        )
        w, m = weight[rows] - weight[rows].mean(0), means - means.mean(0)
        cosine = torch.nn.functional.cosine_similarity(w, m)
        torch.testing.assert_close(arrays["alignment"], cosine)
        assert result.duality is not None
        assert result.duality.value == pytest.approx(float((w / w.norm() - m / m.norm()).norm()), rel=1e-10)
        agree = (torch.tensor(rows)[nearest] == said).double().mean()
        assert result.nearest_is_classifier == pytest.approx(float(agree), abs=1e-12)


def test_uniform_directions_have_a_known_logarithm() -> None:
    for d in (3, 40):
        u = torch.randn(1500, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
        found = collapse.directions(u, collapse.pairs(1500, 400_000, 0))
        assert found.log_distance == pytest.approx(collapse.log_distance_at_random(d), abs=0.01)
    assert not collapse.pairs(1500, 400_000, 0).every
    drawn_pairs = collapse.pairs(50, 300, 7)
    assert bool((drawn_pairs.first < drawn_pairs.second).all())


def test_tokens_are_classes_through_the_engine(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root, sample = Location(str(tmp_path)), np.arange(300) // 10
    values = rng.standard_normal((300, 4)).astype(np.float32)
    spec = make_capture(root, {"a": values}, sample, failed=(3,), shard_rows=64)
    token = sample % 7 + np.arange(300) % 10
    following = np.where(np.arange(300) % 10 < 9, token + 1, -1)
    for label, code in (("token", token), ("next_token", following)):
        made = run_stage(
            root, stage_of("geometry.neural_collapse", {"x": rows_ref(spec)}, label=label), serial
        )
        good = (sample != 3) & (code >= 0)
        codes, sizes = np.unique(code[good], return_counts=True)
        found = artifact_arrays(root, made.id)
        np.testing.assert_array_equal(found["code"], codes)
        np.testing.assert_array_equal(found["rows"], sizes)
        means = np.array([values[good & (code == c)].mean(0, dtype=np.float64) for c in codes])
        np.testing.assert_allclose(found["norm"], np.linalg.norm(means - means.mean(0), axis=1), rtol=1e-6)
        assert made.result["n_unlabelled"] == int(((sample != 3) & (code < 0)).sum())


def test_the_networks_own_classifier_through_the_engine(tmp_path: Path) -> None:
    """Rows that are the weights of their classes: fully collapsed, and in agreement."""
    root, sample = Location(str(tmp_path)), np.arange(60)
    model = FactoryModel(
        factory="tests.factories:with_parameters",
        arguments={"shapes": {"head.weight": [5, 8]}},
    )
    weight = parameter_of(model, "head.weight")
    labels = {"kind": [str(k % 5) for k in sample]}
    spec = make_capture(root, {"a": weight[sample % 5]}, sample, labels, model=model, shard_rows=32)
    stage = stage_of("geometry.neural_collapse", {"x": rows_ref(spec)}, classifier="head.weight")
    result = run_stage(root, stage, serial).result
    assert result["duality"]["value"] < 1e-6
    assert result["alignment"]["value"] == pytest.approx(1)
    assert result["nearest_is_label"] == 1


def parameter_of(model: FactoryModel, name: str) -> np.ndarray:
    from tests.factories import with_parameters

    found: np.ndarray = with_parameters(**model.arguments).get_parameter(name).detach().numpy()
    return found


def test_many_classes_have_no_intervals() -> None:
    x, code = drawn()
    config = neural_collapse.Config(label="token")
    inputs = Inputs(widths={"x": 256}, n_rows=200_000, n_samples=2000)
    assert int(neural_collapse.start(inputs, config)["groups"]) == 1
    result = run(x, code, torch.zeros(600, dtype=torch.int64))[0]
    assert result.n_groups == 1
    assert result.nc1 is not None
    assert result.nc1.low is None
    assert any("no intervals" in note for note in result.caveats)


def test_a_vocabulary_that_does_not_fit_is_refused_while_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_groups, "MOST_BYTES", 8 * 12 * 6)
    x, code = drawn()
    config = neural_collapse.Config(label="token", groups=2)
    carry = neural_collapse.start(Inputs({"x": 12}, 600, 600), config)
    rows = torch.arange(600)
    blocks = [Block({"x": x}, rows, rows, rows, {"token": code + 10 * k}) for k in range(2)]
    states = [neural_collapse.partial(block, carry, config) for block in blocks]
    with pytest.raises(MethodError, match="project the site first"):
        neural_collapse.merge(*states)


def test_intervals_from_few_pairs_lie_about_the_value_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, code = drawn(900, 5, 20)
    every = run(x, code, nearest=False)[0]
    monkeypatch.setattr(neural_collapse, "FEW_PAIRS", 60)
    few = run(x, code, nearest=False)[0]
    for name in ("cdnv", "cosine_error", "log_distance"):
        a, b = getattr(every, name), getattr(few, name)
        assert a.value == b.value
        assert b.low < a.value < b.high
        assert 0.5 < (b.high - b.low) / (a.high - a.low) < 5, (
            "fewer pairs vary more, so that intervals are rather too wide"
        )
    assert few.nc1 == every.nc1


def test_refusals() -> None:
    x, code = drawn()
    with pytest.raises(MethodError, match="1 class"):
        run(x, code * 0, names=("a",))
    with pytest.raises(MethodError, match="takes at least 2"):
        run(x, code * 0, names=("a", "b"))
    with pytest.raises(MethodError, match="not negative"):
        run(x, code, weight=-torch.ones(600), weight_label="w")
    with pytest.raises(MethodError, match=r"shape \(3, 11\)"):
        run(x, code, weights={"w": torch.zeros(3, 11)}, classifier="w")
    with pytest.raises(MethodError, match="has 3 rows, but classes reach row 6"):
        run(x, code, weights={"w": torch.zeros(3, 12)}, classifier="w")
    with pytest.raises(MethodError, match="without a `classifier`"):
        run(x, code, bias="b")
    apart = torch.eye(2, dtype=torch.float64) * 1e160  # classes of one row: nothing overflows inside them
    with pytest.raises(MethodError, match="between classes overflow; scale the rows"):
        collapse.whitening(apart @ apart, torch.zeros(2, dtype=torch.float64))
    many = Inputs({"x": 8192}, n_rows=10**6, n_samples=9, categories={"kind": tuple(map(str, range(70_000)))})
    with pytest.raises(MethodError, match="4,587,520,000 bytes"):
        neural_collapse.check(many, neural_collapse.Config())
    none = Inputs(widths={"x": 3}, n_rows=9, n_samples=9)
    with pytest.raises(MethodError, match="token or next_token"):
        neural_collapse.check(none, neural_collapse.Config())


@pytest.mark.parametrize("scale", [1e-120, 1e-80, 1e80, 1e120])
def test_the_distance_to_a_frame_has_no_scale(scale: float) -> None:
    x, code = drawn(offset=0.0)
    usual, scaled = (run(rows, code, nearest=False)[0].etf_distance for rows in (x, x * scale))
    assert usual is not None
    assert scaled is not None
    assert scaled.value == pytest.approx(usual.value, rel=1e-9)
