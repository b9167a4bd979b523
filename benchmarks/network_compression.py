"""What is left of a small language model in fewer numbers and bits: `python -m benchmarks.network_compression`.

The model is trained on the spot (`benchmarks.docstring_model`, some minutes, once). Then one run, as in examples/compression.yaml: inputs
of all linear layers of its blocks and the language loss's gradients at their outputs, for docstrings of the calibration part; the stages of
`compression`; all candidates on docstrings of packages that neither trained nor calibrated anything. `EXPECTED` was written down before any
of it had run; each expectation is told with what was found. One thread. Results go to benchmarks/results/network_compression.json.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.children import scratch_folder
from benchmarks.docstring_model import SETTINGS, made
from benchmarks.protocol import environment, save, timed
from pipelines.serial import run_serial
from schemas.run import RunSpec
from tasks.readers import list_artifacts, open_artifact

CALIBRATED, JUDGED = 300, 500
"""Docstrings at most."""
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
SHARES = (0.8, 0.6)
PLAIN, WHITENED, TWO_SIDED = "low_rank (metric: weights)", "low_rank (metric: outputs)", "two_sided"
EIGHT, FOUR = (
    "quantised (bits: 8, group: None, rounding: nearest)",
    "quantised (bits: 4, group: 64, rounding: gptq)",
)
MIXED = "mixed_precision"
Losses = Mapping[str, float]
"""Name of a candidate -> mean loss of a token, in nats."""


def _everywhere(better: str, worse: str) -> Callable[[Losses], bool]:
    """At each share the first way has the smaller loss."""
    return lambda loss: all(loss[f"{better}, {s:g}"] < loss[f"{worse}, {s:g}"] for s in SHARES)


def _rise(name: str, most: float) -> Callable[[Losses], bool]:
    return lambda loss: loss[name] - loss["as it is"] <= most


EXPECTED: dict[str, Callable[[Losses], bool]] = {
    "8 bits in whole rows raise the loss by 0.002 at most": _rise(EIGHT, 0.002),
    "4 bits in groups with GPTQ raise it by 0.05 at most": _rise(FOUR, 0.05),
    "4 bits lose less than any factors in floats, in fewer bytes": lambda loss: (
        loss[FOUR]
        < min(
            value
            for name, value in loss.items()
            if name.startswith(("low_rank", "two_sided")) and "bits" not in name.rpartition(")")[2]
        )
    ),
    "inputs in few bits too raise it by more than 4 bits of weights, and by 0.2 at most": lambda loss: (
        loss[FOUR] < loss[MIXED] <= loss["as it is"] + 0.2
    ),
    "best for outputs beats the weights' own singular vectors, equal shares": _everywhere(
        f"{WHITENED}, uniform", f"{PLAIN}, uniform"
    ),
    "two-sided beats best for outputs, equal shares": _everywhere(
        f"{TWO_SIDED}, uniform", f"{WHITENED}, uniform"
    ),
    "two-sided: ranks by losses beat equal shares": _everywhere(
        f"{TWO_SIDED}, greedy", f"{TWO_SIDED}, uniform"
    ),
    "two-sided with ranks by losses beats best for outputs with equal shares": _everywhere(
        f"{TWO_SIDED}, greedy", f"{WHITENED}, uniform"
    ),
    "best for outputs: ranks by relative losses are worse than equal shares": _everywhere(
        f"{WHITENED}, uniform", f"{WHITENED}, greedy"
    ),
    "factors in 8 bits raise the loss of two-sided factors by 0.005 at most": lambda loss: (
        loss[f"{TWO_SIDED} in 8 bits, greedy, {SHARES[0]:g}"]
        <= loss[f"{TWO_SIDED}, greedy, {SHARES[0]:g}"] + 0.005
    ),
    "slicing: widths dealt out beat one width at 0.75": lambda loss: (
        loss["slicing, greedy, 0.75"] < loss["slicing, uniform, 0.75"]
    ),
    "slicing at 0.75 loses more than two-sided with ranks by losses at 0.6": lambda loss: (
        min(loss["slicing, greedy, 0.75"], loss["slicing, uniform, 0.75"])
        > loss[f"{TWO_SIDED}, greedy, {SHARES[1]:g}"]
    ),
}
"""Written before the first run."""


def main() -> None:
    """Train or take the model, compress, judge, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1, help="not used: losses are exact")
    parser.parse_args()
    torch.set_num_threads(1)
    told = environment(1, ("torch", "transformers", "tokenizers"))
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as root:
        training = timed(made)
        points, seconds = judged(training.value, Path(root))
    loss = {name: point["loss"]["value"] for name, point in points.items()}
    results = {
        "environment": told,
        "settings": SETTINGS,
        "model": json.loads((training.value / "training.json").read_text()),
        "seconds": {"model": training.seconds, "run": seconds},
        "points": points,
        "expected": {name: held(loss) for name, held in EXPECTED.items()},
    }
    for name, point in points.items():
        print(
            f"{name}: kept {point['kept']:.3f}, of network {point['kept_of_network']:.3f}, "
            f"perplexity {point['perplexity']:.2f}"
        )
    for name, held in results["expected"].items():
        print(f"{'held' if held else 'DID NOT HOLD'}: {name}")
    print(f"saved {save('network_compression', results)}")


