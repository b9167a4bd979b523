"""Clusters of samples by their gradients: gradients are made once and stored, and their likeness is that of plain autograd."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pipelines.serial import run_serial
from subspan import open_artifact
from tests.factories import Squares
from tests.pipelines.runs import vectors_run
from tests.pipelines.test_gradient_captures import CLASSES, plain_vectors

N, NEAR = 2000, 6
SITE = "first.weight:grad"


@pytest.fixture
def seen() -> Iterator[list[int]]:
    """Samples of each forward of the network."""
    rows: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Squares):
            rows.append(len(inputs[0]))

    hook = register_module_forward_pre_hook(count)
    yield rows
    hook.remove()


def test_likeness_of_stored_gradients_is_that_of_autograd(tmp_path: Path, seen: list[int]) -> None:
    """Two thousand samples have two thousand gradients, where a matrix made block by block from the network has them over and over."""
    stages = {
        "ready": {"method": "clustering.preparation", "config": {"center": False}},
        "graph": {
            "method": "clustering.tsc",
            "inputs": {"x": {"captures": ["vectors"], "sites": SITE}, "preparation": {"stage": "ready"}},
            "config": {"entries": NEAR},
        },
    }
    kept = {"parameters": ["first.weight"], "keep": {"kind": "exact"}}
    store = {"shard_rows": 512, "chunk_rows": 512}
    run = vectors_run(
        tmp_path,
        N,
        stages=stages,
        store=store,
        loss=CLASSES,
        sites=[],
        parameter_gradients=kept,
        batch_samples=64,
    )
    made = {artifact.stage: artifact.id for artifact in run_serial(run).artifacts}
    assert N <= sum(seen) <= 1.1 * N  # the first samples are run again by plain autograd, to compare with
    rows = plain_vectors(N)["first.weight"].double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = np.abs(unit @ unit.T)
    np.fill_diagonal(cosine, -1)
    found = open_artifact(tmp_path, made["graph"])
    index, coefficient = found.arrays["index"].values, found.arrays["coefficient"].values
    there = np.take_along_axis(cosine, index, 1)
    np.testing.assert_allclose(there, -np.sort(-cosine, axis=1)[:, :NEAR], atol=1e-5)
    np.testing.assert_allclose(np.abs(coefficient), np.exp(-2 * np.arccos(np.clip(there, 0, 1))), atol=5e-3)
    assert torch.is_grad_enabled()
