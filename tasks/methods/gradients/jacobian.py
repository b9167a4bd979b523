"""Singular values of a network's Jacobian, sample by sample: how many directions of the input it uses, and how it stretches them.

The Jacobian is that of the output that the loss takes (logits, an embedding) in the input that can vary (a floating input, or the
embedded words), both without padding. With `detached`, attention, norms' scales and gates are taken as constants: the network's own
linear map at the input.

`log_volume` is the JEPA-SCORE of an encoder that was trained to predict without collapse: larger where its training data are dense, so that
strange samples have smaller ones. For a linear encoder W it is 0.5 log det(W W') everywhere.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, BatchesPort, Block, Inputs, NetworkView
from tasks.numerics.detached import Detached

VERSION = 3
KIND = "whole"
READS = {"model": BatchesPort()}
ARRAYS = {
    "singular_value": ("sample", "component"),
    "effective_rank": ("sample",),
    "log_volume": ("sample",),
    "reconstruction_error": ("sample",),
    "input_direction": ("component", "input"),
}
REFERENCE = (
    "Exploring Low-Dimensional Subspaces in Diffusion Models for Controllable Image Editing (2024): low rank of Jacobians. Golden: "
    "Large Language Models are Locally Linear Mappings (2025): detached Jacobian. Balestriero et al.: Gaussian Embeddings: How JEPAs "
    "Secretly Learn Your Data Density (2025): sum of log singular values"
)
SEEDS = (82, 195, 211)
MOST_OUTPUTS = 4096
MOST_ENTRIES = 1 << 26


class Config(Frozen):
    """Whose Jacobian, and of how many samples."""

    detached: bool = False
    """Take attention, norms' scales and gates as constants; `reconstruction_error` then tells how linear the network is in its input."""
    position: int | None = None
    """Of outputs [sample, token, feature]: the sample's own token whose features are taken, -1 its last. None: all, flattened."""
    components: int = Field(default=10, ge=1, le=1024)
    """Singular values that are kept."""
    epsilon: float = Field(default=1e-6, gt=0)
    """Smaller singular values count as this in `log_volume`."""
    sample_rows: int | None = Field(default=32, ge=1)
    """A seeded sample of so many samples; None: all."""
    seed: int = 0
    """Of the sample."""


class Result(Frozen):
    """Means are over samples; None where a Jacobian is zero."""

    n_samples: int
    n_outputs: int
    """Rows of a Jacobian, the most of any sample."""
    n_inputs: int
    """Columns, the most of any sample."""
    largest: float | None
    effective_rank: float | None
    """exp of the entropy of the shares of squared singular values."""
    effective_rank_low: float | None
    effective_rank_high: float | None
    """The least and the most."""
    top_share: float | None
    """Share of squared singular values in the kept ones."""
    log_volume: float | None
    """Mean of sum log max(s, epsilon) over all singular values: the JEPA-SCORE of an encoder, larger for samples where data are dense."""
    reconstruction_error: float | None
    """Median of |J x - y| / |y|: 0 for a network that is linear in its input."""
    common_share: float | None
    """Share of all Jacobians' squared entries in the kept directions that are best for all samples together; None where inputs
    differ in length."""
    common_null: float | None
    """The same of unrelated Jacobians, components / inputs."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Samples whose Jacobians are taken."""
    return 4096


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Jacobians of all samples, one batch at a time.

    Raises:
        MethodError: for no samples, or outputs with too many entries.

    Cost: a backward for each output of each batch, and a singular value decomposition for each sample; batch x output x input entries
    in memory.
    """
    if block.network is None or len(block) == 0:
        raise MethodError("found no samples; at least one is needed")
    maps: list[_Map] = []
    scatter: Tensor | None = None
    widths: set[int] = set()
    for view in block.network.batches():
        for jacobian, error in _jacobians(view, config):
            maps.append(_Map(torch.linalg.svdvals(jacobian), error, len(jacobian)))
            widths.add(jacobian.shape[1])
            if len(widths) == 1 and jacobian.shape[1] <= MOST_OUTPUTS:
                found = jacobian.T @ jacobian
                scatter = found if scatter is None else scatter + found
    return _result(maps, scatter if len(widths) == 1 else None, widths, config)


class _Map(NamedTuple):
    """The Jacobian of a sample."""

    values: Tensor
    error: Tensor
    n_outputs: int


def _jacobians(view: NetworkView, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """float64 [output, input] of each sample without padding, and how far J x is from the output."""
    with Detached() if config.detached else nullcontext():
        x, y = view.ends()
    if config.position is not None:
        y = _at_token(y, view, config.position)
    flat = y.flatten(1)
    if flat.shape[1] > MOST_OUTPUTS or flat.numel() * x[0].numel() > MOST_ENTRIES:
        raise MethodError(
            f"Jacobians of {flat.shape[1]} outputs and {x[0].numel()} inputs for {len(flat)} samples are too large; choose a "
            "`position`, a capture with smaller batches, or a network that gives an embedding"
        )
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1) for column in flat.T]
    jacobians = torch.stack(rows, 1).double()
    for n, jacobian in enumerate(jacobians):
        real_y, real_x = _real(y, view.mask, n), _real(x, view.mask, n)
        kept = jacobian[real_y][:, real_x]
        yield kept, _error(kept, x[n].detach().double().flatten()[real_x], flat[n].detach().double()[real_y])


def _at_token(y: Tensor, view: NetworkView, position: int) -> Tensor:
    """[sample, feature] at each sample's own token."""
    if y.ndim != 3:
        raise MethodError(
            f"position {position} was asked of outputs of shape {tuple(y.shape)}; expected [sample, token, feature]"
        )
    real = torch.ones(y.shape[:2], dtype=torch.bool) if view.mask is None else view.mask
    tokens = [row.nonzero()[:, 0].tolist() for row in real]
    shortest = min(len(places) for places in tokens)
    if real.shape != y.shape[:2] or not -shortest <= position < shortest:
        raise MethodError(
            f"position {position} was asked of outputs of shape {tuple(y.shape)}, whose shortest sample has {shortest} tokens"
        )
    return y[torch.arange(len(y)), [places[position] for places in tokens]]


