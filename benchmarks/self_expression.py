"""Clusters from how rows express each other: agreement with classes, exactness, and how time and memory grow.

    python -m benchmarks.self_expression [--only quality,exactness,speed] [--data FOLDER] [--sets orl,coil20] [--methods tsc,lsr]

quality    every method with one fixed default on every data set that is there (`benchmarks.clustering_sets`), rows as they are and centred:
           accuracy, mutual information and Rand index, mean and standard deviation over five seeds of the partition, seconds, and what
           other implementations and papers have; cosine k-means beside it
exactness  coefficients beside plain loops, scikit-learn and the inverse (`benchmarks.expression_exactness`)
speed      pursuit beside a loop, growth of time and memory with the rows, 50,000 rows on two threads (`benchmarks.expression_speed`)

The digits of scikit-learn are always there; other sets are looked for in the folder of `--data`. One thread. Results go to
benchmarks/results/self_expression.json, a plot of the growth beside it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks import protocol
from benchmarks.expression_exactness import exactness
from benchmarks.expression_quality import METHODS, quality, table, targets
from benchmarks.expression_speed import PARTS as SPEED
from benchmarks.expression_speed import speed

PARTS = ("quality", "exactness", "speed")
CENTERS = {"no": [False], "yes": [True], "both": [False, True]}


def main() -> None:
    """Run the asked parts; print and save, sets that were not asked for as they were."""
    options = parsed()
    torch.set_num_threads(1)
    found = protocol.saved("self_expression")
    for part in options.only.split(","):
        made = run(part, options)
        for name, values in made.items():
            found.setdefault(part, {}).setdefault(name, {}).update(values)
        found[f"{part} environment"] = protocol.environment(1)
        protocol.save("self_expression", found)
    print(table(found.get("quality", {})))
    print(targets(found.get("quality", {})))
    print(f"saved {protocol.RESULTS / 'self_expression.json'}")


def run(part: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """A part."""
    sets = options.sets.split(",") if options.sets else None
    if part == "quality":
        return quality(options.data, sets, options.methods.split(","), CENTERS[options.center])
    return (
        exactness(options.data, sets)
        if part == "exactness"
        else speed(options.pairs, options.speed.split(","))
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--sets", help="only these")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--center", choices=("no", "yes", "both"), default="both", help="centre rows first")
    parser.add_argument("--speed", default=",".join(SPEED), help="parts of it")
    parser.add_argument("--pairs", type=int, default=3, help="of pursuit and the loop")
    options = parser.parse_args()
    if not set(options.only.split(",")) <= set(PARTS):
        parser.error(f"--only {options.only}: there are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
