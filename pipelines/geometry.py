"""How many rows go into a chunk, a shard and a unit: resolved from widths and counts alone, never from the machine."""

from collections.abc import Sequence

from schemas.capture import Rows, StoreOptions
from schemas.errors import SpecError
from schemas.layout import Space

SHARD_BYTES = 8 << 20
"""Most bytes of one shard of the widest site."""
SHARD_SET_BYTES = 128 << 20
"""Most bytes of one shard of all sites of a space together: what a worker gathers in memory."""
CHUNK_ROWS = 1024
SHARD_SAMPLES = 512
"""Most samples per shard where every sample has the same number of rows: keeps units short."""
FEW_ROWS, MANY_ROWS = 64, 1 << 16
"""Rows of a shard at least and at most; fewer where so many would not fit."""
WIDE_SET_BYTES = 512 << 20
"""Most bytes of a shard set of `FEW_ROWS`; of rows so wide that it would be more, such as whole gradients, a shard has fewer."""
FEW_UNITS = 32
"""Units of several shards only where at least so many are left: the last units of a capture leave workers idle."""
UNIT_SHARDS = 4
"""Most shards of a unit. Each is written beside the forwards of the next one, and samples that straddle units are computed twice."""


def make_space(
    name: str, n_samples: int, n_rows: int, per_sample: int | None, widths: Sequence[int], store: StoreOptions
) -> Space:
    """The row space with its chunk, shard and unit sizes.

    Args:
        name: of the space.
        n_samples: samples of the capture.
        n_rows: rows of the space.
        per_sample: rows of each sample; None where they differ.
        widths: features of each site of the space.
        store: what the user fixed.

    Raises:
        SpecError: if shard_rows is not a multiple of chunk_rows.
    """
    shard, chunk = _sizes(per_sample, widths, store)
    n_shards = -(-n_rows // shard)
    return Space(
        name=name,
        n_rows=n_rows,
        per_sample=per_sample,
        chunk_rows=chunk,
        shard_rows=shard,
        unit_shards=store.unit_shards or min(UNIT_SHARDS, max(1, n_shards // FEW_UNITS)),
    )


def item_bytes(store: StoreOptions) -> int:
    """Bytes of one stored value before compression."""
    return 2 if store.dtype == "float16" else 4


def rows_per_sample(places: int, rows: Rows) -> int:
    """Kept rows of a sample that always has `places` of them."""
    if places == 1 or rows.positions == "all":
        return places
    return places - 1 if rows.positions == "not-first" else 1


def _sizes(per_sample: int | None, widths: Sequence[int], store: StoreOptions) -> tuple[int, int]:
    shard = store.shard_rows
    chunk = store.chunk_rows
    if shard is None:
        size = item_bytes(store)
        most = min(SHARD_BYTES // (max(widths) * size), SHARD_SET_BYTES // (sum(widths) * size))
        if per_sample is not None:
            most = min(most, SHARD_SAMPLES * per_sample)
        few = FEW_ROWS if FEW_ROWS * sum(widths) * size <= WIDE_SET_BYTES else 1
        shard = 1 << (max(few, min(most, MANY_ROWS)).bit_length() - 1)
        if chunk is not None:
            shard = max(1, shard // chunk) * chunk
    if chunk is None:
        chunk = next(rows for rows in range(min(CHUNK_ROWS, shard), 0, -1) if shard % rows == 0)
    if shard % chunk:
        raise SpecError(
            f"store.shard_rows is {shard}, store.chunk_rows is {chunk}: a shard holds whole chunks; "
            f"give a multiple, such as shard_rows: {-(-shard // chunk) * chunk}"
        )
    return shard, chunk
