"""Two small forwards over real samples before anything is planned: the network's sites and their geometry."""

import time
from typing import NamedTuple

from torch import Tensor

from schemas.capture import CaptureRequest
from schemas.errors import DataError, ModelError
from tasks.extract.batches import Batch
from tasks.extract.encode import Encoder
from tasks.extract.models import Network
from tasks.extract.sites import SiteInfo, cut, list_sites

PROBE_SAMPLES = 3
"""Samples of the dry run."""
MOST_UNREADABLE = 100
"""Samples that may be unreadable before the dry run gives up."""


class DryRun(NamedTuple):
    """What two small forwards told, and what they cost."""

    sites: list[SiteInfo]
    seconds: float
    tokens: int
    """Real tokens (or samples) of both."""
    device: str
    """`cpu` or `cuda`."""

    @property
    def seconds_per_token(self) -> float | None:
        """Of one token (or sample) on a CPU; None where that is not known."""
        return self.seconds / self.tokens if self.tokens and self.device == "cpu" else None


def dry_run(net: Network, encoder: Encoder, request: CaptureRequest) -> list[SiteInfo]:
    """Every site of the network with its geometry, from two small forwards over real samples."""
    return timed_dry_run(net, encoder, request).sites


def timed_dry_run(net: Network, encoder: Encoder, request: CaptureRequest) -> DryRun:
    """See `dry_run`; the time is that of the two forwards.

    Raises:
        ModelError: if the network raises, or its forward changes its buffers.
    """
    batch = first_batch(encoder)
    before = {name: tensor.clone() for name, tensor in net.module.named_buffers()}
    begun = time.perf_counter()
    try:
        smaller = cut(batch)
        infos = list_sites(net, batch, smaller)
    except (ModelError, DataError):
        raise
    except Exception as error:
        raise ModelError(
            f"the network {_model_name(request)} raised {type(error).__name__} in a dry run over {len(batch.inputs)} inputs "
            f"({', '.join(f'{k or 0}: {tuple(v.shape)}' for k, v in batch.inputs.items())}): {error}; "
            "check that the data fit what its forward takes"
        ) from error
    seconds = time.perf_counter() - begun
    _refuse_changed_buffers(net, before, request)
    return DryRun(infos, seconds, _tokens(batch) + _tokens(smaller), net.device.type)


def first_batch(encoder: Encoder) -> Batch:
    """A few samples from the first that can be read on."""
    for first in range(len(encoder)):
        try:
            return encoder.batch(_probe_indices(encoder, first))
        except DataError:
            if first + 1 == len(encoder) or first >= MOST_UNREADABLE:
                raise
    raise DataError("the data hold no samples; expected at least one")


def _tokens(batch: Batch) -> int:
    """Real tokens of a batch; samples where there are none."""
    return len(next(iter(batch.inputs.values()))) if batch.mask is None else int(batch.mask.sum())


def _refuse_changed_buffers(net: Network, before: dict[str, Tensor], request: CaptureRequest) -> None:
    changed = [
        name
        for name, tensor in net.module.named_buffers()
        if name not in before or not _same(tensor, before[name])
    ]
    if changed:
        raise ModelError(
            f"the forward of {_model_name(request)} changes its buffer {changed[0]!r} also in evaluation mode: what a sample gives "
            "would depend on how many ran before it; freeze the buffer in the factory"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(
        ((a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() else a == b).all()
    )


def _probe_indices(encoder: Encoder, first: int) -> list[int]:
    return [i % len(encoder) for i in range(first, first + min(PROBE_SAMPLES, max(1, len(encoder))))]


def _model_name(request: CaptureRequest) -> str:
    return str(getattr(request.model, "name", None) or getattr(request.model, "factory", request.model.kind))
