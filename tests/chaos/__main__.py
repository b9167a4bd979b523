"""Scenarios of chaos, each from a seed: `python -m tests.chaos --scenarios 200 --seed 0`. Exits with 1 where one lost something."""

import argparse
import os
import signal
import sys
import time
from collections import Counter

from tests.chaos.scenario import drawn
from tests.chaos.suite import Verdict, kept_or_removed


def main() -> int:
    """Live through scenarios, one line each, and a summary by kind of fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended, and disks go
    if os.geteuid() != 0:
        say("not root: no disk is filled")
    begun, verdicts = time.monotonic(), []
    for seed in range(options.seed, options.seed + options.scenarios):
        verdict, folder = kept_or_removed(drawn(seed))
        verdicts.append(verdict)
        say(str(verdict))
        if verdict.wrong:
            say(f"       kept in {folder}; again: python -m tests.chaos --scenarios 1 --seed {seed}")
    say(summary(verdicts, time.monotonic() - begun))
    return 1 if any(verdict.wrong for verdict in verdicts) else 0


def summary(verdicts: list[Verdict], seconds: float) -> str:
    """How often each kind struck, and in how many scenarios with it something was lost."""
    struck: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for verdict in verdicts:
        kinds = {f.kind for f, hit in zip(verdict.scenario.faults, verdict.struck, strict=False) if hit}
        struck.update(kinds)
        lost.update(kinds if verdict.wrong else ())
    lines = [f"{kind:28} {n:4} scenarios, {lost[kind]} lost something" for kind, n in sorted(struck.items())]
    good = sum(not verdict.wrong for verdict in verdicts)
    return "\n".join([*lines, f"{good} of {len(verdicts)} lost nothing, {seconds / 60:.1f} minutes"])


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
