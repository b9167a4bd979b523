"""Rows expressed in several layers at once: planted layers that each join clusters, invariances, bad rows, refusals, and an engine."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from sklearn.cluster import KMeans
from sklearn.manifold import spectral_embedding
from sklearn.metrics import adjusted_rand_score

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.contract import Inputs, Member, load_method
from tasks.store.artifacts import artifact_arrays, read_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.expressed import block_of


def joined(
    layers: list[np.ndarray],
    of: np.ndarray | None = None,
    rows: int | None = None,
    explained: float = 1.0,
    **options: Any,
) -> Answer:
    """The clusters of several layers; `rows`: of the port of rows, where it has others; `explained`: what coordinates hold of a layer."""
    module, n = load_method("clustering.layerwise"), rows or len(layers[0])
    names = {} if of is None else {"kind": tuple(map(str, range(int(np.max(of)) + 1)))}
    config = module.Config(label=None if of is None else "kind", **({"starts": 10} | options))
    members = tuple(
        Member(f"layer{k}", ("capture",), {"coordinates": torch.from_numpy(x)}, {"explained": explained})
        for k, x in enumerate(layers)
    )
    inputs = Inputs(
        widths={"x": 0},
        n_rows=n,
        n_samples=n,
        categories=names,
        series={"layers": members},
        captures={"x": ("capture",)},
    )
    module.check(inputs, config)
    return cases.run(Case(module, config, inputs, block_of(np.zeros((n, 0)), of)))


def planted(seed: int, noise: float = 0.2, rows: int = 180) -> tuple[list[np.ndarray], np.ndarray]:
    """Three classes in three layers of other widths and scales: each layer maps the same coordinates by one basis for two of them."""
    rng = np.random.default_rng(seed)
    of = np.arange(rows) % 3
    within, layers = rng.standard_normal((rows, 3)), []
    for k, merged in enumerate(([0, 0, 1], [0, 1, 1], [0, 1, 0])):
        width = 20 + 5 * k
        basis = np.stack([np.linalg.qr(rng.standard_normal((width, 3)))[0] for _ in range(2)])
        x = np.einsum("nfd,nd->nf", basis[np.array(merged)[of]], within)
        layers.append(10.0**k * (x + noise * rng.standard_normal(x.shape) / np.sqrt(width)))
    return layers, of


@pytest.mark.parametrize(("noise", "chosen_by"), [(0.2, "parts"), (0.35, "eigengap")])
@pytest.mark.parametrize("seed", range(3))
def test_layers_that_each_join_two_clusters_part_all_together(
    seed: int, noise: float, chosen_by: str
) -> None:
    layers, of = planted(seed, noise)
    result = joined(layers, of).result
    assert (result.clusters, result.chosen_by) == (3, chosen_by)
    assert result.accuracy > 0.95
    assert result.expressed_accuracy > 0.95
    assert max(result.layer_accuracy) < 0.75
    assert max(result.layer_rand) < 0.6
    assert result.stopped == "settled"


def test_without_noise_each_row_is_expressed_by_its_own_subspace() -> None:
    layers, of = planted(0, noise=0.0)
    answer = joined(layers, of, clusters=3)
    assert answer.result.accuracy == 1
    assert answer.result.inside > 0.999
    assert max(answer.result.layer_left) < 1e-3
    index = answer.arrays["index"].numpy()
    assert (of[index] == of[:, None]).all()


def test_clusters_are_those_of_the_leading_coefficients() -> None:
    """Against scikit-learn's embedding of the graph that the arrays give."""
    answer = joined(planted(0, noise=0.4)[0], clusters=3)
    c = np.zeros((180, 180))
    np.put_along_axis(c, answer.arrays["index"].numpy(), np.abs(answer.arrays["coefficient"].numpy()), axis=1)
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    embedded = spectral_embedding(c + c.T, n_components=3, drop_first=False, random_state=0)
    degree = np.sqrt((c + c.T).sum(1, keepdims=True))
    rows = embedded * degree
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    own = KMeans(3, n_init=10, random_state=0).fit_predict(rows)
    assert adjusted_rand_score(own, answer.arrays["cluster"].numpy()) == 1


def test_what_is_told_of_the_loss() -> None:
    answer = joined(planted(2)[0], clusters=3)
    result, arrays = answer.result, answer.arrays
    assert arrays["loss"][0] == pytest.approx(1)
    assert (arrays["loss"].diff() <= 0).all()
    assert arrays["loss"][-1] == pytest.approx(np.mean(result.layer_left))
    assert arrays["tuned"][0] == pytest.approx(2 * float(arrays["loss"][-1]))
    for number in range(result.rounds):
        inside = arrays["tuned"][arrays["round"] == number]
        assert len(inside) > 1
        assert (inside.diff() <= 0).all()
    assert result.steps == 10 * (len(arrays["loss"]) - 1)
    assert result.tuning_steps == 10 * (len(arrays["tuned"]) - result.rounds)
    assert 0 < result.nonzero < 1
    assert 0 < result.kept <= 1


def test_rotations_scales_and_the_order_of_layers_and_rows_do_not_matter() -> None:
    layers, _ = planted(3)
    order = np.random.default_rng(0).permutation(180)
    straight = joined(layers, clusters=3).arrays["cluster"].numpy()
    turned = [
        scale * x @ ortho_group.rvs(x.shape[1], random_state=k)
        for k, (x, scale) in enumerate(zip(layers, (1e-3, 7.0, 1e5), strict=True))
    ]
    for others in (turned, layers[::-1], [np.hstack([x, 0 * x]) for x in layers]):
        np.testing.assert_array_equal(joined(others, clusters=3).arrays["cluster"].numpy(), straight)
    mixed = joined([x[order] for x in layers], clusters=3).arrays["cluster"].numpy()
    assert adjusted_rand_score(straight[order], mixed) == 1


