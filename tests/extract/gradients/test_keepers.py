"""Forms of gradients against the maps applied to whole gradients by plain PyTorch, LAPACK, and many draws."""

import hashlib
import subprocess
import sys
from math import prod

import pytest
import torch
from torch import Tensor

from schemas.errors import SpecError
from schemas.gradients import Exact, Factors, Global, Keep, Kronecker, Norms, Sketch
from tasks.extract.gradients.gradient_plan import make_plan
from tasks.extract.gradients.keepers import make_keeper
from tasks.extract.gradients.plan import Plan
from tasks.extract.gradients.projections import matrix_shape, outputs, projection
from tasks.extract.gradients.sample_gradients import sample_gradients
from tasks.extract.gradients.terms import Dense, Hot, Outer, Values, form
from tests.extract.gradients.zoo import MAKERS, loop, make

KINDS = ("gpt2", "albert", "cnn", "bare", "conv3d", "recurrent")
CPU = torch.device("cpu")


def kept(kind: str, keep: Keep) -> tuple[dict[str, Tensor], dict[str, Tensor], Plan]:
    """What is kept, the whole gradients as matrices, and the maps."""
    sample = make(kind)
    shapes = {name: tuple(p.shape) for name, p in sample.module.named_parameters()}
    plan = make_plan(sample.module, list(shapes), keep, 3)
    found = sample_gradients(sample.module, sample.losses, sample.n, plan).values
    whole = {name: rows.reshape(sample.n, *matrix_shape(shapes[name])) for name, rows in loop(sample).items()}
    return found, whole, plan.plan


def close(found: Tensor, expected: Tensor, scale: float, tolerance: float = 1e-9) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * max(float(expected.norm()), 1e-3 * scale)


def size(whole: dict[str, Tensor]) -> float:
    return float(torch.stack([rows.square().sum() for rows in whole.values()]).sum().sqrt())


