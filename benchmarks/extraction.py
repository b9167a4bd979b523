"""Captures side by side with SAELens, TransformerLens and nnsight: the same network, token ids and cores.

    python -m benchmarks.extraction [--pairs 7] [--samples 256] [--cores 2] [--only nnsight,SAELens]

A GPT-2 with random weights (6 blocks, width 384, 6 heads, 5,000 words, 128 positions) reads sequences of 128 tokens, or
twice as many with the lengths of docstrings (`texts`; tokens are real ones, in the order of the data); the outputs of blocks
are stored in float32. Each side has imported its libraries and loaded the network before the first run (not timed), is bound
to the same cores, and writes to the same disk. Runs alternate. Peers are one process with as many threads as there are
cores, and read batches of 16 sequences; ours reads 512 tokens, as fast as its default of 1,024
(`python -m benchmarks.overhead --only batches`) and with less memory. Ours is measured in two shapes with as many threads in all:

    threads         units run in threads of one process, as with `execution.cluster: threads`
    workers         a Dask worker of one thread per core, as `subspan run` does; memory is the sum of all processes

Beside them run bare forwards over our batches, a process of one thread per core, with nothing kept: no capture that calls the
network as it is can be faster, so that their ratio to the peer is the most that could be reached.

What a timed run is:
    ours            run_capture with its defaults: metadata, lease, forwards, lz4, crc32c, blake3, fsync, receipts, seal
    SAELens runner  CacheActivationsRunner: one hook in one run, Hugging Face Arrow, no fsync; six hooks are six runs
    SAELens store   ActivationsStore over several hooks, which writes nothing itself: torch.save per batch, no fsync
    the others      a loop over batches with torch.save per batch, as users write it: they have no store, no fsync

Results go to benchmarks/results/extraction.json.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.children import Child, bare_child, child, scratch_folder, together
from benchmarks.fixtures import BLOCKS, WIDTH, Fixture, reference, write_gpt2
from benchmarks.protocol import ROOT, Run, Summary, environment, peer_python, ratio, save, saved

PEERS = ROOT / "benchmarks" / "peers"
ALL = tuple(range(BLOCKS))
ONE = (BLOCKS - 1,)
TARGET = 1.2
TOLERANCE = 1e-5
BATCH_TOKENS = 512
"""Of ours, padding included."""
CHECKED = 8
"""Samples whose stored values are compared."""


class Case(NamedTuple):
    """One line of the table."""

    name: str
    peer: str
    """Names the environment and its requirements, peers/<peer>.txt."""
    script: str
    blocks: tuple[int, ...]
    mixed: bool = False
    """Samples have the lengths of texts."""


CASES = (
    Case("nnsight trace loop, 6 blocks", "nnsight", "nnsight_loop.py", ALL),
    Case("nnsight trace loop, 6 blocks, texts", "nnsight", "nnsight_loop.py", ALL, mixed=True),
    Case("TransformerLens run_with_cache, 6 blocks", "transformer_lens", "transformer_lens_cache.py", ALL),
    Case(
        "TransformerLens run_with_cache, 6 blocks, texts",
        "transformer_lens",
        "transformer_lens_cache.py",
        ALL,
        mixed=True,
    ),
    Case("SAELens store of several hooks, 6 blocks", "saelens", "saelens_store.py", ALL),
    Case("SAELens runner, last block", "saelens", "saelens_runner.py", ONE),
    Case("SAELens runner, 6 blocks in 6 runs", "saelens", "saelens_runner.py", ALL),
)


class Setting(NamedTuple):
    """What all sides share."""

    n_pairs: int = 7
    n_samples: int = 512
    batch: int = 16
    """Samples in a batch of a peer."""
    cores: int = 2
    """Of each side."""


def main() -> None:
    """Measure the asked cases, print a line for each, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--samples", type=int, default=512, help="sequences of 128 tokens, a multiple of 32")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--only", default="", help="parts of the names of cases, with commas")
    options = parser.parse_args()
    setting = Setting(n_pairs=options.pairs, n_samples=options.samples, cores=options.cores)
    cases = [case for case in CASES if any(part in case.name for part in options.only.split(","))]
    lines = measure(cases, setting)
    results = saved("extraction")
    results["environment"] = environment(
        setting.cores, ("torch", "transformers", "zarr", "numcodecs", "numpy")
    )
    results["setting"] = setting._asdict() | {"dtype": "float32"}
    results["target"] = (
        f">= {TARGET} x the peer's tokens/s, no more memory, no more bytes, values within {TOLERANCE}"
    )
    results["cases"] = results.get("cases", {}) | lines
    print(f"saved {save('extraction', results)}")


def measure(cases: Sequence[Case], setting: Setting) -> dict[str, Any]:
    """The line of every case."""
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        fixtures = {
            mixed: write_gpt2(Path(folder) / f"gpt2-{mixed}", setting.n_samples * (1 + mixed), mixed=mixed)
            for mixed in {case.mixed for case in cases}
        }
        return {case.name: _case(case, fixtures[case.mixed], setting) for case in cases}


