"""The digits, against scikit-learn's own loader."""

import numpy as np
import pytest

from schemas.data import SklearnDigits
from schemas.errors import DataError
from tasks.extract.sources import digits


@pytest.mark.parametrize(("layout", "shape"), [("flat", (64,)), ("image", (1, 8, 8))])
def test_the_same_as_scikit_learn(layout, shape):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    source = digits.read(SklearnDigits(layout=layout))
    values = np.stack([source[n].value for n in range(len(source))])
    assert values.dtype == np.float32
    assert values.shape == (1797, *shape)
    assert np.array_equal(values.reshape(1797, 64) * 16, bunch.data)
    assert source.labels() == {"digit": bunch.target.tolist()}
    assert len(set(source.keys())) == 1797
    assert source[3].key == "digit-0003"


def test_the_fingerprint_is_the_cheap_one_and_follows_the_layout():
    flat, image = SklearnDigits(layout="flat"), SklearnDigits()
    assert digits.read(flat).fingerprint == digits.fingerprint(flat)
    assert digits.fingerprint(flat) != digits.fingerprint(image)


def test_without_scikit_learn_the_cure_is_told(monkeypatch):
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        digits.read(SklearnDigits())
