"""Proofs: a receipt that a unit is done, and the manifest that seals a capture."""

from pydantic import Field

from schemas.base import Digested, Frozen
from schemas.layout import UnitRef


class FileDigest(Frozen):
    """Size and hash of one stored object."""

    bytes: int
    blake3: str


class Fingerprint(Frozen):
    """What equal bytes depend on beside the spec."""

    packages: dict[str, str]
    """Versions of torch, transformers, tokenizers, numpy, zarr and numcodecs."""
    device: str
    """`cpu`, or the name of the accelerator."""
    threads: int
    python: str
    machine: str
    """Processor architecture and the instruction set that torch chose."""


class Failure(Frozen):
    """A sample that has no rows, and why."""

    sample: int
    key: str
    reason: str


class Receipt(Digested):
    """A unit is done: all its shards are durable."""

    capture: str
    unit: UnitRef
    rows: int
    files: dict[str, FileDigest]
    """Path below the capture's folder to digest; with `states/` in front for fused states, below the root."""
    failures: tuple[Failure, ...] = ()
    truncated: int = 0
    """Samples of this unit that were cut to the longest length; one that straddles units is in both."""
    saturated: dict[str, int] = Field(default_factory=dict)
    """Site to the number of finite values that the store dtype could not hold."""
    max_batch_difference: float | None = None
    """Largest difference between a sample alone and in its batch, at the probed sample of the unit."""
    looped: tuple[str, ...] = ()
    """Parameters whose gradients took a pass for each sample."""
    batches: int = 0
    """That went through the network and back."""
    weighed: int = 0
    """Of these, that took four passes or more, as their graph did not tell that rows stay with their samples."""
    max_gradient_error: float | None = None
    """Largest error, by norm, of a parameter's gradient against plain autograd, at the probed sample of the unit: relative to that
    gradient, or to the part of the sample's whole one below which it would be nothing but rounding (1e-2 in float32)."""
    seconds: float
    forward_seconds: float
    write_seconds: float
    """Of the writer, beside the forwards."""
    wait_seconds: float = 0.0
    """That the forwards waited for the writer."""
    tokens: int
    """Real (unpadded) tokens or samples that went through the network."""
    padded_tokens: int
    peak_bytes: int
    """Peak resident memory of the worker."""
    fingerprint: Fingerprint
    worker: str
    """host:pid"""
    finished: str
    """UTC time."""

    @property
    def written_bytes(self) -> int:
        """That the unit wrote."""
        return sum(digest.bytes for digest in self.files.values())


class Manifest(Digested):
    """Seals a capture: readable if and only if this is there and its own digest holds."""

    schema_version: int
    capture: str
    files: dict[str, FileDigest]
    """Every shard and zarr.json below the capture's folder."""
    receipts: dict[str, FileDigest]
    """Every receipt, by file name."""
    failures: tuple[Failure, ...] = ()
    truncated: int = 0
    """Samples that were cut to the longest length."""
    saturated: dict[str, int] = Field(default_factory=dict)
    """Site to the number of finite values that the store dtype could not hold: they are infinite there."""
    rows: dict[str, int]
    """Rows per row space."""
    sealed: str
    """UTC time."""
