"""The one law, looked at from outside: a store after its misfortunes holds what a quiet run's holds, and nothing else is left."""

import contextlib
import functools
import io
import json
import tempfile
from pathlib import Path

from pipelines.cli import main as subspan
from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.capture import CaptureSpec
from schemas.run import RunSpec
from tasks.store.paths import capture_path, unit_files
from tests.chaos.scenario import run_of
from tests.pipelines.runs import artifact_bytes, finished, store_bytes


@functools.cache
def quiet(arrangement: int) -> dict[str, bytes]:
    """What an undisturbed run stores."""
    with tempfile.TemporaryDirectory(prefix="quiet-") as folder:
        run_serial(run_of(Path(folder), arrangement))
        return contents(Path(folder))


def contents(root: Path) -> dict[str, bytes]:
    """Arrays with their metadata, and results, of every capture and artifact: name to bytes."""
    found: dict[str, bytes] = {}
    for manifest in root.glob("captures/*.manifest.json"):
        capture = manifest.name.removesuffix(".manifest.json")
        found |= {f"captures/{capture}/{path}": data for path, data in store_bytes(root, capture).items()}
    for file in root.glob("artifacts/*/artifact.json"):
        artifact = file.parent.name
        found |= {
            f"artifacts/{artifact}/{path}": data for path, data in artifact_bytes(root, artifact).items()
        }
        result = json.loads(file.read_text())["result"]
        found[f"artifacts/{artifact}/result"] = json.dumps(result, sort_keys=True).encode()
    return found


def capture_of(run: RunSpec) -> tuple[CaptureSpec, int]:
    """The capture of a run, and of how many units it is."""
    capture = make_plan(run).captures[0]
    return capture.spec, capture.n_units


def finished_shards(root: Path, spec: CaptureSpec) -> dict[str, tuple[int, int]]:
    """Shards that nothing may touch any more; none where nothing was begun."""
    return finished(root, spec) if root.exists() else {}


def open_shards(root: Path, spec: CaptureSpec) -> list[Path]:
    """Shards that no receipt speaks for."""
    from tasks.store.paths import all_units, receipt_path

    base = root / capture_path(spec.id)
    units = [unit for unit in all_units(spec) if not (root / receipt_path(spec.id, unit)).exists()]
    return [base / path for unit in units for path in unit_files(spec, unit) if (base / path).exists()]


def told(arguments: list[str]) -> tuple[int, str]:
    """Exit code and all that a command says."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = subspan(arguments)
    return code, said.getvalue()


def answers(root: Path) -> list[str]:
    """What `status` and `ls` fail to answer about a store that is half done."""
    if not root.exists():
        return []
    wrong = []
    for command in ("status", "ls"):
        code, said = told([command, "--root", str(root)])
        if code != 0 or "Traceback" in said:
            wrong.append(f"subspan {command} answered {code}: {said[-300:]}")
    return wrong


def broken(root: Path, arrangement: int) -> list[str]:
    """In what a store breaks the law."""
    expected, found, wrong = quiet(arrangement), contents(root), []
    for what, names in (
        ("is missing", expected.keys() - found.keys()),
        ("was not asked for", found.keys() - expected.keys()),
        ("differs", {name for name in expected.keys() & found.keys() if expected[name] != found[name]}),
    ):
        if names:
            wrong.append(f"{len(names)} x {what}, such as {min(names)}")
    code, said = told(["verify", "all", "--root", str(root)])
    if code != 0:
        wrong.append(f"verify answered {code}: {said[-300:]}")
    for pattern in ("captures/*.lease", "captures/*/**/*.partial", "artifacts/*/**/*.partial"):
        left = sorted(root.glob(pattern))  # in folders that runs share, what is left goes after an hour
        if left:
            wrong.append(f"left behind: {left[0].relative_to(root)} and {len(left) - 1} more")
    return wrong
