"""The 1,797 handwritten digits that come with scikit-learn."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from schemas.data import SklearnDigits
from schemas.errors import DataError
from tasks.extract.sources.base import Source, Table, digest_options


def read(options: SklearnDigits, partition: str | None = None) -> Source:
    """8 x 8 grey values in 0..1 (float32), labelled `digit` 0..9; the file's 0..16 divided by 16."""
    data = np.loadtxt(_file(), delimiter=",", dtype=np.float32)
    pixels, digit = data[:, :-1] / np.float32(16), data[:, -1].astype(np.int64)
    values = pixels if options.layout == "flat" else pixels.reshape(-1, 1, 8, 8)
    table = Table([f"digit-{n:04d}" for n in range(len(values))], {"digit": digit.tolist()})
    identity = fingerprint(options, partition)
    return Source("tensor", len(values), lambda index: values[index], lambda: table, lambda: identity)


def fingerprint(options: SklearnDigits, partition: str | None = None) -> str:
    """sha256 over the file and the options, without importing scikit-learn."""
    return digest_options(options, hashlib.sha256(_file().read_bytes()).hexdigest())


def _file() -> Path:
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DataError(
            f"scikit-learn is installed without its digits: {path} is missing; reinstall scikit-learn"
        )
    return path
