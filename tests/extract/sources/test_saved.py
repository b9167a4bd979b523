"""A dataset that `save_to_disk` wrote, against its rows."""

import sys

import numpy as np
import pytest

from schemas.data import SavedDataset
from schemas.errors import DataError
from tasks.extract.sources import saved

datasets = pytest.importorskip("datasets")

ROWS = {
    "text": ["one", "zwei", "três"],
    "id": ["a", "b", "c"],
    "topic": ["x", "y", "x"],
    "vector": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
    "input_ids": [[1, 2, 3], [4], [5, 6]],
}


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def path(tmp_path):
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "data", num_shards=2)
    return tmp_path / "data"


def read(path, **options):
    return saved.read(SavedDataset(path=str(path), **options))


def test_texts_keys_and_labels(path):
    source = read(path, key_column="id", label_columns=("topic",))
    assert source.kind == "text"
    assert [sample.value for sample in source] == ROWS["text"]
    assert source.keys() == ["a", "b", "c"]
    assert source.labels() == {"topic": ["x", "y", "x"]}
    assert read(path).keys() == ["0", "1", "2"]


def test_arrays_and_token_ids(path):
    source = read(path, column="vector")
    assert source.kind == "tensor"
    np.testing.assert_array_equal(np.stack([s.value for s in source]), np.float32(ROWS["vector"]))
    assert source[0].value.dtype == np.float32
    ids = read(path, column="input_ids")
    assert ids.kind == "inputs"
    assert [sample.value["input_ids"].tolist() for sample in ids] == ROWS["input_ids"]


def test_splits(tmp_path):
    parts = {"train": ROWS, "test": {name: column[:1] for name, column in ROWS.items()}}
    datasets.DatasetDict({k: datasets.Dataset.from_dict(v) for k, v in parts.items()}).save_to_disk(tmp_path)
    assert len(read(tmp_path, split="train")) == 3
    assert len(read(tmp_path, split="test")) == 1
    train, test = (saved.fingerprint(SavedDataset(path=str(tmp_path), split=s)) for s in ("train", "test"))
    assert train != test
    with pytest.raises(
        DataError, match=r"holds the splits train, test; found split: None, expected one of them"
    ):
        read(tmp_path)


def test_the_fingerprint_follows_the_data(path, tmp_path):
    options = SavedDataset(path=str(path))
    first = saved.fingerprint(options)
    assert read(path).fingerprint == first
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "again", num_shards=2)
    assert saved.fingerprint(SavedDataset(path=str(tmp_path / "again"))) == first
    changed = {**ROWS, "text": ["eins", "zwei", "três"]}
    datasets.Dataset.from_dict(changed).save_to_disk(tmp_path / "other", num_shards=2)
    assert saved.fingerprint(SavedDataset(path=str(tmp_path / "other"))) != first
    assert saved.fingerprint(SavedDataset(path=str(path), column="vector")) != first


def test_what_is_wrong_is_named(path, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"has no column 'body'; it has text, id, topic, vector, input_ids"):
        read(path, column="body")
    with pytest.raises(DataError, match="none"):
        read(tmp_path / "none")
    datasets.Dataset.from_dict({"text": ["x", None]}).save_to_disk(tmp_path / "null")
    with pytest.raises(DataError, match="row 1: column 'text' holds None; expected text"):
        read(tmp_path / "null")[1]
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(DataError, match="holds no data files; expected a dataset with at least one row"):
        read(tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'subspan\[hf\]'"):
        read(path)