def _real(tensor: Tensor, mask: Tensor | None, n: int) -> Tensor:
    """bool [entry]: which flattened entries of a sample are those of its own tokens."""
    one = torch.ones(tensor.shape[1:], dtype=torch.bool, device=tensor.device)
    if mask is not None and tensor.ndim == 3 and tensor.shape[:2] == mask.shape:
        one &= mask[n].to(tensor.device)[:, None]
    return one.flatten()


def _error(jacobian: Tensor, x: Tensor, y: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(y)
    error: Tensor = torch.linalg.vector_norm(jacobian @ x - y) / torch.where(norm > 0, norm, 1.0)
    return error


def _result(
    maps: list[_Map], scatter: Tensor | None, widths: set[int], config: Config
) -> tuple[Result, Arrays]:
    values, errors = [found.values for found in maps], torch.stack([found.error for found in maps])
    k = min(config.components, min(len(v) for v in values))
    top = torch.stack([v[:k] for v in values])
    squares = [v.square() / v.square().sum() for v in values]
    ranks = torch.stack([torch.exp(-torch.special.xlogy(s, s).sum()) for s in squares])
    volume = torch.stack([torch.log(v.clamp(min=config.epsilon)).sum() for v in values])
    share = torch.stack([s[:k].sum() for s in squares])
    good = ranks.isfinite()
    width = max(widths)
    directions = torch.full((k, width), float("nan"), dtype=torch.float64)
    common = None
    if scatter is not None and float(scatter.diagonal().sum()) > 0:
        found, vectors = torch.linalg.eigh(scatter)
        directions = vectors.T.flip(0)[:k]
        common = float(found.flip(0)[:k].sum() / found.sum())
    arrays = {
        "singular_value": top,
        "effective_rank": ranks,
        "log_volume": volume,
        "reconstruction_error": errors,
        "input_direction": directions,
    }
    some = bool(good.any())
    result = Result(
        n_samples=len(values),
        n_outputs=max(found.n_outputs for found in maps),
        n_inputs=width,
        largest=float(top[:, 0].mean()) if some else None,
        effective_rank=float(ranks[good].mean()) if some else None,
        effective_rank_low=float(ranks[good].min()) if some else None,
        effective_rank_high=float(ranks[good].max()) if some else None,
        top_share=float(share[good].mean()) if some else None,
        log_volume=float(volume.mean()),
        reconstruction_error=float(errors.median()),
        common_share=common,
        common_null=None if common is None else min(1.0, k / width),
        caveats=_caveats(errors, config),
    )
    return result, {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}


def _caveats(errors: Tensor, config: Config) -> tuple[str, ...]:
    if config.detached and float(errors.median()) > 1e-3:
        return (
            "the detached Jacobian does not give the output back: the network has biases, or parts that are not held constant",
        )
    return ()
