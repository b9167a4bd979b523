"""Exact neighbours: against a search by differences in NumPy, in cases that break products."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import neighbours
from tasks.numerics import bound_directions, candidates, directed_search, distance_tiles
from tasks.numerics import distance_bounds as bounds
from tasks.numerics import neighbours as search
from tests.methods import cases
from tests.methods.cases import Case


def by_differences(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices from every difference in float64, ties to the smaller index."""
    wide = x.astype(np.float64)
    distance = np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(-1))
    np.fill_diagonal(distance, np.inf)
    index = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, index, 1), index


def found(x: np.ndarray, k: int, edges: list[int] | None = None) -> search.Neighbours:
    rows = torch.from_numpy(x)
    bounds = [0, *sorted(edges or []), len(x)]
    index = torch.arange(len(x))
    pieces = []
    for a, b in pairwise(bounds):
        piece = search.none_yet(b - a, k)
        for c, d in pairwise(bounds):
            piece = search.nearest(piece, rows[a:b], index[a:b], rows[c:d], index[c:d])
        pieces.append(piece)
    return search.Neighbours(torch.cat([p.distance for p in pieces]), torch.cat([p.index for p in pieces]))


def assert_exact(x: np.ndarray, k: int, edges: list[int] | None = None) -> None:
    distance, index = by_differences(x, k)
    answer = found(x, k, edges)
    np.testing.assert_allclose(answer.distance, distance, rtol=1e-14)
    np.testing.assert_array_equal(answer.index, index)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(2, 60),
    k=st.integers(1, 70),
    edges=st.lists(st.integers(0, 2), max_size=3),
    levels=st.sampled_from([2, 3, 1000]),
)
def test_it_equals_a_search_by_differences(seed: int, n: int, k: int, edges: list[int], levels: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, (n, 3)).astype(np.float32)  # few levels: many ties and duplicates
    k = min(k, n - 1)
    assert_exact(x, k, edges)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_a_common_offset_costs_nothing(offset: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    x = ((rng.standard_normal((300, 16)) + offset) * scale).astype(np.float32)
    assert_exact(x, 5, [100])


def test_near_duplicates_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, 64)) * 100
    x = np.repeat(centres, 50, axis=0) + rng.standard_normal((200, 64)) * 1e-4
    assert_exact(x.astype(np.float32), 10)


def test_many_duplicates_come_in_order_of_index() -> None:
    x = np.zeros((300, 4), dtype=np.float32)
    x[::3] = np.random.default_rng(0).standard_normal((100, 4))
    answer = found(x, 5, [37, 200])
    assert answer.index[1].tolist() == [2, 4, 5, 7, 8]
    assert_exact(x, 5, [37, 200])


