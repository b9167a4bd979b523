"""What a capture takes: bytes of a full batch, of what a backward needs, and of fused states."""

from collections.abc import Sequence

import numpy as np

from pipelines.dry_run import PROBE_SAMPLES
from schemas.capture import CaptureRequest
from schemas.layout import Layout
from tasks.extract.encode import Encoder
from tasks.extract.sites import SiteInfo

BASE_BYTES = 700 << 20
"""A Python process with torch, transformers and zarr loaded."""
OPEN_SHARDS = 3
"""Shard sets in a worker: being filled, being written where the root is remote, and what encoding takes."""
OPEN_TENSORS = 6
"""Tensors of the largest size alive at one time in a forward."""


def batch_bytes(infos: Sequence[SiteInfo], encoder: Encoder, request: CaptureRequest) -> int:
    """Largest tensor of the dry run, scaled from its samples to a full batch."""
    return _scale(encoder, request) * max((_per_sample(info) for info in infos if info.shape), default=0)


def graph_bytes(infos: Sequence[SiteInfo], encoder: Encoder, request: CaptureRequest) -> int:
    """What all modules give in a full batch: about what lies between a forward and its backward."""
    given = (info for info in infos if info.shape and info.site.side == "out" and not info.site.element)
    return _scale(encoder, request) * sum(_per_sample(info) for info in given)


def _per_sample(info: SiteInfo) -> int:
    return int(np.prod(info.shape, dtype=np.int64)) // max(1, info.shape[0])


def _scale(encoder: Encoder, request: CaptureRequest) -> int:
    """Bytes of a full batch for each value of a sample of the dry run."""
    longest = int(encoder.lengths().max())
    in_batch = (
        max(1, min(request.batch_samples, request.batch_tokens // max(1, longest)))
        if encoder.is_text
        else request.batch_samples
    )
    probe = max(1, int(encoder.lengths()[:PROBE_SAMPLES].max())) if encoder.is_text else 1
    return 4 * in_batch * (-(-longest // probe) if encoder.is_text else 1)


def state_bytes(layout: Layout) -> int:
    """Fused states: at each unit and site about one matrix of float64."""
    return sum(
        8 * space.n_units * site.width**2 for space in layout.spaces for site in layout.sites_of(space.name)
    )
