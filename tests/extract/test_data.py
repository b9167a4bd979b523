"""Opening, fingerprinting and partitioning data of every kind."""

import subprocess
import sys

import numpy as np
import pytest

from schemas.data import ArrayFiles, Data, FactoryData, SklearnDigits, StdlibDocstrings, TextFiles
from schemas.errors import DataError
from tasks.extract import data as data_module
from tasks.extract.data import fingerprint, open_source, partitions


def text(path, **options):
    return Data(source=TextFiles(paths=(str(path),)), **options)


def make():
    return ["one", "two"]


def test_an_unchanged_source_is_opened_once_and_a_changed_one_again(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    data = text(tmp_path / "*.txt")
    first = open_source(data)
    assert open_source(data) is first
    assert open_source(data, "") is first
    assert open_source(data, "a.txt") is not first
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    second = open_source(data)
    assert len(second) == 2
    (tmp_path / "b.txt").write_text("three\n")
    assert len(open_source(data)) == 3
    assert len(data_module._open) <= data_module.OPEN_SOURCES


def test_the_cheap_fingerprint_is_that_of_the_opened_source(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    for source in (
        StdlibDocstrings(min_characters=500),
        SklearnDigits(),
        TextFiles(paths=(str(tmp_path / "a.txt"),)),
        ArrayFiles(path=str(tmp_path / "x.npy")),
    ):
        found = fingerprint(Data(source=source))
        assert found is not None
        assert len(found) == 64
        assert open_source(Data(source=source)).fingerprint == found


def test_a_list_is_a_dataset_too_and_only_a_pass_tells_its_fingerprint():
    data = Data(source=FactoryData(factory=f"{__name__}:make"))
    assert fingerprint(data) is None
    source = open_source(data)
    assert [sample.value for sample in source] == ["one", "two"]
    assert len(source.fingerprint) == 64


def test_partitions_by_file(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(name + "\n")
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3)))
    data = text(tmp_path / "*.txt", partition_by="file")
    assert partitions(data) == ["a.txt", "b.txt"]
    assert [open_source(data, part)[0].value for part in partitions(data)] == ["a", "b"]
    assert fingerprint(data, "a.txt") != fingerprint(data, "b.txt")
    before = fingerprint(data, "a.txt")
    (tmp_path / "c.txt").write_text("c\n")
    assert partitions(data) == ["a.txt", "b.txt", "c.txt"]
    assert fingerprint(data, "a.txt") == before
    arrays = Data(source=ArrayFiles(path=str(tmp_path / "*.npy")), partition_by="file")
    assert partitions(arrays) == ["a.npy", "b.npy"]
    assert partitions(text(tmp_path / "*.txt")) == [""]


def test_what_has_no_files_cannot_be_partitioned(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    for source in (StdlibDocstrings(), ArrayFiles(path=str(tmp_path / "x.npy"))):
        with pytest.raises(DataError, match=r"kind '(stdlib-docstrings|arrays)'; expected text files.*none"):
            partitions(Data(source=source, partition_by="file"))


def test_plans_need_no_torch_nor_other_heavy_packages(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'pandas', 'sklearn.datasets', 'zarr', 'PIL', 'datasets'):\n"
        "    sys.modules[name] = None\n"
        "from schemas.data import *\n"
        "from tasks.extract.data import fingerprint, open_source, partitions\n"
        f"text = TextFiles(paths=({str(tmp_path / 'a.jsonl')!r},))\n"
        "for source in (StdlibDocstrings(), SklearnDigits(), text):\n"
        "    data = Data(source=source)\n"
        "    assert fingerprint(data) == open_source(data).fingerprint and partitions(data) == ['']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
