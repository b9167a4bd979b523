"""The map of samples against the plain formula, in bounded memory."""

from pathlib import Path

import numpy as np
import pytest

from tasks.sample_map import label_dots, label_of, sample_means, shards_read
from tasks.store.location import Location
from tasks.store.sealed import open_group
from tests.helpers import make_capture

RNG = np.random.default_rng(5)
LENGTHS = np.array([3, 1, 7, 12, 2, 9, 4, 1, 5, 6])
SAMPLE = np.repeat(np.arange(10), LENGTHS)
ROWS = RNG.normal(size=(50, 6))
AXES = np.linalg.qr(RNG.normal(size=(6, 2)))[0].T
CENTER = ROWS.mean(0)


def capture(tmp_path: Path, **options: object):
    root = Location(str(tmp_path))
    labels = {"kind": list("aabbbcabca"), "score": np.linspace(0, 1, 10)}
    spec = make_capture(root, {"h.0": ROWS}, SAMPLE, labels, **options)  # type: ignore[arg-type]
    return open_group(root, spec.id), spec


def plain(samples: np.ndarray) -> np.ndarray:
    rows = ROWS.astype(np.float32).astype(np.float64)
    return np.stack([(rows[s == SAMPLE].mean(0) - CENTER) @ AXES.T for s in samples])


def test_means_are_those_of_the_formula(tmp_path: Path) -> None:
    group, spec = capture(tmp_path)
    means = sample_means(group, spec, spec.layout.sites[0], AXES, CENTER)
    assert means.sample.tolist() == list(range(10))
    assert np.allclose(means.xy, plain(means.sample), atol=1e-12)


def test_failed_samples_are_left_out(tmp_path: Path) -> None:
    group, spec = capture(tmp_path, failed=[2, 9])
    means = sample_means(group, spec, spec.layout.sites[0], AXES, CENTER)
    assert means.sample.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    assert np.isfinite(means.xy).all()


def test_a_draw_is_seeded_and_in_order(tmp_path: Path) -> None:
    group, spec = capture(tmp_path)
    one, two = (sample_means(group, spec, spec.layout.sites[0], AXES, CENTER, most=4) for _ in range(2))
    assert one.sample.tolist() == two.sample.tolist() == sorted(set(one.sample.tolist()))
    assert np.allclose(one.xy, plain(one.sample))


def test_of_a_large_site_only_whole_samples_of_some_shards(tmp_path: Path) -> None:
    group, spec = capture(tmp_path)
    space = spec.layout.spaces[0]
    budget = 3 * 8 * 6 * space.shard_rows
    shards = shards_read(space, 6, budget)
    assert len(shards) == 3
    read = np.isin(np.arange(50) // space.shard_rows, shards)
    whole = [s for s in range(10) if read[s == SAMPLE].all()]
    means = sample_means(group, spec, spec.layout.sites[0], AXES, CENTER, most_bytes=budget)
    assert means.sample.tolist() == whole
    assert np.allclose(means.xy, plain(means.sample))


def test_classes_are_ranked_by_size(tmp_path: Path) -> None:
    group, spec = capture(tmp_path)
    means = sample_means(group, spec, spec.layout.sites[0], AXES, CENTER)
    dots = label_dots(means, group, "kind", None)
    assert sorted(dots.names) == ["a", "b", "c"]
    assert dots.names[2] == "c"
    assert [dots.names[code] for code in dots.codes] == list("aabbbcabca")


def test_numbers_become_ranges_of_equal_counts(tmp_path: Path) -> None:
    group, spec = capture(tmp_path)
    means = sample_means(group, spec, spec.layout.sites[0], AXES, CENTER)
    dots = label_dots(means, group, "score", None)
    assert np.bincount(dots.codes).tolist() == [2] * 5
    assert all(" to " in name for name in dots.names)


@pytest.mark.parametrize("label", [None])
def test_without_a_label_everything_is_grey(tmp_path: Path, label: None) -> None:
    group, spec = capture(tmp_path)
    means = sample_means(group, spec, spec.layout.sites[0], AXES, CENTER)
    dots = label_dots(means, group, label, None)
    assert dots.names == ()
    assert set(dots.codes.tolist()) == {-1}


def test_classes_colour_before_numbers(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    labels = {"depth": np.linspace(0, 1, 10), "kind": list("aabbbcabca")}
    group = open_group(root, make_capture(root, {"h.0": ROWS}, SAMPLE, labels).id)
    assert [label_of(group, wanted) for wanted in (None, "depth")] == ["kind", "depth"]
