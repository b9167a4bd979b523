"""What all sources share: unique keys, labels of one type, canonical digests."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DataError
from tasks.extract.sources.base import Source, Table, check_unique, label_column, update_digest


def digest(value) -> str:
    total = hashlib.sha256()
    update_digest(total, value)
    return total.hexdigest()


@given(st.lists(st.text(max_size=3)))
def test_repeated_keys_are_refused_and_no_others(keys):
    if len(set(keys)) == len(keys):
        check_unique(keys)
    else:
        with pytest.raises(DataError, match="expected unique keys") as caught:
            check_unique(keys)
        assert any(repr(key) in str(caught.value) for key in keys if keys.count(key) > 1)


def test_the_repeated_key_and_both_places_are_named():
    with pytest.raises(DataError, match="'b' names samples 1 and 3"):
        check_unique(["a", "b", "c", "b"])


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ([1, np.int64(2)], [1, 2]),
        ([True, False], [1, 0]),
        ([1, 2.5], [1.0, 2.5]),
    ],
)
def test_label_columns(given_values, expected):
    found = label_column("x", given_values)
    assert list(found) == expected
    assert len({type(value) for value in found}) == 1


@pytest.mark.parametrize("values", [["a", 1], ["a", None], [1, None], [[1], [2]]])
def test_mixed_and_missing_labels_are_refused(values):
    with pytest.raises(DataError, match=r"label 'topic' .*expected all text or all numbers, none missing"):
        label_column("topic", values)


def test_a_source_finds_its_table_once_and_checks_bounds():
    calls = []

    def table() -> Table:
        calls.append(1)
        return Table(["a", "b"], {"n": [1, 2]})

    source = Source("text", 2, ["x", "y"].__getitem__, table, lambda: "digest")
    assert source[1] == ("b", "y", {"n": 2})
    assert source.keys() == ["a", "b"]
    assert source.labels() == {"n": [1, 2]}
    assert len(calls) == 1
    for index in (2, -1):
        with pytest.raises(IndexError, match="of 2"):
            source[index]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
        max_leaves=6,
    )
)
def test_equal_values_have_equal_digests_in_any_order_of_keys(value):
    turned = dict(reversed(value.items())) if isinstance(value, dict) else value
    assert digest(value) == digest(turned)
    assert digest([value, ""]) != digest([value])


def test_digests_tell_dtype_shape_and_bytes_and_not_the_container():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest(array) == digest(torch.from_numpy(array.copy()))
    assert digest(array) == digest(array.astype(">f4"))
    assert digest(array) == digest(np.asfortranarray(array))
    others = [array.reshape(3, 2), array.astype(np.float64), array + 1, array.view(np.int32)]
    assert len({digest(value) for value in [array, *others]}) == 5
    assert digest(torch.ones(2, dtype=torch.bfloat16)) != digest(torch.ones(2, dtype=torch.float16))
    assert digest("1") != digest(1)


def test_other_types_are_refused():
    with pytest.raises(DataError, match=r"builtins\.object; expected text, a number"):
        digest(object())
    with pytest.raises(DataError, match="dtype object"):
        digest(np.array([{}], dtype=object))