def mapped(plan: Plan, name: str, rows: Tensor) -> Tensor:
    left, right = plan.map(name, "rows"), plan.map(name, "columns")
    rows = rows if left is None else torch.einsum("pr,sr...->sp...", left, rows)
    return rows if rows.ndim == 2 or right is None else rows @ right.T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_kronecker(kind: str, distribution: str) -> None:
    found, whole, plan = kept(kind, Kronecker.model_validate({"dimension": 5, "distribution": distribution}))
    for name, rows in whole.items():
        close(found[name], mapped(plan, name, rows).flatten(1), size(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_global(kind: str) -> None:
    found, whole, plan = kept(kind, Global(dimension=36))
    total = torch.zeros(len(found[""]), 36, dtype=torch.float64)
    for name, rows in whole.items():
        matrix = rows if rows.ndim == 3 else rows[:, :, None]
        left, right = plan.map(name, "rows"), plan.map(name, "columns")
        assert left is not None
        assert right is not None
        total += (left @ matrix @ right.T).flatten(1)
    close(found[""], total, size(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_sketch(kind: str) -> None:
    found, whole, plan = kept(kind, Sketch(dimension=40))
    total = torch.zeros(len(found[""]), 40, dtype=torch.float64)
    for name, rows in whole.items():
        place, sign = plan.places(name, "rows")
        if rows.ndim == 3:
            other = plan.places(name, "columns")
            place = (place[:, None] + other.place[None]) % 40
            sign = sign[:, None] * other.sign[None]
        for at in range(40):
            total[:, at] += ((rows * sign) * (place == at)).flatten(1).sum(1)
    close(found[""], total, size(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_norms(kind: str) -> None:
    found, whole, _ = kept(kind, Norms())
    expected = torch.stack([rows.flatten(1).norm(dim=1) for rows in whole.values()], 1)
    error = (found[""] - expected).abs()
    assert bool((error <= 1e-7 * expected + 1e-7 * size(whole)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimension", [None, 5])
def test_factors(kind: str, dimension: int | None) -> None:
    keep = Factors(rank=2, dimension=dimension)
    found, whole, plan = kept(kind, keep)
    for name, rows in whole.items():
        matrix = mapped(plan, name, rows)
        if rows.ndim == 2:
            close(found[name], matrix, size(whole))
            continue
        r, c = matrix.shape[1:]
        left = found[name][:, : 2 * r].reshape(-1, 2, r)
        right = found[name][:, 2 * r :].reshape(-1, 2, c)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        best = (u[:, :, :2] * s[:, None, :2]) @ vh[:, :2]
        error = (torch.einsum("skr,skc->src", left, right) - best).flatten(1).norm(dim=1)
        clear = s[:, 1] - s[:, 2] > 1e-3 * s[:, 0] if s.shape[1] > 2 else s[:, 0] > 0
        assert bool((error[clear] <= 1e-6 * matrix[clear].flatten(1).norm(dim=1) + 1e-9 * size(whole)).all())


def test_all_forms_of_a_term_agree() -> None:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (3, 5), generator=rng)
    weight = (torch.rand(3, 5, generator=rng) > 0.3).double()
    dense = torch.randn(3, 5, 4, generator=rng, dtype=torch.float64)
    hot = Outer(Hot(ids, 9, weight), Dense(dense))
    turned = Outer(Dense(dense), Hot(ids, 9, weight))
    expected = torch.zeros(3, 9, 4, dtype=torch.float64)
    for sample in range(3):
        for place in range(5):
            expected[sample, ids[sample, place]] += weight[sample, place] * dense[sample, place]
    assert torch.equal(form(hot, slice(0, 3)), expected)
    assert torch.equal(form(turned, slice(1, 3)), expected[1:].mT)


def test_terms_of_different_kinds_add_up_in_a_norm() -> None:
    plan = Plan({"w": (6, 4)}, Norms(), 0, CPU, torch.float64)
    rng = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(3, 2, n, generator=rng, dtype=torch.float64) for n in (6, 4))
    values = torch.randn(3, 6, 4, generator=rng, dtype=torch.float64)
    keeper = make_keeper(plan, 3)
    keeper.add("w", Outer(Dense(rows), Dense(columns)))
    keeper.add("w", Values(values))
    expected = (rows.mT @ columns + values).flatten(1).norm(dim=1)
    torch.testing.assert_close(keeper.finish()[""][:, 0], expected)


PRINT = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from tasks.extract.gradients.projections import places, projection
total = hashlib.sha256()
for name in sys.argv[2].split(","):
    for kind in ("rademacher", "normal"):
        total.update(projection(7, name, "rows", 16, 384, kind).numpy().tobytes())
    total.update(places(7, name, "columns", 64, 100).place.numpy().tobytes())
print(total.hexdigest())
"""


def test_maps_are_the_same_in_every_process() -> None:
    def run(threads: int, names: str) -> str:
        command = [sys.executable, "-c", PRINT, str(threads), names]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert run(1, "a.weight,b.weight") == run(2, "a.weight,b.weight")
    one = projection(7, "a.weight", "rows", 16, 384, "rademacher")
    other = projection(7, "b.weight", "rows", 16, 384, "rademacher")
    assert torch.equal(one, projection(7, "a.weight", "rows", 16, 384, "rademacher"))
    assert not torch.equal(one, other)
    assert not torch.equal(one, projection(8, "a.weight", "rows", 16, 384, "rademacher"))
    assert hashlib.sha256(one.numpy().tobytes()).hexdigest() == FIRST_MAP


FIRST_MAP = "98fe61ad00e9f5a98647d2a6b7d0875a54d422837b2402c0c1ded65d4e230409"


SHAPES = [(32, 32), (256, 64), (1536, 384), (30522, 384)]


def two_gradients(shape: tuple[int, int]) -> tuple[Outer, Outer, float]:
    """Two correlated gradients of rank twelve as factors, an embedding's of twelve words, and their inner product."""
    rng = torch.Generator().manual_seed(5)
    rows, columns = shape
    a, shared = (torch.randn(1, 12, columns, generator=rng) for _ in range(2))
    b = a + 0.1 * shared
    if rows > 10000:
        ids = torch.randint(0, rows, (1, 12), generator=rng)
        first, second = Outer(Hot(ids, rows), Dense(a)), Outer(Hot(ids, rows), Dense(b))
    else:
        left = torch.randn(1, 12, rows, generator=rng)
        first, second = Outer(Dense(left), Dense(a)), Outer(Dense(left), Dense(b))
    whole = slice(0, 1)
    return first, second, float((form(first, whole).double() * form(second, whole).double()).sum())


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [Kronecker(dimension=16), Global(dimension=256), Sketch(dimension=256)])
def test_inner_products_are_right_on_average(shape: tuple[int, int], keep: Keep) -> None:
    first, second, exact = two_gradients(shape)
    ratios = []
    for seed in range(2000):
        plan = Plan({"w": shape}, keep, seed, CPU, torch.float32)
        found = []
        for term in (first, second):
            keeper = make_keeper(plan, 1)
            keeper.add("w", term)
            found.append(next(iter(keeper.finish().values())).double())
        ratios.append(float((found[0] * found[1]).sum()) / exact)
    values = torch.tensor(ratios, dtype=torch.float64)
    error = float(values.std()) / len(ratios) ** 0.5
    assert error < 0.006
    assert abs(float(values.mean()) - 1) < max(0.02, 3 * error)
    assert 0.98 <= float(values.mean()) <= 1.02


class TestRefusals:
    SHAPES = {"weight": (8, 6), "bias": (8,)}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("keep", "words"),
        [
            (Kronecker(dimension=8), "no smaller than the gradient of any"),
            (Factors(rank=4), "no smaller than the gradient of any"),
            (Global(dimension=64), "no smaller than the whole gradient of 56"),
            (Sketch(dimension=56), "no smaller than the whole gradient of 56"),
            (Global(dimension=20), "expected a square, such as 16 or 25"),
        ],
    )
    def test_what_is_larger_than_the_gradient(self, keep: Keep, words: str) -> None:
        with pytest.raises(SpecError, match=words):
            outputs(self.SHAPES, keep)

    @pytest.mark.parametrize(
        "keep", [Exact(), Norms(), Kronecker(dimension=4), Sketch(dimension=16), Factors(rank=1)]
    )
    def test_what_fits(self, keep: Keep) -> None:
        found = outputs(self.SHAPES, keep)
        assert all(output.shape is None or prod(output.shape) == output.width for output in found.values())


def test_kinds_are_networks() -> None:
    assert set(KINDS) <= set(MAKERS)
