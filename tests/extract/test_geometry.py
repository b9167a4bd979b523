"""Row geometry from two shapes, and the names of spaces."""

import pytest
from torch import nn

from schemas.capture import Rows
from tasks.extract.geometry import Probe, describe, kept_positions, space_size

TEXT = Probe(4, 9), Probe(3, 8)
PLAIN = Probe(4, None), Probe(3, None)


@pytest.mark.parametrize(
    ("module", "shapes", "probes", "space", "width", "axis", "tokens"),
    [
        (nn.Linear(1, 1), ((4, 6), (3, 6)), PLAIN, "sample", 6, 1, False),
        (nn.Linear(1, 1), ((4, 6), (3, 6)), TEXT, "sample", 6, 1, False),
        (nn.Linear(1, 1), ((4, 9, 6), (3, 8, 6)), TEXT, "tokens", 6, 2, True),
        (nn.Conv1d(1, 1, 1), ((4, 6, 9), (3, 6, 8)), TEXT, "tokens", 6, 1, True),
        (nn.Identity(), ((4, 6, 9), (3, 6, 8)), TEXT, "tokens", 6, 1, True),
        (nn.Identity(), ((4, 197, 6), (3, 197, 6)), PLAIN, "seq197", 6, 2, False),
        (nn.Identity(), ((4, 5, 6), (3, 5, 6)), TEXT, "seq5", 6, 2, False),
        (nn.Conv1d(1, 1, 1), ((4, 6, 50), (3, 6, 50)), PLAIN, "grid50", 6, 1, False),
        (nn.BatchNorm1d(6), ((4, 6, 50), (3, 6, 50)), PLAIN, "grid50", 6, 1, False),
        (nn.MaxPool1d(2), ((4, 6, 25), (3, 6, 25)), PLAIN, "grid25", 6, 1, False),
        (nn.Conv2d(1, 1, 1), ((4, 6, 7, 8), (3, 6, 7, 8)), PLAIN, "grid7x8", 6, 1, False),
        (nn.ReLU(), ((4, 6, 7, 8), (3, 6, 7, 8)), PLAIN, "grid7x8", 6, 1, False),
        (nn.LayerNorm(6), ((4, 7, 8, 6), (3, 7, 8, 6)), PLAIN, "grid7x8", 6, 3, False),
        (nn.Conv3d(1, 1, 1), ((4, 6, 2, 3, 4), (3, 6, 2, 3, 4)), PLAIN, "grid2x3x4", 6, 1, False),
    ],
)
def test_spaces(module, shapes, probes, space, width, axis, tokens):
    found = describe(module, shapes, probes)
    assert (found.space, found.width, found.feature_axis, found.tokens) == (space, width, axis, tokens)
    assert not found.refusal


@pytest.mark.parametrize(
    ("shapes", "probes", "words"),
    [
        (((1, 9, 6), (1, 8, 6)), TEXT, "does not count the samples"),
        (((9, 4, 6), (8, 3, 6)), TEXT, "does not count the samples"),
        (((4,), (3,)), PLAIN, "batch axis and a feature axis"),
        (((4, 9), (3, 8)), TEXT, "depends on the data"),
        (((4, 12, 6), (3, 7, 6)), TEXT, "depends on the data"),
        (((4, 12, 6), (3, 7, 6)), PLAIN, "depends on the data"),
        (((4, 2, 9, 9), (3, 2, 8, 8)), TEXT, "depends on the data"),
        (((4, 9, 2, 6), (3, 8, 2, 6)), TEXT, "depends on the data"),
        (((36, 6), (24, 6)), TEXT, "does not count the samples"),
        (((4, 6), (3, 6, 1)), PLAIN, "batch axis and a feature axis"),
    ],
)
def test_refusals_name_both_shapes(shapes, probes, words):
    refusal = describe(nn.Identity(), shapes, probes).refusal
    assert words in refusal
    assert str(shapes[0]) in refusal
    assert str(shapes[1]) in refusal


def test_space_size_reads_what_describe_names():
    sizes = {"sample": 1, "tokens": None, "seq197": 197, "grid50": 50, "grid7x8": 56, "grid2x3x4": 24}
    assert {name: space_size(name) for name in sizes} == sizes


@pytest.mark.parametrize(
    ("positions", "kept"), [("all", [0, 1, 2, 3]), ("first", [0]), ("last", [3]), ("not-first", [1, 2, 3])]
)
def test_kept_positions(positions, kept):
    assert list(kept_positions(4, Rows(positions=positions))) == kept
    assert list(kept_positions(1, Rows(positions=positions))) == [0]
