"""anomaly.direction: coordinates on the line between two means."""

import numpy as np
import pytest

from schemas.errors import MethodError
from tasks.methods.anomaly import (
    direction,
    reference,
)
from tests.methods.strange_rows import (
    CLASSES,
    CODE,
    NEW,
    NORMAL,
    Fitted,
    scores,
)


def test_a_concepts_direction() -> None:
    fitted = Fitted(reference, NORMAL, CODE, label="class")
    means = np.stack([NORMAL[c == CODE].mean(0) for c in range(CLASSES)])
    assert fitted.result["classes"] == ["a", "b", "c"]
    ends = means[1] - means[0]
    expected = 2 * (NEW - (means[0] + means[1]) / 2) @ ends / (ends @ ends)
    np.testing.assert_allclose(
        scores(direction, "reference", fitted, NEW, towards="b", away="a"), expected, rtol=1e-9, atol=1e-9
    )
    at_ends = scores(
        direction,
        "reference",
        fitted,
        np.stack([means[0], means[1], (means[0] + means[1]) / 2]),
        towards="b",
        away="a",
    )
    np.testing.assert_allclose(at_ends, [-1, 1, 0], atol=1e-12)
    last = scores(direction, "reference", fitted, np.stack([means[2], means[:2].mean(0)]))
    np.testing.assert_allclose(last, [1, -1], atol=1e-12)
    for options, told in (({"towards": "x"}, "no class 'x'"), ({"away": "c"}, "both ends are the class 'c'")):
        with pytest.raises(MethodError, match=told):
            scores(direction, "reference", fitted, NEW, **options)
    with pytest.raises(MethodError, match="make it with a label"):
        scores(direction, "reference", Fitted(reference, NORMAL), NEW)