def _request(fixture: Fixture, blocks: Sequence[int]) -> dict[str, Any]:
    source = {
        "kind": "factory",
        "factory": "benchmarks.fixtures:token_rows",
        "arguments": {"path": str(fixture.ids), "lengths": str(fixture.lengths)},
    }
    return {
        "model": {"kind": "transformers", "name": str(fixture.model)},
        "data": {"source": source},
        "sites": [f"h.{block}" for block in blocks],
        "batch_tokens": BATCH_TOKENS,
    }


def _ours(
    fixture: Fixture, blocks: Sequence[int], setting: Setting, workers: int
) -> AbstractContextManager[Child]:
    options = {
        "request": _request(fixture, blocks), "workers": workers,
        "unit_threads": setting.cores // workers, "cores": setting.cores,
    }  # fmt: skip
    return child(["-m", "benchmarks.ours"], options, 1)


def _theirs(case: Case, fixture: Fixture, setting: Setting) -> AbstractContextManager[Child]:
    options = {
        "model": str(fixture.model), "ids": str(fixture.ids), "lengths": str(fixture.lengths),
        "threads": setting.cores, "batch": setting.batch, "buffer": setting.n_samples // 2,
        "width": WIDTH, "blocks": list(case.blocks),
    }  # fmt: skip
    python = peer_python(case.peer, _requirements(case.peer))
    return child([str(PEERS / case.script)], options, setting.cores, python)


def _requirements(peer: str) -> list[str]:
    lines = (PEERS / f"{peer}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def _case(case: Case, fixture: Fixture, setting: Setting) -> dict[str, Any]:
    shapes = {"threads": 1, "workers": setting.cores}
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(_ours(fixture, case.blocks, setting, n)) for name, n in shapes.items()
        }
        sides["theirs"] = stack.enter_context(_theirs(case, fixture, setting))
        bare = [
            stack.enter_context(bare_child(_request(fixture, case.blocks), n, setting.cores))
            for n in range(setting.cores)
        ]
        values = {name: side.values(CHECKED) for name, side in sides.items()}  # also the run that warms up
        together(bare)
        rounds = [
            {name: side.run() for name, side in sides.items()} | {"bare": together(bare)}
            for _ in range(setting.n_pairs)
        ]
    runs = {name: [one[name] for one in rounds] for name in (*sides, "bare")}
    plain = reference(fixture, list(case.blocks), CHECKED)
    theirs = _side(runs["theirs"], fixture) | {
        "max_abs_difference_to_plain_hooks": _difference(values["theirs"], plain),
        "requirements": _requirements(case.peer),
    }
    most = ratio(runs["theirs"], runs["bare"])
    line: dict[str, Any] = {"theirs": theirs, "tokens": fixture.n_tokens, "bare_ratio": most._asdict()}
    for name in shapes:
        line[name] = _compared(
            runs[name], runs["theirs"], fixture, _difference(values[name], values["theirs"])
        )
        line[name]["max_abs_difference_to_plain_hooks"] = _difference(values[name], plain)
        print(_text(f"{case.name}, ours {name}", line[name], theirs), flush=True)
    print(f"{case.name}, bare forwards that keep nothing: speed x{most}", flush=True)
    return line


def _compared(
    ours: Sequence[Run], theirs: Sequence[Run], fixture: Fixture, difference: float
) -> dict[str, Any]:
    speed, a, b = ratio(theirs, ours), _side(ours, fixture), _side(theirs, fixture)
    return a | {
        "speed_ratio": speed._asdict(),
        "cpu_ratio": ratio(theirs, ours, "cpu_seconds")._asdict(),
        "max_abs_difference": difference,
        "met": {
            "speed": speed.median >= TARGET,
            "memory": a["peak_bytes"] <= b["peak_bytes"],
            "bytes": a["disk_bytes"] <= b["disk_bytes"],
            "values": difference <= TOLERANCE,
        },
    }


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def _side(runs: Sequence[Run], fixture: Fixture) -> dict[str, Any]:
    seconds = [run.seconds for run in runs]
    return {
        "tokens_per_second": fixture.n_tokens / float(np.median(seconds)),
        "cpu_seconds": float(np.median([run.cpu_seconds for run in runs])),
        "peak_bytes": max(run.value["peak_bytes"] for run in runs),
        "disk_bytes": max(run.value["bytes"] for run in runs),
        "seconds": seconds,
    }


def _text(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    missed = [target for target, met in ours["met"].items() if not met]
    return (
        f"{name}: speed x{Summary(**ours['speed_ratio'])}, CPU seconds x{ours['cpu_ratio']['median']:.2f}; "
        f"{ours['tokens_per_second']:,.0f} against {theirs['tokens_per_second']:,.0f} tokens/s; "
        f"peak {ours['peak_bytes'] / 2**20:,.0f} against {theirs['peak_bytes'] / 2**20:,.0f} MiB; "
        f"disk {ours['disk_bytes'] / 1e6:,.1f} against {theirs['disk_bytes'] / 1e6:,.1f} MB; "
        f"max difference {ours['max_abs_difference']:.1e}; {'missed: ' + ', '.join(missed) if missed else 'all met'}"
    )


if __name__ == "__main__":
    main()