def test_labels_are_read_for_the_comparison_alone() -> None:
    layers, of = planted(1)
    with_labels, without, other = (
        joined(layers, truth, clusters=3) for truth in (of, None, np.random.default_rng(0).permutation(of))
    )
    for answer in (without, other):
        for name, values in with_labels.arrays.items():
            assert torch.equal(answer.arrays[name], values)
    assert (without.result.accuracy, without.result.layer_accuracy) == (None, None)
    assert other.result.adjusted_rand < 0.1


def test_rows_wider_than_many_are_taken_too() -> None:
    layers, of = planted(0, rows=60)
    wide = [
        np.hstack([x, 0.01 * np.random.default_rng(k).standard_normal((60, 300))])
        for k, x in enumerate(layers)
    ]
    assert joined(wide, of, clusters=3).result.accuracy > 0.95


def test_twins_express_each_other_and_do_no_harm() -> None:
    layers, of = planted(0)
    answer = joined([np.vstack([x, x]) for x in layers], np.tile(of, 2), clusters=3)
    assert answer.result.accuracy > 0.98
    cluster = answer.arrays["cluster"]
    assert torch.equal(cluster[:180], cluster[180:])


def test_rows_of_zeros_have_no_edge_and_are_told() -> None:
    layers, of = planted(0)
    for x in layers:
        x[:4] = 0
    result = joined(layers, of, clusters=3).result
    assert result.alone == 4
    assert "4 rows have no edge: their cluster means nothing" in result.caveats
    assert result.accuracy > 0.95


def test_a_constant_layer_says_nothing_and_does_no_harm() -> None:
    layers, of = planted(0)
    result = joined([*layers, np.ones((180, 7))], of, clusters=3).result
    assert result.accuracy > 0.95
    assert abs(result.layer_rand[3]) < 0.1
    assert any(note.startswith("capture layer3 has clusters of its own") for note in result.caveats)


def test_coordinates_that_leave_much_out_are_told() -> None:
    layers, _ = planted(1)
    caveats = joined(layers, clusters=3, explained=0.9).result.caveats
    assert sum("coordinates hold 0.90 of" in note for note in caveats) == 3
    assert not any("coordinates hold" in note for note in joined(layers, clusters=3).result.caveats)


def test_refusals() -> None:
    layers, _ = planted(0)
    with pytest.raises(MethodError, match=r"capture layer1 is of 100 rows, port 'x' has 180"):
        joined([layers[0], layers[1][:100]])
    with pytest.raises(
        MethodError, match=r"found 180 rows, takes up to 100: .* about 0.0 GB; raise `most_rows`"
    ):
        joined(layers, most_rows=100)
    with pytest.raises(MethodError, match="found 8 rows, 8 clusters need at least 9"):
        joined([x[:8] for x in layers], clusters=8)
    with pytest.raises(MethodError, match="capture layer1: all coordinates are 0"):
        joined([layers[0], 0 * layers[1]])
    with pytest.raises(MethodError, match="capture layer0: found coordinates that are not finite"):
        joined([np.where(layers[0] > 1, np.inf, layers[0]), layers[1]])
    few = np.zeros((9, 3))
    few[0] = few[1] = 1
    with pytest.raises(MethodError, match="found 2 rows with an edge, 2 clusters need at least 3"):
        joined([few, few], clusters=2)
    with pytest.raises(MethodError, match="capture layer1: found 2 rows with an edge"):
        joined([layers[0][:9], few], clusters=2)
    with pytest.raises(MethodError, match="no row expresses another"):
        joined([np.eye(8), np.eye(8)], clusters=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return Location(str(tmp_path_factory.mktemp("layers")))


def through(root: Location, captures: list[list[Any]], x: list[Any]) -> Any:
    """Coordinates over the captures' sites, joined by an engine; each list is a layer's captures, all read as one."""
    stages, members = [], []
    for refs in captures:
        stages.append(stage_of("spectrum.pca", {"x": refs}))
        stages.append(stage_of("spectrum.project", {"x": refs}, {"basis": stages[-1].id}))
        members.append(stages[-1])
    options: dict[str, Any] = {"clusters": 3, "starts": 10, "label": "kind"}
    last = stage_of("clustering.layerwise", {"x": x}, series={"layers": members}, **options)
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
            keys=[f"{name}-{k}" for k in range(90)],
            failed=failed,
            name=name,
        )
        for name, some, failed in (("first", slice(0, 90), (3,)), ("second", slice(90, 180), ()))
    ]
    refs = [[rows_ref(half, site) for half in halves] for site in sites]
    made = through(root, refs, refs[0])
    arrays, record = artifact_arrays(root, made), read_artifact(root, made)
    good = np.delete(np.arange(180), 3)
    assert (record.rows_used, record.rows_dropped) == (179, 1)
    assert float(record.result["accuracy"]) > 0.98
    np.testing.assert_array_equal(arrays["row"], good)
    assert np.isin(arrays["index"], good).all()
    by_hand = joined([x[good] - x[good].mean(0) for x in layers], clusters=3)
    np.testing.assert_array_equal(arrays["cluster"], by_hand.arrays["cluster"].numpy())
    with pytest.raises(MethodError, match="expected one order"):
        through(root, refs, refs[0][::-1])
    with pytest.raises(MethodError, match=r"is of 180 rows, port 'x' has 90"):
        through(root, refs, refs[0][:1])
