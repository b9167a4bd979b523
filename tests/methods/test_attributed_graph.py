"""Clusters of rows with a graph: planted blocks, the rows alone, node ids, modularity by igraph, full matrices, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from schemas.errors import MethodError
from tasks.methods.contract import Block, Edges, Inputs, load_method
from tests.methods import cases
from tests.methods.cases import Answer, Case

BLOCK, WIDTH = 40, 30


def planted(
    seed: int, signed: bool = False, inside: float = 0.13, between: float = 0.04
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four blocks of rows, faint in features and in edges. Rows, edges, blocks."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(4), BLOCK)
    means, noise = rng.standard_normal((4, WIDTH)), rng.standard_normal((len(of), WIDTH))
    x = 0.5 * means[of] + noise if signed else (means[of] + 2 * noise > 0).astype(np.float64)
    near = np.where(of[:, None] == of, inside, between)
    return x, np.argwhere(np.triu(rng.random(near.shape) < near, 1)), of


def found(
    x: np.ndarray,
    ends: np.ndarray,
    of: np.ndarray | None = None,
    graph: dict[str, Any] | None = None,
    **options: Any,
) -> Answer:
    n, module = len(x), load_method("clustering.attributed_graph")
    config = module.Config(label=None if of is None else "kind", **options)
    edges = Edges(torch.from_numpy(ends.astype(np.int64)), torch.ones(len(ends), dtype=torch.float64))
    names = {} if of is None else {"kind": tuple(map(str, range(int(of.max()) + 1)))}
    inputs = Inputs({"x": x.shape[1]}, n, n, names, graphs={"graph": replace(edges, **(graph or {}))})
    module.check(inputs, config)
    labels = {} if of is None else {"kind": torch.from_numpy(of)}
    index = torch.arange(n)
    block = Block({"x": torch.from_numpy(x)}, index, 0 * index, index, labels)
    return cases.run(Case(module, config, inputs, block))


@pytest.mark.parametrize("objective", ["conductance", "modularity"])
def test_blocks_that_neither_rows_nor_edges_tell_alone(objective: str) -> None:
    told = []
    for seed in range(3):
        x, ends, of = planted(100 + seed)
        both = found(x, ends, of, clusters=4, objective=objective).result
        edges_alone = found(np.eye(len(x)), ends, of, clusters=4, objective=objective).result
        told.append((both.accuracy, both.alone.accuracy, edges_alone.accuracy))
    both, rows_alone, edges_alone = np.mean(told, axis=0)
    assert both > 0.88
    assert max(rows_alone, edges_alone) < 0.8


def test_rows_with_negative_entries_are_lifted() -> None:
    x, ends, of = planted(3, signed=True)
    result = found(x, ends, of, clusters=4).result
    assert result.lifted
    assert result.accuracy > 0.9


@pytest.mark.parametrize("objective", ["conductance", "modularity"])
def test_no_hops_are_the_rows_alone(objective: str) -> None:
    x, ends, of = planted(4)
    other = np.random.default_rng(0).permutation(len(x))[ends]
    none = found(x, ends, of, clusters=4, hops=0, objective=objective)
    np.testing.assert_array_equal(none.arrays["cluster"], none.arrays["alone"])
    assert none.result.moved == 1
    assert none.result.alone.accuracy == none.result.accuracy
    for hops, edges in ((0, np.sort(other, axis=1)), (5, ends)):
        again = found(x, edges, of, clusters=4, hops=hops, objective=objective)
        np.testing.assert_array_equal(again.arrays["alone"], none.arrays["cluster"])


@pytest.mark.parametrize("objective", ["conductance", "modularity"])
def test_node_ids_do_not_matter(objective: str) -> None:
    x, ends, _ = planted(5)
    new = np.random.default_rng(1).permutation(len(x))
    moved = np.empty_like(x)
    moved[new] = x
    one = found(x, ends, clusters=4, hops=3, objective=objective)
    other = found(moved, np.sort(new[ends], axis=1), clusters=4, hops=3, objective=objective)
    assert adjusted_rand_score(one.arrays["cluster"], other.arrays["cluster"][new]) == 1
    assert other.result.modularity == pytest.approx(one.result.modularity, abs=1e-12)


def test_modularity_is_that_of_igraph_and_conductance_that_of_a_loop() -> None:
    igraph = pytest.importorskip("igraph")
    x, ends, _ = planted(6)
    answer = found(x, ends, clusters=4)
    cluster = answer.arrays["cluster"].numpy()
    network = igraph.Graph(n=len(x), edges=ends.tolist())
    assert answer.result.modularity == pytest.approx(network.modularity(cluster.tolist()), abs=1e-12)
    shares = []
    for k in range(4):
        inside = np.isin(ends, np.flatnonzero(cluster == k)).sum(1)
        volume = inside.sum()
        shares.append((inside == 1).sum() / min(volume, 2 * len(ends) - volume))
    assert answer.result.conductance == pytest.approx(np.mean(shares), abs=1e-12)
    assert answer.result.inside == pytest.approx(np.mean(cluster[ends[:, 0]] == cluster[ends[:, 1]]))


def test_the_number_follows_from_the_eigenvalues() -> None:
    _, ends, of = planted(7, inside=0.4, between=0.02)
    x = np.eye(4)[of] + 0.1 * np.random.default_rng(0).random((len(of), 4))
    for objective in ("conductance", "modularity"):
        result = found(x, ends, objective=objective, max_clusters=8).result
        assert result.chosen_by == "eigengap"
        assert result.clusters == result.candidates[0] == 4


def test_caveats_tell_what_is_odd_about_the_graph() -> None:
    x, ends, _ = planted(8)
    x[0] = 0
    some = ends[(ends >= 3).all(1)]
    result = found(x, some, clusters=4, graph={"loops": 2, "repeated": 3, "weightless": 1}).result
    assert result.isolated == 3
    told = " ".join(result.caveats)
    for part in (
        "3 rows have no edge",
        "1 rows are zeros",
        "2 lines of the file join",
        "3 lines of the file came once more",
        "1 pairs of the file have weight 0",
    ):
        assert part in told
    parts = np.stack([np.arange(0, 160, 2), np.arange(1, 160, 2)], axis=1)
    assert any("falls into 80 parts" in note for note in found(x, parts, clusters=4).result.caveats)


def test_edges_of_samples_without_rows_are_left_out() -> None:
    x, ends, _ = planted(9)
    module = load_method("clustering.attributed_graph")
    config = module.Config(clusters=4, hops=2)
    edges = Edges(torch.from_numpy(ends), torch.ones(len(ends), dtype=torch.float64))
    kept = torch.arange(5, len(x))
    inputs = Inputs({"x": x.shape[1]}, len(x), len(x), graphs={"graph": edges})
    block = Block({"x": torch.from_numpy(x[5:])}, kept, 0 * kept, kept)
    answer = cases.run(Case(module, config, inputs, block))
    inner = ends[(ends >= 5).all(1)]
    np.testing.assert_array_equal(answer.arrays["row"], kept)
    np.testing.assert_array_equal(
        answer.arrays["cluster"], found(x[5:], inner - 5, clusters=4, hops=2).arrays["cluster"]
    )
    assert any(f"{len(ends) - len(inner)} edges lead to" in note for note in answer.result.caveats)
    with pytest.raises(MethodError, match="found several rows of a sample"):
        cases.run(Case(module, config, inputs, replace(block, sample=kept // 2)))
    first = torch.tensor([[0, 1]])
    alone = replace(inputs, graphs={"graph": Edges(first, torch.ones(1, dtype=torch.float64))})
    with pytest.raises(MethodError, match="no edge joins two samples that have rows"):
        cases.run(Case(module, config, alone, block))


def test_equal_rows_are_parted_by_edges_alone() -> None:
    _, ends, of = planted(10)
    result = found(np.ones((len(of), 3)), ends, of % 2, clusters=2, hops=5).result
    assert result.n_rows == len(of)
    assert np.isfinite(result.modularity)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clusters": 160}, "found 160 rows, 160 clusters need at least 161"),
        ({"label": "side"}, "label 'side' names no classes"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    x, ends, _ = planted(11)
    module = load_method("clustering.attributed_graph")
    edges = Edges(torch.from_numpy(ends), torch.ones(len(ends), dtype=torch.float64))
    inputs = Inputs({"x": 12}, len(x), len(x), graphs={"graph": edges})
    with pytest.raises(MethodError, match=said):
        module.check(inputs, module.Config(**options))


def test_rows_that_an_option_does_not_take_are_refused() -> None:
    x, ends, _ = planted(12, signed=True)
    with pytest.raises(MethodError, match=r"modularity weighs rows .* set objective: conductance"):
        found(x, ends, objective="modularity")
    with pytest.raises(MethodError, match="tf_idf takes counts, found negative entries"):
        found(x, ends, tf_idf=True)
    with pytest.raises(MethodError, match="all rows are zeros"):
        found(0 * x, ends)


def test_rows_beyond_memory_are_refused_with_the_estimate() -> None:
    module = load_method("clustering.attributed_graph")
    with pytest.raises(
        MethodError, match=r"900,000 rows of 4,096 features .* take about 118,\d+,\d+,\d+ bytes"
    ):
        module.check(Inputs({"x": 4096}, 900_000, 900_000), module.Config())


def test_rows_that_cut_the_graph_better_alone_are_told() -> None:
    """Rings, which spread rows may be split along; here the comparison by itself, as the answer depends on rounding."""
    x, ends, of = planted(0)
    module = load_method("clustering.attributed_graph")
    result = found(x, ends, of, clusters=4).result
    worse = result.alone.model_copy(update={"conductance": result.conductance + 0.25})
    assert module._better_alone(result, worse) == []
    (note,) = module._better_alone(worse, result)
    assert f"(conductance {result.conductance:.2f}, here {result.conductance + 0.25:.2f})" in note
    assert note not in result.caveats
