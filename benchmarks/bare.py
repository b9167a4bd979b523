"""A process that runs bare forwards over its share of the very batches of a capture: see benchmarks.peers.child.

`python -m benchmarks.bare '{"request": <CaptureRequest>, "share": 0, "shares": 2}'`. The batches are recorded from one
capture made before the first run; encoding them is not timed, nothing is kept of a forward.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks.children import scratch_folder
from benchmarks.peers.child import arguments, serve
from pipelines.resolve import Prepared, prepare
from schemas.capture import CaptureRequest
from tasks import unit
from tasks.drive import serial
from tasks.extract.batches import Batch
from tasks.extract.models import network
from tasks.produce import run_capture
from tasks.store.location import Location


def main() -> None:
    """Serve bare forwards."""
    options = arguments()
    request = CaptureRequest.model_validate(options["request"])
    threads = request.precision.threads
    torch.set_num_threads(threads)
    mine = share(recorded(prepare(request, None)), options["share"], options["shares"])
    net = network(request.model, "cpu", threads)

    def task(out: str) -> None:
        Path(out).mkdir(parents=True)
        with torch.inference_mode():
            for batch in mine:
                net.module(**batch.inputs, **net.arguments)

    def read(out: str, to: str, samples: int) -> None:
        raise RuntimeError("a bare forward keeps nothing that could be read")

    serve(task, read)


def recorded(prepared: Prepared) -> list[Batch]:
    """The batches of a capture, in the order in which it runs them."""
    batches: list[Batch] = []
    collect, every = unit.collect, unit.PROBE_EVERY

    def note(net, batch, *rest):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
        batches.append(batch)
        return collect(net, batch, *rest)

    unit.collect, unit.PROBE_EVERY = note, 1 << 30
    try:
        with tempfile.TemporaryDirectory(dir=scratch_folder()) as root:
            run_capture(Location(root), prepared.spec, lambda: prepared.table, serial)
    finally:
        unit.collect, unit.PROBE_EVERY = collect, every
    return batches


def share(batches: list[Batch], index: int, n_shares: int) -> list[Batch]:
    """One of several shares with nearly the same number of padded tokens."""
    shares: list[list[Batch]] = [[] for _ in range(n_shares)]
    loads = [0] * n_shares
    for batch in sorted(batches, key=_padded, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(batch)
        loads[least] += _padded(batch)
    return shares[index]


def _padded(batch: Batch) -> int:
    return int(next(iter(batch.inputs.values())).numel())


if __name__ == "__main__":
    main()
