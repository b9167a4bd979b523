"""Layers' graphs in one clustering: against dense matrices, planted layers that each part some clusters, noise, refusals, and an engine."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.contract import Inputs, Member, load_method
from tasks.numerics import layered_graphs
from tasks.numerics.graphs import Matrix
from tasks.store.artifacts import artifact_arrays, read_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.expressed import block_of, expressed, parted
from tests.methods.test_k_subspaces import union


def fused(
    graphs: list[Answer], of: np.ndarray | None = None, rows: int | None = None, **options: Any
) -> Answer:
    """The clusters of several graphs; `rows`: of the port of rows, where it has others."""
    module, n = load_method("clustering.multilayer"), rows or len(graphs[0].arrays["index"])
    names = {} if of is None else {"kind": tuple(map(str, range(int(np.max(of)) + 1)))}
    config = module.Config(label=None if of is None else "kind", **({"starts": 10} | options))
    members = tuple(
        Member(f"layer{k}", ("capture",), g.arrays, g.result.model_dump(mode="json"))
        for k, g in enumerate(graphs)
    )
    inputs = Inputs(
        widths={"x": 0},
        n_rows=n,
        n_samples=n,
        categories=names,
        series={"graphs": members},
        captures={"x": ("capture",)},
    )
    module.check(inputs, config)
    return cases.run(Case(module, config, inputs, block_of(np.zeros((n, 0)), of)))


def random_graph(seed: int, n: int, share: float) -> Matrix:
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.random((n, n)) * (rng.random((n, n)) < share), 1)
    return Matrix(weights + weights.T)


def ring(n: int) -> Matrix:
    return Matrix(sparse.csr_array(np.roll(np.eye(n), 1, axis=1) + np.roll(np.eye(n), -1, axis=1)))


def dense_fusion(graphs: list[Matrix], k: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Both sums as they are written, in full matrices, for connected graphs."""
    total = np.zeros(graphs[0].shape)
    for graph in graphs:
        degree = graph.toarray().sum(1)
        laplacian = np.eye(len(degree)) - graph.toarray() / np.sqrt(np.outer(degree, degree))
        u = np.linalg.eigh(laplacian)[1][:, :k]
        total += (laplacian - gamma * u @ u.T) / len(graphs)
    values, vectors = np.linalg.eigh(total)
    return values + gamma, vectors


@pytest.mark.parametrize("n", [60, 500])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_the_embedding_is_that_of_dense_matrices(n: int, gamma: float) -> None:
    """Above 400 rows by a solver that sees products alone."""
    graphs = [Matrix(random_graph(seed, n, 0.1) + 0.1 * ring(n)) for seed in range(3)]
    layers = [layered_graphs.layer(graph, 8, 0) for graph in graphs]
    found = layered_graphs.fuse(layers, 4, gamma, 6, 0)
    values, vectors = dense_fusion(graphs, 4, gamma)
    np.testing.assert_allclose(found.values, values[:6], atol=1e-9)
    span, whole = found.vectors[:, :4], vectors[:, :4]
    np.testing.assert_allclose(span @ span.T, whole @ whole.T, atol=1e-6)


def test_parts_are_embedded_by_themselves_and_rows_without_edges_left_out() -> None:
    """Equal parts have equal eigenvalues, of which a solver for the whole may miss some; 2 of the rows are linked in no layer, and 10 in
    one only."""
    one, n = sparse.block_diag([random_graph(s, 450, 0.05) + ring(450) for s in (1, 1, 1)]), 1352
    full = Matrix(sparse.block_diag([one, np.zeros((2, 2))]))
    less = full.copy().tolil()
    less[:10] = 0
    less[:, :10] = 0
    layers = [layered_graphs.layer(Matrix(graph), 5, 0) for graph in (full, Matrix(less.tocsr()))]
    assert [each.alone for each in layers] == [2, 12]
    found = layered_graphs.fuse(layers, 3, 0.5, 4, 0)
    assert (found.parts, found.smallest_part) == (3, 450)
    assert not found.vectors[n - 2 :].any()
    part = np.arange(1350) // 450
    assert all(len(np.unique(part[np.abs(v[:1350]) > 1e-8])) == 1 for v in found.vectors[:, :3].T)
    np.testing.assert_allclose(found.values[:2], 0, atol=1e-9)  # the parts that both layers know in full


