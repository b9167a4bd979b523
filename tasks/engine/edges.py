"""A file of edges -> the graph of a stage's samples: ids become indices, of the captures laid end to end. Asked by the plan, and again
of the captures as they are opened."""

import bisect
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from schemas.errors import DataError, MethodError, UnknownNameError, nearest
from schemas.stage import EdgesRef
from tasks.methods.contract import Edges
from tasks.numerics.edge_list import undirected
from tasks.store.edges import Lines, read_edges
from tasks.store.sample_table import SampleTable

Ids = Literal["key", "row"]
DIGITS = 18
"""Of a row's number, at most."""
MOST_KEYS = 10_000
"""Keys that are all looked through for the nearest one; of more, those beside it in alphabetical order."""
SHOWN = 3
"""Ids that a message has."""


class Samples(NamedTuple):
    """The samples of a capture, as a site of it has rows of them."""

    table: SampleTable
    space: str
    """The row space of the site."""
    label: str
    """Capture and site, for messages."""


def sample_edges(ref: EdgesRef, captures: Sequence[Samples]) -> Edges:
    """The graph of a file over the samples of some captures.

    Raises:
        MethodError: if a sample has more rows than one, or none.
        DataError: if the file cannot be read, changed, or joins nothing.
        UnknownNameError: for ids that no sample has.
    """
    import pandas as pd

    for capture in captures:
        _refuse_several_rows(capture)
    lines = read_edges(ref)
    place, names = pd.factorize(np.concatenate([lines.source, lines.target]), use_na_sentinel=False)
    ids = np.array([str(name) for name in names], dtype=object)
    kind, found = _numbered(ref.url, ids, captures)
    source, target = found[place].reshape(2, -1)
    made = undirected(source, target, lines.weight)
    if not len(made.weights):
        raise DataError(
            f"{ref.url} joins nothing: {_lost(lines, made.loops)}; expected edges between two samples"
        )
    ends, weights = torch.from_numpy(made.ends), torch.from_numpy(made.weights)
    return Edges(ends, weights, kind, made.loops, made.repeated, made.weightless)


def _lost(lines: Lines, loops: int) -> str:
    return f"of {len(lines.source)} lines {loops} lead from a sample to itself, the others have weight 0"


def _refuse_several_rows(capture: Samples) -> None:
    rows = np.diff(capture.table.row_start[capture.space])
    if len(rows) and (rows.min() < 1 or rows.max() > 1):
        raise MethodError(
            f"{capture.label} has {rows.min()} to {rows.max()} rows of a sample, a graph of samples needs one of each; pool them in the "
            "capture, such as rows: {pooling: mean}, or choose a site with a vector for each sample"
        )


def _numbered(url: str, ids: np.ndarray, captures: Sequence[Samples]) -> tuple[Ids, np.ndarray]:
    """What ids are, and int64 [id]: the sample of each."""
    import pandas as pd

    keys = pd.Index([key for capture in captures for key in capture.table.keys])
    if keys.has_duplicates:
        twice = keys[keys.duplicated()]
        raise DataError(
            f"{len(twice)} sample keys occur in more than one of {' + '.join(c.label for c in captures)}, such as {str(twice[0])!r}: it is "
            "not clear which sample an edge means; connect captures of different samples, or one alone"
        )
    found = np.asarray(keys.get_indexer(pd.Index(ids)), dtype=np.int64)
    if (found >= 0).all():
        return "key", found
    if (found < 0).all() and all(_is_number(name) for name in ids.tolist()):
        return "row", _of_rows(url, ids, captures)
    unknown = ids[found < 0].tolist()
    raise UnknownNameError(
        f"{len(unknown)} of {len(ids)} ids in {url} are keys of no sample of {' + '.join(c.label for c in captures)}: "
        f"{_named(unknown)}; nearest to the first: {nearest(unknown[0], _around(unknown[0], keys.tolist()))}; name samples by their "
        "keys, or all by rows of the data (from 0), and leave out edges of samples that are not captured"
    )


def _of_rows(url: str, ids: np.ndarray, captures: Sequence[Samples]) -> np.ndarray:
    """Samples by their row in the data, of which a subset may have been drawn."""
    if len(captures) > 1:
        raise UnknownNameError(
            f"{url} names samples by numbers, such as {ids[0]!r}, none of which is a key, and {len(captures)} captures are read: rows "
            f"of the data could be of each; name samples by their keys, such as {captures[0].table.keys[0]!r}"
        )
    table = captures[0].table
    rows = np.arange(len(table.keys)) if table.source_index is None else table.source_index
    order = np.argsort(rows, kind="stable")
    beyond = int(rows.max()) + 1
    asked = np.array([int(name) if len(name) <= DIGITS else beyond for name in ids.tolist()], dtype=np.int64)
    place = np.minimum(np.searchsorted(rows[order], asked), len(rows) - 1)
    unknown = ids[rows[order][place] != asked].tolist()
    if unknown:
        cure = (
            "count from 0"
            if asked.max() >= beyond
            else "leave out edges of samples that were not drawn from the data"
        )
        raise UnknownNameError(
            f"{len(unknown)} of {len(ids)} ids in {url} are neither keys nor rows of the data at {captures[0].label}: {_named(unknown)}; "
            f"its {len(rows)} samples are rows {rows.min()} to {rows.max()} and have keys such as {table.keys[0]!r}; {cure}, or use keys"
        )
    return np.asarray(order[place], dtype=np.int64)


def _around(name: str, keys: list[str]) -> list[str]:
    if len(keys) <= MOST_KEYS:
        return keys
    ordered = sorted(keys)
    at = bisect.bisect(ordered, name)
    return ordered[max(0, at - MOST_KEYS // 2) : at + MOST_KEYS // 2]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN]))
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
