"""Traps of this field, each shown by numbers of one run: what peers or plain formulas give, and what subspan gives.

    python -m benchmarks.findings [--only NAME ...]     # each takes seconds; results/findings.json
    python -m benchmarks.findings --page                # docs/findings.md again, from that file

Everything runs in the environment of the tests, without the package index. The exit status is 1 if a number is not as expected, so that a
claim that no longer holds, because a peer was mended or ours was broken, is seen.
"""

import argparse
import sys
import time
from typing import Any

import torch

from benchmarks import protocol
from benchmarks.claims import components, dimensions, subspaces
from benchmarks.claims.figure import Finding

FINDINGS: tuple[Finding, ...] = (*components.FINDINGS, *subspaces.FINDINGS, *dimensions.FINDINGS)
PAGE = protocol.ROOT / "docs" / "findings.md"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "dask")
NOT_SHOWN = (
    "The distance that geomstats gives between orthogonal lines: needs the package index. `small_angles` shows ours.",
    "dask-ml 2025.1.0 itself: `power_iterations` runs the function of dask that it calls; its PCA is timed in `benchmarks.pca`.",
    "Label sharpness of several classes, where published code takes whether labels agree for how much they differ: "
    "`geometry.label_sharpness` takes pairs of different classes alone.",
)
HEAD = """# Findings

Where common tools or published claims mislead, in numbers of one run. Made from `benchmarks/results/findings.json` by
`python -m benchmarks.findings --page`; do not edit. Each command takes seconds on one core and runs in the environment of the tests
(`make test` sets it up), without the package index. It prints found beside expected, and fails where they differ.

"""


def main(given: list[str] | None = None) -> int:
    """Run what is asked for, print and save; 1 if a number is not as expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", choices=[f.name for f in FINDINGS], help="may be given again"
    )
    parser.add_argument("--page", action="store_true", help="only write docs/findings.md")
    parser.add_argument("--pairs", type=int, default=0, help="not used; nothing is timed")
    options = parser.parse_args(given)
    failed = 0
    if not options.page:
        results = protocol.saved("findings")
        for finding in FINDINGS:
            if options.only is None or finding.name in options.only:
                results[finding.name] = shown(finding)
                failed |= not results[finding.name]["holds"]
        results["environment"] = protocol.environment(torch.get_num_threads(), PACKAGES)
        print(f"saved {protocol.save('findings', results)}")
    if options.page or options.only is None:
        PAGE.write_text(page(protocol.saved("findings")))
        print(f"wrote {PAGE}")
    return int(failed)


def shown(finding: Finding) -> dict[str, Any]:
    """One finding, printed."""
    print(f"== {finding.name}: {finding.claim}", flush=True)
    begun = time.perf_counter()
    figures = finding.measure()
    for figure in figures:
        mark = "" if figure.holds else "  NOT AS EXPECTED"
        print(f"   {figure.who}: {figure.what}: {figure.found:.4g} (expected {figure.expected}){mark}")
    print(f"   {time.perf_counter() - begun:.0f} s", flush=True)
    return finding.record(figures)


def page(results: dict[str, Any]) -> str:
    """docs/findings.md."""
    parts = [HEAD, _versions(results.get("environment", {}))]
    for finding in FINDINGS:
        if finding.name in results:
            parts.append(_section(finding, results[finding.name]))
    parts.append("## Not shown here\n\n" + "".join(f"- {line}\n" for line in NOT_SHOWN))
    return "".join(parts)


def _versions(environment: dict[str, Any]) -> str:
    packages = environment.get("packages", {})
    named = ", ".join(f"{name} {number}" for name, number in packages.items())
    return f"Measured with Python {environment.get('python')}, {named}.\n\n"


def _section(finding: Finding, result: dict[str, Any]) -> str:
    lines = [
        f"## {finding.name}\n\n{finding.claim}\n\n    python -m benchmarks.findings --only {finding.name}\n\n",
        "| who | what | found | expected |\n| --- | --- | --- | --- |\n",
    ]
    for f in result["figures"]:
        what = f["what"].replace("|", "\\|")
        who = f["who"].replace("|", "\\|")
        lines.append(f"| {who} | {what} | {f['found']:.4g} | {f['expected']} |\n")
    if not result["holds"]:
        lines.append("\nNot all numbers were as expected.\n")
    return "".join(lines) + (f"\n{finding.note}\n\n" if finding.note else "\n")


if __name__ == "__main__":
    sys.exit(main())
