"""Multiplications that layers say a row takes, against those that torch counts; numbers that they hold, against their shapes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tasks.compressed.network import KINDS

OUT, IN, RANK, ATOMS, ENTRIES, HIGH = 9, 14, 4, 7, 3, 5
PLAIN = {"outputs": OUT, "inputs": IN, "bias": True, "dtype": "float32"}
CASES = {
    "low_rank": (PLAIN | {"rank": RANK}, RANK * (OUT + IN) + OUT),
    "shared_low_rank": (PLAIN | {"rank": RANK, "group": "g", "holds": True}, RANK * (OUT + IN) + OUT),
    "quantised": (
        PLAIN | {"bits": 4, "group": 7, "symmetric": True, "step": "float32"},
        OUT * IN + 2 * OUT + OUT,
    ),
    "low_rank_quantised": (
        PLAIN | {"rank": RANK, "bits": 4, "left_step": "float32", "right_step": "float32"},
        RANK * (OUT + IN) + OUT + RANK + OUT,
    ),
    "sparse_dictionary": (PLAIN | {"atoms": ATOMS, "entries": ENTRIES}, ATOMS * IN + OUT * ENTRIES + OUT),
    "mixed_precision": (
        PLAIN | {"high": HIGH, "high_bits": 8, "low_bits": 4, "high_step": "float32", "low_step": "float32"},
        IN * IN + OUT * IN + 2 * OUT + OUT,
    ),
    "kept_inputs": (PLAIN | {"kept": HIGH}, OUT * HIGH + HIGH + OUT),
}


@pytest.mark.parametrize("kind", CASES)
def test_products_and_numbers(kind: str) -> None:
    spec, numbers = CASES[kind]
    layer = KINDS[kind].empty(**spec)
    for tensor in layer.state_dict().values():
        tensor.zero_()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, IN))
    assert counter.get_total_flops() == 2 * layer.products
    assert layer.numbers == numbers
