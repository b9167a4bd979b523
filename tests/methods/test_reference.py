"""anomaly.reference: directions in which normal rows do not vary are told."""

import numpy as np
import pytest

from tasks.methods.anomaly import (
    reference,
)
from tests.methods.strange_rows import (
    NORMAL,
    Fitted,
)


@pytest.mark.parametrize(
    ("rows", "told"),
    [(np.full((20, 3), 3.3), "do not vary"), (np.eye(2, 3), "vary along 1 of 3"), (NORMAL[:20, :3], None)],
    ids=["constant", "two", "plain"],
)
def test_directions_that_are_not_seen_are_told_whatever_the_shrinkage(
    rows: np.ndarray, told: str | None
) -> None:
    """Two rows have no spread of squared lengths, so that nothing is shrunk."""
    found = Fitted(reference, rows)
    assert found.result["shrinkage"] == "ledoit_wolf"
    assert (found.result["intensity"] == 0) == (told is not None)
    assert any("vary" in note for note in found.result["caveats"]) == (told is not None)
    assert told is None or told in found.result["caveats"][0]
