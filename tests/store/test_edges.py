"""Files of edges: every kind says the same, on any place, and what is wrong is named."""

import io

import numpy as np
import pandas as pd
import pytest

from schemas.errors import DataError, NotFoundError
from tasks.store.edges import edges_ref, read_edges
from tasks.store.location import Location

SOURCE, TARGET, WEIGHT = ["007", "b", "NA"], ["b", "c c", "007"], [1.0, 0.5, 2.0]
TABLE = pd.DataFrame({"source": SOURCE, "target": TARGET, "weight": WEIGHT})


def packed(**arrays: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, **{name: np.asarray(values) for name, values in arrays.items()})
    return out.getvalue()


def parquet(**columns: object) -> bytes:
    return bytes(pd.DataFrame(columns).to_parquet(index=False))


def content(kind: str) -> bytes:
    if kind == "parquet":
        return bytes(TABLE.assign(note="x").to_parquet(index=False))
    if kind == "npz":
        return packed(source=SOURCE, target=TARGET, weight=WEIGHT)
    return TABLE.to_csv(index=False, sep={"csv": ",", "tsv": "\t"}[kind]).encode()


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "npz"])
def test_every_kind_says_the_same(any_root: Location, kind: str) -> None:
    any_root.write(f"edges.{kind}", content(kind))
    found = read_edges(edges_ref(f"{any_root.url}/edges.{kind}"))
    assert found.source.tolist() == SOURCE
    assert found.target.tolist() == TARGET
    assert found.weight.tolist() == WEIGHT


def test_numbers_are_ids_and_weights_may_be_left_out(root: Location) -> None:
    root.write("edges.npz", packed(source=np.arange(3), target=np.arange(3) + 1))
    root.write("edges.csv", b"\xef\xbb\xbfsource,target\n0,1\n\n1,2\n2,3\n")
    for kind in ("npz", "csv"):
        found = read_edges(edges_ref(f"{root.url}/edges.{kind}"))
        assert [*map(str, found.source)] == ["0", "1", "2"]
        assert [*map(str, found.target)] == ["1", "2", "3"]
        assert found.weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("e.csv", b"from,to\na,b\n", "no 'source' and no 'target'; found 'from', 'to'"),
        ("e.csv", b"", "found nothing"),
        ("e.csv", b"source,target\n", "holds no edges"),
        ("e.csv", b"source,target\na,b,3\n", "cannot be read as edges: ParserError"),
        (
            "e.csv",
            b"source,target,weight\na,b,1\nb,c,-2\n",
            "1 of 2 weights are negative .* first -2 in line 1",
        ),
        ("e.csv", b"source,target,weight\na,b,inf\n", "not finite"),
        ("e.csv", b"source,target,weight\na,b\n", "weights that are no numbers"),
        ("e.csv", b"source,target,weight\na,b,much\n", "weights that are no numbers"),
        ("e.csv", b"source,target,source\na,b,c\n", "several columns 'source', expected one"),
        (
            "e.csv",
            b"source,target,weight\na,b,1.7e308\nb,c,1.7e308\n",
            "up to 1.7e.308, whose sums .* divide all",
        ),
        (
            "e.npz",
            packed(source=[0.0, 1.0], target=[1, 2]),
            "neither text nor whole numbers, such as 0.0 in 'source'",
        ),
        ("e.npz", packed(source=np.zeros(1, [("a", int)]), target=[1]), "neither text nor whole numbers"),
        (
            "e.npz",
            packed(source=[1], target=[2], weight=[1j]),
            "weights that are no numbers: found complex128",
        ),
        ("e.npz", packed(source=[1], target=[2], weight=np.array([1], "M8[s]")), "found datetime64"),
        ("e.parquet", parquet(source=["a", None], target=["b", "c"]), "neither text .* none missing"),
        ("e.parquet", parquet(source=[["a"]], target=["b"]), "neither text nor whole numbers"),
        ("e.npz", b"", "cannot be read as edges: EOFError"),
        ("e.npz", b"PK\x03\x04 no zip", "cannot be read as edges: BadZipFile"),
        ("e.npz", packed(source=[1, 2], target=[3]), "expected one axis of one length"),
        ("e.parquet", b"PAR1", "cannot be read as edges: ArrowInvalid"),
        ("e.json", b"[]", "no file of edges by its name; expected .* .csv, .tsv, .parquet, .npz"),
    ],
)
def test_what_is_wrong_is_named(root: Location, name: str, data: bytes, said: str) -> None:
    root.write(name, data)
    with pytest.raises(DataError, match=said):
        read_edges(edges_ref(f"{root.url}/{name}"))


def test_a_missing_file_is_refused(root: Location) -> None:
    with pytest.raises(NotFoundError, match=r"no file of edges .*gone\.csv; correct the path"):
        edges_ref(f"{root.url}/gone.csv")


def test_a_file_that_changed_is_refused(root: Location) -> None:
    root.write("e.csv", b"source,target\na,b\n")
    ref = edges_ref(f"{root.url}/e.csv")
    root.write("e.csv", b"source,target\na,c\n")
    with pytest.raises(DataError, match="changed since the run was planned; plan the run again"):
        read_edges(ref)
    assert edges_ref(ref.url).blake3 != ref.blake3