@pytest.mark.parametrize("gamma", [0.0, 0.5, 5.0])
def test_one_layer_many_times_is_that_layer(gamma: float) -> None:
    x, of = union(0, 4, 3, 20, 60, noise=0.3)
    graph = expressed("tsc", x)
    own = parted(graph, of, clusters=4, starts=10)
    several = fused([graph] * 3, of, clusters=4, gamma=gamma)
    assert torch.equal(several.arrays["cluster"], own.arrays["cluster"])
    assert several.result.layer_rand == (1, 1, 1)
    assert several.result.shared == 4
    assert several.result.accuracy == own.result.accuracy == several.result.layer_accuracy[0]
    assert several.result.layer_eigengap[0] == pytest.approx(own.result.eigengap, abs=1e-8)


def planted(seed: int, noise: float = 0.2) -> tuple[list[np.ndarray], np.ndarray]:
    """Four classes in two layers: the first parts 0 from 1 and both from the rest, the second 2 from 3 and both from the rest."""
    rng = np.random.default_rng(seed)
    of = np.arange(240) % 4
    layers = []
    for merged in ([0, 1, 2, 2], [0, 0, 1, 2]):
        basis = np.linalg.qr(rng.standard_normal((3, 20, 3)))[0][np.array(merged)[of]]
        rows = np.einsum("nfd,nd->nf", basis, rng.standard_normal((len(of), 3)))
        layers.append(rows + noise * rng.standard_normal(rows.shape) / np.sqrt(20))
    return layers, of


@pytest.mark.parametrize("seed", range(3))
def test_layers_that_part_different_clusters_part_all_together(seed: int) -> None:
    layers, of = planted(seed)
    result = fused([expressed("tsc", x, entries=30) for x in layers], of, clusters=4).result
    assert result.accuracy > max(0.97, result.mean_graph_accuracy)
    assert max(result.layer_accuracy) < 0.85
    assert result.shared < 4
    assert result.normalised_mutual_information > max(result.layer_information) + 0.1


@pytest.mark.parametrize("seed", range(3))
def test_a_layer_of_noise_does_little_harm_and_is_named(seed: int) -> None:
    layers, of = planted(seed)
    noise = np.random.default_rng(seed + 100).standard_normal((len(of), 20))
    result = fused([expressed("tsc", x, entries=30) for x in (*layers, noise)], of, clusters=4).result
    assert result.accuracy > 0.97
    assert abs(result.layer_rand[2]) < 0.1
    assert any(note.startswith("capture layer2 has clusters of its own") for note in result.caveats)


def test_neither_the_order_of_layers_nor_that_of_rows_matters() -> None:
    layers, of = planted(0)
    order = np.random.default_rng(0).permutation(len(of))
    made = [[expressed("tsc", x[rows], entries=30) for x in layers] for rows in (np.arange(len(of)), order)]
    straight, mixed = (fused(graphs, clusters=4).arrays["cluster"].numpy() for graphs in made)
    turned = fused(made[0][::-1], clusters=4).arrays["cluster"].numpy()
    np.testing.assert_array_equal(straight, turned)
    assert adjusted_rand_score(straight[order], mixed) == 1


def test_labels_are_read_for_the_comparison_alone() -> None:
    layers, of = planted(1)
    graphs = [expressed("tsc", x, entries=30) for x in layers]
    with_labels, without, other = (
        fused(graphs, truth, clusters=4) for truth in (of, None, np.random.default_rng(0).permutation(of))
    )
    for answer in (without, other):
        for name, values in with_labels.arrays.items():
            assert torch.equal(answer.arrays[name], values)
    assert (without.result.accuracy, without.result.layer_accuracy) == (None, None)
    assert other.result.adjusted_rand < 0.1


def test_the_number_of_clusters_comes_from_the_mean_graph() -> None:
    x, of = union(0, 5, 3, 30, 60, noise=0.1)
    y, _ = union(1, 5, 3, 30, 60, noise=0.1)
    result = fused([expressed("tsc", rows, entries=30) for rows in (x, y)], of).result
    assert (result.clusters, result.accuracy) == (5, 1)
    assert result.candidates[0] == 5


def test_subtracting_the_other_end_of_the_spectrum_would_change_nothing() -> None:
    """The k smallest singular vectors of I + S are as far from clusters as can be: the k largest of the sum stay those of the mean."""
    layers, _ = planted(2)
    total, shifted = np.zeros((240, 240)), np.zeros((240, 240))
    for x in layers:
        c = expressed("tsc", x, entries=30).arrays
        s = np.zeros((240, 240))
        np.put_along_axis(s, c["index"].numpy(), np.abs(c["coefficient"].numpy()), axis=1)
        s = s + s.T
        full = np.eye(240) + s / np.sqrt(np.outer(s.sum(1), s.sum(1)))
        u = np.linalg.svd(full)[0][:, -4:]
        total, shifted = total + full, shifted + full - 0.5 * u @ u.T
    largest = [np.linalg.eigh(m)[1][:, -4:] for m in (total, shifted)]
    assert np.linalg.svd(largest[0].T @ largest[1])[1].min() > 0.999


