"""A process that makes captures on request: see benchmarks.peers.child for the talk.

`python -m benchmarks.ours '{"request": <CaptureRequest>, "workers": 1}'`. With one worker, units run in this process, in as many
threads at a time as `unit_threads` says; with more, on as many Dask worker processes, started once. Planning and loading are done
before the first request; a run is all the rest: metadata, lease, forwards, encoding, checksums, fsync, receipts and the seal. Rows
are read back without xarray, which a capture does not load.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from benchmarks.peers.child import arguments, serve
from pipelines.resolve import prepare
from schemas.capture import CaptureRequest
from schemas.execution import Execution
from tasks.drive import Threads, serial
from tasks.produce import run_capture
from tasks.store.capture_spec import read_spec
from tasks.store.location import Location
from tasks.store.sealed import open_group


def main() -> None:
    """Serve captures of one request."""
    options = arguments()
    request = CaptureRequest.model_validate(options["request"])
    with _client(options["workers"], request.precision.threads) as client:
        prepared = prepare(request, None)
        driver = _driver(client, options.get("unit_threads", 1))

        def task(out: str) -> None:
            outcome = run_capture(Location(out), prepared.spec, lambda: prepared.table, driver)
            if outcome.failures:
                raise RuntimeError(f"{len(outcome.failures)} samples failed: {outcome.failures[0]}")

        def read(out: str, to: str, samples: int) -> None:
            np.save(to, _first(out, prepared.spec.id, samples))

        serve(task, read, lambda: _pids(client))


def _first(out: str, capture_id: str, samples: int) -> np.ndarray:
    """float32 [site, row, feature] of the first samples."""
    group: Any = open_group(Location(out), capture_id)
    n_rows = int(group["samples/length"][:samples].sum())
    sites = [layout.site.key for layout in read_spec(Location(out), capture_id).layout.sites]
    return np.stack([group[f"sites/{site}/activation"][:n_rows] for site in sites])


def _client(workers: int, threads: int) -> AbstractContextManager[Any]:
    if workers == 1:
        return nullcontext()
    from pipelines.cluster import open_client

    return open_client(Execution(cluster="processes", workers=workers, device="cpu"), threads, "cpu")


def _driver(client: Any, unit_threads: int) -> Any:
    if client is None:
        return serial if unit_threads == 1 else Threads(unit_threads)
    from pipelines.cluster import DaskDriver

    return DaskDriver(client)


def _pids(client: Any) -> Sequence[int]:
    return [os.getpid(), *(client.run(os.getpid).values() if client is not None else ())]


if __name__ == "__main__":
    main()
