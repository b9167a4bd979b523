"""The strangest samples of a detector as tables: scores, p-values, and texts with each token's score as its background."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from tasks.figures import cut, short
from tasks.numerics.score_maps import image_scores
from tasks.strange_illustrations import Piece, Strange, StrangeSamples, notes_of, opacity, patch_map
from tasks.tables import Cell, Mark, Table, short_site

LOUDEST = 3
"""Strangest tokens of a text that are written out."""


def strange_tables(strange: Sequence[StrangeSamples]) -> Iterator[Table]:
    """The strangest samples of each stage: scores, p-values, and texts with each token's score as its background."""
    for found in strange:
        title = f"Strangest samples ({found.stage}, {short_site(found.site)})"
        columns = _columns(found)
        headings = (("Sample", ""), *((heading, meaning) for heading, meaning, _ in columns))
        rows = tuple(
            (Cell(sample.shown.key, numeric=False), *(cells[n] for _, _, cells in columns))
            for n, sample in enumerate(found.samples)
        )
        yield Table(title, headings, rows, tuple(notes_of(found)))


Column = tuple[str, str, list[Cell]]


def _columns(found: StrangeSamples) -> list[Column]:
    """Heading, meaning and cells of what is known of the samples."""
    samples = found.samples
    columns: list[Column] = []
    if found.label:
        columns.append(
            (found.label, "label of the sample", [Cell(s.label or "–", numeric=False) for s in samples])
        )
    columns.append(
        ("Score", "of the sample, or of its strangest row", [Cell(short(s.score)) for s in samples])
    )
    if any(s.p is not None for s in samples):
        meaning = "share of normal rows that score as high, with one more counted"
        columns.append(("p", meaning, [Cell("–" if s.p is None else f"{s.p:.2g}") for s in samples]))
    if any(s.patches is not None for s in samples):
        meaning = "mean of the largest 1 % of its map, enlarged and blurred"
        columns.append(("Image", meaning, [Cell(_image_score(s)) for s in samples]))
    if any(s.pieces or s.shown.text for s in samples):
        columns.append(("Text", "", [_text(s, found.scale) for s in samples]))
    if any(s.pieces for s in samples):
        columns.append(
            ("Strangest tokens", "with their scores", [Cell(_loudest(s), numeric=False) for s in samples])
        )
    return columns


def _image_score(sample: Strange) -> str:
    made = patch_map(sample)
    return "–" if made is None else short(float(image_scores(torch.from_numpy(made)[None])[0]))


def _text(sample: Strange, scale: tuple[float, float]) -> Cell:
    if not sample.pieces:
        return Cell(sample.shown.text or "–", numeric=False)
    marks = tuple(
        Mark(p.text, None if p.score is None else float(opacity(np.array(p.score), scale)), _tip(p))
        for p in sample.pieces
    )
    return Cell("".join(p.text for p in sample.pieces), numeric=False, marks=marks)


def _tip(piece: Piece) -> str:
    return "" if piece.score is None else f"score {short(piece.score)}"


def _loudest(sample: Strange) -> str:
    scored = sorted((p for p in sample.pieces if p.score is not None), key=lambda p: -(p.score or 0.0))
    return ", ".join(f"{cut(p.text.strip(), 16)} {short(p.score or 0.0)}" for p in scored[:LOUDEST]) or "–"
