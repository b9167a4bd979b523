"""The strangest samples of each detector, read for a page: names, texts with a score for each token, images with one for each patch."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from schemas.artifact import Artifact
from schemas.errors import SubspanError
from schemas.layout import Space
from schemas.model import Model
from tasks.anomaly_rows import Scored, rows_between, scored_rows, scores_of, shown_stages, unpooled
from tasks.cluster_rows import Indices, sample_values, shown, site_layout
from tasks.figures import Vector
from tasks.measures import StageArtifact
from tasks.page import CaptureData
from tasks.sample_map import classes_of, label_of
from tasks.store.location import Location
from tasks.store.sealed import open_group
from tasks.strange_illustrations import Piece, Strange, StrangeSamples

MOST_SAMPLES = 8
MOST_TOKENS = 96
"""Of a text, about its strangest token."""
BEFORE_PATCHES = (0, 1, 5)
"""Places of a sequence before its patches: none, a class token, or one and four registers."""
SCALE = (0.5, 0.999)
"""Shares of rows below the scores at which colours begin and end."""


def strange_samples(
    root: Location, artifacts: Sequence[StageArtifact], captures: Sequence[CaptureData], color_by: str | None
) -> Iterator[StrangeSamples]:
    """Of one site of each detector, or of what calibrated it.

    Raises:
        NotFoundError, DamageError: if scores, or names of samples, are gone or changed.
    """
    known = {capture.id: capture for capture in captures}
    for made, n_sites in shown_stages(artifacts):
        members = [known[capture] for capture in made.captures if capture in known]
        if len(members) == len(made.captures) and all(site_layout(m, made.site) for m in members):
            yield _of_stage(root, made, members, n_sites, color_by)


def _of_stage(
    root: Location, made: StageArtifact, members: Sequence[CaptureData], n_sites: int, color_by: str | None
) -> StrangeSamples:
    scores, calibration = scores_of(root, made)
    rows = scored_rows(root, scores, None if calibration is None else made.artifact)
    own = unpooled(root, scores)
    best, places = _strangest(root, rows, members, made.site)
    label = label_of(open_group(root, members[0].id), color_by)
    samples: dict[int, Strange] = {}
    for number, capture in enumerate(members):
        mine = {n: sample for n, (member, sample) in enumerate(places) if member == number}
        first = sum(_space(m, made.site).n_rows for m in members[:number])
        if mine:
            samples |= _of_capture(root, capture, made.site, own, first, mine, label)
    found = tuple(
        samples[n]._replace(
            score=float(rows.score[row]),
            p=None if rows.p is None or np.isnan(rows.p[row]) else float(rows.p[row]),
        )
        for n, row in enumerate(best)
    )
    of_rows = rows if own.id == scores.id else scored_rows(root, own)
    finite = of_rows.score[np.isfinite(of_rows.score)]
    low, high = np.quantile(finite, SCALE) if len(finite) else (0.0, 1.0)
    return StrangeSamples(
        made.stage,
        made.site,
        found,
        label or "",
        (float(low), float(high)),
        rows.n_rows,
        rows.n_read,
        n_sites,
    )


def _space(capture: CaptureData, site: str) -> Space:
    layout = site_layout(capture, site)
    assert layout is not None  # looked at before
    return capture.spec.layout.space(layout.space)


def _strangest(
    root: Location, rows: Scored, members: Sequence[CaptureData], site: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """The strangest row of each of the strangest samples, among those read, and the capture and sample of each."""
    order = np.argsort(-rows.score, kind="stable") if rows.p is None else np.lexsort((-rows.score, rows.p))
    row, n_samples = rows.row[order], 0
    of_row, member = np.zeros(len(row), dtype=np.int64), np.zeros(len(row), dtype=np.int64)
    first = 0
    for number, capture in enumerate(members):
        space = _space(capture, site)
        here = (row >= first) & (row < first + space.n_rows)
        of_row[here] = (
            np.searchsorted(_starts(root, capture, space), row[here] - first, side="right") - 1 + n_samples
        )
        member[here] = number
        first, n_samples = first + space.n_rows, n_samples + capture.spec.layout.n_samples
    _, at = np.unique(of_row, return_index=True)
    at = np.sort(at)[:MOST_SAMPLES]
    begins = np.cumsum([0, *(capture.spec.layout.n_samples for capture in members)])
    places = [(int(m), int(s - begins[m])) for m, s in zip(member[at], of_row[at], strict=True)]
    return order[at].tolist(), places


def _starts(root: Location, capture: CaptureData, space: Space) -> Indices:
    group: Any = open_group(root, capture.id)
    return np.asarray(group[f"samples/row_start/{space.name}"][:])


def _of_capture(
    root: Location,
    capture: CaptureData,
    site: str,
    scores: Artifact,
    first: int,
    wanted: dict[int, int],
    label: str | None,
) -> dict[int, Strange]:
    """Some samples of a capture, by their place among the strangest, still without their own score.

    Args:
        root: where captures lie.
        capture: of them.
        site: that was scored.
        scores: what holds the scores of rows.
        first: the capture's first row over all captures.
        wanted: place among the strangest to sample.
        label: shown beside.
    """
    values, space = sample_values(root, capture, list(wanted.values())), _space(capture, site)
    named = _classes(root, capture, label, list(wanted.values()))
    starts = _starts(root, capture, space)
    found = {}
    for (place, sample), name in zip(wanted.items(), named, strict=True):
        key, value = values[sample]
        a, b = int(starts[sample]), int(starts[sample + 1])
        own = rows_between(root, scores, first + a, first + b)
        position, token = (_column(root, capture, space, each, a, b) for each in ("position", "token_id"))
        several = int(np.isfinite(own).sum()) > 1  # else it is the sample's
        pieces = _pieces(capture, value, position, token, own) if isinstance(value, str) and several else ()
        patches = patch_grid(space.name, position, own) if several else None
        found[place] = Strange(shown(key, value), 0.0, None, name, pieces, patches)
    return found


def _classes(root: Location, capture: CaptureData, label: str | None, samples: Sequence[int]) -> list[str]:
    """Name of each sample's class; empty for none."""
    group: Any = open_group(root, capture.id)
    if label is None or label not in group["samples/labels"]:
        return [""] * len(samples)
    names, codes = classes_of(group, label, np.asarray(samples, dtype=np.int64))
    return [names[code] if code >= 0 else "" for code in codes]


