"""`python -m benchmarks [--gpu] [--only NAME] [--pairs N]`: every benchmark, one after the other, each in a process of its own.

Those that need a GPU are the files called gpu_*.py; `--gpu` runs them instead of the others.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ON_CPU = (
    "pca",
    "components",
    "onepass",
    "dimension",
    "geometry",
    "collapse",
    "k_subspaces",
    "self_expression",
    "layer_compression",
    "network_compression",
    "extraction",
    "overhead",
    "orchestration",
    "scheduler_simulation",
    "object_store",
    "encoding",
    "store_codecs",
    "compression_peers",
    "drift_peers",
    "detection",
    "detection_quality",
    "detection_memory",
    "gradients",
    "coverage",
    "noop",
    "findings",
    "training_failure",
)


def main() -> int:
    """Run the chosen benchmarks; the exit status is that of the last that failed."""
    on_gpu = tuple(sorted(path.stem for path in HERE.glob("gpu_*.py")))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="those that need a GPU")
    parser.add_argument("--only", action="append", choices=[*ON_CPU, *on_gpu], help="may be given again")
    parser.add_argument(
        "--pairs", type=int, default=7, help="alternating pairs of runs; 7 is what is published"
    )
    options = parser.parse_args()
    names = options.only or (on_gpu if options.gpu else ON_CPU)
    if not names:
        print("there is no benchmark that needs a GPU: no benchmarks/gpu_*.py")
        return 1
    failed = 0
    for name in names:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", f"--pairs={options.pairs}"]
        failed = subprocess.run(command, cwd=HERE.parent, check=False).returncode or failed
    return failed


if __name__ == "__main__":
    sys.exit(main())
