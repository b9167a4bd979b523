"""What the project depends on: every package pinned, all of them agreeing, none with a known hole. `make lint` runs it.

Advisories come from the package index. Where the index has none (a mirror, no network) that is said, and the rest is checked all the same.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parent.parent / "constraints.txt"
TOOLS = {"pip", "setuptools", "subspan"}
"""What is there without being asked for."""
CUDA = ("nvidia-", "cuda-", "triton")
"""How packages begin that torch brings where it is built for GPUs; it pins them itself."""
ACCEPTED: Mapping[str, str] = {}
"""Id of an advisory that is known and does no harm here, and why."""
SECONDS = 300


def pinned(text: str) -> dict[str, str]:
    """Package to version, from lines `name==version`."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {plain(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def plain(name: str) -> str:
    """The name of a package as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Package to version, in this environment; without the part that tells one build from another."""
    return {
        plain(one.metadata["Name"]): one.version.partition("+")[0]
        for one in importlib.metadata.distributions()
    }


def unpinned(there: Mapping[str, str], pins: Mapping[str, str]) -> list[str]:
    """What is installed otherwise than pinned."""
    wrong = {
        name for name, version in there.items() if pins.get(name) != version and not name.startswith(CUDA)
    } - TOOLS
    return [
        f"{n} {there[n]} is installed, constraints.txt has {pins.get(n, 'no such line')}"
        for n in sorted(wrong)
    ]


def holes(report: Mapping[str, Any], accepted: Mapping[str, str] = ACCEPTED) -> list[str]:
    """Advisories of a pip-audit report that are not accepted."""
    return [
        f"{one['name']} {one['version']}: {advisory['id']}, mended in {', '.join(advisory['fix_versions']) or 'no version'}"
        for one in report["dependencies"]
        for advisory in one.get("vulns", ())
        if advisory["id"] not in accepted
    ]


def advisories() -> dict[str, Any] | None:
    """What pip-audit finds for the pins; None where it cannot ask."""
    command = ["-m", "pip_audit", "-r", str(PINS), "--no-deps", "--disable-pip", "--format", "json"]
    done = run([*command, "--progress-spinner", "off"])
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return None


def run(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Python with these arguments."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=SECONDS)


def main() -> int:
    """Print what is wrong, and how much could be asked; 1 where something is."""
    agree = run(["-m", "pip", "check", "--disable-pip-version-check"])
    wrong = unpinned(installed(), pinned(PINS.read_text()))
    wrong += agree.stdout.splitlines() if agree.returncode else []
    report = advisories()
    wrong += holes(report) if report else []
    every = report["dependencies"] if report else []
    asked = sum("vulns" in one for one in every)
    for line in wrong:
        print(line)
    print(
        f"{len(wrong)} wrong; advisories: {asked} of {len(every)} packages"
        + ("" if asked else " (the index has none)")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