def _column(root: Location, capture: CaptureData, space: Space, name: str, start: int, stop: int) -> Indices:
    group: Any = open_group(root, capture.id)
    return np.asarray(group[f"rows/{space.name}/{name}"][start:stop], dtype=np.int64)


def _pieces(
    capture: CaptureData, text: str, position: Indices, token: Indices, score: Vector
) -> tuple[Piece, ...]:
    """The text about its strangest token; none where tokens cannot be told again."""
    model: Model = capture.spec.request.model
    try:
        from tasks.extract.tokens import spans

        return text_pieces(text, spans(model, text), position, token, score)
    except (SubspanError, OSError, ImportError):
        return ()


def text_pieces(
    text: str, spans: Sequence[tuple[int, int, int]], position: Indices, token: Indices, score: Vector
) -> tuple[Piece, ...]:
    """A text cut into its tokens and what lies between them, about the strangest one.

    Args:
        text: whole.
        spans: id, first letter and one past the last of each token.
        position: [row], of its token in the text.
        token: [row], its id; a row whose token is another one now is left out.
        score: [row]
    """
    known = {
        int(at): float(s)
        for at, t, s in zip(position, token, score, strict=True)
        if at < len(spans) and spans[at][0] == t and spans[at][2] > spans[at][1] and np.isfinite(s)
    }
    if not known:
        return ()
    top = max(known, key=lambda at: known[at])
    low = max(0, min(top - MOST_TOKENS // 2, len(spans) - MOST_TOKENS))
    some = [n for n in range(low, min(low + MOST_TOKENS, len(spans))) if spans[n][2] > spans[n][1]]
    cursor = spans[some[0]][1] if low else 0
    pieces = [Piece("… ")] if cursor else []
    for n in some:
        _, a, b = spans[n]
        pieces += [Piece(text[cursor:a])] if a > cursor else []
        pieces.append(Piece(text[max(a, cursor) : b], known.get(n)))
        cursor = max(b, cursor)
    return (*pieces, Piece(" …")) if text[cursor:].strip() else tuple(pieces)


def patch_grid(space: str, position: Indices, score: Vector) -> Vector | None:
    """[row, column]: scores at their places; NaN for places without a row; None where rows are no places of an image.

    A sequence is a grid where all its places, those after the first, or those after the first five make a square.
    """
    shape, before = _shape(space)
    if shape is None:
        return None
    found = np.full(shape, np.nan)
    here = (position >= before) & (position < before + found.size)
    found.flat[position[here] - before] = score[here]
    return found if np.isfinite(found).any() else None


def _shape(space: str) -> tuple[tuple[int, int] | None, int]:
    """Rows and columns of a row space, and the places before them."""
    if grid := re.fullmatch(r"grid(\d+)x(\d+)", space):
        return (int(grid[1]), int(grid[2])), 0
    sequence = re.fullmatch(r"seq(\d+)", space)
    for before in BEFORE_PATCHES if sequence else ():
        side = math.isqrt(max(0, int(sequence[1]) - before)) if sequence else 0
        if sequence and side > 1 and side * side == int(sequence[1]) - before:
            return (side, side), before
    return None, 0
