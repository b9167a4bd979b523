"""Codebooks of the parts of rows by k-means: states of a round that are merged by adding, and starts on a sample.

A state holds for each part and vector

    n       int64 [part, code]               rows that are nearest to it
    s       float64 [part, code, place]      their sum
    error   float64 [part]                   squared distances from the nearest vectors, summed
    second  float64 [part]                   squared lengths, summed
    key     float64 [part, anchor]           ascending; infinite in a free place
    anchor  float64 [part, anchor, place]    rows drawn with chances in proportion to their squared distance, those of least key

A vector that is nearest to no row (dead) goes to an anchor: a row, so that it is near to some from then on. No vector that has rows is
touched by this, so that the sum of squared distances never rises from round to round. Anchors are drawn by races (Efraimidis, Spirakis,
Information Processing Letters 97 (2006) 181) with numbers that are hashed of what rows are called: the draw of two parts of the rows is
that of the whole.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tasks.numerics import row_sample, spectrum, vector_codes
from tasks.numerics.vector_codes import Centres, Parts

State = dict[str, Tensor]
Rotation = Literal["none", "principal", "opq"]
SAMPLE_ROUNDS = 25
"""Rounds of k-means on the sample, at most; those of OPQ, which turns rows once more after each."""


class Moved(NamedTuple):
    """Codebooks after a round."""

    centre: Centres
    """float32 numbers, as they are stored."""
    revived: int
    """Dead vectors that were put at a row."""


def partial(parts: Parts, index: Int64[Tensor, " row"], centre: Centres, anchors: int) -> State:
    """The state of some rows.

    Args:
        parts: of the rows.
        index: what rows are called.
        centre: what they are measured against.
        anchors: rows to draw for each part.

    Cost: 2 row part code place flops.
    """
    code = vector_codes.nearest(parts, centre)
    off = (parts - vector_codes.chosen(code, centre)).square().sum(2)
    n_parts, n_codes, place = centre.shape
    flat = (code + n_codes * torch.arange(n_parts, device=code.device)).flatten()
    sums = parts.new_zeros(n_parts * n_codes, place).index_add_(0, flat, parts.flatten(0, 1))
    named = index[:, None] * n_parts + torch.arange(n_parts, device=index.device)
    key = -torch.log(row_sample.numbers(named)) / off
    return {
        "n": torch.bincount(flat, minlength=n_parts * n_codes).reshape(n_parts, n_codes),
        "s": sums.reshape(centre.shape),
        "error": off.sum(0),
        "second": parts.square().sum((0, 2)),
    } | _drawn(key.T, parts.transpose(0, 1), anchors)


def merge(a: State, b: State) -> State:
    """The state of both sets of rows."""
    key, anchor = (torch.cat([a[name], b[name]], 1) for name in ("key", "anchor"))
    return {name: a[name] + b[name] for name in ("n", "s", "error", "second")} | _drawn(
        key, anchor, a["key"].shape[1]
    )


def moved(state: State, centre: Centres) -> Moved:
    """Vectors at the means of their rows, dead ones at anchors while there are any."""
    used = (state["n"] > 0)[..., None]
    found = torch.where(used, state["s"] / state["n"].clamp(min=1)[..., None], centre)
    revived = 0
    for m in torch.nonzero((state["n"] == 0).any(1)).flatten().tolist():
        dead = torch.nonzero(state["n"][m] == 0).flatten()
        rows = state["anchor"][m][state["key"][m].isfinite()][: len(dead)]
        found[m, dead[: len(rows)]] = rows
        revived += len(rows)
    return Moved(found.float().double(), revived)


def spread(state: State) -> float:
    """Squared distances of rows from their mean, summed."""
    total, n = state["s"].sum(1), int(state["n"][0].sum())
    return max(0.0, float(state["second"].sum() - total.square().sum() / max(1, n)))


def lloyd(parts: Parts, centre: Centres, rounds: int, tolerance: float = 0.0) -> Centres:
    """k-means on rows in memory until a round lowers the sum of squared distances by no more than a share of it."""
    index, errors = torch.arange(len(parts), device=parts.device), []
    for _ in range(rounds):
        state = partial(parts, index, centre, centre.shape[1])
        centre, revived = moved(state, centre)
        errors.append(float(state["error"].sum()))
        if not revived and len(errors) > 1 and errors[-2] - errors[-1] <= tolerance * errors[-2]:
            break
    return centre


def begun(
    sample: Float64[Tensor, "row feature"],
    place: int,
    codes: int,
    rotation: Rotation,
    seed: int,
    tolerance: float,
) -> tuple[Centres, Float64[Tensor, "component feature"]]:
    """Codebooks and rotation on a sample.

    Args:
        sample: rows about their mean, at least as many as there are codes.
        place: features of a part.
        codes: vectors of a part.
        rotation: `principal`: along principal directions, dealt out so that parts have variances of about equal product; `opq`: turned
            further, after each round of k-means, to where the decoded rows are nearest (Ge, He, Ke, Sun, 2013).
        seed: of the rows that vectors start at.
        tolerance: share of the squared distances that a round must save to go on.

    Cost: for each round 2 row feature codes flops, and O(feature^3) for `opq`.
    """
    width = sample.shape[1]
    n_parts = -(-width // place)
    turn = sample.new_zeros(0, width) if rotation == "none" else _dealt(sample, place)
    drawn = torch.randperm(len(sample), generator=torch.Generator().manual_seed(seed))[:codes]
    shape = sample.new_zeros(n_parts, codes, place)
    turned = sample @ turn.T if len(turn) else sample
    parts = vector_codes.cut(turned, shape)
    centre = parts[drawn.to(parts.device)].transpose(0, 1).float().double()
    if rotation == "opq":
        centre, turn = _procrustes(sample, centre, turn)
        parts = vector_codes.cut(sample @ turn.T, shape)
    return lloyd(parts, centre, SAMPLE_ROUNDS, tolerance), turn


def _procrustes(sample: Tensor, centre: Centres, turn: Tensor) -> tuple[Centres, Tensor]:
    """Rounds of k-means, each followed by the rotation that brings rows nearest to their decoded ones."""
    index = torch.arange(len(sample), device=sample.device)
    for _ in range(SAMPLE_ROUNDS):
        parts = vector_codes.cut(sample @ turn.T, centre)
        centre = moved(partial(parts, index, centre, centre.shape[1]), centre).centre
        told = vector_codes.chosen(vector_codes.nearest(parts, centre), centre).flatten(1)
        left, _, right = torch.linalg.svd(sample.T @ told[:, : sample.shape[1]])
        turn = (left @ right).T.float().double()
    return centre, turn


def _dealt(sample: Tensor, place: int) -> Tensor:
    """Principal directions, the next always to the part with room whose product of variances is least."""
    width = sample.shape[1]
    found = spectrum.eigen(sample.T @ sample / max(1, len(sample)))
    logs = found.values.clamp(min=1e-12 * max(float(found.values[0]), 1e-300)).log2()
    logs = logs - logs[-1]  # not negative: a part with more directions has no smaller product
    n_parts = -(-width // place)
    room = [min(place, width - m * place) for m in range(n_parts)]
    held: list[list[int]] = [[] for _ in room]
    total = [0.0] * n_parts
    for direction, size in enumerate(logs.tolist()):
        open_parts = [m for m in range(n_parts) if len(held[m]) < room[m]]
        m = min(open_parts, key=lambda part: (total[part], len(held[part]), part))
        held[m].append(direction)
        total[m] += size
    return found.vectors[[direction for part in held for direction in part]].float().double()


def _drawn(key: Tensor, anchor: Tensor, places: int) -> State:
    """The least keys of each part with their rows; zeros in free places."""
    parts, _, place = anchor.shape
    key = torch.cat([torch.where(key.isnan(), torch.inf, key), key.new_full((parts, places), torch.inf)], 1)
    anchor = torch.cat([anchor, anchor.new_zeros(parts, places, place)], 1)
    order = torch.argsort(key, dim=1, stable=True)[:, :places]
    least = key.gather(1, order)
    rows = anchor.gather(1, order[..., None].expand(-1, -1, place))
    return {"key": least, "anchor": torch.where(least.isfinite()[..., None], rows, 0.0)}
