"""Datasets that a user's function makes: every kind of item, and what each error says."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from schemas.data import FactoryData
from schemas.errors import DataError
from tasks.extract.sources import factory

HERE = __name__


class Items(Dataset):
    """A list as a torch Dataset."""

    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Endless(IterableDataset):
    """No length."""

    def __iter__(self):
        yield "x"


ITEMS = {
    "texts": ["a b", "c"],
    "pairs": [(torch.ones(2), "cat"), (torch.zeros(2), "dog")],
    "numbered": [(np.ones(2), torch.tensor(3)), (np.zeros(2), np.int64(4))],
    "dicts": [
        {"x": torch.ones(2), "y": np.zeros(1), "key": "p", "label": 1.5},
        {"x": torch.ones(2), "y": np.zeros(1), "key": "q", "label": 2.5},
    ],
    "dict pairs": [({"x": torch.ones(2), "key": 5}, "cat")],
    "twins": [{"x": torch.ones(1), "key": "p"}, {"x": torch.ones(1), "key": "p"}],
    "breaks": ["fine", RuntimeError("disk on fire"), "fine"],
    "mixed": ["text", torch.ones(1)],
    "half labelled": [("a", 1), "b"],
    "empty": [],
    "number": [3],
    "text in dict": [{"x": "words"}],
    "triple": [("a", 1, 2)],
    "odd label": [("a", [1])],
}


def make(name):
    return Items(ITEMS[name])


def fingerprinted(items=("a",), own="v1", as_method=False):
    return Items(list(items), fingerprint=(lambda: own) if as_method else own)


def endless():
    return Endless()


def failing(reason):
    raise FileNotFoundError(f"no {reason} here")


def read(name, function="make"):
    return factory.read(FactoryData(factory=f"{HERE}:{function}", arguments={"name": name}))


@pytest.mark.parametrize(
    ("name", "kind", "keys", "labels"),
    [
        ("texts", "text", ["0", "1"], {}),
        ("pairs", "tensor", ["0", "1"], {"label": ["cat", "dog"]}),
        ("numbered", "tensor", ["0", "1"], {"label": [3, 4]}),
        ("dicts", "inputs", ["p", "q"], {"label": [1.5, 2.5]}),
        ("dict pairs", "inputs", ["5"], {"label": ["cat"]}),
    ],
)
def test_every_kind_of_item(name, kind, keys, labels):
    source = read(name)
    assert source.kind == kind
    assert source.keys() == keys
    assert source.labels() == labels
    assert [sample.key for sample in source] == keys
    first = source[0]
    assert first.labels == {label: column[0] for label, column in labels.items()}
    if kind == "inputs":
        assert set(first.value) <= {"x", "y"}
    elif kind == "text":
        assert first.value == "a b"


def test_reading_one_item_does_not_pass_over_all():
    source = read("breaks")
    assert source[2].value == "fine"
    with pytest.raises(DataError, match="item 1 raised RuntimeError: disk on fire"):
        source[1]
    with pytest.raises(DataError, match="item 1 raised RuntimeError: disk on fire"):
        source.keys()


def test_an_own_fingerprint_is_taken_and_costs_no_pass():
    def options(**arguments):
        return FactoryData(factory=f"{HERE}:fingerprinted", arguments=arguments)

    first = factory.fingerprint(options())
    assert first is not None
    assert factory.read(options()).fingerprint == first
    assert factory.fingerprint(options(own="v2")) != first
    assert factory.fingerprint(options(as_method=True)) is not None
    assert factory.fingerprint(options(items=["b"])) != first


def test_without_one_a_full_pass_tells_and_follows_values_keys_and_labels(monkeypatch):
    options = FactoryData(factory=f"{HERE}:make", arguments={"name": "texts"})
    assert factory.fingerprint(options) is None
    variants = [
        ["a b", "c"],
        ["a b", "d"],
        ["c", "a b"],
        [("a b", 1), ("c", 2)],
        [("a b", 1), ("c", 3)],
        [torch.tensor([1.0]), torch.tensor([2.0])],
        [torch.tensor([1.0]), torch.tensor([3.0])],
        [{"x": torch.tensor([1.0]), "key": "k"}],
        [{"x": torch.tensor([1.0]), "key": "l"}],
    ]
    found = []
    for items in [*variants, variants[0]]:
        monkeypatch.setitem(ITEMS, "texts", items)
        found.append(factory.read(options).fingerprint)
    assert found[0] == found[-1]
    assert len(set(found)) == len(variants)
    assert all(a != b for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "returned a dataset without items; expected at least one"),
        ("number", "item 0 is int; expected a text, a tensor, a dict of keyword tensors"),
        ("text in dict", r"item 0 is \{'x': 'str'\}; expected"),
        ("triple", r"item 0 is a tuple of 3; expected \(item, label\)"),
        ("odd label", "item 0 has a label of type list; expected text or a number"),
        ("mixed", "item 1 is tensor, but item 0 is text; expected one kind"),
        ("half labelled", "1 of 2 items carry a label; expected all or none"),
        ("twins", "the key 'p' names samples 0 and 1"),
    ],
)
def test_what_is_wrong_is_named(name, message):
    with pytest.raises(DataError, match=message):
        read(name).keys()


def test_a_factory_that_cannot_be_used_is_named():
    with pytest.raises(
        DataError, match=r"no\.such:thing' cannot be imported: ModuleNotFoundError: No module named 'no'"
    ):
        factory.read(FactoryData(factory="no.such:thing"))
    with pytest.raises(DataError, match=r"nothing' cannot be imported: .*has no attribute 'nothing'"):
        factory.read(FactoryData(factory=f"{HERE}:nothing"))
    with pytest.raises(DataError, match="failing raised FileNotFoundError: no disk here"):
        factory.read(FactoryData(factory=f"{HERE}:failing", arguments={"reason": "disk"}))
    with pytest.raises(DataError, match="failing raised TypeError"):
        factory.read(FactoryData(factory=f"{HERE}:failing"))
    with pytest.raises(DataError, match="returned a Endless, which has no length; expected a torch Dataset"):
        factory.read(FactoryData(factory=f"{HERE}:endless"))
