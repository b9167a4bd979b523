"""Mutations of run files and of what lies in a store: `python -m tests.fuzz --runs 10000 --files 10000`.

A run file that was changed is planned or refused with one message, and nothing is written below its root but what a plan keeps; a sealed
file that was changed is refused, or told to be damaged, with one message.
"""

import argparse
import contextlib
import copy
import io
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.cli import main as subspan
from pipelines.serial import run_serial
from tests.pipelines.runs import vectors_run

STAGES = {
    "pca": {"method": "spectrum.pca", "sites": "last", "config": {"components": 4}},
    "summary": {"method": "spectrum.summary"},
    "scores": {"method": "anomaly.residual", "inputs": {"x": {"sites": "last"}, "basis": {"stage": "pca"}}},
}
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf"), "", " ", "../../etc", "a/b", "\u0000", "é" * 300, "%s", "{module}", [], {},
    [[]], {"": 1}, [None], "spectrum.pca", "os:system", "2020-01-01", "1e3", "=1", "<b>", "x" * 5000,
)  # fmt: skip
MAY_BE = ("plans",)
"""Folders below a root that a plan may write."""
UNEXPECTED = ("subspan: unexpected", "Traceback")
SEALED = (".manifest.json", "artifact.json", "zarr.json", ".receipts/", "names/", "runs/")


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a document."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def mutated(data: Any, rng: random.Random) -> Any:
    """The document with one to three changes: a value is another, a key is gone, is called otherwise, or comes anew."""
    found = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(list(places(found))[1:] or [()])
        if not path:
            return rng.choice(ODD)
        holder = found
        for part in path[:-1]:
            holder = holder[part]
        action = rng.choice(("value", "drop", "rename", "add"))
        if action == "drop":
            del holder[path[-1]]
        elif action == "rename" and isinstance(holder, dict):
            holder[rng.choice(("", "x", "Name", str(path[-1])[:-1], str(path[-1]) + "s"))] = holder.pop(
                path[-1]
            )
        elif action == "add" and isinstance(holder, dict):
            holder[rng.choice(("extra", "sites", "model", "config", "stage"))] = rng.choice(ODD)
        else:
            holder[path[-1]] = rng.choice(ODD)
    return found


def told(arguments: list[str]) -> tuple[int, str]:
    """Exit code and what stands on stderr."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = subspan(arguments)
    return code, error.getvalue()


def fuzz_runs(folder: Path, n: int, seed: int) -> list[str]:
    """What went wrong with so many run files."""
    rng, wrong = random.Random(seed), []
    whole = vectors_run(folder / "out", n=20, stages=STAGES).model_dump(mode="json")
    for number in range(n):
        data = mutated(whole, rng)
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(data, allow_unicode=True))
        code, error = told(["plan", str(file), "--serial"])
        problem = _problem(code, error)
        written = [p.name for p in (folder / "out").glob("*") if p.name not in MAY_BE]
        if problem or written:
            wrong.append(f"run file {number} of seed {seed}: {problem or written}: {str(data)[:2000]}")
    return wrong


def _problem(code: int, error: str) -> str:
    if code not in (0, 1) or any(word in error for word in UNEXPECTED):
        return f"exit code {code}, {error[:600]!r}"
    return "refused without a word" if code and not error else ""


def fuzz_files(folder: Path, n: int, seed: int) -> list[str]:
    """What went wrong with so many changes of small files of a finished run."""
    rng, wrong = random.Random(seed), []
    root = folder / "sealed"
    outcome = run_serial(vectors_run(root, n=20, stages=STAGES))
    files = sorted(p for p in root.rglob("*") if p.is_file() and any(word in str(p) for word in SEALED))
    commands = [["status"], ["ls"], ["verify", "all"], ["show", outcome.captures[0].id], ["gc", "--dry-run"]]
    commands += [["show", a.id] for a in outcome.artifacts]
    for number in range(n):
        file = rng.choice(files)
        before = file.read_bytes()
        file.write_bytes(changed(before, rng))
        code, error = told([*rng.choice(commands), "--root", str(root)])
        if code not in (0, 1, 2) or any(word in error for word in UNEXPECTED):
            wrong.append(
                f"file {number} of seed {seed}: {file.relative_to(root)}: exit code {code}, {error[:600]!r}"
            )
        file.write_bytes(before)
    return wrong


def changed(data: bytes, rng: random.Random) -> bytes:
    """Other bytes: cut off, a bit flipped, a part doubled, emptied, or of another kind."""
    at = rng.randrange(max(1, len(data)))
    return rng.choice(
        (
            data[:at],
            b"",
            data[:at] + bytes([(data[at] if data else 0) ^ (1 << rng.randrange(8))]) + data[at + 1 :],
            data[:at] + data[at // 2 :],
            b"null",
            b"[]",
            b'{"a": 1}',
            b"\xff\xfe\x00",
            data.replace(b"1", b"null", 1),
            data.replace(b'"', b"", 2),
        )
    )


def main() -> int:
    """Fuzz, print what went wrong, and exit with 1 where something did."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("runs", 10_000), ("files", 10_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = fuzz_runs(Path(folder), options.runs, options.seed) + fuzz_files(
            Path(folder), options.files, options.seed
        )
    sys.stdout.write("\n".join([*wrong, f"{len(wrong)} of {options.runs + options.files} went wrong\n"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
