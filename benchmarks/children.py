"""Processes that are kept alive between timed runs: the parent's side of benchmarks.peers.child."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import MARK, ROOT, THREAD_VARIABLES, Run
from pipelines.workers_here import worker_environment
from tasks.threads import thread_variables


class Child:
    """A process that does one task again and again, each time into a fresh folder that is removed afterwards."""

    def __init__(self, process: subprocess.Popen[str], scratch: Path, log: Path) -> None:
        self._process = process
        self._scratch = scratch
        self._log = log
        self._n_runs = 0

    def run(self) -> Run:
        """One timed run; the value is the child's whole answer: bytes, peak_bytes, base_bytes."""
        out = self._fresh()
        answer = self.ask({"do": "run", "out": str(out)})
        shutil.rmtree(out)
        return Run(answer["seconds"], answer["cpu_seconds"], answer)

    def values(self, samples: int) -> np.ndarray:
        """float32 [site, row, feature]: what an untimed run stored, read back from its files."""
        out, to = self._fresh(), self._scratch / "values.npy"
        self.ask({"do": "run", "out": str(out)})
        self.ask({"do": "read", "out": str(out), "to": str(to), "samples": samples})
        shutil.rmtree(out)
        return np.asarray(np.load(to))

    def ask(self, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and wait for the answer; without a request, wait for the child to be ready.

        Raises:
            RuntimeError: if the child ends instead; the message has the end of what it wrote.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the child was started without pipes")
        if request is not None:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        for line in stdout:
            if line.startswith(MARK):
                return dict(json.loads(line.removeprefix(MARK)))
        self._process.wait()
        raise RuntimeError(f"{self._process.args} ended: {self._log.read_text()[-3000:]}")

    def close(self) -> None:
        """Let the child end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _fresh(self) -> Path:
        self._n_runs += 1
        return self._scratch / f"run-{self._n_runs}"


@contextmanager
def child(
    command: Sequence[str],
    options: dict[str, Any],
    threads: int,
    python: str = sys.executable,
    extra: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """A ready child: `python <command> <options as JSON>`, bound to as many cores as it has threads.

    Args:
        command: a script, or `-m` and a module.
        options: what the child's `arguments()` returns; `cores`, unless given, is added: threads x workers.
        threads: BLAS and torch threads of each of its processes; `options["workers"]` processes.
        python: the interpreter; our own sees the project, a peer's does not.
        extra: more environment variables.
    """
    environment = dict(os.environ) | dict.fromkeys(THREAD_VARIABLES, str(threads))
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
    environment["PYTHONPATH"] = str(ROOT) if python == sys.executable else ""
    if python == sys.executable:
        environment |= thread_variables(threads)
    environment |= extra or {}
    options = {"cores": threads * int(options.get("workers", 1))} | options
    with tempfile.TemporaryDirectory(dir=scratch_folder(), ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log.txt"
        there = ROOT if python == sys.executable else folder  # some peers leave files where they run
        with log.open("w") as errors:
            process = subprocess.Popen(
                [python, *command, json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=there,
            )  # fmt: skip
            made = Child(process, Path(folder), log)
            try:
                made.ask()
                yield made
            finally:
                made.close()


def bare_child(request: dict[str, Any], index: int, n: int) -> AbstractContextManager[Child]:
    """One of n processes of one thread that share the bare forwards over a capture's batches, set up as workers are."""
    options = {"request": request, "share": index, "shares": n, "cores": n}
    return child(["-m", "benchmarks.bare"], options, 1, extra=worker_environment(1))


def together(children: Sequence[Child]) -> Run:
    """One run of several processes at the same time: wall seconds until the last is done, CPU seconds of all."""
    with ThreadPoolExecutor(len(children)) as pool:
        begun = time.perf_counter()
        runs = list(pool.map(lambda one: one.run(), children))
        seconds = time.perf_counter() - begun
    return Run(
        seconds,
        sum(run.cpu_seconds for run in runs),
        {"peak_bytes": sum(run.value["peak_bytes"] for run in runs)},
    )


def scratch_folder() -> Path:
    """Where runs write: below the project, so that all sides write to the same disk."""
    folder = ROOT / ".bench" / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
