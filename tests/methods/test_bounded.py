"""Rows with a promised error: it holds for every value, by what a reader decodes; what cannot be kept is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.errors import MethodError
from subspan import open_artifact
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.compression import bounded
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods.cases import case, run

ROWS = arrays(np.float32, (20, 3), elements=st.floats(-1000, 1000, width=32))


def answer(x: np.ndarray, error: float):
    made = case("compression.bounded")
    rows = torch.from_numpy(x)
    index = torch.arange(len(x))
    block = replace(made.block, rows={"x": rows}, sample=index, position=0 * index, index=index, labels={})
    inputs = replace(made.inputs, widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    return run(made._replace(block=block, inputs=inputs, config=bounded.Config(error=error)))


@settings(max_examples=60, deadline=None)
@given(x=ROWS, error=st.floats(0.05, 10))
def test_no_value_is_farther_off(x: np.ndarray, error: float) -> None:
    found = answer(x, error)
    code = found.arrays["code"].numpy().astype(np.float64) + 256.0 * found.arrays["high"].numpy()
    decoded = (code * float(found.arrays["step"])).astype(np.float32)
    off = np.abs(decoded.astype(np.float64) - x)
    assert off.max() <= error
    np.testing.assert_allclose(found.arrays["largest_error"], off.max(1), rtol=1e-6, atol=1e-30)
    assert found.result.largest_error <= error


def test_rate_and_error_of_uniform_values() -> None:
    """Of 100 equally likely multiples of the step, which are then exact: log2 100 bits."""
    step = 2 * bounded.WITHIN * 0.5
    x = (np.random.default_rng(0).permutation(np.arange(200_000) % 100 - 50) * step).astype(np.float32)
    found = answer(x.reshape(-1, 2), 0.5)
    assert found.result.bits_per_dimension == pytest.approx(np.log2(100), abs=0.01)
    assert found.result.nmse < 1e-12
    assert found.result.wide_share == 0
    assert found.result.bytes_coded == pytest.approx(200_000 * np.log2(100) / 8, rel=0.01)


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(
        MethodError, match=r"more than 16 bits at an error of 0\.01; allow an error of at least 0\.015"
    ):
        answer(np.full((2, 2), 1000, np.float32), 0.01)
    halfway = (31_000 + np.arange(400) + 0.4999) * 2 * bounded.WITHIN * 0.26
    with pytest.raises(MethodError, match="rounded by more than"):
        answer(halfway.reshape(-1, 2), 0.26)  # float32 has steps of 0.002 here
    with pytest.raises(MethodError, match="NaN or infinity"):
        answer(np.array([[1.0, np.inf]], np.float32), 0.1)
    assert "more than 8 bits" in answer(np.full((2, 2), 100, np.float32), 0.01).result.caveats[0]


def test_rows_are_read_back(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    capture = make_capture(Location(str(tmp_path)), {"site0": x})
    stage = stage_of("compression.bounded", {"x": (rows_ref(capture, "site0"),)}, error=0.1)
    artifact = run_stages(Location(str(tmp_path)), [stage], serial)[stage.id]
    again = open_artifact(tmp_path, artifact.id).reconstruct().values
    assert np.abs(again - x).max() <= 0.1
