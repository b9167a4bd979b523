"""Ids of edges to samples: keys before rows of the data, and rows of a subset in whatever order it was drawn."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import MethodError, UnknownNameError
from tasks.engine.edges import Samples, sample_edges
from tasks.store.edges import edges_ref
from tasks.store.location import Location
from tasks.store.sample_table import SampleTable


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


def samples(keys: list[str], rows: list[int] | None = None, per: list[int] | None = None) -> Samples:
    counts = np.array(per or [1] * len(keys))
    start = np.concatenate([[0], np.cumsum(counts)])
    index = None if rows is None else np.array(rows)
    return Samples(
        SampleTable(keys, counts, {}, {}, {"sample": start}, source_index=index), "sample", "capture a"
    )


def ends(
    root: Location, lines: list[tuple[object, object]], *captures: Samples
) -> tuple[str, list[list[int]]]:
    root.write("edges.csv", "\n".join(["source,target", *(f"{a},{b}" for a, b in lines)]).encode())
    found = sample_edges(edges_ref(f"{root.url}/edges.csv"), captures)
    return found.ids, found.ends.tolist()


def test_keys_come_before_rows(root: Location) -> None:
    assert ends(root, [(2, 1)], samples(["2", "1", "0"])) == ("key", [[0, 1]])
    assert ends(root, [(2, 1)], samples(["a", "b", "c"])) == ("row", [[1, 2]])
    assert ends(root, [("c", "a")], samples(["a", "b"]), samples(["c"])) == ("key", [[0, 2]])


def test_a_number_that_is_too_long_is_unknown(root: Location) -> None:
    with pytest.raises(
        UnknownNameError, match=r"1 of 2 ids .* neither keys nor rows .*'9{30}'; .* count from 0"
    ):
        ends(root, [(0, "9" * 30)], samples(["a", "b"]))


def test_rows_that_were_not_drawn_are_unknown(root: Location) -> None:
    with pytest.raises(UnknownNameError, match=r"'4', '6', '3' and 1 more; .* rows 2 to 9 .* were not drawn"):
        ends(root, [(2, 3), (4, 5), (6, 9)], samples(["a", "b"], [2, 9]))


def test_some_rows_for_some_samples_only_are_refused(root: Location) -> None:
    with pytest.raises(MethodError, match="has 0 to 2 rows of a sample"):
        ends(root, [(0, 1)], samples(["a", "b"], per=[2, 0]))


@given(rows=st.lists(st.integers(0, 50), min_size=2, max_size=20, unique=True))
def test_rows_of_a_subset_are_its_samples(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    root = Location(str(tmp_path_factory.getbasetemp() / "subset"))
    kind, found = ends(root, [(rows[0], row) for row in rows[1:]], samples([f"k{r}" for r in rows], rows))
    assert (kind, found) == ("row", [[0, k] for k in range(1, len(rows))])