def test_equal_rows_of_many_features_are_equally_far_on_several_threads() -> None:
    """Wherever they lie in the pieces that differences are taken of: a piece of one pair has the roundings of the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for seed in range(20):
            x = torch.rand(2, 40_001, generator=torch.Generator().manual_seed(seed))  # three pairs a piece
            copies = x[1:].expand(4, -1).contiguous()
            answer = search.nearest(search.none_yet(1, 4), x[:1], torch.tensor([9]), copies, torch.arange(4))
            assert answer.index.tolist() == [[0, 1, 2, 3]]
            assert len(set(answer.distance[0].tolist())) == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_process_that_multiplies_with_fewer_digits_finds_the_same(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As networks may ask for; processors that cannot do so here are imitated."""
    product, before = torch.addmm, torch.get_float32_matmul_precision()

    def coarse(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
        if a.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return product(c, a, b, **options)

    monkeypatch.setattr(torch, "addmm", coarse)
    torch.set_float32_matmul_precision(precision)
    try:
        assert_exact(np.random.default_rng(0).standard_normal((300, 32)), 10)
    finally:
        torch.set_float32_matmul_precision(before)


def test_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((200, 12)).astype(np.float32)
    expected = found(x, 7), found(x, 7, [90])
    for rows, columns in ((9, 20), (13, 50), (64, 200), (200, 16)):
        monkeypatch.setattr(bounds, "ON_CPU", bounds.Sizes(rows, columns, 50))
        for edges, answer in zip(([], [90]), expected, strict=True):
            assert_equal(found(x, 7, edges), answer)


def test_few_rows_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of which more columns could matter than are kept: none of usual rows, all equal ones, and those to which these are nearest."""
    anew, thorough = [], search._thorough
    monkeypatch.setattr(bounds, "ON_CPU", bounds.Sizes(100, 200, 1 << 17))
    monkeypatch.setattr(search, "_thorough", lambda *a: (anew.append(len(a[1])), thorough(*a))[1])
    x = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32) + 100
    assert_exact(x, 10)
    assert_exact(x, 10, [200])
    assert not anew
    x[:300] = 7
    assert_exact(x, 10)
    assert 300 <= sum(anew) < 310


def test_a_set_against_itself_takes_each_product_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, product = [], distance_tiles.lower_bounds
    monkeypatch.setattr(bounds, "ON_CPU", bounds.Sizes(50, 100, 1 << 17))
    monkeypatch.setattr(
        distance_tiles, "lower_bounds", lambda *a: (taken.append(a[2].numel()), product(*a))[1]
    )
    x = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    plain = one_sided(x, 6)
    assert sum(taken) == 1000**2
    taken.clear()
    assert_equal(found(x, 6), plain)
    assert sum(taken) == 1000 * (1000 + 50) / 2
    taken.clear()
    found(x, search.MOST_KEPT + 1)
    assert sum(taken) == 1000**2


def one_sided(x: np.ndarray, k: int, of: np.ndarray | None = None) -> search.Neighbours:
    """With the columns in two calls, so that rows never meet themselves as a whole."""
    rows, index, answer = torch.from_numpy(x), torch.arange(len(x)), search.none_yet(len(x), k)
    for part in index.tensor_split(2):
        classes = None if of is None else (torch.from_numpy(of), torch.from_numpy(of)[part])
        answer = search.nearest(answer, rows, index, rows[part], index[part], classes)
    return answer


def assert_equal(a: search.Neighbours, b: search.Neighbours) -> None:
    assert torch.equal(a.distance, b.distance)
    assert torch.equal(a.index, b.index)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 200),
    k=st.integers(1, 40),
    width=st.sampled_from([1, 3, 300]),
    kind=st.sampled_from(
        ["few levels", "duplicates", "sorted", "far off", "far outliers", "two far clusters"]
    ),
    classes=st.sampled_from([0, 1, 4, 100]),
    sizes=st.sampled_from([(1024, 2048), (33, 70), (50, 16)]),
)
def test_a_set_against_itself_equals_row_by_row(
    seed: int, n: int, k: int, width: int, kind: str, classes: int, sizes: tuple[int, int]
) -> None:
    """Bit for bit, whatever the rows, also where fewer than k can be neighbours; and both equal all differences."""
    rng = np.random.default_rng(seed)
    x, of = rows_of(kind, n, width, rng), rng.integers(0, classes, n) if classes else None
    named = None if of is None else (torch.from_numpy(of), torch.from_numpy(of))
    rows, index = torch.from_numpy(x), torch.arange(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "ON_CPU", bounds.Sizes(*sizes, 1 << 17))
        both = search.nearest(search.none_yet(n, k), rows, index, rows, index, named)
        assert_equal(both, one_sided(x, k, of))
    apart = np.eye(n, dtype=bool) if of is None else of[:, None] == of
    distance = np.where(apart, np.inf, np.linalg.norm(x.astype(float)[:, None] - x.astype(float), axis=2))
    order = np.argsort(distance, axis=1)[:, :k]
    expected = np.full((n, k), np.inf)
    expected[:, : order.shape[1]] = np.take_along_axis(distance, order, 1)
    np.testing.assert_allclose(both.distance, expected, rtol=1e-13)


def rows_of(kind: str, n: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """What breaks products, or limits that come too late."""
    x = rng.standard_normal((n, width))
    if kind == "few levels":
        x = rng.integers(0, 2, (n, width)).astype(float)
    if kind == "duplicates":
        x = x[rng.integers(0, max(1, n // 8), n)]
    if kind == "sorted":
        x = x[np.argsort(x[:, 0])]
    if kind == "far off":
        x += 1e5
    if kind == "far outliers":
        x[: n // 50] *= 1e6
    if kind == "two far clusters":
        x = x * 1e-4 + np.where(rng.random(n) < 0.5, 1e3, -1e3)[:, None]
    return x.astype(np.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_stay_as_they_are(dtype: torch.dtype) -> None:
    """Of any floating dtype, and never written to."""
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, index = x.clone(), torch.arange(300)
    answer = search.nearest(search.none_yet(300, 4), x, index, x, index)
    assert torch.equal(x, before)
    wide = search.nearest(search.none_yet(300, 4), x.double(), index, x.double(), index)
    assert_equal(answer, wide)


@pytest.mark.parametrize("width", [1, 8, 384])
def test_bounds_hold_on_both_sides(width: int) -> None:
    """`low` and what it is short of at most, against differences in float64 of rows of very different lengths."""
    rng = np.random.default_rng(width)
    x = rng.standard_normal((200, width)) * 10.0 ** rng.integers(-4, 1, (200, 1))
    x[100:] = x[:100] * (1 + 1e-6 * rng.standard_normal((100, 1)))
    rows = torch.from_numpy(x)
    frame = bounds.frame_of(rows, rows)
    side = bounds.side_of(rows, torch.arange(200), None, frame)
    low = bounds.lower_bounds(side, side, torch.empty(200, 200)).double()
    true = ((rows[:, None] - rows) * frame.scale).square().sum(2)
    room = 2 * bounds.allowance(width) * (side.square[:, None] + side.square)
    assert (low - bounds.least(width) < true).all()
    assert (true < low + room + bounds.least(width)).all()


@pytest.mark.parametrize("r", [1, 6, 40])
def test_bounds_along_directions_hold(r: int) -> None:
    """Whatever the directions, also far off and where nothing lies outside of them."""
    rng = np.random.default_rng(r)
    x = rng.standard_normal((200, 40)) * 10.0 ** rng.integers(-4, 1, (200, 1)) + 1e4
    x[100:, :6] = x[:100, :6]
    x[50:100, 6:] = 1e4
    rows = torch.from_numpy(x)
    frame = bounds.frame_of(rows, rows)
    directions = torch.linalg.qr(torch.from_numpy(rng.standard_normal((40, 40)))).Q[:, :r]
    if r == 6:
        directions = torch.eye(40, dtype=torch.float64)[:, :6]
    side = bounds.side_of(rows, torch.arange(200), None, frame._replace(directions=directions))
    assert side.scaled.shape == (200, r + 1)
    low = bounds.lower_bounds(side, side, torch.empty(200, 200)).double()
    true = ((rows[:, None] - rows) * frame.scale).square().sum(2)
    assert (low - bounds.least(r + 1) < true).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(2, 300),
    k=st.integers(1, 70),
    rank=st.sampled_from([1, 4, 7, 60]),
    kind=st.sampled_from(["plain", "duplicates", "far off", "few fill the space", "far outliers"]),
    classes=st.sampled_from([0, 4]),
    parts=st.sampled_from([1, 2, 3]),
)
def test_a_search_along_directions_finds_the_same(
    seed: int, n: int, k: int, rank: int, kind: str, classes: int, parts: int
) -> None:
    """Bit for bit what all features find, in one call and in several, whether the directions hold the rows or not."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, 60))
    if kind == "duplicates":
        x = x[rng.integers(0, max(1, n // 8), n)]
    if kind == "far off":
        x += 1e5
    if kind == "few fill the space":
        x[::9] += 3 * rng.standard_normal(x[::9].shape)
    if kind == "far outliers":
        x[: n // 50] *= 1e6
    rows, index = torch.from_numpy(x.astype(np.float32)), torch.arange(n)
    of = torch.from_numpy(rng.integers(0, classes, n)) if classes else None

    def searched() -> search.Neighbours:
        answer = search.none_yet(n, k)
        for part in index.tensor_split(parts):
            groups = None if of is None else (of, of[part])
            answer = search.nearest(answer, rows, index, rows[part], index[part], groups)
        return answer

    plain = searched()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "ON_CPU", bounds.Sizes(32, 64, 1 << 17))
        patch.setattr(search, "directions_of", lambda _, y, *__: _directions(y, 6))
        assert_equal(searched(), plain)


def _directions(y: torch.Tensor, r: int) -> torch.Tensor:
    return torch.linalg.svd(y.double() - y.double().mean(0), full_matrices=False).Vh[:r].T.contiguous()


def test_directions_are_taken_where_they_save_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows near a subspace: about its dimension; rows that fill the space: none; a few rows that do are searched with all features."""
    rng, taken, left = np.random.default_rng(0), [], []
    along = search.nearest_along
    monkeypatch.setattr(bound_directions, "LEAST_PAIRS", 1 << 20)
    monkeypatch.setattr(search, "nearest_along", lambda *a: left.append(along(*a)) or left[-1])
    plane = rng.standard_normal((3000, 10)) @ rng.standard_normal((10, 256))
    noisy = plane + 1e-3 * rng.standard_normal(plane.shape)
    mixed = noisy.copy()
    mixed[::100] += 10 * rng.standard_normal(mixed[::100].shape)
    for x in (plane, noisy, rng.standard_normal((3000, 256)), mixed):
        rows = torch.from_numpy(x)
        found = bound_directions.directions_of(rows, rows, rows.mean(0), 1.0, 5)
        taken.append(None if found is None else found.shape[1])
    assert taken[:3] == [12, 12, None]
    assert taken[3] is not None
    index, rows = torch.arange(3000), torch.from_numpy(mixed)
    answer = search.nearest(search.none_yet(3000, 5), rows, index, rows, index)
    assert 0 < len(left[0]) <= 30
    assert set(left[0].tolist()) <= set(range(0, 3000, 100))
    distance, place = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(mixed).kneighbors()
    np.testing.assert_array_equal(answer.index, place)
    np.testing.assert_allclose(answer.distance, distance, rtol=1e-9)


@pytest.mark.parametrize("n", [64, 4096, 5000, 1 << 14])
def test_what_directions_are_tried_on_meets_no_period(n: int) -> None:
    """Texts of one length: every 32nd row of a power of two would be the same token of each."""
    for most, start in ((bound_directions.PROBES, 0.5), (bound_directions.COLUMNS, 0.0)):
        places = bound_directions._spread(n, most, start)
        count = min(n, most)
        assert len(set(places.tolist())) == len(places)
        assert len(places) == count
        assert 0 <= int(places[0]) <= int(places[-1]) < n
        if count < n:
            assert torch.bincount(places % 16, minlength=16).max() <= 3 * count / 16


def test_directions_that_leave_most_rows_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first rows; the others do not meet bounds that say nothing."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((4000, 64)))
    met, bounds_of = [], directed_search.bounds_of
    monkeypatch.setattr(
        directed_search, "bounds_of", lambda *a: (met.append(len(a[0].rows)), bounds_of(*a))[1]
    )
    monkeypatch.setattr(search, "directions_of", lambda _, y, *__: _directions(y, 4))
    index = torch.arange(4000)
    answer = search.nearest(search.none_yet(4000, 3), x, index, x, index)
    assert 1024 <= sum(met) < 2048
    monkeypatch.setattr(search, "directions_of", lambda *_: None)
    assert_equal(answer, search.nearest(search.none_yet(4000, 3), x, index, x, index))


def test_directions_of_few_rows_are_not_asked_for() -> None:
    rows = torch.zeros(100, 300)
    assert bound_directions.directions_of(rows, rows, torch.zeros(300).double(), 1.0, 5) is None


def test_candidates_do_not_outgrow_their_places() -> None:
    """Tile after tile of better columns: the best of all tiles stay, and more than fit are told, not dropped."""
    tiles = [torch.rand(3, 64, generator=torch.Generator().manual_seed(i)) / (i + 1) for i in range(40)]
    square = torch.zeros(64 * 41, dtype=torch.float64)
    kept = candidates.none_yet(4, 0.0, 0.0, torch.full((3,), torch.inf), square[:3], square)
    for number, tile in enumerate(tiles):
        kept.take(slice(0, 3), tile, 64 * number)
    every = torch.cat(tiles, 1)
    best = every.topk(4, largest=False).indices
    assert not kept.open.any()
    for row in range(3):
        there = kept.column[row, : int(kept.count[row])].tolist()
        assert set(best[row].tolist()) <= set(there)
        assert torch.equal(kept.low[row, : len(there)], every[row, there])
    kept.take(slice(0, 1), torch.zeros(1, 64), 64 * 40)
    assert kept.open.tolist() == [True, False, False]


def test_scikit_learn_agrees() -> None:
    x = np.random.default_rng(0).standard_normal((400, 20))
    distance, index = NearestNeighbors(n_neighbors=7, algorithm="kd_tree").fit(x).kneighbors()
    answer = found(x, 7)
    np.testing.assert_allclose(answer.distance, distance, rtol=1e-10)
    np.testing.assert_array_equal(answer.index, index)


def test_rows_without_enough_neighbours_say_so() -> None:
    answer = found(np.eye(3, dtype=np.float32), 4)
    assert answer.index.tolist() == [[1, 2, -1, -1], [0, 2, -1, -1], [0, 1, -1, -1]]
    assert answer.distance[:, 2:].isinf().all()


def test_the_result_sums_up() -> None:
    x = np.array([[0.0], [0.0], [1.0], [3.0]], dtype=np.float32)
    inputs = Inputs(widths={"x": 1}, n_rows=4, n_samples=4)
    here = Case(
        neighbours, neighbours.Config(k=2), inputs, cases._block({"x": torch.from_numpy(x)}, 4, False)
    )
    result = cases.run(here, cases.cut(here.block, [1, 3])).result
    assert result.duplicates == 2
    assert result.mean_first_distance == pytest.approx((0 + 0 + 1 + 2) / 4)
    assert result.mean_last_distance == pytest.approx((1 + 1 + 1 + 3) / 4)
    with pytest.raises(MethodError, match="found 4 rows, 4 neighbours need at least 5"):
        neighbours.check(inputs, neighbours.Config(k=4))


def test_neighbours_in_other_samples() -> None:
    """Samples of three rows close together: with the option, none of a row's neighbours is of its own sample, in any blocks."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((20, 4)), 3, axis=0) + 0.01 * rng.standard_normal((60, 4))
    index = torch.arange(60)
    inputs = Inputs(widths={"x": 4}, n_rows=60, n_samples=20)
    block = Block({"x": torch.from_numpy(x)}, index // 3, index % 3, index)
    here = Case(neighbours, neighbours.Config(k=2, other_samples=True), inputs, block)
    found = cases.run(here, cases.cut(block, [10, 31]))
    assert found.result.other_samples
    assert not (found.arrays["index"] // 3 == index[:, None] // 3).any()
    distance = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    distance[index[:, None] // 3 == index // 3] = np.inf
    np.testing.assert_allclose(found.arrays["distance"], np.sort(distance, 1)[:, :2], rtol=1e-13)
    near = cases.run(here._replace(config=neighbours.Config(k=2)), [block])
    assert (near.arrays["index"] // 3 == index[:, None] // 3).all()
    with pytest.raises(MethodError, match="found 1 sample"):
        neighbours.check(Inputs(widths={"x": 4}, n_rows=60, n_samples=1), here.config)


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32) + 50)
    index = torch.arange(len(x))
    here = search.nearest(search.none_yet(len(x), 10), x, index, x, index)
    x, index = x.cuda(), index.cuda()
    there = search.nearest(search.none_yet(len(x), 10, "cuda"), x, index, x, index)
    assert torch.equal(here.index, there.index.cpu())
    torch.testing.assert_close(here.distance, there.distance.cpu(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [(384, 32768, 1 << 17), (7, 11, 50)])
def test_rows_of_one_class_are_apart(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int]) -> None:
    """With classes, neighbours are those of the others: against all differences, in blocks."""
    monkeypatch.setattr(bounds, "ON_CPU", bounds.Sizes(*sizes))
    rng = np.random.default_rng(1)
    x, of = rng.standard_normal((90, 6)).astype(np.float32), rng.integers(0, 3, 90)
    x[of == 2] += 20
    rows, index, classes = torch.from_numpy(x), torch.arange(90), torch.from_numpy(of)
    answer = search.none_yet(90, 2)
    for part in torch.arange(90).tensor_split(3):
        answer = search.nearest(answer, rows, index, rows[part], index[part], (classes, classes[part]))
    distance = np.sqrt(((x.astype(float)[:, None] - x.astype(float)[None]) ** 2).sum(-1))
    distance[of[:, None] == of[None]] = np.inf
    order = np.argsort(distance, axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(answer.index, order)
    np.testing.assert_allclose(answer.distance, np.take_along_axis(distance, order, 1), rtol=1e-14)
    alone = search.nearest(
        search.none_yet(90, 2), rows, index, rows, index, (torch.zeros(90).long(), torch.zeros(90).long())
    )
    assert alone.distance.isinf().all()
    assert (alone.index == -1).all()


@pytest.mark.parametrize("power", [-900, -560, 560, 900])
def test_distances_of_very_small_and_large_rows_are_those_of_scaled_ones(power: int) -> None:
    """A power of two changes no digit; equal rows stay at distance 0."""
    x = np.random.default_rng(3).standard_normal((90, 5))
    x[7], x[8] = x[70], x[80]
    plain, scaled = found(x, 6), found(np.ldexp(x, power), 6, [31])
    torch.testing.assert_close(
        torch.ldexp(scaled.distance, torch.tensor(-power)), plain.distance, rtol=1e-15, atol=0
    )
    assert torch.equal(scaled.index, plain.index)
    assert int((scaled.distance == 0).sum()) == 4


def test_numbers_whose_distances_might_overflow_are_refused() -> None:
    x = np.ones((4, 2))
    x[2, 1] = -1e305
    with pytest.raises(MethodError, match=r"is 1e\+305, distances take at most 1\.1e\+301"):
        found(x, 2)
