"""What encoding and writing a shard costs, beside zarr's own way into the same bytes.

    python -m benchmarks.encoding [--pairs 7]

A shard of activations (5,461 rows of width 384, float32: 8 MiB) uncompressed and with the default codec, and a column of as many
integers. Ours encodes and writes the file; zarr's side sets the same region of an array that lies below a folder of the same disk.
Neither syncs. Results go to benchmarks/results/encoding.json.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import zarr

from benchmarks.children import scratch_folder
from benchmarks.protocol import Clock, environment, pairs, ratio, save, timed
from schemas.capture import Codec
from tasks.store.codecs import add_array
from tasks.store.encode import encoded
from tasks.store.location import Location

CHUNKS, CHUNK_ROWS, WIDTH = 4, 1365, 384
ROWS = CHUNKS * CHUNK_ROWS
REPEATS = 20
"""Shards in one run."""


def main() -> None:
    """Measure each kind of array, print a line for each, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    n_pairs = parser.parse_args().pairs
    rng = np.random.default_rng(0)
    activations = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    cases: dict[str, tuple[np.ndarray, Codec]] = {
        "activations, uncompressed": (activations, "none"),
        "activations, default codec": (activations, "lz4"),
        "a column": (rng.integers(0, 5000, ROWS), "lz4"),
    }
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        found = {name: compared(name, Path(folder), *case, n_pairs) for name, case in cases.items()}
    print(
        f"saved {save('encoding', {'environment': environment(1, ('zarr', 'numcodecs', 'numpy')), 'cases': found})}"
    )


def compared(name: str, folder: Path, block: np.ndarray, codec: Codec, n_pairs: int) -> dict[str, Any]:
    """How many times longer zarr takes, by the wall and by CPU seconds."""
    ours, theirs = by_us(folder / name, block, codec), by_zarr(folder / f"{name}.zarr", block, codec)
    mine, its = pairs(lambda: timed(lambda: repeat(ours)), lambda: timed(lambda: repeat(theirs)), n_pairs)
    found = {clock: ratio(its, mine, clock) for clock in get_args(Clock)}
    print(
        f"{name}: zarr over ours, seconds x{found['seconds']}, CPU seconds x{found['cpu_seconds']}",
        flush=True,
    )
    return {clock: value._asdict() for clock, value in found.items()}


def repeat(write: Callable[[int], None]) -> None:
    """Write shards, one after another."""
    for number in range(REPEATS):
        write(number)


def by_us(folder: Path, block: np.ndarray, codec: Codec) -> Callable[[int], None]:
    """Writes a shard as units do."""
    place = Location(str(folder))

    def write(number: int) -> None:
        with encoded(block, chunk_rows=CHUNK_ROWS, shard_rows=ROWS, codec=codec) as data:
            place.write(str(number), data, durable=False)

    return write


def by_zarr(folder: Path, block: np.ndarray, codec: Codec) -> Callable[[int], None]:
    """Sets the rows of a shard of an array."""
    array: Any = add_array(
        zarr.create_group(str(folder), zarr_format=3), "x", (REPEATS * ROWS, *block.shape[1:]), block.dtype.name,
        ("row", "feature")[: block.ndim], chunk_rows=CHUNK_ROWS, shard_rows=ROWS, codec=codec,
    )  # fmt: skip

    def write(number: int) -> None:
        array[number * ROWS : (number + 1) * ROWS] = block

    return write


if __name__ == "__main__":
    main()
