"""A process that runs plain forwards and backwards, with gradients of weights, over the very batches of a capture.

`python -m benchmarks.backward '{"request": <CaptureRequest with a loss>, "weights": ["*.weight"]}'`; see benchmarks.peers.child. Batches
are recorded before the first run; encoding them is not timed, and nothing is kept.
"""

from pathlib import Path

import torch

from benchmarks.bare import recorded
from benchmarks.peers.child import arguments, serve
from pipelines.resolve import prepare
from schemas.capture import CaptureRequest
from tasks.extract.collect import forward
from tasks.extract.models import network
from tasks.extract.sites import glob
from tasks.gradients import make_objective


def main() -> None:
    """Serve forwards and backwards."""
    options = arguments()
    request = CaptureRequest.model_validate(options["request"])
    threads = request.precision.threads
    torch.set_num_threads(threads)
    prepared = prepare(request, None)
    batches, objective = recorded(prepared), make_objective(prepared.spec)
    net = network(request.model, "cpu", threads)
    chosen = [
        p for n, p in net.module.named_parameters() if any(glob(g).fullmatch(n) for g in options["weights"])
    ]
    for parameter in net.module.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)

    def task(out: str) -> None:
        Path(out).mkdir(parents=True)
        for batch in batches:
            losses = objective(forward(net, batch), batch)
            torch.autograd.grad(losses.sum(), chosen)

    def read(out: str, to: str, samples: int) -> None:
        raise RuntimeError("a plain backward keeps nothing that could be read")

    serve(task, read)


if __name__ == "__main__":
    main()