def judged(folder: Path, root: Path) -> tuple[dict[str, Any], float]:
    """Every candidate by its name, the network as it is first; and the seconds of the run.

    Raises:
        RuntimeError: if a stage failed.
    """
    done = timed(lambda: run_serial(run_of(folder, root)))
    if done.value.stage_failures:
        raise RuntimeError("; ".join(failure.reason for failure in done.value.stage_failures))
    found: dict[str, Any] = {}
    for artifact in list_artifacts(root, "compression.model"):
        points = open_artifact(root, artifact.id).result["points"]
        found |= {point["name"]: point for point in points if point["name"] not in found}
    return found, done.seconds


def run_of(folder: Path, root: Path) -> RunSpec:
    """The run, of a folder that `docstring_model.made` gave."""

    def capture(part: str, most: int, **more: Any) -> dict[str, Any]:
        source = {"kind": "text", "paths": [str(folder / f"{part}.jsonl")]}
        return {
            "model": {"kind": "transformers", "name": str(folder / "model"), "head": "causal-lm"},
            "data": {"source": source, "subset": {"max_samples": most, "seed": 0}},
            "max_length": SETTINGS["length"],
            "too_long": "truncate",
            **more,
        }

    linears = [f"transformer.h.*.{name}" for name in LINEARS]
    norms = ["transformer.h.*.ln_1:in:0", "transformer.h.*.ln_2:in:0", "transformer.ln_f:in:0"]
    gradients = {"loss": {"kind": "lm"}, "quantities": ["activation_gradient"]}
    captures = {
        "inputs": capture("calibration", CALIBRATED, sites=[f"{path}:in:0" for path in linears]),
        "gradients": capture(
            "calibration", CALIBRATED, sites=[f"{path}:out:0" for path in linears], **gradients
        ),
        "stream": capture("calibration", CALIBRATED, sites=norms),
        "judged": capture("judged", JUDGED, sites=["transformer.ln_f:out:0"], loss={"kind": "lm"}),
    }
    return RunSpec.model_validate(
        {
            "name": "network-compression",
            "root": str(root),
            "captures": captures,
            "stages": stages(),
            "execution": {"device": "cpu"},
            "report": None,
        }
    )


def stages() -> dict[str, Any]:
    """Layers of every kind, the norms' widths, and two judgements: sizes of sliced networks are those of whole ones."""
    x = {"x": {"captures": ["inputs"]}}
    both = x | {"g": {"captures": ["gradients"]}}
    network = {"captures": ["judged"]}

    def stage(method: str, inputs: dict[str, Any], **config: Any) -> dict[str, Any]:
        return {"method": f"compression.{method}", "inputs": inputs, "config": config}

    options = {"kept": SHARES[0], "shares": list(SHARES)}
    return {
        "layer_plain": stage("low_rank", x, metric="weights"),
        "layer_outputs": stage("low_rank", x),
        "layer_two_sided": stage("two_sided", both),
        "layer_eight": stage("quantised", x, bits=8, group=None, rounding="nearest"),
        "layer_four": stage("quantised", x, bits=4, group=64),
        "layer_mixed": stage("mixed_precision", x),
        "moments": stage("residual_moments", {"x": {"captures": ["stream"]}}, centred=True),
        "widths": stage("slicing", {"sites": {"stage": "moments"}}, kept=[0.9, 0.75, 0.6]),
        "judged_layers": stage("model", {"network": network, "layers": {"stage": "layer_*"}}, **options),
        "judged_widths": stage("model", {"network": network, "layers": {"stage": "widths"}}, **options),
    }


if __name__ == "__main__":
    main()