def test_refusals() -> None:
    layers, _ = planted(0)
    graphs = [expressed("tsc", x, entries=30) for x in (layers[0], layers[1][:200])]
    with pytest.raises(MethodError, match=r"capture layer1 is of 200 rows, port 'x' has 240"):
        fused(graphs)
    with pytest.raises(MethodError, match="found 8 rows, 8 clusters need at least 9"):
        fused([expressed("tsc", np.eye(8)[:, :3] + 0.1, entries=2)] * 2, clusters=8)
    with pytest.raises(MethodError, match="capture layer0: no row expresses another"):
        fused([expressed("tsc", np.eye(8), entries=2)] * 2, clusters=2)
    two = np.vstack([np.eye(8), np.eye(8)[:1]])
    with pytest.raises(MethodError, match="found 2 rows with an edge in some layer"):
        fused([expressed("tsc", two, entries=2)] * 2, clusters=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return Location(str(tmp_path_factory.mktemp("layers")))


def through(root: Location, captures: list[list[Any]], x: list[Any]) -> Any:
    """Graphs over the captures' sites, fused by an engine; each list is a layer's captures, all read as one."""
    stages, members = [], []
    for refs in captures:
        stages.append(stage_of("clustering.preparation", {"x": refs}, center=False))
        stages.append(stage_of("clustering.tsc", {"x": refs}, {"preparation": stages[-1].id}, entries=30))
        members.append(stages[-1])
    options = {"clusters": 4, "starts": 10, "label": "kind"}
    last = stage_of("clustering.multilayer", {"x": x}, series={"graphs": members}, **options)
    run_stages(root, [*stages, last], serial)
    return last.id


def test_an_engine_over_two_captures_with_a_failed_sample(root: Location) -> None:
    layers, of = planted(0)
    names = [f"kind {k}" for k in of]
    sites = {f"layer{k}": rows for k, rows in enumerate(layers)}
    halves = [
        make_capture(
            root,
            {site: rows[some] for site, rows in sites.items()},
            None,
            {"kind": names[some]},
            keys=[f"{name}-{k}" for k in range(120)],
            failed=failed,
            name=name,
        )
        for name, some, failed in (("first", slice(0, 120), (3,)), ("second", slice(120, 240), ()))
    ]
    refs = [[rows_ref(half, site) for half in halves] for site in sites]
    made = through(root, refs, refs[0])
    arrays, record = artifact_arrays(root, made), read_artifact(root, made)
    assert (record.rows_used, record.rows_dropped) == (239, 1)
    assert float(record.result["accuracy"]) > 0.95
    np.testing.assert_array_equal(arrays["row"], np.delete(np.arange(240), 3))
    good = np.delete(np.arange(240), 3)
    by_hand = fused([expressed("tsc", x[good].astype(np.float32), entries=30) for x in layers], clusters=4)
    np.testing.assert_array_equal(arrays["cluster"], by_hand.arrays["cluster"].numpy())
    with pytest.raises(MethodError, match="expected one order"):
        through(root, refs, refs[0][::-1])
    with pytest.raises(MethodError, match=r"is of 240 rows, port 'x' has 120"):
        through(root, refs, refs[0][:1])


def test_layers_of_other_captures_are_told(root: Location) -> None:
    layers, of = planted(0)
    specs = [
        make_capture(root, {"layer": x}, None, {"kind": [f"kind {k}" for k in of]}, name=name)
        for name, x in zip(("one", "two"), layers, strict=True)
    ]
    refs = [[rows_ref(spec, "layer")] for spec in specs]
    result = read_artifact(root, through(root, refs, refs[0])).result
    assert float(result["accuracy"]) > 0.97
    assert any("matched by their place" in note for note in result["caveats"])


def test_a_row_that_one_layer_lacks_is_placed_by_the_others() -> None:
    layers, of = planted(0)
    graphs = [expressed("tsc", x, entries=30) for x in layers]
    arrays = {name: values.clone() for name, values in graphs[1].arrays.items()}
    gone = torch.isin(arrays["index"], torch.arange(8))
    arrays["coefficient"][gone] = 0
    arrays["coefficient"][:8] = 0
    result = fused([graphs[0], graphs[1]._replace(arrays=arrays)], of, clusters=4).result
    assert result.layer_alone == (0, 8)
    assert result.alone == 0
    assert result.accuracy > 0.95
